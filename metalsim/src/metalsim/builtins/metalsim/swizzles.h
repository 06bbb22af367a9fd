// The swizzles of two, three and four letters as union members: every order, repeats included, of
// xyzw and of rgba. Each loop level needs its own macros, because a macro does not expand inside
// itself.
#pragma once

#define METALSIM_SWIZZLE_2(storage, a, i, b, j) metalsim::Swizzle<T, storage, i, j> a##b;
#define METALSIM_SWIZZLE_3(storage, a, i, b, j, c, k) \
  metalsim::Swizzle<T, storage, i, j, k> a##b##c;
#define METALSIM_SWIZZLE_4(storage, a, i, b, j, c, k, d, l) \
  metalsim::Swizzle<T, storage, i, j, k, l> a##b##c##d;

#define METALSIM_XY_1(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define METALSIM_XY_2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define METALSIM_XY_3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define METALSIM_XY_4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1)
#define METALSIM_XY_PAIR(...) METALSIM_XY_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_XY_TRIPLE_TAIL(...) METALSIM_XY_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_XY_TRIPLE(...) METALSIM_XY_2(METALSIM_XY_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_XY_QUAD_TAIL(...) METALSIM_XY_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_XY_QUAD_MIDDLE(...) METALSIM_XY_3(METALSIM_XY_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_XY_QUAD(...) METALSIM_XY_2(METALSIM_XY_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_XY(storage)        \
  METALSIM_XY_1(METALSIM_XY_PAIR, storage)   \
  METALSIM_XY_1(METALSIM_XY_TRIPLE, storage) \
  METALSIM_XY_1(METALSIM_XY_QUAD, storage)

#define METALSIM_RG_1(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1)
#define METALSIM_RG_2(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1)
#define METALSIM_RG_3(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1)
#define METALSIM_RG_4(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1)
#define METALSIM_RG_PAIR(...) METALSIM_RG_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_RG_TRIPLE_TAIL(...) METALSIM_RG_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_RG_TRIPLE(...) METALSIM_RG_2(METALSIM_RG_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_RG_QUAD_TAIL(...) METALSIM_RG_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_RG_QUAD_MIDDLE(...) METALSIM_RG_3(METALSIM_RG_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_RG_QUAD(...) METALSIM_RG_2(METALSIM_RG_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_RG(storage)        \
  METALSIM_RG_1(METALSIM_RG_PAIR, storage)   \
  METALSIM_RG_1(METALSIM_RG_TRIPLE, storage) \
  METALSIM_RG_1(METALSIM_RG_QUAD, storage)

#define METALSIM_XYZ_1(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define METALSIM_XYZ_2(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define METALSIM_XYZ_3(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define METALSIM_XYZ_4(M, ...) M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2)
#define METALSIM_XYZ_PAIR(...) METALSIM_XYZ_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_XYZ_TRIPLE_TAIL(...) METALSIM_XYZ_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_XYZ_TRIPLE(...) METALSIM_XYZ_2(METALSIM_XYZ_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_XYZ_QUAD_TAIL(...) METALSIM_XYZ_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_XYZ_QUAD_MIDDLE(...) METALSIM_XYZ_3(METALSIM_XYZ_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_XYZ_QUAD(...) METALSIM_XYZ_2(METALSIM_XYZ_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_XYZ(storage)         \
  METALSIM_XYZ_1(METALSIM_XYZ_PAIR, storage)   \
  METALSIM_XYZ_1(METALSIM_XYZ_TRIPLE, storage) \
  METALSIM_XYZ_1(METALSIM_XYZ_QUAD, storage)

