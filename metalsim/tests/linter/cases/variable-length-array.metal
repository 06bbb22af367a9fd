// accepts
constant constexpr int SIZE = 4;
template <int N>
int last(int x) {
  int list[N] = {};
  list[N - 1] = x;
  return list[N - 1];
}
kernel void accepted(device int* out) { out[0] = last<2 * SIZE>(out[0]); }

// refuses
kernel void refused(device int* out) {
  int size = out[0];
  int list[size];  // refused
  out[0] = list[0];
}
