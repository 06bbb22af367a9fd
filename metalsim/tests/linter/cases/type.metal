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

// accepts
static_assert(sizeof(packed_float3) == 12, "as in a buffer");
inline float4 declared(float4 x, half4 y);
kernel void packed(device packed_float3* p, constant packed_float3* c, device half4* h,
                   uint i [[thread_position_in_grid]]) {
  threadgroup packed_float3 shared[4];
  float3 q = p[i].xyz + c[i];
  shared[i] = q;
  p[i] = p[i] + q;
  p[i] *= 2.0f;
  p[i].xy = q.zx;
  q = max(p[i].zyx * 2.0f, shared[i]);
  p[i].x = length(p[i]) + dot(p[i], q);
}
kernel void constructed(device half4* h, device float4* x, uint i [[thread_position_in_grid]]) {
  float4 a(1, 2, 3, 4), b(x[i]);
  const float2 c(a.x, b.y);
  vec<float, 2> d(c.x, 1);
  h[i] = static_cast<half4>(a) + (half4)b * -(half4)(a + b);
  x[i] = static_cast<metal::float4>(h[i]) + float4(c, d);
}
kernel void truths(device float4* x, uint i [[thread_position_in_grid]]) {
  bool4 less = x[i] < 1.0f;
  bool2 some(less.xz);
  less.zw = less.xy;
  if (any(less.xyz) && all(some && less.wx)) x[i] = 0;
}

// refuses
kernel void refused(device half4* out, uint i [[thread_position_in_grid]]) {
  const float4 x = out[i];  // refused
  float4 y(1, 2, 3, 4);
  half4 z = y;                    // refused
  out[i] = half4(x) + float3(1);  // refused
  unknown(x);                     // refused
}
