// <metal_cooperative_tensor>: a tensor that the threads of an operation own together, each of them
// some of its elements, in an order that Layout knows.
#pragma once

#include "arguments.h"
#include "cooperative_layout.h"
#include "execution_scopes.h"
#include "tensor.h"

namespace metalsim {

template <class T>
inline constexpr bool is_tensor = metal::is_tensor_handle_v<T> || metal::is_tensor_inline_v<T>;

template <class T, class Extents, class Descriptor, class... Tags>
struct BufferValue<metal::tensor<T, Extents, Descriptor, Tags...>> {
  static_assert(sizeof(T) == 0,
                "a kernel parameter cannot be a tensor: the host binds those, which compile_shader "
                "cannot do. Take a pointer and make a tensor_inline of it");
  static metal::tensor<T, Extents, Descriptor, Tags...> from(void*);
};

// A position in the calling thread's share of a tensor.
template <class Tensor>
class CooperativeIterator {
 public:
  using index_type = int;

  METALSIM_INLINE CooperativeIterator(Tensor& tensor, int slot) : tensor(&tensor), slot(slot) {}

  METALSIM_INLINE auto& operator*() const { return (*tensor)[slot]; }
  METALSIM_INLINE CooperativeIterator& operator++() {
    ++slot;
    return *this;
  }
  METALSIM_INLINE CooperativeIterator operator++(int) {
    const CooperativeIterator before = *this;
    ++slot;
    return before;
  }
  METALSIM_INLINE CooperativeIterator& operator--() {
    --slot;
    return *this;
  }
  METALSIM_INLINE bool operator==(const CooperativeIterator& other) const {
    return slot == other.slot;
  }
  METALSIM_INLINE bool is_valid_element() const { return tensor->is_valid_element(slot); }
  METALSIM_INLINE auto get_multidimensional_index() const {
    return tensor->get_multidimensional_index(slot);
  }
  METALSIM_INLINE int get_index() const { return slot; }

 private:
  Tensor* tensor;
  int slot;
};

}  // namespace metalsim

namespace metal {

template <class ElementType, class Extents, class Layout>
class cooperative_tensor {
 public:
  using element_type = ElementType;
  using value_type = ElementType;
  using extents_type = Extents;
  using layout = Layout;
  using index_type = typename Extents::index_type;
  using iterator = metalsim::CooperativeIterator<cooperative_tensor>;
  using const_iterator = metalsim::CooperativeIterator<const cooperative_tensor>;

  // Metal leaves the elements undefined: here they are NaN, or an unlikely integer.
  METALSIM_INLINE cooperative_tensor() {
    __builtin_memset(static_cast<void*>(elements), is_integral_v<ElementType> ? 0xA5 : 0xFF,
                     sizeof elements);
  }

  static METALSIM_INLINE constexpr size_t get_rank() { return Extents::rank(); }
  // The elements of this thread, empty slots included.
  METALSIM_INLINE constexpr uint16_t get_capacity() const { return Layout::capacity; }

  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE bool is_valid_element(Index slot) const {
    return Layout::place(static_cast<int>(slot)).valid;
  }
  METALSIM_INLINE bool is_valid_element(const_iterator it) const { return it.is_valid_element(); }
  METALSIM_INLINE bool is_valid_element(iterator it) const { return it.is_valid_element(); }
  METALSIM_INLINE bool is_valid_element(const ElementType* element) const {
    return is_valid_element(element - elements);
  }

  // Where the element lies in the whole tensor, innermost dimension first.
  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE array<index_type, Extents::rank()> get_multidimensional_index(Index slot) const {
    const metalsim::Place place = Layout::place(static_cast<int>(slot));
    array<index_type, Extents::rank()> index;
    for (size_t dimension = 0; dimension < Extents::rank(); ++dimension)
      index[dimension] = static_cast<index_type>(place.index[dimension]);
    return index;
  }
  METALSIM_INLINE auto get_multidimensional_index(const_iterator it) const {
    return it.get_multidimensional_index();
  }
  METALSIM_INLINE auto get_multidimensional_index(iterator it) const {
    return it.get_multidimensional_index();
  }
  METALSIM_INLINE auto get_multidimensional_index(const ElementType* element) const {
    return get_multidimensional_index(element - elements);
  }

  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE ElementType& operator[](Index slot) {
    return elements[slot];
  }
  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE const ElementType& operator[](Index slot) const {
    return elements[slot];
  }
  // 0 where the slot is empty.
  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE ElementType get(Index slot) const {
    return is_valid_element(slot) ? elements[slot] : ElementType(0);
  }
  template <class Index>
    requires(is_integral_v<Index>)
  METALSIM_INLINE void set(Index slot, ElementType value) {
    if (is_valid_element(slot)) elements[slot] = value;
  }