#define METALSIM_RGB_1(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2)
#define METALSIM_RGB_2(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2)
#define METALSIM_RGB_3(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2)
#define METALSIM_RGB_4(M, ...) M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2)
#define METALSIM_RGB_PAIR(...) METALSIM_RGB_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_RGB_TRIPLE_TAIL(...) METALSIM_RGB_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_RGB_TRIPLE(...) METALSIM_RGB_2(METALSIM_RGB_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_RGB_QUAD_TAIL(...) METALSIM_RGB_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_RGB_QUAD_MIDDLE(...) METALSIM_RGB_3(METALSIM_RGB_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_RGB_QUAD(...) METALSIM_RGB_2(METALSIM_RGB_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_RGB(storage)         \
  METALSIM_RGB_1(METALSIM_RGB_PAIR, storage)   \
  METALSIM_RGB_1(METALSIM_RGB_TRIPLE, storage) \
  METALSIM_RGB_1(METALSIM_RGB_QUAD, storage)

#define METALSIM_XYZW_1(M, ...) \
  M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define METALSIM_XYZW_2(M, ...) \
  M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define METALSIM_XYZW_3(M, ...) \
  M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define METALSIM_XYZW_4(M, ...) \
  M(__VA_ARGS__, x, 0) M(__VA_ARGS__, y, 1) M(__VA_ARGS__, z, 2) M(__VA_ARGS__, w, 3)
#define METALSIM_XYZW_PAIR(...) METALSIM_XYZW_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_XYZW_TRIPLE_TAIL(...) METALSIM_XYZW_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_XYZW_TRIPLE(...) METALSIM_XYZW_2(METALSIM_XYZW_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_XYZW_QUAD_TAIL(...) METALSIM_XYZW_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_XYZW_QUAD_MIDDLE(...) METALSIM_XYZW_3(METALSIM_XYZW_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_XYZW_QUAD(...) METALSIM_XYZW_2(METALSIM_XYZW_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_XYZW(storage)          \
  METALSIM_XYZW_1(METALSIM_XYZW_PAIR, storage)   \
  METALSIM_XYZW_1(METALSIM_XYZW_TRIPLE, storage) \
  METALSIM_XYZW_1(METALSIM_XYZW_QUAD, storage)

#define METALSIM_RGBA_1(M, ...) \
  M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2) M(__VA_ARGS__, a, 3)
#define METALSIM_RGBA_2(M, ...) \
  M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2) M(__VA_ARGS__, a, 3)
#define METALSIM_RGBA_3(M, ...) \
  M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2) M(__VA_ARGS__, a, 3)
#define METALSIM_RGBA_4(M, ...) \
  M(__VA_ARGS__, r, 0) M(__VA_ARGS__, g, 1) M(__VA_ARGS__, b, 2) M(__VA_ARGS__, a, 3)
#define METALSIM_RGBA_PAIR(...) METALSIM_RGBA_2(METALSIM_SWIZZLE_2, __VA_ARGS__)
#define METALSIM_RGBA_TRIPLE_TAIL(...) METALSIM_RGBA_3(METALSIM_SWIZZLE_3, __VA_ARGS__)
#define METALSIM_RGBA_TRIPLE(...) METALSIM_RGBA_2(METALSIM_RGBA_TRIPLE_TAIL, __VA_ARGS__)
#define METALSIM_RGBA_QUAD_TAIL(...) METALSIM_RGBA_4(METALSIM_SWIZZLE_4, __VA_ARGS__)
#define METALSIM_RGBA_QUAD_MIDDLE(...) METALSIM_RGBA_3(METALSIM_RGBA_QUAD_TAIL, __VA_ARGS__)
#define METALSIM_RGBA_QUAD(...) METALSIM_RGBA_2(METALSIM_RGBA_QUAD_MIDDLE, __VA_ARGS__)
#define METALSIM_SWIZZLES_RGBA(storage)          \
  METALSIM_RGBA_1(METALSIM_RGBA_PAIR, storage)   \
  METALSIM_RGBA_1(METALSIM_RGBA_TRIPLE, storage) \
  METALSIM_RGBA_1(METALSIM_RGBA_QUAD, storage)
