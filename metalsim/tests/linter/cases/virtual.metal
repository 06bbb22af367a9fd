// accepts
struct Shape {
  int area() const thread { return 0; }
};
struct Square : Shape {
  int side;
  int area() const thread { return side * side; }
};
kernel void accepted(device int* out) {
  Square square;
  square.side = 2;
  out[0] = square.area();
}

// refuses
struct Shape {
  virtual int area() const thread { return 0; }  // refused
};
kernel void refused(device int* out) { out[0] = 1; }
