// What the last lane to arrive does for its simdgroup: ballots, reductions, scans and 8x8 matrix
// multiplies, on operands that lie side by side in the exchange area.
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>
#endif

#include "threadgroup.h"

namespace metalsim {
namespace {

#if defined(__aarch64__) && !defined(__clang__) && __GNUC__ < 13
using Half = __fp16;
#else
using Half = _Float16;
#endif

struct Bfloat {
  uint16_t bits;

  Bfloat() = default;
  explicit Bfloat(float value) {
    uint32_t word;
    memcpy(&word, &value, sizeof word);
    const bool is_nan = (word & 0x7FFFFFFFu) > 0x7F800000u;
    bits = static_cast<uint16_t>(is_nan ? word >> 16 | 0x40
                                        : (word + 0x7FFFu + (word >> 16 & 1)) >> 16);
  }
  explicit operator float() const {
    const uint32_t word = static_cast<uint32_t>(bits) << 16;
    float value;
    memcpy(&value, &word, sizeof value);
    return value;
  }
};

// Integers are combined as 64-bit ones and cut back (which agrees for every operation here), half
// and bfloat as floats that are rounded to Element after each operation.
template <class Element>
struct WideOf {
  using type = int64_t;
};
template <>
struct WideOf<float> {
  using type = float;
};
template <>
struct WideOf<Half> {
  using type = float;
};
template <>
struct WideOf<Bfloat> {
  using type = float;
};

using Round = float (*)(float);

template <class Element>
float rounded(float value) {
  return static_cast<float>(static_cast<Element>(value));
}

template <class Wide>
inline constexpr bool is_real = false;
template <>
inline constexpr bool is_real<float> = true;

// The value that leaves every other one unchanged: what lanes outside the collective contribute.
template <class Wide>
Wide identity(Combine combine) {
  switch (combine) {
    case Combine::product:
      return 1;
    case Combine::bit_and:
      return -1;
    case Combine::minimum:
      if constexpr (is_real<Wide>)
        return __builtin_inff();
      else
        return INT64_MAX;
    case Combine::maximum:
      if constexpr (is_real<Wide>)
        return -__builtin_inff();
      else
        return INT64_MIN;
    default:
      return 0;
  }
}

struct Sum {
  template <class Wide>
  Wide operator()(Wide a, Wide b) const {
    return a + b;
  }
};
struct Product {
  template <class Wide>
  Wide operator()(Wide a, Wide b) const {
    return a * b;
  }
};
struct Minimum {
  template <class Wide>
  Wide operator()(Wide a, Wide b) const {
    return b < a || a != a ? b : a;  // a number rather than a NaN
  }
};
struct Maximum {
  template <class Wide>
  Wide operator()(Wide a, Wide b) const {
    return a < b || a != a ? b : a;
  }
};
struct And {
  int64_t operator()(int64_t a, int64_t b) const { return a & b; }
};
struct Or {
  int64_t operator()(int64_t a, int64_t b) const { return a | b; }
};
struct Xor {
  int64_t operator()(int64_t a, int64_t b) const { return a ^ b; }
};

template <class Wide>
struct Values {
  Wide* values;
  uint32_t active;
  Collective collective;
  Round round;  // null: exact already
  Wide neutral;

  template <class Operation>
  void combine(Operation operation) {
    collective == Collective::reduction ? reduce(operation) : scan(operation);
  }

  template <class Operation>
  void reduce(Operation operation) {
    if (active != ~0u) {
      for (uint32_t lane = 0; lane < simdgroup_width; ++lane)
        if (!(active >> lane & 1)) values[lane] = neutral;
    }
    for (uint32_t half = simdgroup_width / 2; half != 0; half /= 2) {
      for (uint32_t lane = 0; lane < half; ++lane)
        values[lane] = operation(values[lane], values[lane + half]);
      if constexpr (is_real<Wide>) {
        if (round != nullptr)
          for (uint32_t lane = 0; lane < half; ++lane) values[lane] = round(values[lane]);
      }
    }
  }

