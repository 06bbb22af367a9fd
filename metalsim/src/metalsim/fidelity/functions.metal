// Functions of floats: precise and fast ones may differ between GPUs in the last bits.
#include <metal_stdlib>
using namespace metal;

// Any float at all: NaN, infinities and denormals among them.
static float any_float(uint i) { return as_type<float>(i * 0x9E3779B9u); }
// From -16 to 16.
static float near_float(uint i) { return (float(i) - 512.0f) / 32.0f; }

// run exponentials --buffers zeros:float:1024x4 zeros:float:1024x4 --threads 1024
kernel void exponentials(device float* precisely, device float* fast_ones,
                         uint i [[thread_position_in_grid]]) {
  const float x = near_float(i);
  device float* out = precisely + 4 * i;
  out[0] = precise::exp(x);
  out[1] = precise::exp2(x);
  out[2] = precise::log(abs(x));
  out[3] = precise::log2(abs(x));
  out = fast_ones + 4 * i;
  out[0] = fast::exp(x);
  out[1] = fast::exp2(x);
  out[2] = fast::log(abs(x));
  out[3] = fast::log2(abs(x));
}

// run circular --buffers zeros:float:1024x4 zeros:float:1024x4 --threads 1024
kernel void circular(device float* precisely, device float* fast_ones,
                     uint i [[thread_position_in_grid]]) {
  const float x = near_float(i);
  device float* out = precisely + 4 * i;
  out[0] = precise::sin(x);
  out[1] = precise::cos(x);
  out[2] = precise::tanh(x);
  out[3] = precise::tan(x);
  out = fast_ones + 4 * i;
  out[0] = fast::sin(x);
  out[1] = fast::cos(x);
  out[2] = fast::tanh(x);
  out[3] = fast::tan(x);
}

// run roots --buffers zeros:float:1024x4 --threads 1024
kernel void roots(device float* out, uint i [[thread_position_in_grid]]) {
  const float x = abs(near_float(i));
  out[4 * i + 0] = precise::sqrt(x);
  out[4 * i + 1] = precise::rsqrt(x);
  out[4 * i + 2] = fast::rsqrt(x);
  out[4 * i + 3] = precise::pow(x, 1.7f);
}

// run arithmetic --buffers zeros:float:1024x6 --threads 1024
kernel void arithmetic(device float* out, uint i [[thread_position_in_grid]]) {
  const float x = any_float(i), y = any_float(i + 1024);
  device float* own = out + 6 * i;
  own[0] = x + y;
  own[1] = x * y;
  own[2] = x / y;
  own[3] = fma(x, y, x);
  own[4] = min(x, y);
  own[5] = rint(x);
}

// run denormals --buffers zeros:int32:64x4 --threads 64
kernel void denormals(device int* out, uint i [[thread_position_in_grid]]) {
  const float x = as_type<float>(i << 17), y = as_type<float>(0x00800000u + i);
  out[4 * i + 0] = as_type<int>(x + x);
  out[4 * i + 1] = as_type<int>(y * 0.5f);
  out[4 * i + 2] = as_type<int>(x * 3.0e37f);
  out[4 * i + 3] = as_type<ushort>(half(float(as_type<half>(ushort(i))) * 0.5f));
}

// run conversions --buffers zeros:int32:1024x5 --threads 1024
kernel void conversions(device int* out, uint i [[thread_position_in_grid]]) {
  const float x = any_float(i), y = near_float(i) * 1.0009765f;
  device int* own = out + 5 * i;
  own[0] = as_type<ushort>(half(y));
  own[1] = as_type<ushort>(bfloat(y));
  own[2] = as_type<ushort>(half(x));
  own[3] = int(clamp(x, -2.0e9f, 2.0e9f));
  own[4] = as_type<ushort>(half(y) * half(1.1f) + half(0.3f));
}
