// Reads of memory that nobody has written. How to read the marks: test_cases.py.
#include <metal_stdlib>
#include <metal_simdgroup_matrix>
using namespace metal;

// finds threadgroup_variable --buffers zeros:float32:32 --threads 32 --group 32
kernel void threadgroup_variable(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  out[i] = shared[i];  // uninitialized read
}

// finds written_in_part --buffers zeros:float32:32 --threads 32 --group 32
kernel void written_in_part(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  if (i < 31) shared[i] = i;
  out[i] = shared[i];  // uninitialized read
}

// clean written --buffers zeros:float32:32 --threads 32 --group 32
kernel void written(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[i] = i;
  out[i] = shared[i];
}

// The second threadgroup finds what the first one left, here and not on a GPU.
// finds by_another_threadgroup --buffers zeros:float32:2 --threads 2 --group 1
kernel void by_another_threadgroup(device float* out, uint group [[threadgroup_position_in_grid]]) {
  threadgroup float shared;
  if (group == 0) shared = 1;
  out[group] = shared;  // uninitialized read
}

// finds edge_of_a_tile --buffers ones:float32:30 zeros:float32:32 30 --threads 32 --group 32
// clean edge_of_a_tile --buffers ones:float32:32 zeros:float32:32 32 --threads 32 --group 32
kernel void edge_of_a_tile(device const float* x, device float* out, constant int& count,
                           uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  if (int(i) < count) shared[i] = x[i];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[31 - i];  // uninitialized read
}

// clean padded_tile --buffers ones:float32:30 zeros:float32:32 30 --threads 32 --group 32
kernel void padded_tile(device const float* x, device float* out, constant int& count,
                        uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  shared[i] = int(i) < count ? x[i] : 0.0f;
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = shared[31 - i];
}

// A compiler may want to read early what is used only sometimes.
// clean read_if_written --buffers zeros:float32:32 20 --threads 32 --group 32
kernel void read_if_written(device float* out, constant int& count,
                            uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[32];
  bool is_written = int(i) < count;
  if (is_written) shared[i] = i;
  float value = is_written ? shared[i] : 1.0f;
  out[i] = value;
}

// finds counter_without_start --buffers zeros:uint32:1 --threads 32 --group 32
kernel void counter_without_start(device uint* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup atomic_uint counter;
  atomic_fetch_add_explicit(&counter, 1u, memory_order_relaxed);  // uninitialized atomic
  threadgroup_barrier(mem_flags::mem_threadgroup);
  if (i == 0) out[0] = atomic_load_explicit(&counter, memory_order_relaxed);
}

// finds matrix_of_nothing --buffers zeros:float32:64 --threads 32 --group 32
kernel void matrix_of_nothing(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float shared[64];
  shared[i] = 1;
  simdgroup_barrier(mem_flags::mem_threadgroup);
  simdgroup_float8x8 tile;
  simdgroup_load(tile, shared, 8);  // uninitialized read
  simdgroup_store(tile, out, 8);
}

// clean padding_of_a_vector --buffers zeros:float32:32 --threads 32 --group 32
kernel void padding_of_a_vector(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup float3 shared[32];
  shared[i] = float3(i);
  float3 value = shared[i];
  out[i] = value.x + value.y + value.z;
}

struct Entry {
  uchar key;
  float value;
};

// clean padding_of_a_struct --buffers zeros:float32:32 --threads 32 --group 32
kernel void padding_of_a_struct(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup Entry from[32];
  threadgroup Entry to[32];
  from[i].key = i;
  from[i].value = i;
  to[i] = from[i];
  out[i] = to[i].key + to[i].value;
}

// finds member_left_out --buffers zeros:float32:32 --threads 32 --group 32
kernel void member_left_out(device float* out, uint i [[thread_position_in_threadgroup]]) {
  threadgroup Entry shared[32];
  shared[i].key = i;
  out[i] = shared[i].value;  // uninitialized read
}

// finds private_array --buffers arange:int32:4 zeros:float32:4 --threads 4
kernel void private_array(device const int* index, device float* out,
                          uint i [[thread_position_in_grid]]) {
  float table[4];
  for (int at = 0; at < 3; ++at) table[(index[at] + 1) % 4] = at;
  out[i] = table[index[i]];  // uninitialized read
}

// Each turn of a loop has an array of its own, and the compiler may not think otherwise.
// finds array_of_a_turn --buffers 1 zeros:float32:4 --threads 4
// clean array_of_a_turn --buffers 0 zeros:float32:4 --threads 4
kernel void array_of_a_turn(constant int& first, device float* out,
                            uint i [[thread_position_in_grid]]) {
  float sum = 0;
  for (int turn = 0; turn < 2; ++turn) {
    float pair[2];
    pair[turn] = i;
    pair[turn ? first : 0] = turn;
    sum += pair[0];  // uninitialized read
  }
  out[i] = sum;
}

// A compiler may want to read early what is used only sometimes.
// clean read_if_set --buffers arange:int32:8 zeros:float32:8 --threads 8
kernel void read_if_set(device const int* x, device float* out,
                        uint i [[thread_position_in_grid]]) {
  float pair[2];
  bool is_set = x[i] > 3;
  if (is_set) pair[1] = x[i];
  out[i] = is_set ? pair[1] : 0.0f;
}

struct Pair {
  float first = 1;
  float second;
};

// clean array_with_initializers --buffers zeros:float32:4 --threads 4
kernel void array_with_initializers(device float* out, uint i [[thread_position_in_grid]]) {
  Pair pairs[4];
  float3 vectors[2] = {float3(1), float3(2)};
  Pair copy = pairs[i];
  out[i] = copy.first + vectors[i / 2].x;
}

// clean private_array_written --buffers arange:int32:4 zeros:float32:4 --threads 4
kernel void private_array_written(device const int* index, device float* out,
                                  uint i [[thread_position_in_grid]]) {
  float table[4];
  for (int at = 0; at < 4; ++at) table[(index[at] + 1) % 4] = at;
  out[i] = table[index[i]];
}

// clean private_array_of_zeros --buffers arange:int32:4 zeros:float32:4 --threads 4
kernel void private_array_of_zeros(device const int* index, device float* out,
                                   uint i [[thread_position_in_grid]]) {
  float table[4] = {};
  table[index[i]] = 1;
  out[i] = table[(index[i] + 1) % 4];
}
