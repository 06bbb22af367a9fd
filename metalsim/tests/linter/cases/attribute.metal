// accepts
typedef uint Index;
template <typename T>
kernel void accepted(device T* out, uint3 position [[thread_position_in_grid]],
                     const ushort2 group [[threadgroup_position_in_grid]],
                     metal::ushort2 other [[threads_per_threadgroup]],
                     uint lane [[thread_index_in_simdgroup]],
                     unsigned int simdgroup [[simdgroup_index_in_threadgroup]],
                     Index thread_index [[thread_index_in_threadgroup]]) {
  out[position.x] = T(lane);
}
template [[host_name("accepted_float")]] kernel void accepted(device float*, uint3, const ushort2,
                                                              metal::ushort2, uint, unsigned int,
                                                              Index);

// refuses
typedef int Index;
kernel void refused(device float* out,
                    int position [[thread_position_in_grid]],           // refused
                    uint2 lane [[thread_index_in_simdgroup]],           // refused
                    float2 group [[threadgroup_position_in_grid]],      // refused
                    uint4 sizes [[threads_per_grid]],                   // refused
                    Index index [[simdgroup_index_in_threadgroup]],     // refused
                    device uint& place [[thread_index_in_threadgroup]]  // refused
) {
  out[position] = 1;
}
