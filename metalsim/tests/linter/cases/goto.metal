// accepts
kernel void accepted(device int* out) {
  for (int i = 0; i < 4; ++i)
    if (out[i] == 0) break;
}

// refuses
kernel void refused(device int* out) {
again:
  if (++out[0] < 4) goto again;  // refused
}
