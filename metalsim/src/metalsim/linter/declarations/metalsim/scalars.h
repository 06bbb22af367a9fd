// Scalar types as the compiler has them.
#pragma once

#pragma OPENCL EXTENSION cl_khr_fp16 : enable

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef signed char int8_t;
typedef short int16_t;
typedef int int32_t;
typedef long int64_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef unsigned long size_t;
typedef long ptrdiff_t;
typedef __bf16 bfloat;

namespace metalsim {
template <class T>
__constant constexpr bool is_integer = __is_integral(T);
template <class T>
__constant constexpr bool real = __is_floating_point(T);
}  // namespace metalsim
