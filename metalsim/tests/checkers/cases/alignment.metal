// Addresses that do not suit the type of the access. How to read the marks: test_cases.py.
#include <metal_stdlib>
using namespace metal;

// finds vector_read --buffers ones:float32:9 zeros:float32:8 1 --threads 2
// clean vector_read --buffers ones:float32:12 zeros:float32:8 4 --threads 2
kernel void vector_read(device const float* x, device float4* out, constant int& from,
                        uint i [[thread_position_in_grid]]) {
  out[i] = *(device const float4*)(x + from + 4 * i);  // alignment
}

// finds vector_write --buffers zeros:float32:10 --threads 2
kernel void vector_write(device float* out, uint i [[thread_position_in_grid]]) {
  *(device float4*)(out + 2 + 4 * i) = float4(1);  // alignment
}

// clean packed_vector --buffers ones:float32:9 zeros:float32:9 --threads 2
kernel void packed_vector(device const float* x, device float* out,
                          uint i [[thread_position_in_grid]]) {
  packed_float4 value = *(device const packed_float4*)(x + 1 + 4 * i);
  *(device packed_float4*)(out + 1 + 4 * i) = value;
}

// A float3 takes the room of four floats, and rows of three floats suit it one time in four.
// finds rows_of_three --buffers ones:float32:19 zeros:float32:4 --threads 4
kernel void rows_of_three(device const float* x, device float* out,
                          uint i [[thread_position_in_grid]]) {
  float3 row = *(device const float3*)(x + 3 * i);  // alignment
  out[i] = row.x + row.y + row.z;
}

// clean packed_rows_of_three --buffers ones:float32:12 zeros:float32:4 --threads 4
kernel void packed_rows_of_three(device const packed_float3* x, device float* out,
                                 uint i [[thread_position_in_grid]]) {
  float3 row = x[i];
  out[i] = row.x + row.y + row.z;
}

// finds in_threadgroup_memory --buffers zeros:float32:4 --threads 1
kernel void in_threadgroup_memory(device float4* out) {
  threadgroup float shared[9];
  for (int at = 0; at < 9; ++at) shared[at] = at;
  *out = *(threadgroup float4*)(shared + 1);  // alignment
}

// finds word_at_a_byte --buffers ones:uint8:9 zeros:uint32:2 --threads 2
kernel void word_at_a_byte(device const uchar* x, device uint* out,
                           uint i [[thread_position_in_grid]]) {
  out[i] = *(device const uint*)(x + 1 + 4 * i);  // alignment
}

// finds half_at_a_byte --buffers zeros:uint8:9 --threads 4
kernel void half_at_a_byte(device uchar* x, uint i [[thread_position_in_grid]]) {
  *(device half*)(x + 1 + 2 * i) = 1.0h;  // alignment
}

// clean bytes --buffers ones:uint8:9 zeros:uint8:9 --threads 8
kernel void bytes(device const uchar* x, device uchar* out, uint i [[thread_position_in_grid]]) {
  out[i + 1] = x[i + 1];
}

// clean half_vectors --buffers ones:float16:12 zeros:float16:8 --threads 2
kernel void half_vectors(device const half* x, device half4* out,
                         uint i [[thread_position_in_grid]]) {
  out[i] = *(device const half4*)(x + 4 + 4 * i);
}

// finds half_vectors_between --buffers ones:float16:12 zeros:float16:8 --threads 2
kernel void half_vectors_between(device const half* x, device half4* out,
                                 uint i [[thread_position_in_grid]]) {
  out[i] = *(device const half4*)(x + 2 + 4 * i);  // alignment
}
