// accepts
kernel void accepted(device float* out, uint i [[thread_position_in_grid]]) { out[i] = 1; }

// refuses
kernel void refused(device float* out) {
  out[0] = 1h;  // refused
}

// refuses
kernel float refused(device float* out) {  // refused
  return out[0];
}

// refuses
kernel void refused(device float* out) {
  threadgroup float total = 0;  // refused
  out[0] = total;
}
