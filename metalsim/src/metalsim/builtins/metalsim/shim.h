// The Metal standard library for C++: what every translation unit of metalsim includes before the
// user's source.
#pragma once

#if defined(METALSIM_BACKEND_CPU)
#include "backend_cpu.h"
#elif defined(METALSIM_BACKEND_CUDA)
#include "backend_cuda.h"
#else
#error "no back end chosen: -DMETALSIM_BACKEND_CPU or -DMETALSIM_BACKEND_CUDA"
#endif

#include "private_arrays.h"
#include "scalars.h"
#include "constants.h"
#include "type_traits.h"
#include "numeric_limits.h"
#include "vectors.h"
#include "vector_operators.h"
#include "packed_vectors.h"
#include "arguments.h"
#include "as_type.h"
#include "math.h"
#include "integer.h"
#include "common.h"
#include "relational.h"
#include "geometric.h"
#include "synchronization.h"
#include "simdgroup.h"
#include "quadgroup.h"
#include "atomics.h"
#include "simdgroup_matrix.h"
#include "utilities.h"
