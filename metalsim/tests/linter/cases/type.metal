// accepts
inline uint sum(uint3 at) { return at.x + at.y + at.z; }
inline uint sum(uint2 at, int more) { return at.x + at.y + more; }
template <typename T>
bfloat narrowed(T x) {
  return static_cast<bfloat>(x) * bfloat(2.0f);
}
kernel void places(device uint* out, uint3 at [[thread_position_in_grid]]) {
  long step = at.x;
  out[sum({step * at.x, at.y, at.z})] = narrowed(half(step)) > bfloat(1.0f);
}

// accepts
kernel void accepted(device half4* out, uint i [[thread_position_in_grid]]) {
  const float4 x = float4(out[i]) * 2.0f;
  const bool4 small = x < 1.0f;
  out[i] = any(small) ? half4(x) : select(half4(0), half4(1), small);
  out[i].xy = half2(x.zw);
}

// refuses
kernel void refused(device half4* out, uint i [[thread_position_in_grid]]) {
  const float4 x = out[i];        // refused
  out[i] = half4(x) + float3(1);  // refused
  unknown(x);                     // refused
}
