// Kernel arguments: each parameter is a buffer or a builtin value, converted to the type the kernel
// declares.
#pragma once

#include "vectors.h"

namespace metalsim {

namespace builtin {

using backend::dispatch_threads_per_threadgroup;
using backend::Position;
using backend::simdgroups_per_threadgroup;
using backend::thread_index_in_threadgroup;
using backend::thread_position_in_threadgroup;
using backend::threadgroup_position_in_grid;
using backend::threadgroups_per_grid;
using backend::threads_per_grid;
using backend::threads_per_threadgroup;

METALSIM_INLINE Position thread_position_in_grid() {
  const Position group = threadgroup_position_in_grid(), size = dispatch_threads_per_threadgroup(),
                 thread = thread_position_in_threadgroup();
  return {group.x * size.x + thread.x, group.y * size.y + thread.y, group.z * size.z + thread.z};
}
METALSIM_INLINE uint32_t thread_index_in_simdgroup() { return backend::lane(); }
METALSIM_INLINE uint32_t thread_index_in_quadgroup() { return backend::lane() % 4; }
METALSIM_INLINE uint32_t simdgroup_index_in_threadgroup() {
  return thread_index_in_threadgroup() / simdgroup_width;
}
METALSIM_INLINE uint32_t quadgroup_index_in_threadgroup() {
  return thread_index_in_threadgroup() / 4;
}
METALSIM_INLINE uint32_t dispatch_simdgroups_per_threadgroup() {
  const Position size = dispatch_threads_per_threadgroup();
  return (size.x * size.y * size.z + simdgroup_width - 1) / simdgroup_width;
}
METALSIM_INLINE uint32_t quadgroups_per_threadgroup() {
  const Position size = threads_per_threadgroup();
  return (size.x * size.y * size.z + 3) / 4;
}
METALSIM_INLINE uint32_t dispatch_quadgroups_per_threadgroup() {
  const Position size = dispatch_threads_per_threadgroup();
  return (size.x * size.y * size.z + 3) / 4;
}
METALSIM_INLINE uint32_t threads_per_simdgroup() { return simdgroup_width; }
METALSIM_INLINE uint32_t thread_execution_width() { return simdgroup_width; }
METALSIM_INLINE Position grid_origin() { return {0, 0, 0}; }
METALSIM_INLINE Position grid_size() { return threads_per_grid(); }

}  // namespace builtin

template <class Parameter>
struct BuiltinValue {
  static METALSIM_INLINE Parameter from(uint32_t value) { return static_cast<Parameter>(value); }
  static METALSIM_INLINE Parameter from(backend::Position value) {
    return static_cast<Parameter>(value.x);
  }
};
template <class T>
struct BuiltinValue<metal::vec<T, 2>> {
  static METALSIM_INLINE metal::vec<T, 2> from(backend::Position value) {
    return metal::vec<T, 2>(value.x, value.y);
  }
};
template <class T>
struct BuiltinValue<metal::vec<T, 3>> {
  static METALSIM_INLINE metal::vec<T, 3> from(backend::Position value) {
    return metal::vec<T, 3>(value.x, value.y, value.z);
  }
};

template <class Parameter>
struct BufferValue {
  static_assert(sizeof(Parameter) == 0, "a buffer parameter must be a pointer or a reference");
};
template <class T>
struct BufferValue<T*> {
  static METALSIM_INLINE T* from(void* memory) { return (T*)memory; }
};
template <class T>
struct BufferValue<T&> {
  static METALSIM_INLINE T& from(void* memory) { return *(T*)memory; }
};

template <auto function>
struct BuiltinArgument {
  static constexpr uint32_t buffer = 0, constant = 0;
  template <class Parameter>
  static METALSIM_INLINE Parameter get() {
    return BuiltinValue<metal::remove_cv_t<Parameter>>::from(function());
  }
};

template <uint32_t index, bool is_constant>
struct BufferArgument {
  static constexpr uint32_t buffer = 1u << index, constant = is_constant ? buffer : 0;
  template <class Parameter>
  static METALSIM_INLINE Parameter get() {
    return BufferValue<Parameter>::from(backend::buffer(index));
  }
};

template <class... Arguments>
constexpr uint32_t buffer_mask(Arguments...) {
  return (0u | ... | Arguments::buffer);
}

template <class... Arguments>
constexpr uint32_t constant_mask(Arguments...) {
  return (0u | ... | Arguments::constant);
}

template <class... Parameters>
struct Call {
  void (*function)(Parameters...);

  template <class... Arguments>
  METALSIM_INLINE void operator()(Arguments...) const {
    function(Arguments::template get<Parameters>()...);
  }
};

template <class... Parameters>
METALSIM_INLINE Call<Parameters...> bind(void (*function)(Parameters...)) {
  return {function};
}

template <class... Parameters>
struct ReferenceMask {
  template <class... Arguments>
  constexpr uint32_t operator()(Arguments...) const {
    return (0u | ... | (metal::is_reference_v<Parameters> ? Arguments::buffer : 0));
  }
};

template <class... Parameters>
constexpr ReferenceMask<Parameters...> reference_mask(void (*)(Parameters...)) {
  return {};
}

}  // namespace metalsim

#define METALSIM_BUFFER(index) metalsim::BufferArgument<index, false>()
#define METALSIM_CONSTANT_BUFFER(index) metalsim::BufferArgument<index, true>()
#define METALSIM_BUILTIN(name) metalsim::BuiltinArgument<metalsim::builtin::name>()
