// accepts
kernel void accepted(device bfloat* out, device atomic_float* sum) {
  out[0] = bfloat(1.0f) + 2.0bf;
  atomic_fetch_add_explicit(sum, 1.0f, memory_order_relaxed);
}

// accepts for 4.0
#include <metal_tensor>
#if __METAL_VERSION__ >= 400 && __has_include(<metal_tensor>)
[[required_threads_per_threadgroup(32)]] kernel void accepted(device half* data) {
  auto line = tensor(data, dextents<int, 1>(32));
  data[0] = half(line.get_extent(0));
  atomic_thread_fence(mem_flags::mem_device, memory_order_seq_cst, thread_scope_device);
}
#endif

// accepts
#if __has_include(<metal_tensor>)
#include <metal_tensor>
#endif
kernel void accepted(device half* data) { data[0] = 1; }

// refuses for 3.0
kernel void refused(device bfloat* out) {  // refused
  out[0] = 2.0bf;                          // refused
}

// refuses
[[required_threads_per_threadgroup(32)]]  // refused
kernel void
refused(device half* data) {
  atomic_thread_fence(mem_flags::mem_device,  // refused
                      memory_order_seq_cst);
}

// refuses
#include <metal_tensor>  // refused
kernel void refused(device half* data) { data[0] = 1; }
