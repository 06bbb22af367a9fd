// Metal 4's tensor operations on the CUDA engine: operands meet in global memory, where each
// simdgroup of a threadgroup that runs has a workspace, and the lanes share the sums among them.
// One fused multiply-add a term, k ascending, which gives the CPU engine's bits.
#pragma once

// The host makes room for it (cuda/ptx.py reads the value).
extern "C" {
__attribute__((used)) extern const uint32_t metalsim_workspace_bytes = metalsim::workspace_bytes;
}

namespace metalsim::backend {

METALSIM_INLINE unsigned char* tensor_workspace(uint32_t site) {
  need_full_simdgroup(site);
  // Lanes may still read what the last operation left there.
  __nvvm_bar_warp_sync(~0u);
  const Launch& launch = state().launch;
  const uint32_t simdgroups =
      (launch.group[0] * launch.group[1] * launch.group[2] + simdgroup_width - 1) / simdgroup_width;
  const uint64_t index =
      static_cast<uint64_t>(state().workspace) * simdgroups + thread_of_block() / simdgroup_width;
  return launch.workspaces + index * workspace_bytes;
}

METALSIM_INLINE void enter_scope(uint32_t simdgroups, const char*, uint32_t site) {
  if (simdgroups_per_threadgroup() != simdgroups) fail(Failure::wrong_scope, site);
}

METALSIM_INLINE void exchange_tensors(const char*, uint32_t) { __nvvm_bar_warp_sync(~0u); }

METALSIM_INLINE float multiplied(float left, float right, float sum) {
  return __builtin_fmaf(left, right, sum);
}
METALSIM_INLINE int32_t multiplied(int32_t left, int32_t right, int32_t sum) {
  return left * right + sum;
}

template <class Wide>
METALSIM_INLINE void multiply_plain(const TensorMultiply& product) {
  const Wide* left = static_cast<const Wide*>(product.left);
  const Wide* right = static_cast<const Wide*>(product.right);
  Wide* sums = static_cast<Wide*>(product.sums);
  for (uint32_t index = lane(); index < product.rows * product.columns; index += simdgroup_width) {
    const uint32_t row = index / product.columns, column = index % product.columns;
    Wide sum = sums[index];
    for (uint32_t k = 0; k < product.depth; ++k)
      sum =
          multiplied(left[row * product.left_stride + k], right[k * product.columns + column], sum);
    sums[index] = sum;
  }
}

METALSIM_INLINE void multiply_tensors(const TensorMultiply& product, uint32_t) {
  __nvvm_bar_warp_sync(~0u);
  product.integers ? multiply_plain<int32_t>(product) : multiply_plain<float>(product);
  __nvvm_bar_warp_sync(~0u);
}

}  // namespace metalsim::backend
