/* The C interface between metalsim's Python side (ctypes) and the machine. Change ABI_VERSION with
 * any layout. */
#ifndef METALSIM_MACHINE_ABI_H
#define METALSIM_MACHINE_ABI_H

#include <stdint.h>

#define METALSIM_ABI_VERSION 1
#define METALSIM_BUFFERS 31
#define METALSIM_COUNTERS 64
#define METALSIM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* One kernel of a compiled library, defined by METALSIM_ENTRY(n, ...) as `metalsim_entry_<n>`. */
typedef struct metalsim_entry {
  uint32_t abi_version;
  uint32_t buffers;           /* bit i: the kernel has a parameter at buffer index i */
  uint32_t constant_buffers;  /* bit i: that parameter is in the constant address space */
  uint32_t reference_buffers; /* bit i: that parameter is a reference, not a pointer */
  void (*body)(void);         /* runs one thread; the machine knows which */
} metalsim_entry;

/* One launch. The caller zeroes it, fills the first part and reads the second. */
typedef struct metalsim_launch {
  uint32_t abi_version;
  uint32_t workers;    /* OS threads; 0: one a core */
  uint64_t seed;       /* 0: fixed order; else seeded random order of threads and threadgroups */
  uint32_t threads[3]; /* the grid in threads: threadgroups at its edge are smaller */
  uint32_t group[3];
  void* buffers[METALSIM_BUFFERS]; /* NULL: nothing bound */
  uint64_t buffer_bytes[METALSIM_BUFFERS];

  uint64_t counters[METALSIM_COUNTERS]; /* metalsim_counter_name(i) names them */
  uint32_t threadgroup_bytes;           /* the most threadgroup memory a threadgroup declared */
  char error[8192];                     /* empty when all is well */
  char error_kind[32]; /* "launch", "divergence", "threadgroup_memory", "bounds", "simdgroup" */
} metalsim_launch;

/* Runs a kernel to its end or its first error. Returns 0 when all is well; never throws. */
METALSIM_API int metalsim_run(const metalsim_entry* entry, metalsim_launch* launch);

/* The name of a counter, NULL past the last one. */
METALSIM_API const char* metalsim_counter_name(uint32_t index);

#ifdef __cplusplus
}
#endif

#endif
