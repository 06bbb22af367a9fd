// accepts for 4.0
[[max_total_threads_per_threadgroup(1024)]] kernel void most(device int* out) { out[0] = 1; }
[[required_threads_per_threadgroup(32, 8, 4)]] kernel void exact(device int* out) { out[0] = 1; }

// refuses for 4.0
[[max_total_threads_per_threadgroup(2048)]]  // refused
kernel void
many(device int* out) {
  out[0] = 1;
}
[[required_threads_per_threadgroup(32, 8, 5)]]  // refused
kernel void
exactly(device int* out) {
  out[0] = 1;
}
[[kernel, max_total_threads_per_threadgroup(0)]]  // refused
void none(device int* out) {
  out[0] = 1;
}
