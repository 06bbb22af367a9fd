// <metal_tensor>: views of memory with extents and strides. Kernels make theirs over the buffers
// and arrays that they hold (tensor_inline); the host cannot bind any (tensor_handle). Lint reads
// this header too: parameters are values, since temporaries have no address space for it.
#pragma once

#include <metalsim/extents.h>
#include <metalsim/utilities.h>

namespace metal {

struct tensor_handle {};
struct tensor_inline {};
struct tensor_offset {};

template <class ElementType, class Extents, class Descriptor = tensor_handle, class... Tags>
struct tensor;

template <class T>
METALSIM_CONSTANT inline constexpr bool is_tensor_handle_v = false;
template <class T, class E, class... Tags>
METALSIM_CONSTANT inline constexpr bool is_tensor_handle_v<tensor<T, E, tensor_handle, Tags...>> =
    true;
template <class T>
METALSIM_CONSTANT inline constexpr bool is_tensor_inline_v = false;
template <class T, class E, class... Tags>
METALSIM_CONSTANT inline constexpr bool is_tensor_inline_v<tensor<T, E, tensor_inline, Tags...>> =
    true;
template <class T>
METALSIM_CONSTANT inline constexpr bool has_tensor_offset_v = false;
template <class T, class E, class D, class... Tags>
METALSIM_CONSTANT inline constexpr bool has_tensor_offset_v<tensor<T, E, D, Tags...>> =
    (is_same_v<Tags, tensor_offset> || ...);

template <class ElementType, class Extents, class Descriptor, class... Tags>
struct tensor {
  static_assert(is_same_v<Descriptor, tensor_inline> || is_same_v<Descriptor, tensor_handle>,
                "tensor: the descriptor must be tensor_handle or tensor_inline");
  static_assert(sizeof...(Tags) == 0 || is_tensor_handle_v<tensor>,
                "tensor: only a tensor_handle takes the tag tensor_offset");

  using element_type = ElementType;
  using value_type = remove_cv_t<remove_addrspace_t<ElementType>>;
  using extents_type = Extents;
  using index_type = typename Extents::index_type;
  using size_type = typename Extents::size_type;
  using rank_type = size_t;
  using reference = ElementType&;
  using data_handle_type = ElementType*;

 private:
  template <class... Index>
  using IndexOf = enable_if_t<sizeof...(Index) == Extents::rank() &&
                              (is_convertible_v<Index, index_type> && ...)>;

 public:
  // Without strides the elements lie side by side, dimension 0 innermost.
  METALSIM_INLINE constexpr tensor(ElementType* data, Extents extents)
      : data(data), all_extents(extents) {
    refuse_handle();
    index_type stride = 1;
    for (rank_type dimension = 0; dimension < get_rank(); ++dimension) {
      strides[dimension] = stride;
      stride *= extents.extent(dimension);
    }
  }
  template <class Stride>
  METALSIM_INLINE constexpr tensor(ElementType* data, Extents extents,
                                   array<Stride, Extents::rank()> strides)
      : data(data), all_extents(extents) {
    refuse_handle();
    for (rank_type dimension = 0; dimension < get_rank(); ++dimension)
      this->strides[dimension] = static_cast<index_type>(strides[dimension]);
  }

  static METALSIM_INLINE constexpr rank_type get_rank() { return Extents::rank(); }
  static METALSIM_INLINE constexpr rank_type get_rank_dynamic() { return Extents::rank_dynamic(); }
  static METALSIM_INLINE constexpr size_t get_static_extent(rank_type dimension) {
    return Extents::static_extent(dimension);
  }
  METALSIM_INLINE constexpr index_type get_extent(rank_type dimension) const {
    return all_extents.extent(dimension);
  }
  METALSIM_INLINE constexpr Extents extents() const { return all_extents; }
  METALSIM_INLINE constexpr index_type get_stride(rank_type dimension) const {
    return strides[dimension];
  }
  METALSIM_INLINE constexpr ElementType* get_data_handle() const { return data; }

  // One element, dimension 0 first. As on the GPU the extents are not looked at.
#ifdef METALSIM_HAS_ADDRESS_SPACES  // which C++17 alone has: there `t[i, j]` is t[j]
  METALSIM_INLINE constexpr reference operator[](index_type index) const { return data[index]; }
#else
  template <class... Index, class = IndexOf<Index...>>
  METALSIM_INLINE constexpr reference operator[](Index... index) const {
    return data[offset(index...)];
  }
#endif
  METALSIM_INLINE constexpr reference operator[](array<index_type, Extents::rank()> index) const {
    long position = 0;
    for (rank_type dimension = 0; dimension < get_rank(); ++dimension)
      position += static_cast<long>(index[dimension]) * strides[dimension];
    return data[position];
  }

  // The part that begins at `index`: `slice<64, dynamic_extent>(x, y)` promises that 64 elements
  // follow, a dynamic extent is what remains.
  template <size_t... Part, class... Index, class = IndexOf<Index...>>
  METALSIM_INLINE constexpr auto slice(Index... index) const {
    if constexpr (sizeof...(Part) == 0) {
      return part<dextents<index_type, Extents::rank()>>(index...);
    } else {
      static_assert(sizeof...(Part) == Extents::rank(), "slice: give one extent a dimension");
      return part<metal::extents<index_type, Part...>>(index...);
    }
  }

 private:
  template <class OtherType, class OtherExtents, class OtherDescriptor, class... OtherTags>
  friend struct tensor;

  METALSIM_INLINE constexpr tensor() = default;

  static METALSIM_INLINE constexpr void refuse_handle() {
    static_assert(is_same_v<Descriptor, tensor_inline>,
                  "a tensor_handle is bound by the host, which compile_shader cannot do: take a "
                  "pointer and make a tensor_inline of it");
  }

  template <class... Index>
  METALSIM_INLINE constexpr long offset(Index... index) const {
    const long indices[] = {static_cast<long>(index)...};
    long sum = 0;
    for (size_t dimension = 0; dimension < sizeof...(Index); ++dimension)
      sum += indices[dimension] * strides[dimension];
    return sum;
  }

  template <class PartExtents, class... Index>
  METALSIM_INLINE constexpr auto part(Index... index) const {
    tensor<ElementType, PartExtents, Descriptor, Tags...> result;
    const index_type start[] = {static_cast<index_type>(index)...};
    result.data = data + offset(index...);
    for (rank_type dimension = 0; dimension < get_rank(); ++dimension) {
      result.strides[dimension] = strides[dimension];
      if (PartExtents::static_extent(dimension) == dynamic_extent)
        result.all_extents.values[dimension] = all_extents.extent(dimension) - start[dimension];
    }
    return result;
  }

  ElementType* data = nullptr;
  Extents all_extents;
  index_type strides[Extents::rank()];
};

template <class T, class Index, size_t... Extents>
tensor(T*, extents<Index, Extents...>) -> tensor<T, extents<Index, Extents...>, tensor_inline>;
template <class T, class Index, size_t... Extents, class Stride, size_t rank>
tensor(T*, extents<Index, Extents...>, array<Stride, rank>)
    -> tensor<T, extents<Index, Extents...>, tensor_inline>;

}  // namespace metal
