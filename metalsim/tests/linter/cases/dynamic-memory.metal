// accepts
struct Fixed {
  Fixed(const thread Fixed&) = delete;
  int values[4];
};
kernel void accepted(device int* out) { out[0] = sizeof(Fixed); }

// refuses
kernel void refused(device int* out) {
  thread int* p = new int;  // refused
  out[0] = *p;
  delete p;  // refused
}
