"""Python arguments to buffer slots, by the rules of torch.mps.compile_shader."""

from __future__ import annotations

import array
import ctypes
import math
import struct
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeGuard, cast

from .errors import ArgumentError
from .launch import MAX_BUFFERS, Buffer

Number = int | float
Casts = str | dict[int, str] | None


class Tensor(Protocol):
    """What is used of a torch.Tensor, so that torch need not be there to import this."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> object: ...
    @property
    def device(self) -> Any: ...
    def stride(self) -> Sequence[int]: ...
    def data_ptr(self) -> int: ...
    def numel(self) -> int: ...
    def element_size(self) -> int: ...
    def float(self) -> Tensor: ...
    def dim(self) -> int: ...


def is_tensor(value: object) -> TypeGuard[Tensor]:
    """Whether `value` is a torch.Tensor, without importing torch."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(value, torch.Tensor)


class Array(Protocol):
    """What is used of a numpy.ndarray, so that numpy need not be there to import this."""

    @property
    def shape(self) -> Sequence[int]: ...
    @property
    def strides(self) -> Sequence[int]: ...
    @property
    def dtype(self) -> Any: ...
    @property
    def flags(self) -> Any: ...
    @property
    def ctypes(self) -> Any: ...
    @property
    def size(self) -> int: ...
    def astype(self, dtype: str) -> Array: ...


class Scalar(Protocol):
    """What is used of a numpy.generic."""

    def item(self) -> object: ...
    def reshape(self, shape: tuple[int, ...]) -> Array: ...


def is_array(value: object) -> TypeGuard[Array]:
    """Whether `value` is a numpy.ndarray, without importing numpy."""
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)


def _is_scalar(value: object) -> TypeGuard[Scalar]:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.generic)


