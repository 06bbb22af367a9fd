// <metal_type_traits>: the part of <type_traits> that Metal has.
#pragma once

#include <metalsim/scalars.h>

namespace metal {

template <class T, T v>
struct integral_constant {
  METALSIM_CONSTANT static constexpr T value = v;
  using value_type = T;
  using type = integral_constant;
  constexpr operator T() const { return v; }
  constexpr T operator()() const { return v; }
};
template <bool condition>
using bool_constant = integral_constant<bool, condition>;
using true_type = bool_constant<true>;
using false_type = bool_constant<false>;

// Not public, but MLX's atomics ask with it.
template <class... Conditions>
struct _disjunction : bool_constant<(false || ... || Conditions::value)> {};

template <class A, class B>
struct is_same : bool_constant<__is_same(A, B)> {};
template <class A, class B>
METALSIM_CONSTANT inline constexpr bool is_same_v = __is_same(A, B);

template <bool condition, class A, class B>
struct conditional {
  using type = A;
};
template <class A, class B>
struct conditional<false, A, B> {
  using type = B;
};
template <bool condition, class A, class B>
using conditional_t = typename conditional<condition, A, B>::type;

template <bool condition, class T = void>
struct enable_if {};
template <class T>
struct enable_if<true, T> {
  using type = T;
};
template <bool condition, class T = void>
using enable_if_t = typename enable_if<condition, T>::type;

template <class T>
struct remove_const {
  using type = T;
};
template <class T>
struct remove_const<const T> {
  using type = T;
};
template <class T>
struct remove_volatile {
  using type = T;
};
template <class T>
struct remove_volatile<volatile T> {
  using type = T;
};
template <class T>
struct remove_cv : remove_const<typename remove_volatile<T>::type> {};
template <class T>
struct remove_reference {
  using type = T;
};
template <class T>
struct remove_reference<T&> {
  using type = T;
};
template <class T>
struct remove_reference<T&&> {
  using type = T;
};
template <class T>
struct remove_pointer {
  using type = T;
};
template <class T>
struct remove_pointer<T*> {
  using type = T;
};
template <class T>
struct remove_extent {
  using type = T;
};
template <class T, size_t count>
struct remove_extent<T[count]> {
  using type = T;
};
template <class T>
using remove_const_t = typename remove_const<T>::type;
template <class T>
using remove_volatile_t = typename remove_volatile<T>::type;
template <class T>
using remove_cv_t = typename remove_cv<T>::type;
template <class T>
using remove_reference_t = typename remove_reference<T>::type;
template <class T>
using remove_pointer_t = typename remove_pointer<T>::type;
template <class T>
using remove_extent_t = typename remove_extent<T>::type;
template <class T>
using remove_cvref_t = remove_cv_t<remove_reference_t<T>>;
template <class T>
using decay_t = remove_cvref_t<T>;
// Address spaces are erased, except for lint, which specialises this.
template <class T>
struct remove_addrspace {
  using type = T;
};
template <class T>
using remove_addrspace_t = typename remove_addrspace<T>::type;
template <class T>
struct make_signed;
template <class T>
struct make_unsigned;
#define METALSIM_SIGNEDNESS(signed_type, unsigned_type) \
  template <>                                           \
  struct make_signed<unsigned_type> {                   \
    using type = signed_type;                           \
  };                                                    \
  template <>                                           \
  struct make_signed<signed_type> {                     \
    using type = signed_type;                           \
  };                                                    \
  template <>                                           \
  struct make_unsigned<signed_type> {                   \
    using type = unsigned_type;                         \
  };                                                    \
  template <>                                           \
  struct make_unsigned<unsigned_type> {                 \
    using type = unsigned_type;                         \
  };
METALSIM_SIGNEDNESS(char, uchar)
METALSIM_SIGNEDNESS(short, ushort)
METALSIM_SIGNEDNESS(int, uint)
METALSIM_SIGNEDNESS(long, ulong)
#undef METALSIM_SIGNEDNESS
template <class T>
using make_signed_t = typename make_signed<T>::type;
template <class T>
using make_unsigned_t = typename make_unsigned<T>::type;

template <class T>
METALSIM_CONSTANT inline constexpr bool is_integral_v = metalsim::is_integer<remove_cv_t<T>>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_floating_point_v = metalsim::real<remove_cv_t<T>>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_arithmetic_v =
    is_integral_v<T> || is_floating_point_v<T>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_scalar_v = is_arithmetic_v<T> || __is_enum(T);
template <class T>
METALSIM_CONSTANT inline constexpr bool is_signed_v =
    is_arithmetic_v<T> && !(static_cast<T>(-1) > static_cast<T>(0));
template <class T>
METALSIM_CONSTANT inline constexpr bool is_unsigned_v = is_integral_v<T> && !is_signed_v<T>;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_const_v = false;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_const_v<const T> = true;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_void_v = __is_same(remove_cv_t<T>, void);
template <class T>
METALSIM_CONSTANT inline constexpr bool is_pointer_v = false;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_pointer_v<T*> = true;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_reference_v = false;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_reference_v<T&> = true;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_array_v = false;
template <class T, size_t count>
METALSIM_CONSTANT inline constexpr bool is_array_v<T[count]> = true;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_enum_v = __is_enum(T);
template <class T>
METALSIM_CONSTANT inline constexpr bool is_class_v = __is_class(T);
template <class A, class B>
METALSIM_CONSTANT inline constexpr bool is_base_of_v = __is_base_of(A, B);
template <class T>
METALSIM_CONSTANT inline constexpr bool is_trivially_copyable_v = __is_trivially_copyable(T);
#ifdef METALSIM_HAS_ADDRESS_SPACES
template <class From, class To>
METALSIM_CONSTANT inline constexpr bool is_convertible_v = __is_convertible_to(From, To);
#else
template <class From, class To>
METALSIM_CONSTANT inline constexpr bool is_convertible_v =
    requires(void (&accept)(To), From from) { accept(from); };
#endif

#define METALSIM_TRAIT(name) \
  template <class T>         \
  struct name : bool_constant<name##_v<T>> {};
METALSIM_TRAIT(is_integral)
METALSIM_TRAIT(is_floating_point)
METALSIM_TRAIT(is_arithmetic)
METALSIM_TRAIT(is_scalar)
METALSIM_TRAIT(is_signed)
METALSIM_TRAIT(is_unsigned)
METALSIM_TRAIT(is_const)
METALSIM_TRAIT(is_void)
METALSIM_TRAIT(is_pointer)
METALSIM_TRAIT(is_reference)
METALSIM_TRAIT(is_array)
METALSIM_TRAIT(is_enum)
METALSIM_TRAIT(is_class)
METALSIM_TRAIT(is_trivially_copyable)
#undef METALSIM_TRAIT
template <class A, class B>
struct is_base_of : bool_constant<is_base_of_v<A, B>> {};
template <class From, class To>
struct is_convertible : bool_constant<is_convertible_v<From, To>> {};

template <class T>
T&& declval();

template <class T>
METALSIM_INLINE constexpr remove_reference_t<T>&& move(T&& value) {
  return static_cast<remove_reference_t<T>&&>(value);
}

}  // namespace metal
