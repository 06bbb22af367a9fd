// Small library types: their members are in the address space of the object.
#pragma once

#include <metalsim/uniform.h>

namespace metal {

template <class T, size_t N>
struct array {
  T elements[N];

#define METALSIM_ARRAY_MEMBERS(space)          \
  constexpr space T& operator[](size_t) space; \
  constexpr space T* data() space;             \
  constexpr space T* begin() space;            \
  constexpr space T* end() space;              \
  METALSIM_CONST_ARRAY_MEMBERS(space)
#define METALSIM_CONST_ARRAY_MEMBERS(space)                \
  constexpr const space T& operator[](size_t) const space; \
  constexpr const space T* data() const space;             \
  constexpr const space T* begin() const space;            \
  constexpr const space T* end() const space;
  METALSIM_ARRAY_MEMBERS(METALSIM_THREAD)
  METALSIM_ARRAY_MEMBERS(__global)
  METALSIM_ARRAY_MEMBERS(__local)
  METALSIM_CONST_ARRAY_MEMBERS(__constant)
#undef METALSIM_ARRAY_MEMBERS
#undef METALSIM_CONST_ARRAY_MEMBERS
  static constexpr size_t size() { return N; }
  static constexpr bool empty() { return N == 0; }
};

#define METALSIM_OF_OBJECTS(space)        \
  template <class T>                      \
  constexpr space T* addressof(space T&); \
  template <class T>                      \
  constexpr void swap(space T&, space T&);
METALSIM_OF_OBJECTS(METALSIM_THREAD)
METALSIM_OF_OBJECTS(__global)
METALSIM_OF_OBJECTS(__local)
#undef METALSIM_OF_OBJECTS

struct os_log {
  constexpr os_log(const __constant char*, const __constant char*) __constant {}
#define METALSIM_LOG(name) \
  template <class... T>    \
  void name(T...) const;   \
  template <class... T>    \
  void name(T...) const __constant;
  METALSIM_LOG(log)
  METALSIM_LOG(log_debug)
  METALSIM_LOG(log_info)
  METALSIM_LOG(log_error)
  METALSIM_LOG(log_fault)
#undef METALSIM_LOG
};

}  // namespace metal
