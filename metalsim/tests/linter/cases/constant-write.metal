// accepts
kernel void accepted(constant float* in, device float* out) {
  const float x = in[0];
  float y = x;
  y += 1;
  out[0] = y;
}

// refuses
struct Sizes {
  int rows;
};
kernel void refused(constant Sizes& sizes, const device float* in, device float* out) {
  const float x = in[0];
  sizes.rows = 2;  // refused
  x = 1;           // refused
  in[0] = 2;       // refused
  out[0] = x;
}
