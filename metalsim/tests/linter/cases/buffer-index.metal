// accepts
kernel void accepted(device float* a [[buffer(30)]], device float* b [[buffer(0)]],
                     device float* c) {
  *a = *b + *c;
}

// refuses
kernel void refused(device float* a [[buffer(1)]],
                    device float* b [[buffer(1)]]) {  // refused
  *a = *b;
}

// refuses
kernel void refused(device float* a [[buffer(31)]]) {  // refused
  *a = 1;
}
