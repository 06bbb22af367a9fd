// Indices outside of arrays that are not watched themselves, as clang's own checks tell them:
// members of structures, rows, elements of the library's types. How to read the marks:
// test_cases.py.
#include <metal_stdlib>
using namespace metal;

struct Tile {
  float values[4];
  int count;
  float rows[2][3];
};

// finds member --buffers 4 zeros:float32:4 --threads 4
// clean member --buffers 3 zeros:float32:4 --threads 4
kernel void member(constant int& at, device float* out, uint i [[thread_position_in_grid]]) {
  Tile tile = {};
  tile.values[at] = 1;  // bounds use
  out[i] = tile.values[0] + tile.count;
}

// finds in_front_of_it --buffers zeros:float32:4 --threads 1
kernel void in_front_of_it(device float* out, uint i [[thread_position_in_grid]]) {
  Tile tile = {};
  const int before = int(i) - 1;
  out[i] = tile.rows[before][0];  // bounds use
}

// finds last_member --buffers 2 zeros:float32:4 --threads 4
// clean last_member --buffers 1 zeros:float32:4 --threads 4
static float element(thread const Tile& tile, uint row, short column) {
  return tile.rows[row][column];  // bounds use
}
kernel void last_member(constant uint& row, device float* out, uint i [[thread_position_in_grid]]) {
  Tile tile = {};
  out[i] = element(tile, row, 2);
}

// A row of an array, which the next row follows.
// finds row --buffers 4 zeros:float32:4 --threads 4
// clean row --buffers 3 zeros:float32:4 --threads 4
kernel void row(constant int& at, device float* out, uint i [[thread_position_in_grid]]) {
  float rows[3][4] = {{1}, {2}, {3}};
  out[i] = rows[1][at];  // bounds use
}

// In memory that is bound, so that nothing else looks wrong.
// finds in_a_buffer --buffers zeros:uint8:132 4 --threads 1
// clean in_a_buffer --buffers zeros:uint8:132 3 --threads 1
kernel void in_a_buffer(device Tile* tiles, constant int& at) {
  tiles[1].values[at] = 1;  // bounds use
}

// As in C, one element at the end of a structure may stand for as many as there are.
struct Message {
  uint count;
  float values[1];
};
// clean open_end --buffers zeros:uint8:16 2 --threads 1
kernel void open_end(device Message& message, constant int& at) { message.values[at] = 1; }

// finds component --buffers 4 zeros:float32:4 --threads 4
// clean component --buffers 3 zeros:float32:4 --threads 4
kernel void component(constant int& at, device float* out, uint i [[thread_position_in_grid]]) {
  float4 value = out[i];
  value[at] = 1;  // bounds use
  out[i] = value.x;
}

// finds third --buffers 3 zeros:float32:4 --threads 4
// clean third --buffers 2 zeros:float32:4 --threads 4
kernel void third(constant int& at, device float* out, uint i [[thread_position_in_grid]]) {
  const float3 value = out[i];
  out[i] = value[at];  // bounds use
}

// finds of_the_library --buffers 3 zeros:float32:4 --threads 4
// clean of_the_library --buffers 2 zeros:float32:4 --threads 4
kernel void of_the_library(constant int& at, device float* out,
                           uint i [[thread_position_in_grid]]) {
  array<float, 3> values = {};
  values[at] = 1;  // bounds use
  out[i] = values[0];
}

// The threads that went on meet without the one that was ended.
// finds beside_others --buffers zeros:float32:64 --threads 64 --group 64
kernel void beside_others(device float* out, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float shared[64];
  Tile tile = {};
  if (i == 40) tile.values[i] = 1;  // bounds use
  shared[i] = tile.values[0];
  threadgroup_barrier(mem_flags::mem_threadgroup);
  out[i] = i == 40 ? 0 : shared[i];
}
