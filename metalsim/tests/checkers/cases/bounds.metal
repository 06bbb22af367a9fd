// Accesses outside their memory, and accesses that only look it. How to read the marks:
// test_cases.py.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// finds read_past_the_end --buffers ones:float32:64 zeros:float32:64 --threads 64
// clean read_past_the_end --buffers ones:float32:64 zeros:float32:64 --threads 63
kernel void read_past_the_end(device const float* x, device float* out,
                              uint i [[thread_position_in_grid]]) {
  out[i] = x[i + 1];  // bounds read
}

// finds write_past_the_end --buffers zeros:float32:33 --threads 64
kernel void write_past_the_end(device float* out, uint i [[thread_position_in_grid]]) {
  out[i] = 1;  // bounds write
}

// finds in_front --buffers zeros:float32:64 --threads 64
kernel void in_front(device float* out, uint i [[thread_position_in_grid]]) {
  out[int(i) - 1] = 1;  // bounds write
}

// finds far_away --buffers zeros:float32:4 zeros:float32:1 --threads 1
kernel void far_away(device const float* x, device float* out) {
  out[0] = x[1u << 30];  // bounds read
}

// finds from_constant --buffers ones:float32:4 zeros:float32:8 --threads 8
kernel void from_constant(constant float* x, device float* out,
                          uint i [[thread_position_in_grid]]) {
  out[i] = x[i];  // bounds read
}

// clean with_a_guard --buffers ones:float32:50 zeros:float32:50 50 --threads 64
// finds with_a_guard --buffers ones:float32:50 zeros:float32:51 51 --threads 64
kernel void with_a_guard(device const float* x, device float* out, constant int& count,
                         uint i [[thread_position_in_grid]]) {
  if (int(i) < count) {
    out[i] = x[i];  // bounds read
  }
}

// A compiler may want to load both sides of a choice: the one not chosen is no access.
// clean chosen --buffers ones:float32:50 zeros:float32:64 --threads 64
kernel void chosen(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
  float left = i > 0 && i < 50 ? x[i - 1] : 0.0f;
  float right = i < 49 ? x[i + 1] : left;
  out[i] = left + right;
}

// finds vector_over_the_end --buffers ones:float32:6 zeros:float32:8 --threads 2
kernel void vector_over_the_end(device const float4* x, device float4* out,
                                uint i [[thread_position_in_grid]]) {
  out[i] = x[i];  // bounds read
}

// finds word_over_the_end --buffers zeros:uint8:7 --threads 2
kernel void word_over_the_end(device uint* x, uint i [[thread_position_in_grid]]) {
  x[i] = 1;  // bounds write
}

// finds threadgroup_array --buffers zeros:float32:64 --threads 33 --group 33
// clean threadgroup_array --buffers zeros:float32:64 --threads 32 --group 32
kernel void threadgroup_array(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[i] = i;  // bounds write
  out[i] = i;
}

// Two arrays lie one behind the other on a GPU: the second takes the damage.
// finds into_the_next_array --buffers zeros:float32:64 --threads 64 --group 64
kernel void into_the_next_array(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float first[32];
  threadgroup float second[32];
  if (i < 32) second[i] = 2;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  first[i] = 1;  // bounds write
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = first[i % 32] + second[i % 32];
}

// finds private_array --buffers arange:int32:8 zeros:float32:8 --threads 8
kernel void private_array(device const int* index, device float* out,
                          uint i [[thread_position_in_grid]]) {
  float table[4];
  for (int at = 0; at < 4; ++at) table[at] = at;
  out[i] = table[index[i]];  // bounds read
}

// finds private_array_written --buffers arange:int32:5 zeros:float32:8 --threads 5
kernel void private_array_written(device const int* index, device float* out,
                                  uint i [[thread_position_in_grid]]) {
  float table[4] = {0, 0, 0, 0};
  table[index[i]] = 1;  // bounds write
  out[i] = table[0] + table[1] + table[2] + table[3];
}

