// What a kernel is told and how memory is laid out: exact everywhere.
#include <metal_stdlib>
using namespace metal;

// run positions --buffers zeros:int32:1152 --threads 12 8 --group 5 4
kernel void positions(
    device int* out, uint2 at [[thread_position_in_grid]], uint2 grid [[threads_per_grid]],
    uint2 group [[threadgroup_position_in_grid]], uint2 groups [[threadgroups_per_grid]],
    uint2 inside [[thread_position_in_threadgroup]], uint2 size [[threads_per_threadgroup]],
    uint index [[thread_index_in_threadgroup]], uint lane [[thread_index_in_simdgroup]],
    uint simdgroup [[simdgroup_index_in_threadgroup]], uint width [[threads_per_simdgroup]]) {
  device int* own = out + 12 * (at.y * grid.x + at.x);
  const uint values[12] = {group.x, group.y, groups.x, groups.y, inside.x,  inside.y,
                           size.x,  size.y,  index,    lane,     simdgroup, width};
  for (int i = 0; i < 12; ++i) own[i] = values[i];
}

struct Mixed {
  bool flag;
  half3 three_halves;
  uchar byte;
  float3 three_floats;
  packed_float3 packed;
  long wide;
};

// run sizes --buffers zeros:int32:24 --threads 1
kernel void sizes(device int* out) {
  const ulong values[24] = {
      sizeof(bool),          alignof(bool),          sizeof(half),    alignof(half),
      sizeof(half3),         alignof(half3),         sizeof(float3),  alignof(float3),
      sizeof(packed_float3), alignof(packed_float3), sizeof(uchar3),  alignof(uchar3),
      sizeof(long),          alignof(long),          sizeof(long3),   alignof(long3),
      sizeof(long2),         alignof(long2),         sizeof(ushort3), alignof(ushort3),
      sizeof(bfloat),        alignof(bfloat),        sizeof(Mixed),   alignof(Mixed)};
  for (int i = 0; i < 24; ++i) out[i] = values[i];
}

// run numbers --buffers zeros:float:2 zeros:int32:2 -7 0.1 --threads 1
kernel void numbers(device float* floats, device int* ints, constant long& whole,
                    constant float& fraction) {
  floats[0] = fraction;
  floats[1] = float(whole);
  ints[0] = int(whole);
  ints[1] = int(whole >> 32);
}

// run integers --buffers random:int32:64 random:int32:64 zeros:int32:64x8 --threads 64
kernel void integers(device const int* a, device const int* b, device int* out,
                     uint i [[thread_position_in_grid]]) {
  const int x = a[i] * 0x01234567, y = b[i] * 0x2545F491;
  device int* own = out + 8 * i;
  own[0] = mulhi(x, y);
  own[1] = addsat(x, y);
  own[2] = absdiff(x, y);
  own[3] = rotate(x, y);
  own[4] = clz(x);
  own[5] = popcount(y);
  own[6] = reverse_bits(x);
  own[7] = hadd(x, y);
}
