// Carries out a program: at each step a thread makes one access, then simdgroups or all wait.
#include <metal_stdlib>
using namespace metal;

constant constexpr mem_flags both = mem_flags::mem_device | mem_flags::mem_threadgroup;

static void wait(int barrier, uint simdgroup) {
  if (barrier >> 8 && !(barrier >> 8 & 1 << simdgroup)) return;
  switch (barrier & 255) {
    case 1:
      return threadgroup_barrier(mem_flags::mem_none);
    case 2:
      return threadgroup_barrier(mem_flags::mem_device);
    case 3:
      return threadgroup_barrier(mem_flags::mem_threadgroup);
    case 4:
      return threadgroup_barrier(both);
    case 5:
      return simdgroup_barrier(mem_flags::mem_none);
    case 6:
      return simdgroup_barrier(mem_flags::mem_device);
    case 7:
      return simdgroup_barrier(mem_flags::mem_threadgroup);
    case 8:
      return simdgroup_barrier(both);
  }
}

kernel void interpret(device const int* barriers, device const int* actions, constant int& steps,
                      device int* in_device, device int* out,
                      uint i [[thread_position_in_threadgroup]],
                      uint group [[threadgroup_position_in_grid]],
                      uint size [[threads_per_threadgroup]],
                      uint simdgroup [[simdgroup_index_in_threadgroup]]) {
  threadgroup int in_threadgroup[2];
  const uint self = group * size + i;
  int seen = 0;
  for (int step = 0; step < steps; ++step) {
    const int action = actions[step * 256 + self], at = action >> 8;
    switch (action & 255) {
      case 1:
        seen += in_threadgroup[at];
        break;
      case 2:
        in_threadgroup[at] = step;
        break;
      case 3:
        atomic_fetch_add_explicit((threadgroup atomic_int*)in_threadgroup + at, 1,
                                  memory_order_relaxed);
        break;
      case 4:
        seen += atomic_load_explicit((threadgroup atomic_int*)in_threadgroup + at,
                                     memory_order_relaxed);
        break;
      case 5:
        seen += in_device[at];
        break;
      case 6:
        in_device[at] = step;
        break;
      case 7:
        atomic_fetch_add_explicit((device atomic_int*)in_device + at, 1, memory_order_relaxed);
        break;
      case 8:
        seen += atomic_load_explicit((device atomic_int*)in_device + at, memory_order_relaxed);
        break;
    }
    wait(barriers[step], simdgroup);
  }
  out[self] = seen;
}
