// accepts
constant constexpr int SIZE = 4;
constexpr constant float TABLE[SIZE] = {1, 2, 3, 4};
struct Limits {
  static constant constexpr int most = SIZE;
};
constant constexpr int Limits::most;
static constant constexpr const bool CHOSEN [[function_constant(0)]];
inline int helper(int x) { return x + Limits::most; }
kernel void accepted(device float* out) { out[CHOSEN] = TABLE[helper(-1) & 3]; }

// refuses
int counter = 0;  // refused
kernel void refused(device int* out) { out[0] = counter; }

// refuses
device float table[4];  // refused
kernel void refused(device float* out) { out[0] = table[0]; }
