// accepts
struct Counter {
  static int next(int x) { return x + 1; }
};
kernel void accepted(device int* out) {
  constexpr int step = 2;
  out[0] = Counter::next(step);
}

// refuses
kernel void refused(device int* out) {
  static int counter = 0;  // refused
  out[0] = ++counter;
}
