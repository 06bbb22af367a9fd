// accepts
inline float sum(float x) { return x; }
inline float sum(float2 x) { return sum(x.x) + sum(x.y); }
inline float sum(float4 x) { return sum(x.xy) + sum(x.zw); }
template <int N>
int factorial() {
  return N * factorial<N - 1>();
}
template <>
int factorial<0>() {
  return 1;
}
kernel void accepted(device float* out) { out[0] = sum(float4(out[0])) + factorial<4>(); }

// refuses
inline int factorial(int n) { return n < 2 ? 1 : n * factorial(n - 1); }  // refused
template <typename T>
bool is_odd(T n);
template <typename T>
bool is_even(T n) {  // refused
  return n == 0 || is_odd(n - 1);
}
template <typename T>
bool is_odd(T n) {  // refused
  return n != 0 && is_even(n - 1);
}
struct Node {
  int value;
  int depth(int left) const thread { return left == 0 ? value : depth(left - 1); }  // refused
};
kernel void refused(device int* out) {
  Node node = {1};
  out[0] = factorial(3) + is_even(4) + node.depth(2);
}
