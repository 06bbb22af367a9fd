// accepts
struct Base {
  int x;
};
struct Derived : Base {
  int y;
};
kernel void accepted(device int* out) {
  Derived derived = {{1}, 2};
  const thread Base& base = derived;
  out[0] = base.x;
}

// refuses
struct Base {
  int x;
};
kernel void refused(device int* out) {
  Base base = {1};
  out[0] = dynamic_cast<thread Base&>(base).x;  // refused
  typeid(base);                                 // refused
}
