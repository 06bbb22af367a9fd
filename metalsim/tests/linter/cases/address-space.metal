// accepts
struct Rows {
  const device float* first;
  threadgroup float* tile;
  float weight;

  const device float* row(int index) const thread { return first + index; }
  thread float& own() { return weight; }
  static Rows of(constant int& stride, const device float* first) {
    return {first + stride, nullptr, 1.0f};
  }
};
typedef device float* Destination;
using Source = const device float*;
template <typename T>
T twice(const thread T& value) {
  return value + value;
}
inline float add(const thread float& x, float y) { return x + y; }
inline void advance(const device float*& rows, int stride) { rows += stride; }
inline void copy(Destination to, Source from, const device float* const thread* rows) {
  *to = *from + *rows[0];
}
inline bool both(bool a, bool b) {
  if (a && b) return true;
  while (a & b) a = !a;
  return a;
}
kernel void accepted(device float* out [[buffer(0)]], constant Rows& rows [[buffer(1)]],
                     uint i [[thread_position_in_grid]]) {
  threadgroup float tile[32];
  const Rows mine = rows;
  Rows other = Rows::of(*(constant int*)&rows, out);
  other.tile = tile;
  other.own() = twice(mine.weight) * add(twice(2.0f), 1.0f);
  thread float& alias = other.weight;
  auto& deduced = out[i];
  const device float* list[2] = {out, mine.row(1)};
  advance(list[0], 4);
  copy(out, mine.first, list);
  float4 four = float4(float2(1.0f), alias, 2.0f);
  deduced = reinterpret_cast<device float*>(out)[0] + four.xy.x * int(i & 3);
}

// refuses
struct Pointers {
  float* first;                        // refused
  device float* rows(float& x) const;  // refused
};
typedef float* Destination;                          // refused
using Source = const float*;                         // refused
inline int* nowhere(int x) { return nullptr; }       // refused
inline void add(thread float& x, float& y) {}        // refused
inline void fill(thread float** rows, int count) {}  // refused
inline void twice(thread float& x) { x += x; }
inline void load(const device float* from, threadgroup float* to) {}
kernel void refused(device float* out [[buffer(0)]], constant float* in [[buffer(1)]]) {
  threadgroup float tile[4];
  float x = 1;
  float* pointer = &x;                              // refused
  float& reference = x;                             // refused
  for (const float* p = &x; p; p = nullptr) x = 2;  // refused
  x = *(float*)&x + *reinterpret_cast<float*>(&x);  // refused
  device float* alias = tile;                       // refused
  thread float& copy = out[0];                      // refused
  load(in, tile);                                   // refused
  load(out, out);                                   // refused
  twice(tile[0]);                                   // refused
  *(threadgroup float*)out = 1;                     // refused
}
