// 8x8 matrix products of the CUDA engine. Two half or two bfloat operands go through mma.sync,
// whose upper eight rows stay empty; all others through one fused multiply-add a term, k ascending,
// which gives the CPU engine's bits. METALSIM_FLOAT_PRODUCTS=3 takes three TF32 products for floats
// instead: faster, and right to about 22 bits.
#pragma once

namespace metalsim::backend {

// The 16-bit elements of an 8x8 matrix, two neighbours of a row a lane, as those of its transpose.
METALSIM_INLINE uint32_t transposed(uint32_t pair) {
  uint32_t result;
  __asm__("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(pair));
  return result;
}

template <class T>
METALSIM_INLINE uint32_t packed(const T* pair) {
  uint32_t word;
  __builtin_memcpy(&word, pair, sizeof word);
  return word;
}

#define METALSIM_MMA_16(name, type)                                             \
  METALSIM_INLINE void name(float* d, uint32_t a, uint32_t b, const float* c) { \
    float unused[2];                                                            \
    __asm__("mma.sync.aligned.m16n8k8.row.col.f32." type "." type               \
            ".f32 {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %9};"          \
            : "=f"(d[0]), "=f"(d[1]), "=f"(unused[0]), "=f"(unused[1])          \
            : "r"(a), "r"(0), "r"(b), "f"(c[0]), "f"(c[1]), "f"(0.0f));         \
  }
METALSIM_MMA_16(multiply_halves, "f16")
METALSIM_MMA_16(multiply_bfloats, "bf16")
#undef METALSIM_MMA_16

#if METALSIM_FLOAT_PRODUCTS == 3
METALSIM_INLINE uint32_t bits(float value) { return __builtin_bit_cast(uint32_t, value); }
METALSIM_INLINE float real(uint32_t word) { return __builtin_bit_cast(float, word); }

// A float as the sum of two that TF32 holds.
struct Parts {
  uint32_t high[2], low[2];

  METALSIM_INLINE explicit Parts(const float* pair) {
    for (int i = 0; i < 2; ++i) {
      high[i] = rounded(pair[i]);
      low[i] = rounded(pair[i] - real(high[i]));
    }
  }
  static METALSIM_INLINE uint32_t rounded(float value) {
    uint32_t word;
    __asm__("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(value));
    return word;
  }
};

// The unit's k = t is our k = 2t and its t + 4 our 2t + 1: a contraction may go in any order.
METALSIM_INLINE void multiply_tf32(float* d, const uint32_t* a, const uint32_t* b, const float* c) {
  float unused[2];
  __asm__(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %5}, {%7, %8}, {%9, %10, %11, %11};"
      : "=f"(d[0]), "=f"(d[1]), "=f"(unused[0]), "=f"(unused[1])
      : "r"(a[0]), "r"(0), "r"(a[1]), "r"(b[0]), "r"(b[1]), "f"(c[0]), "f"(c[1]), "f"(0.0f));
}

METALSIM_INLINE void multiply_floats(float* d, const float* a, const float* b, const float* c) {
  const uint32_t first = bits(b[0]), second = bits(b[1]);
  const uint32_t low = transposed((first & 0xFFFF) | second << 16);
  const uint32_t high = transposed(first >> 16 | (second & 0xFFFF0000));
  const float column[2] = {real((low & 0xFFFF) | high << 16),
                           real(low >> 16 | (high & 0xFFFF0000))};
  const Parts left(a), right(column);
  float sum[2];
  multiply_tf32(sum, left.low, right.high, c);
  multiply_tf32(sum, left.high, right.low, sum);
  multiply_tf32(d, left.high, right.high, sum);
}
#else
METALSIM_INLINE float read_float(float value, uint32_t lane_of_warp) {
  return __builtin_bit_cast(float, read_word(__builtin_bit_cast(uint32_t, value), lane_of_warp));
}

METALSIM_INLINE void multiply_floats(float* d, const float* a, const float* b, const float* c) {
  const uint32_t lane = __nvvm_read_ptx_sreg_laneid(), row = lane & 28, pair = lane & 3;
  float first = c[0], second = c[1];
#pragma clang loop unroll(full)
  for (uint32_t k = 0; k < 8; ++k) {
    const float factor = read_float(a[k & 1], row | k >> 1);
    first = __builtin_fmaf(factor, read_float(b[0], 4 * k + pair), first);
    second = __builtin_fmaf(factor, read_float(b[1], 4 * k + pair), second);
  }
  d[0] = first;
  d[1] = second;
}
#endif

// d = a * b + c over the simdgroup, accumulated in float and rounded once; each lane holds two
// elements of every 8x8 matrix.
template <class D, class A, class B, class C>
METALSIM_INLINE void multiply_accumulate(D* d, const A* a, const B* b, const C* c, uint32_t,
                                         const char*, uint32_t site) {
  need_full_simdgroup(site);
  const float addend[2] = {static_cast<float>(c[0]), static_cast<float>(c[1])};
  float sum[2];
  if constexpr (__is_same(A, half) && __is_same(B, half)) {
    multiply_halves(sum, packed(a), transposed(packed(b)), addend);
  } else if constexpr (__is_same(A, bfloat) && __is_same(B, bfloat)) {
    multiply_bfloats(sum, packed(a), transposed(packed(b)), addend);
  } else {
    const float left[2] = {static_cast<float>(a[0]), static_cast<float>(a[1])};
    const float right[2] = {static_cast<float>(b[0]), static_cast<float>(b[1])};
    multiply_floats(sum, left, right, addend);
  }
  d[0] = static_cast<D>(sum[0]);
  d[1] = static_cast<D>(sum[1]);
}

}  // namespace metalsim::backend