// An index far away ends the thread; what it meets there is another thread's.
// finds private_array_far --buffers 100000 zeros:float32:8 --threads 8
kernel void private_array_far(constant int& index, device float* out,
                              uint i [[thread_position_in_grid]]) {
  float table[4] = {};
  table[index] = 1;  // bounds write
  out[i] = table[0];
}

// finds private_rows --buffers 3 zeros:float32:4 --threads 4
// clean private_rows --buffers 2 zeros:float32:4 --threads 4
kernel void private_rows(constant int& row, device float* out, uint i [[thread_position_in_grid]]) {
  float rows[3][4] = {{1, 2, 3, 4}, {5, 6, 7, 8}, {9}}, last[2] = {};
  last[1] = rows[row][i];  // bounds read
  out[i] = last[1];
}

// finds by_pointer --buffers 4 zeros:float32:4 --threads 4
// clean by_pointer --buffers 3 zeros:float32:4 --threads 4
template <int N>
static float sum_of(thread const float* values, int last) {
  float sum[1] = {};
  for (int at = 0; at <= last; ++at) sum[0] += values[at];  // bounds read
  return sum[0] / N;
}
kernel void by_pointer(constant int& last, device float* out, uint i [[thread_position_in_grid]]) {
  thread float values[4];
  for (int at = 0; at < 4; ++at) values[at] = i;
  out[i] = sum_of<4>(values, last);
}

// clean private_array_within --buffers arange:int32:4 zeros:float32:4 --threads 4
kernel void private_array_within(device const int* index, device float* out,
                                 uint i [[thread_position_in_grid]]) {
  float table[4];
  for (int at = 0; at < 4; ++at) table[at] = at;
  out[i] = table[index[i]];
}

// finds matrix_over_the_end --buffers ones:float32:60 zeros:float32:64 --threads 32
kernel void matrix_over_the_end(device const float* x, device float* out) {
  simdgroup_float8x8 tile;
  simdgroup_load(tile, x, 8);  // bounds read
  simdgroup_store(tile, out, 8);
}

// clean matrix_that_fits --buffers ones:float32:64 zeros:float32:64 --threads 32
kernel void matrix_that_fits(device const float* x, device float* out) {
  simdgroup_float8x8 tile;
  simdgroup_load(tile, x, 8);
  simdgroup_store(tile, out, 8);
}

// finds atomic_past_the_end --buffers zeros:uint32:8 --threads 32
kernel void atomic_past_the_end(device atomic_uint* counts, uint i [[thread_position_in_grid]]) {
  atomic_fetch_add_explicit(counts + i / 3, 1u, memory_order_relaxed);  // bounds atomic
}

// finds not_bound --buffers zeros:float32:8 --threads 8
kernel void not_bound(device float* out, device const float* x [[buffer(3)]],
                      uint i [[thread_position_in_grid]]) {
  out[i] = x[i];  // bounds read
}

// clean not_bound_and_not_used --buffers zeros:float32:8 0 --threads 8
kernel void not_bound_and_not_used(device float* out, constant int& wanted,
                                   device const float* x [[buffer(3)]],
                                   uint i [[thread_position_in_grid]]) {
  out[i] = 1;
  if (wanted) out[i] = x[i];
}

// finds in_a_function --buffers ones:float32:8 zeros:float32:8 --threads 8
static float next_of(device const float* x, uint i) {
  return x[i + 1];  // bounds read
}
kernel void in_a_function(device const float* x, device float* out,
                          uint i [[thread_position_in_grid]]) {
  out[i] = next_of(x, i);
}

// The launch goes on after a finding, so that one run shows all of them.
// finds both --buffers ones:float32:8 zeros:float32:8 --threads 9
kernel void both(device const float* x, device float* out, uint i [[thread_position_in_grid]]) {
  float value = x[i];  // bounds read
  out[i] = value;      // bounds write
}