  template <class Operation>
  void scan(Operation operation) {
    Wide running = neutral;
    for (uint32_t lane = 0; lane < simdgroup_width; ++lane) {
      if (!(active >> lane & 1)) continue;
      Wide next = operation(running, values[lane]);
      if constexpr (is_real<Wide>) {
        if (round != nullptr) next = round(next);
      }
      values[lane] = collective == Collective::inclusive_scan ? next : running;
      running = next;
    }
  }
};

template <class Wide>
void combine_wide(Values<Wide> values, Combine combine) {
  switch (combine) {
    case Combine::sum:
      return values.combine(Sum());
    case Combine::product:
      return values.combine(Product());
    case Combine::minimum:
      return values.combine(Minimum());
    case Combine::maximum:
      return values.combine(Maximum());
    default:
      break;
  }
  if constexpr (!is_real<Wide>) {
    if (combine == Combine::bit_and) return values.combine(And());
    if (combine == Combine::bit_or) return values.combine(Or());
    return values.combine(Xor());
  }
}

template <class Element>
void combine_elements(const Simdgroup& simd, unsigned char* exchange) {
  using Wide = typename WideOf<Element>::type;
  const auto combine = static_cast<Combine>(simd.code >> 8 & 15);
  constexpr bool rounds = is_real<Wide> && sizeof(Element) != sizeof(Wide);
  Wide storage[simdgroup_width];
  Values<Wide> values = {storage, simd.active, static_cast<Collective>(simd.code & 0xFF), nullptr,
                         identity<Wide>(combine)};
  if constexpr (rounds) values.round = rounded<Element>;
  Element* elements = reinterpret_cast<Element*>(exchange);
  const uint32_t components = simd.code >> 16 & 15;
  for (uint32_t index = 0; index < components; ++index, elements += simdgroup_width) {
    for (uint32_t lane = 0; lane < simdgroup_width; ++lane)
      storage[lane] = static_cast<Wide>(elements[lane]);
    combine_wide(values, combine);
    for (uint32_t lane = 0; lane < simdgroup_width; ++lane)
      elements[lane] = static_cast<Element>(storage[lane]);
  }
}

// Unsigned 64-bit values would compare as signed ones: order them by flipping the top bit.
void combine_unsigned(const Simdgroup& simd, unsigned char* exchange) {
  const auto combine = static_cast<Combine>(simd.code >> 8 & 15);
  const bool ordered = combine == Combine::minimum || combine == Combine::maximum;
  uint64_t* elements = reinterpret_cast<uint64_t*>(exchange);
  const uint32_t count = (simd.code >> 16 & 15) * simdgroup_width;
  for (uint32_t index = 0; ordered && index < count; ++index) elements[index] ^= 1ull << 63;
  combine_elements<int64_t>(simd, exchange);
  for (uint32_t index = 0; ordered && index < count; ++index) elements[index] ^= 1ull << 63;
}

void combine(const Simdgroup& simd, unsigned char* exchange) {
  switch (static_cast<ScalarType>(simd.code >> 12 & 15)) {
    case ScalarType::float32:
      return combine_elements<float>(simd, exchange);
    case ScalarType::float16:
      return combine_elements<Half>(simd, exchange);
    case ScalarType::bfloat16:
      return combine_elements<Bfloat>(simd, exchange);
    case ScalarType::int8:
      return combine_elements<int8_t>(simd, exchange);
    case ScalarType::uint8:
      return combine_elements<uint8_t>(simd, exchange);
    case ScalarType::int16:
      return combine_elements<int16_t>(simd, exchange);
    case ScalarType::uint16:
      return combine_elements<uint16_t>(simd, exchange);
    case ScalarType::int32:
      return combine_elements<int32_t>(simd, exchange);
    case ScalarType::uint32:
      return combine_elements<uint32_t>(simd, exchange);
    case ScalarType::int64:
      return combine_elements<int64_t>(simd, exchange);
    case ScalarType::uint64:
      return combine_unsigned(simd, exchange);
  }
}

// Lanes left a byte each, 0 or 1; the answer is one 64-bit mask in front of them.
void ballot(const Simdgroup& simd, unsigned char* exchange) {
  uint64_t mask = 0;
  for (uint32_t lane = 0; lane < simdgroup_width; ++lane)
    mask |= static_cast<uint64_t>(exchange[lane] & 1) << lane;
  mask &= simd.active;
  memcpy(exchange, &mask, sizeof mask);
}

template <class T>
void widen(const unsigned char* from, float* to) {
  const T* values = reinterpret_cast<const T*>(from);
  for (int index = 0; index < 64; ++index) to[index] = static_cast<float>(values[index]);
}

template <class T>
void narrow(const float* from, unsigned char* to) {
  T* values = reinterpret_cast<T*>(to);
  for (int index = 0; index < 64; ++index) values[index] = static_cast<T>(from[index]);
}

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
template <>
void widen<Half>(const unsigned char* from, float* to) {
  for (int row = 0; row < 8; ++row) {
    const auto half_row = _mm_load_si128(reinterpret_cast<const __m128i*>(from) + row);
    _mm256_store_ps(to + row * 8, _mm256_cvtph_ps(half_row));
  }
}

template <>
void narrow<Half>(const float* from, unsigned char* to) {
  for (int row = 0; row < 8; ++row) {
    const __m256 wide_row = _mm256_load_ps(from + row * 8);
    _mm_store_si128(reinterpret_cast<__m128i*>(to) + row,
                    _mm256_cvtps_ph(wide_row, _MM_FROUND_TO_NEAREST_INT));
  }
}

// c += a * b: one fused multiply-add a term, k ascending.
void multiply_accumulate(const float* a, const float* b, float* c) {
  __m256 rows_b[8];
  for (int k = 0; k < 8; ++k) rows_b[k] = _mm256_load_ps(b + k * 8);
  for (int row = 0; row < 8; row += 4) {
    __m256 sum[4];
    for (int i = 0; i < 4; ++i) sum[i] = _mm256_load_ps(c + (row + i) * 8);
    for (int k = 0; k < 8; ++k)
      for (int i = 0; i < 4; ++i)
        sum[i] = _mm256_fmadd_ps(_mm256_broadcast_ss(a + (row + i) * 8 + k), rows_b[k], sum[i]);
    for (int i = 0; i < 4; ++i) _mm256_store_ps(c + (row + i) * 8, sum[i]);
  }
}
#else
void multiply_accumulate(const float* a, const float* b, float* c) {
  for (int row = 0; row < 8; ++row)
    for (int k = 0; k < 8; ++k)
      for (int column = 0; column < 8; ++column) {
        float& sum = c[row * 8 + column];
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
        sum = __builtin_fmaf(a[row * 8 + k], b[k * 8 + column], sum);
#else
        sum += a[row * 8 + k] * b[k * 8 + column];
#endif
      }
}
#endif

const float* widened(ScalarType type, const unsigned char* operand, float* storage) {
  if (type == ScalarType::float16) {
    widen<Half>(operand, storage);
  } else if (type == ScalarType::bfloat16) {
    widen<Bfloat>(operand, storage);
  } else {
    return reinterpret_cast<const float*>(operand);
  }
  return storage;
}

// d = a * b + c in float, d rounded once; the operands lie at multiples of matrix_operand_bytes.
void multiply_matrices(uint32_t code, unsigned char* exchange) {
  alignas(64) float storage_a[64], storage_b[64], sum[64];
  const auto type = [code](int shift) { return static_cast<ScalarType>(code >> shift & 15); };
  const float* a = widened(type(8), exchange, storage_a);
  const float* b = widened(type(12), exchange + matrix_operand_bytes, storage_b);
  unsigned char* result = exchange + 2 * matrix_operand_bytes;
  if (type(16) == ScalarType::float32)
    memcpy(sum, result, sizeof sum);
  else
    widened(type(16), result, sum);
  multiply_accumulate(a, b, sum);
  if (type(20) == ScalarType::float16)
    narrow<Half>(sum, result);
  else if (type(20) == ScalarType::bfloat16)
    narrow<Bfloat>(sum, result);
  else
    memcpy(result, sum, sizeof sum);
}

}  // namespace

void carry_out(Simdgroup& simd, unsigned char* exchange) {
  switch (static_cast<Collective>(simd.code & 0xFF)) {
    case Collective::ballot:
      return ballot(simd, exchange);
    case Collective::matrix_multiply:
      return multiply_matrices(simd.code, exchange);
    case Collective::tensor_multiply:
      return multiply_tensors(simd, exchange);
    case Collective::tensor_exchange:
      simd.turn ^= 1;
      return;
    case Collective::reduction:
    case Collective::inclusive_scan:
    case Collective::exclusive_scan:
      return combine(simd, exchange);
    default:
      return;
  }
}

}  // namespace metalsim
