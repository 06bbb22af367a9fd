// The machine whole: barriers, collectives, matrices, half and divergence, in the C++ that the
// front end emits. Exits 0 when every number is right.
#include <metalsim/shim.h>

using namespace metal;

METALSIM_KERNEL void mixed(METALSIM_DEVICE float* out, METALSIM_CONSTANT uint& rounds, uint t) {
  METALSIM_THREADGROUP_VARIABLE(&mixed, 0, tile, half[64]);
  float total = 0;
  for (uint i = 0; i < rounds; ++i) {
    tile[t] = half(t + i);
    threadgroup_barrier(mem_flags::mem_threadgroup);
    total += simd_sum(float(tile[t ^ 1])) + simd_shuffle_xor(total, ushort(3));
    threadgroup_barrier(mem_flags::mem_threadgroup);
  }
  simdgroup_half8x8 a(half(2.0f));
  simdgroup_float8x8 b = make_filled_simdgroup_matrix<float, 8, 8>(3.0f);
  simdgroup_multiply_accumulate(b, a, b, b);
  out[t] = total + b.thread_elements()[1];
}
METALSIM_ENTRY(0,
               (METALSIM_BUFFER(0), METALSIM_CONSTANT_BUFFER(1),
                METALSIM_BUILTIN(thread_index_in_threadgroup)),
               mixed)

METALSIM_KERNEL void divergent(uint t) {
  if (t < 5) threadgroup_barrier(mem_flags::mem_none);
}
METALSIM_ENTRY(1, (METALSIM_BUILTIN(thread_index_in_threadgroup)), divergent)

extern "C" int printf(const char*, ...);
extern "C" int strcmp(const char*, const char*);

static float out[2 * 64];
static metalsim_launch launch;

static int run(const metalsim_entry& entry, unsigned long seed) {
  launch = {};
  launch.abi_version = METALSIM_ABI_VERSION;
  launch.workers = 1;
  launch.seed = seed;
  launch.threads[0] = launch.group[0] = 64;
  launch.threads[1] = launch.threads[2] = launch.group[1] = launch.group[2] = 1;
  static uint rounds = 3;
  launch.buffers[0] = out;
  launch.buffer_bytes[0] = sizeof out;
  launch.buffers[1] = &rounds;
  launch.buffer_bytes[1] = sizeof rounds;
  return metalsim_run(&entry, &launch);
}

int main() {
  for (unsigned long seed = 0; seed < 4; ++seed) {
    if (run(metalsim_entry_0, seed) != 0) return 1;
    for (int t = 0; t < 64; ++t) {
      float total = 0;
      for (int i = 0; i < 3; ++i) total += float(496 + 1024 * (t / 32) + 32 * i) + total;
      if (out[t] != total + 9.0f) {
        printf("thread %d: %f instead of %f\n", t, out[t], total + 9.0f);
        return 1;
      }
    }
  }
  const int status = run(metalsim_entry_1, 0);
  printf("%s: %s\n", launch.error_kind, launch.error);
  return status != 0 && strcmp(launch.error_kind, "divergence") == 0 ? 0 : 1;
}
