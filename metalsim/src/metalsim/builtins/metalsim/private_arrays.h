// A thread's own arrays, which the front end declares through these macros: in a checking build the
// machine knows where they lie, what was written to them, and that nothing lies around them.
#pragma once

#define METALSIM_UNWRAP(...) __VA_ARGS__

#if defined(METALSIM_CHECK)

namespace metalsim {

class ArrayScope {
 public:
  METALSIM_INLINE ArrayScope(unsigned char* base, uint64_t bytes, unsigned char* written,
                             const char* name)
      : array{nullptr, base, bytes, written, name} {
    metalsim_enter_array(backend::current(), &array);
  }
  METALSIM_INLINE ~ArrayScope() { metalsim_leave_array(backend::current(), &array); }
  ArrayScope(const ArrayScope&) = delete;
  ArrayScope& operator=(const ArrayScope&) = delete;

 private:
  PrivateArray array;
};

template <class T>
class ArrayStorage {
 public:
  METALSIM_INLINE explicit ArrayStorage(const char* name)
      : scope(reinterpret_cast<unsigned char*>(&values), sizeof(T), written, name) {}

 private:
  ArrayScope scope;
  unsigned char written[(sizeof(T) + 7) / 8];
  unsigned char before[array_gap];

 public:
  union {
    T values;  // made by the declaration, so that its stores are seen
  };

 private:
  unsigned char after[array_gap];
};

// Compilers watch no access to what they know to be a local variable.
template <class T>
METALSIM_INLINE T& observed(T& variable) {
  T* address = &variable;
  __asm__("" : "+r"(address));
  return *address;
}

struct ArrayPlace {
  void* address;
};

}  // namespace metalsim

METALSIM_INLINE void* operator new(decltype(sizeof 0), metalsim::ArrayPlace place) {
  return place.address;
}
METALSIM_INLINE void* operator new[](decltype(sizeof 0), metalsim::ArrayPlace place) {
  return place.address;
}

// An initializer in braces may follow.
#define METALSIM_PRIVATE_ARRAY(name, dimensions, ...)                                    \
  using metalsim_type_of_##name = __VA_ARGS__ METALSIM_UNWRAP dimensions;                \
  metalsim::ArrayStorage<metalsim_type_of_##name> metalsim_storage_of_##name(#name);     \
  metalsim_type_of_##name& name = metalsim::observed(metalsim_storage_of_##name.values); \
  ::new (metalsim::ArrayPlace{&name}) metalsim_type_of_##name

#else

#define METALSIM_PRIVATE_ARRAY(name, dimensions, ...) __VA_ARGS__ name METALSIM_UNWRAP dimensions

#endif
