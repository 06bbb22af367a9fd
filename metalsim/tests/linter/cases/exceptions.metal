// accepts
kernel void accepted(device int* out) {
  if (out[0] < 0) return;
  out[0] = 1;
}

// refuses
kernel void refused(device int* out) {
  try {  // refused
    out[0] = 1;
    throw 1;         // refused
  } catch (int x) {  // refused
    out[0] = x;
  }
}
