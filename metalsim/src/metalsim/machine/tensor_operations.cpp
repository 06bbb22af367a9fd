// Metal 4's matmul2d: the product of operands that lie in a simdgroup's workspace, and what is
// asked of operations that several simdgroups carry out.
#include <string.h>

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

#include "threadgroup.h"

namespace metalsim {
namespace {

// One fused multiply-add a term, k ascending; 16 columns at a time.
#if defined(__AVX2__) && defined(__FMA__)
template <int rows>
void multiply_rows(const TensorMultiply& product, uint32_t row, uint32_t column) {
  const float* left = static_cast<const float*>(product.left) + row * product.left_stride;
  const float* right = static_cast<const float*>(product.right) + column;
  float* sums = static_cast<float*>(product.sums) + row * product.columns + column;
  __m256 low[rows], high[rows];
  for (int i = 0; i < rows; ++i) {
    low[i] = _mm256_loadu_ps(sums + i * product.columns);
    high[i] = _mm256_loadu_ps(sums + i * product.columns + 8);
  }
  for (uint32_t k = 0; k < product.depth; ++k, right += product.columns) {
    const __m256 right_low = _mm256_loadu_ps(right), right_high = _mm256_loadu_ps(right + 8);
    for (int i = 0; i < rows; ++i) {
      const __m256 factor = _mm256_broadcast_ss(left + i * product.left_stride + k);
      low[i] = _mm256_fmadd_ps(factor, right_low, low[i]);
      high[i] = _mm256_fmadd_ps(factor, right_high, high[i]);
    }
  }
  for (int i = 0; i < rows; ++i) {
    _mm256_storeu_ps(sums + i * product.columns, low[i]);
    _mm256_storeu_ps(sums + i * product.columns + 8, high[i]);
  }
}

void multiply_reals(const TensorMultiply& product) {
  for (uint32_t column = 0; column < product.columns; column += 16) {
    uint32_t row = 0;
    for (; row + 4 <= product.rows; row += 4) multiply_rows<4>(product, row, column);
    for (; row < product.rows; ++row) multiply_rows<1>(product, row, column);
  }
}
#else
void multiply_reals(const TensorMultiply& product) {
  const float* left = static_cast<const float*>(product.left);
  float* sums = static_cast<float*>(product.sums);
  for (uint32_t row = 0; row < product.rows; ++row, left += product.left_stride) {
    const float* right = static_cast<const float*>(product.right);
    for (uint32_t k = 0; k < product.depth; ++k, right += product.columns)
      for (uint32_t column = 0; column < product.columns; ++column)
#if defined(__FP_FAST_FMAF) || defined(__aarch64__)
        sums[column] = __builtin_fmaf(left[k], right[column], sums[column]);
#else
        sums[column] += left[k] * right[column];
#endif
    sums += product.columns;
  }
}
#endif

void multiply_integers(const TensorMultiply& product) {
  const int32_t* left = static_cast<const int32_t*>(product.left);
  int32_t* sums = static_cast<int32_t*>(product.sums);
  for (uint32_t row = 0; row < product.rows; ++row, left += product.left_stride) {
    const int32_t* right = static_cast<const int32_t*>(product.right);
    for (uint32_t k = 0; k < product.depth; ++k, right += product.columns)
      for (uint32_t column = 0; column < product.columns; ++column)
        sums[column] += left[k] * right[column];
    sums += product.columns;
  }
}

}  // namespace

void multiply_tensors(Simdgroup& simd, const unsigned char* exchange) {
  TensorMultiply product;
  memcpy(&product, exchange, sizeof product);
  if (product.integers)
    multiply_integers(product);
  else
    multiply_reals(product);
  if (product.last) simd.turn ^= 1;
}

void check_scopes(Threadgroup& group) {
  const Simdgroup& first = group.simdgroups[0];
  for (uint32_t index = 1; index < group.simdgroup_count; ++index) {
    const Simdgroup& simd = group.simdgroups[index];
    if (simd.scope_entries == first.scope_entries) continue;
    const Simdgroup& more = simd.scope_entries > first.scope_entries ? simd : first;
    set_error(group, "divergence",
              "simdgroup %u of threadgroup (%u, %u, %u) ran %u matmul2d of execution_simdgroups, "
              "simdgroup 0 ran %u (the latest at line %u): all simdgroups of the scope must run "
              "each one",
              index, group.position[0], group.position[1], group.position[2], simd.scope_entries,
              first.scope_entries, line_of(more.scope_site));
    return;
  }
}

}  // namespace metalsim

using namespace metalsim;

unsigned char* metalsim_tensor_workspace(Fiber* fiber) {
  const uint64_t number = 2ull * fiber->simdgroup->index + fiber->simdgroup->turn;
  return fiber->threadgroup->workspaces + number * workspace_bytes;
}

void metalsim_enter_scope(Fiber* fiber, uint32_t simdgroups, const char* name, uint32_t site) {
  Threadgroup& group = *fiber->threadgroup;
  if (group.simdgroup_count != simdgroups)
    fail(group, "simdgroup",
         "%s at line %u has the scope execution_simdgroups<%u>, but threadgroup (%u, %u, %u) has "
         "%u simdgroups: launch %u threads a threadgroup",
         name, line_of(site), simdgroups, group.position[0], group.position[1], group.position[2],
         group.simdgroup_count, simdgroups * simdgroup_width);
  if (fiber->lane != 0) return;
  ++fiber->simdgroup->scope_entries;
  fiber->simdgroup->scope_site = site;
}