  // Elements outside of the extents of `source` become 0.
  template <class T, class E, class D, class... Tags>
  METALSIM_INLINE void load(const tensor<T, E, D, Tags...>& source) {
    check_memory<T, E>();
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const metalsim::Place place = Layout::place(slot);
      if (!place.valid) continue;
      elements[slot] = inside(source, place) ? element(source, place) : ElementType(0);
    }
  }

  // Leaves out what lies outside of the extents of `target`.
  template <class T, class E, class D, class... Tags>
  METALSIM_INLINE void store(const tensor<T, E, D, Tags...>& target) const {
    check_memory<T, E>();
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const metalsim::Place place = Layout::place(slot);
      if constexpr (Layout::is_reduction) {
        if (!Layout::stores(slot)) continue;
      }
      if (place.valid && inside(target, place)) element(target, place) = elements[slot];
    }
  }

  METALSIM_INLINE iterator get_iterator(int slot) { return {*this, slot}; }
  METALSIM_INLINE const_iterator get_iterator(int slot) const { return {*this, slot}; }
  METALSIM_INLINE iterator begin() { return {*this, 0}; }
  METALSIM_INLINE iterator end() { return {*this, Layout::capacity}; }
  METALSIM_INLINE const_iterator begin() const { return {*this, 0}; }
  METALSIM_INLINE const_iterator end() const { return {*this, Layout::capacity}; }

  // The element of this reduction for an element of the matrix. Where the layouts do not agree
  // (is_iterator_compatible) it is some other element, as on the GPU.
  template <class Tensor>
    requires(Layout::is_reduction)
  METALSIM_INLINE iterator map_iterator(metalsim::CooperativeIterator<Tensor> it) {
    return {*this, mapped(it)};
  }
  template <class Tensor>
    requires(Layout::is_reduction)
  METALSIM_INLINE const_iterator map_iterator(metalsim::CooperativeIterator<Tensor> it) const {
    return {*this, mapped(it)};
  }

 private:
  template <class T, class E>
  static METALSIM_INLINE constexpr void check_memory() {
    static_assert(is_same_v<T, ElementType>,
                  "load and store: the tensor's element type must be that of the cooperative "
                  "tensor, and not const");
    static_assert(E::rank() == Extents::rank(),
                  "load and store: the tensor must have the rank of the cooperative tensor");
  }

  template <class Tensor>
  static METALSIM_INLINE bool inside(const Tensor& memory, const metalsim::Place& place) {
    bool result = true;
    for (size_t dimension = 0; dimension < Extents::rank(); ++dimension)
      result = result && place.index[dimension] < memory.get_extent(dimension);
    return result;
  }
  template <class Tensor>
  static METALSIM_INLINE ElementType& element(const Tensor& memory, const metalsim::Place& place) {
    if constexpr (Extents::rank() == 1)
      return memory[place.index[0]];
    else
      return memory[place.index[0], place.index[1]];
  }

  template <class Tensor>
  METALSIM_INLINE int mapped(const metalsim::CooperativeIterator<Tensor>& it) const {
    const int wanted = it.get_multidimensional_index()[Layout::kept_dimension];
    int found = 0;
    for (int slot = 0; slot < Layout::capacity; ++slot) {
      const metalsim::Place place = Layout::place(slot);
      if (place.valid && place.index[0] == wanted) found = slot;
    }
    return found;
  }

  ElementType elements[Layout::capacity];
};

template <class T>
inline constexpr bool is_cooperative_tensor_v = false;
template <class T, class E, class L>
inline constexpr bool is_cooperative_tensor_v<cooperative_tensor<T, E, L>> = true;

}  // namespace metal