class Fresh:
    """A tensor or array that holds nothing yet, as an argument of a kernel: a launch of a checking
    build reports reads of bytes that no launch wrote to.

    What is written is remembered with this object: pass it to the launches of a sequence, one after
    another. The memory itself is left as it is. Writes through another argument that shares the
    memory do not count.
    """

    def __init__(self, memory: object) -> None:
        if not (is_tensor(memory) or is_array(memory)):
            raise ArgumentError(
                f"Fresh: expected a tensor or an array, not {type(memory).__name__}"
            )
        self.memory = memory
        self._bits = (ctypes.c_uint8 * 0)()

    def bits(self, size: int) -> int:
        """The address of one bit for each of `size` bytes."""
        if not len(self._bits):
            self._bits = (ctypes.c_uint8 * (size // 8 + 1))()
        return ctypes.addressof(self._bits)


def element_count(value: object) -> int | None:
    """The elements of a tensor or array, None for anything else."""
    if isinstance(value, Fresh):
        value = value.memory
    if is_tensor(value):
        return value.numel()
    return value.size if is_array(value) else None


def bind(
    kernel: str,
    arguments: Sequence[object],
    casts: object,
    writable: Collection[int],
    device: str = "cpu",
) -> dict[int, Buffer]:
    """Argument i to buffer slot i; `writable` are the slots that the kernel may write to, `device`
    is the type of device that tensors must be on.

    Raises what torch raises: RuntimeError, ArgumentError for a wrong type. A read-only numpy array
    in a writable slot is an ArgumentError too.
    """
    if len(arguments) > MAX_BUFFERS:
        raise ArgumentError(
            f"{kernel}: {len(arguments)} arguments, but Metal has {MAX_BUFFERS} buffer slots"
        )
    default, by_index = _read_casts(kernel, casts)
    buffers = dict[int, Buffer]()
    for index, argument in enumerate(arguments):
        where = f"{kernel}: argument {index}"
        memory = _memory(where, argument, index in writable, device)
        if memory is not None:
            buffers[index] = memory
        else:
            buffers[index] = _value(where, argument, by_index.get(index, default), device)
    return buffers


def _read_casts(kernel: str, casts: object) -> tuple[str, dict[int, str]]:
    if casts is None:
        return "", {}
    if isinstance(casts, str):
        return casts, {}
    if not isinstance(casts, dict):
        kind = type(casts).__name__
        raise ArgumentError(
            f"{kernel}: arg_casts must be a str or a dict of index to str, not {kind}"
        )
    by_index = cast("dict[object, object]", casts)
    for key, value in by_index.items():
        if not isinstance(key, int) or key < 0 or not isinstance(value, str):
            raise ArgumentError(
                f"{kernel}: arg_casts maps an argument's index to a str, not {key!r} to {value!r}"
            )
    return "", cast("dict[int, str]", by_index)


def _memory(where: str, value: object, may_write: bool, device: str) -> Buffer | None:
    """The memory of a tensor or array, None for anything else."""
    if isinstance(value, Fresh):
        buffer = _memory(where, value.memory, may_write, device)
        return buffer and buffer._replace(initialized=value.bits(buffer.size))
    if is_tensor(value):
        return _tensor(where, value, device)
    return _array(where, value, may_write) if is_array(value) else None


def _tensor(where: str, tensor: Tensor, device: str) -> Buffer:
    """The view's first element up to its last one: what lies around it in the storage is not the
    kernel's."""
    if tensor.device.type != device:
        raise RuntimeError(
            f"{where} is a tensor on {tensor.device}; this kernel was compiled for tensors on "
            f"{device}: call .{device}()"
        )
    if str(tensor.dtype) in ("torch.float64", "torch.complex128"):
        if tensor.dim() or str(tensor.dtype) != "torch.float64":
            raise ArgumentError(
                f"{where} is {tensor.dtype}, which Metal does not have: call .float()"
            )
        tensor = tensor.float()
    gpu = tensor.device.index if device == "cuda" else None
    if not tensor.numel():
        return Buffer(tensor.data_ptr(), 0, tensor, gpu=gpu)
    last = sum(
        (size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
    )
    return Buffer(tensor.data_ptr(), (last + 1) * tensor.element_size(), tensor, gpu=gpu)


def _array(where: str, array: Array, may_write: bool) -> Buffer:
    """As for tensors: never a copy, but for the float64 array without dimensions, as torch."""
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "f" and size == 8 and not array.shape:
        array, may_write, size = array.astype("float32"), False, 4
    if kind not in "biufcV" or array.dtype.hasobject or size > {"f": 4, "c": 8}.get(kind, size):
        raise ArgumentError(
            f"{where} is an array of {array.dtype}, which Metal does not have: call .astype(...)"
        )
    if not array.dtype.isnative or any(stride < 0 for stride in array.strides):
        raise ArgumentError(
            f"{where} is an array of the other byte order or with a negative stride: pass a copy"
        )
    if may_write and not array.flags.writeable:
        raise ArgumentError(
            f"{where} is a read-only array, and the kernel may write to it: pass a copy, or "
            "declare the parameter const in the kernel"
        )
    if not array.size:
        return Buffer(array.ctypes.data, 0, array)
    steps = zip(array.shape, array.strides, strict=True)
    last = sum((length - 1) * stride for length, stride in steps)
    return Buffer(array.ctypes.data, last + array.dtype.itemsize, array, read_back=may_write)


def _value(where: str, value: object, conversion: str, device: str) -> Buffer:
    if isinstance(value, (list, tuple)):
        return _sequence(where, cast("Sequence[object]", value), conversion, device)
    if isinstance(value, (int, float)):
        return _numbers(where, [value], isinstance(value, float), conversion)
    if _is_scalar(value):
        if conversion:
            return _value(where, value.item(), conversion, device)
        return _array(where, value.reshape((1,)), False)
    kind = type(value).__name__
    raise ArgumentError(
        f"{where}: Unsupported argument type {kind}: a kernel takes tensors, numpy arrays, "
        "int, float, and lists or tuples of these; pass an empty slot as a tensor of one element"
    )


def _sequence(where: str, values: Sequence[object], conversion: str, device: str) -> Buffer:
    if not values:
        raise ArgumentError(f"{where}: Empty list/tuple can not be an argument to metal kernel")
    first = values[0]
    if is_array(first) and device != "cpu":
        raise ArgumentError(
            f"{where} is a list of numpy arrays, whose addresses a kernel on {device} cannot use: "
            "pass a list of tensors"
        )
    if is_tensor(first) or is_array(first):
        buffers = list[Buffer]()
        for index, value in enumerate(values):
            memory = _memory(f"{where}, item {index},", value, True, device)
            if memory is None:
                raise ArgumentError(
                    f"{where}: a list that begins with a tensor must hold tensors alone"
                )
            buffers.append(memory)
        addresses = array.array("Q", [buffer.address for buffer in buffers])
        return _owned(addresses.tobytes(), None)._replace(items=buffers)
    is_float = isinstance(first, float)
    numbers = list[Number]()
    for value in values:
        if not isinstance(value, int) and not (is_float and isinstance(value, float)):
            kinds = "floats" if is_float else "ints"
            raise ArgumentError(
                f"{where}: expected a list of tensors, ints or floats; this one should hold {kinds}"
            )
        numbers.append(value)
    return _numbers(where, numbers, is_float, conversion)


def _numbers(where: str, values: list[Number], is_float: bool, conversion: str) -> Buffer:
    if conversion not in _CONVERSIONS:
        allowed = ", ".join(name for name in _CONVERSIONS if name)
        raise ArgumentError(
            f"{where}: Unsupported cast instruction {conversion!r}; there are {allowed}"
        )
    if not is_float and not all(-(1 << 63) <= value < 1 << 63 for value in values):
        raise ArgumentError(f"{where}: an int must fit in 64 signed bits")
    if not conversion:
        conversion = "fp32" if is_float else "int64"
        return _owned(b"".join(_DEFAULTS[conversion](value) for value in values), None)
    if is_float:
        values = [_unpack_float(_float32(value)) for value in values]
    return _owned(b"".join(_CONVERSIONS[conversion](value) for value in values), None)


def _owned(content: bytes, owner: object) -> Buffer:
    memory = ctypes.create_string_buffer(content, len(content))
    return Buffer(ctypes.addressof(memory), len(content), (memory, owner))


def _float32(value: Number) -> bytes:
    try:
        return struct.pack("<f", value)
    except OverflowError:
        return struct.pack("<f", math.copysign(math.inf, value))


def _unpack_float(content: bytes) -> float:
    return struct.unpack("<f", content)[0]


def _float16(value: Number) -> bytes:
    single = _unpack_float(_float32(value))
    try:
        return struct.pack("<e", single)
    except OverflowError:
        return struct.pack("<e", math.copysign(math.inf, single))


def _bfloat16(value: Number) -> bytes:
    (bits,) = struct.unpack("<I", _float32(value))
    if math.isnan(value):
        return struct.pack("<H", bits >> 16 | 0x40)
    return struct.pack("<H", (bits + 0x7FFF + (bits >> 16 & 1)) >> 16)


def _integer(size: int) -> Callable[[Number], bytes]:
    """Two's complement in `size` bytes, higher bits dropped as a C cast does; fractions are cut
    off."""

    def convert(value: Number) -> bytes:
        whole = int(value) if math.isfinite(value) else 0
        return (whole & ((1 << 8 * size) - 1)).to_bytes(size, "little")

    return convert


_DEFAULTS: dict[str, Callable[[Number], bytes]] = {"fp32": _float32, "int64": _integer(8)}
_CONVERSIONS: dict[str, Callable[[Number], bytes]] = {
    "": _float32,
    "fp16": _float16,
    "bf16": _bfloat16,
    "int32": _integer(4),
    "int16": _integer(2),
    "int8": _integer(1),
    "uint8": _integer(1),
}
