// Metal's library as declarations for clang's OpenCL C++ front end, whose address spaces behave as
// Metal's. Nothing here can be run. Argument types are taken loosely: metalsim's own library checks
// them when the program is compiled to run, here only address spaces count.
#pragma once

#define METALSIM_INLINE inline
#define METALSIM_DEVICE __global
#define METALSIM_CONSTANT __constant
#define METALSIM_THREADGROUP __local
#ifndef METALSIM_THREAD
#define METALSIM_THREAD __private
#endif
#define METALSIM_KERNEL
#define METALSIM_THREADGROUP_VARIABLE(kernel, id, name, ...) \
  __local __typeof__(__VA_ARGS__)& name = metalsim::threadgroup_variable<__typeof__(__VA_ARGS__)>()

// Words of OpenCL that are names in Metal.
#define global metalsim_global
#define local metalsim_local
#define generic metalsim_generic
#define pipe metalsim_pipe
#define read_only metalsim_read_only
#define write_only metalsim_write_only
#define read_write metalsim_read_write
#define atomic_int metalsim_atomic_int
#define atomic_uint metalsim_atomic_uint
#define atomic_float metalsim_atomic_float

#include <metalsim/scalars.h>
#include <metalsim/constants.h>

namespace metalsim {
template <class T>
__local T& threadgroup_variable();
template <class T>
T value_of();
}  // namespace metalsim

#include "traits.h"
#include <metalsim/numeric_limits.h>
#include "vectors.h"
#include "functions.h"
#include "threads.h"
#include "utilities.h"
