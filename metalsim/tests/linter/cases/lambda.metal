// accepts
kernel void accepted(device int* out [[buffer(0)]], uint i [[thread_position_in_grid]]) {
  int list[2] = {1, 2}, other[] = {3};
  thread int(&alias)[2] = list;
  [[maybe_unused]] int x = alias[i & 1] + other[0];
  out[i] = list[(i)] + x;
}

// accepts for 3.2
kernel void accepted(device int* out) {
  auto twice = [](int x) { return 2 * x; };
  out[0] = twice(out[0]);
}

// refuses
template <typename Operation>
int apply(Operation operation) {
  return operation(1);
}
kernel void refused(device int* out) {
  int base = 1;
  auto twice = [](int x) { return 2 * x; };  // refused
  out[0] = twice(1) + apply([&](int x) {     // refused
             return x + base;
           });
}
