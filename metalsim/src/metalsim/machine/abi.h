/* The C interface between metalsim's Python side (ctypes) and the machine. Change ABI_VERSION with
 * any layout. */
#ifndef METALSIM_MACHINE_ABI_H
#define METALSIM_MACHINE_ABI_H

#include <stdint.h>

#define METALSIM_ABI_VERSION 4
#define METALSIM_BUFFERS 31
#define METALSIM_COUNTERS 64
#define METALSIM_LINES 4096 /* instructions that a profile can tell apart */
#define METALSIM_API __attribute__((visibility("default")))

#ifdef __cplusplus
extern "C" {
#endif

/* One kernel of a compiled library, defined by METALSIM_ENTRY(n, ...) as `metalsim_entry_<n>`. */
typedef struct metalsim_entry {
  uint32_t abi_version;
  uint32_t buffers;                    /* bit i: the kernel has a parameter at buffer index i */
  uint32_t constant_buffers;           /* bit i: that parameter is in the constant address space */
  uint32_t reference_buffers;          /* bit i: that parameter is a reference, not a pointer */
  void (*body)(void);                  /* runs one thread; the machine knows which */
  uint32_t (*threadgroup_bytes)(void); /* of its threadgroup variables */
} metalsim_entry;

/* Memory that the arguments lead to by address: an element of a list of tensors. */
typedef struct metalsim_extent {
  void* base;
  uint64_t bytes;
  uint32_t buffer; /* the slot of the list */
  uint32_t item;
} metalsim_extent;

/* What a checker looks for: bits of metalsim_launch::checks, and metalsim_finding::kind. */
enum {
  METALSIM_RACES = 1,
  METALSIM_BOUNDS = 2,
  METALSIM_UNINITIALIZED = 4,
  METALSIM_ALIGNMENT = 8,
  METALSIM_PROFILE = 16 /* no checker: counters by instruction */
};

/* One side of a finding. */
typedef struct metalsim_access {
  uint64_t code;   /* in the kernel library: the instruction after the access */
  uint32_t action; /* 0: read, 1: write, 2: atomic, 3: not known which */
  uint32_t thread[3];
  uint32_t threadgroup[3];
} metalsim_access;

/* Accesses that are wrong in the same way: same kind, same code on both sides, same memory. */
typedef struct metalsim_finding {
  uint32_t kind;
  uint32_t space;     /* 0: device, 1: constant, 2: threadgroup, 3: thread, 4: none of these */
  uint32_t buffer;    /* the slot, for device and constant memory */
  uint32_t item;      /* in the list of tensors at that slot; ~0: no list */
  const char* name;   /* of a variable, or of an array's type for an index; NULL: none */
  int64_t offset;     /* in bytes, from where the memory begins; or the index */
  uint64_t extent;    /* the bytes of that memory; 0: a buffer that is not bound */
  uint32_t size;      /* bytes of the access */
  uint32_t alignment; /* that the access needs */
  uint32_t has_other;
  uint64_t count;
  metalsim_access access; /* of the first one */
  metalsim_access other;
} metalsim_finding;

/* What one instruction of the kernel library added to the counters. */
typedef struct metalsim_line_counters {
  uint64_t code; /* the instruction after it */
  uint64_t counters[METALSIM_COUNTERS];
} metalsim_line_counters;

/* One launch. The caller zeroes it, fills the first part and reads the second. */
typedef struct metalsim_launch {
  uint32_t abi_version;
  uint32_t workers;    /* OS threads; 0: one a core */
  uint64_t seed;       /* 0: fixed order; else seeded random order of threads and threadgroups */
  uint32_t threads[3]; /* the grid in threads: threadgroups at its edge are smaller */
  uint32_t group[3];
  void* buffers[METALSIM_BUFFERS]; /* NULL: nothing bound */
  uint64_t buffer_bytes[METALSIM_BUFFERS];
  const metalsim_extent* extents;
  uint32_t extent_count;
  uint32_t checks;                        /* of a checking build */
  uint8_t* initialized[METALSIM_BUFFERS]; /* a bit a byte of a fresh buffer; NULL: not fresh */
  metalsim_finding* findings;             /* room for finding_capacity of them */
  uint32_t finding_capacity;
  uint32_t line_capacity;
  metalsim_line_counters* lines; /* room for line_capacity of them, for METALSIM_PROFILE */

  uint64_t counters[METALSIM_COUNTERS]; /* metalsim_counter_name(i) names them */
  uint32_t finding_count;
  uint32_t line_count;
  char error[8192];    /* empty when all is well */
  char error_kind[32]; /* "launch", "divergence", "threadgroup_memory", "simdgroup" */
} metalsim_launch;

/* Runs a kernel to its end or its first error. Returns 0 when all is well; never throws. */
METALSIM_API int metalsim_run(const metalsim_entry* entry, metalsim_launch* launch);

/* The name of a counter, NULL past the last one. */
METALSIM_API const char* metalsim_counter_name(uint32_t index);

#ifdef __cplusplus
}
#endif

#endif
