// <metal_tensor>, <metal_cooperative_tensor>: tensors over memory, and those that threads share.
#pragma once

namespace metal {

__constant constexpr size_t dynamic_extent = ~static_cast<size_t>(0);

template <size_t Size>
struct execution_threads {
  __constant static constexpr size_t static_size = Size;
  constexpr uint size() const { return Size; }
};
template <size_t Size>
struct execution_simdgroups {
  __constant static constexpr size_t static_size = Size;
  constexpr uint size() const { return Size; }
};
using execution_thread = execution_threads<1>;
using execution_simdgroup = execution_simdgroups<1>;
template <class T>
__constant constexpr bool is_execution_thread_v = is_same_v<remove_cv_t<T>, execution_thread>;
template <class T>
__constant constexpr bool is_execution_simdgroup_v = is_same_v<remove_cv_t<T>, execution_simdgroup>;
template <class T>
__constant constexpr bool is_execution_simdgroups_v = false;
template <size_t Size>
__constant constexpr bool is_execution_simdgroups_v<execution_simdgroups<Size>> = true;

template <class IndexType, size_t... Extents>
struct extents {
  using index_type = IndexType;
  using rank_type = size_t;
  using size_type = make_unsigned_t<IndexType>;

  constexpr extents() = default;
  template <class... Index>
  constexpr explicit extents(Index...) {}

  static constexpr rank_type rank() { return sizeof...(Extents); }
  static constexpr rank_type rank_dynamic() { return (0 + ... + (Extents == dynamic_extent)); }
  static constexpr size_t static_extent(rank_type);
  constexpr index_type extent(rank_type) const;
};

}  // namespace metal

namespace metalsim {

template <class IndexType, size_t rank, size_t... dynamic>
struct DynamicExtents : DynamicExtents<IndexType, rank - 1, metal::dynamic_extent, dynamic...> {};
template <class IndexType, size_t... dynamic>
struct DynamicExtents<IndexType, 0, dynamic...> {
  using type = metal::extents<IndexType, dynamic...>;
};

}  // namespace metalsim

namespace metal {

template <class IndexType, size_t Rank>
using dextents = typename metalsim::DynamicExtents<IndexType, Rank>::type;

struct tensor_handle {};
struct tensor_inline {};
struct tensor_offset {};

template <class ElementType, class Extents, class Descriptor = tensor_handle, class... Tags>
struct tensor {
  using element_type = ElementType;
  using value_type = remove_cv_t<remove_addrspace_t<ElementType>>;
  using extents_type = Extents;
  using index_type = typename Extents::index_type;
  using size_type = typename Extents::size_type;
  using rank_type = size_t;
  using reference = ElementType&;
  using data_handle_type = ElementType*;

  constexpr tensor(ElementType*, Extents);
  template <class Stride>
  constexpr tensor(ElementType*, Extents, array<Stride, Extents::rank()>);

  static constexpr rank_type get_rank() { return Extents::rank(); }
  static constexpr rank_type get_rank_dynamic() { return Extents::rank_dynamic(); }
  static constexpr size_t get_static_extent(rank_type);
  constexpr index_type get_extent(rank_type) const;
  constexpr Extents extents() const;
  constexpr index_type get_stride(rank_type) const;
  constexpr ElementType* get_data_handle() const;
  // Metal has an operator[] of several indices, which C++ before 23 lacks.
  constexpr reference operator[](index_type) const;
  constexpr reference operator[](array<index_type, Extents::rank()>) const;

  template <size_t... Part, class... Index>
  constexpr auto slice(Index...) const {
    if constexpr (sizeof...(Part) == 0) {
      return metalsim::value_of<
          tensor<ElementType, dextents<index_type, Extents::rank()>, Descriptor, Tags...>>();
    } else {
      return metalsim::value_of<
          tensor<ElementType, metal::extents<index_type, Part...>, Descriptor, Tags...>>();
    }
  }
};

template <class T, class Index, size_t... Extents>
tensor(T*, extents<Index, Extents...>) -> tensor<T, extents<Index, Extents...>, tensor_inline>;
template <class T, class Index, size_t... Extents, class Stride, size_t rank>
tensor(T*, extents<Index, Extents...>, array<Stride, rank>)
    -> tensor<T, extents<Index, Extents...>, tensor_inline>;

template <class T>
__constant constexpr bool is_tensor_handle_v = false;
template <class T, class E, class... Tags>
__constant constexpr bool is_tensor_handle_v<tensor<T, E, tensor_handle, Tags...>> = true;
template <class T>
__constant constexpr bool is_tensor_inline_v = false;
template <class T, class E, class... Tags>
__constant constexpr bool is_tensor_inline_v<tensor<T, E, tensor_inline, Tags...>> = true;
template <class T>
__constant constexpr bool has_tensor_offset_v = false;

}  // namespace metal

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
