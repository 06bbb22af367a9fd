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
