// accepts
struct Twice {
  int operator()(int x) const thread { return 2 * x; }
};
template <typename Operation>
int apply(thread Operation& operation, int x) {
  return operation(x);
}
kernel void accepted(device int* out) {
  Twice twice;
  out[0] = apply(twice, out[0]);
}

// refuses
inline int twice(int x) { return 2 * x; }
kernel void refused(device int* out) {
  int (*operation)(int) = twice;  // refused
  out[0] = operation(out[0]);
}
