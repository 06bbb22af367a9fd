// <metal_tensor>, <metal_cooperative_tensor>. Not metalsim's own cooperative tensors: those know
// which thread holds what, and here their elements are in the address space of a thread.
#pragma once

#include <metalsim/execution_scopes.h>
#include <metalsim/tensor.h>

namespace metalsim {

// An array that is mostly used as a temporary, for which clang knows no address space.
template <class T, size_t N>
struct Index {
  constexpr T operator[](size_t) const;
  constexpr operator metal::array<T, N>() const;
};

template <class Tensor>
struct CooperativeIterator {
  using index_type = int;

  METALSIM_THREAD typename Tensor::element_type& operator*() const;
  METALSIM_THREAD CooperativeIterator& operator++() METALSIM_THREAD;
  METALSIM_THREAD CooperativeIterator& operator--() METALSIM_THREAD;
  CooperativeIterator operator++(int) METALSIM_THREAD;
  bool operator==(CooperativeIterator) const;
  bool operator!=(CooperativeIterator) const;
  bool is_valid_element() const;
  Index<int, Tensor::get_rank()> get_multidimensional_index() const;
  int get_index() const;
};

}  // namespace metalsim

namespace metal {

template <class ElementType, class Extents, class Layout>
struct cooperative_tensor {
  using element_type = ElementType;
  using value_type = ElementType;
  using extents_type = Extents;
  using layout = Layout;
  using index_type = typename Extents::index_type;
  using iterator = metalsim::CooperativeIterator<cooperative_tensor>;
  using const_iterator = iterator;

  static constexpr size_t get_rank() { return Extents::rank(); }
  constexpr uint16_t get_capacity() const;
  template <class Place>
  bool is_valid_element(Place) const;
  template <class Place>
  metalsim::Index<index_type, Extents::rank()> get_multidimensional_index(Place) const;
  template <class Index>
  METALSIM_THREAD ElementType& operator[](Index) METALSIM_THREAD;
  template <class Index>
  const METALSIM_THREAD ElementType& operator[](Index) const METALSIM_THREAD;
  template <class Index>
  ElementType get(Index) const;
  template <class Index>
  void set(Index, ElementType);
  template <class T, class E, class D, class... Tags>
  void load(const METALSIM_THREAD tensor<T, E, D, Tags...>&);
  template <class T, class E, class D, class... Tags>
  void store(const METALSIM_THREAD tensor<T, E, D, Tags...>&) const;
  iterator get_iterator(int) const;
  iterator begin() const;
  iterator end() const;
  template <class Iterator>
  iterator map_iterator(Iterator) const;
};

template <class T>
__constant constexpr bool is_cooperative_tensor_v = false;
template <class T, class E, class L>
__constant constexpr bool is_cooperative_tensor_v<cooperative_tensor<T, E, L>> = true;

}  // namespace metal
