// accepts
kernel void accepted(device float* out) { out[0] = 1.0 + 2.5e3; }

// refuses
kernel void refused(device float* out) {
  double x = 1.0;  // refused
  out[0] = float(x) + 1.0;
  out[1] = double(out[0]);  // refused
}
