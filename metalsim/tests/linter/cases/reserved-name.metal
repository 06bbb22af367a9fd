// accepts
#define OWN_MACRO 1
#if __METAL_VERSION__ >= 310 && __has_include(<metal_stdlib>)
kernel void accepted(device int* out) {
  const int x_ = __builtin_popcount(7), _x = OWN_MACRO;
  out[0] = x_ + _x + int(__metal_get_thread_index_in_simdgroup(ushort()));
}
#endif

// refuses
#define __private_macro 1                               // refused
inline int __helper(int x) { return __private_macro; }  // refused
struct _Reserved {                                      // refused
  int main;
};
kernel void main(device int* out) { out[0] = 1; }  // refused
