// accepts
inline void fill(threadgroup float* tile, uint i) { tile[i] = 0; }
kernel void accepted(device float* out, uint i [[thread_index_in_threadgroup]]) {
  threadgroup float tile[64], total;
  threadgroup float sums[2] = {0};
  sums[i & 1] = i;
  fill(tile, i);
  if (i == 0) total = tile[0];
  out[i] = total;
}

// refuses
inline float helper(uint i) {
  threadgroup float tile[64];  // refused
  return tile[i];
}
kernel void refused(device float* out) { out[0] = helper(0); }
