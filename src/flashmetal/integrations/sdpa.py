"""PyTorch's scaled_dot_product_attention on flashmetal, for code that is not to be changed.

>>> from flashmetal.integrations import sdpa
>>> sdpa.install()  # from here on, MPS tensors; sdpa.uninstall() undoes it
>>> with sdpa.installed(): ...  # or for a while

The dispatcher is told of another kernel for ``aten::scaled_dot_product_attention`` on a device, so
that every way to it is served: names imported before, ``nn.MultiheadAttention`` in training,
autograd, autocast and ``torch.compile``. Each call is judged by the rules of
:mod:`.sdpa_gates`, which :func:`explain` tells; what is not ours goes on to PyTorch's own
decomposition, as if nothing were installed.

What PyTorch promises holds: causal masks are aligned top-left, True in a boolean mask is visible,
rows that a mask hides are 0, errors are PyTorch's. Three things differ. Dropout draws other numbers
from the same generator. The output (B, Hq, Sq, Dv) lies in memory as (B, Sq, Hq, Dv), as that of
PyTorch's fused kernels on other devices does. Gradients of gradients raise NotImplementedError;
``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`` around the call gives them.

A graph that ``torch.compile`` made keeps what was installed when it was made
(``torch.compiler.reset()`` drops it). The eval fast path of ``nn.TransformerEncoder`` never
calls the operator.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..api import flash_attn_func
from .masks import bias_of_mask, top_left_causal
from .sdpa_gates import Call, Software, Verdict, decide, installed_software

DEVICES = ("mps", "cpu")
_KEYS = {"mps": ("MPS", "AutogradMPS"), "cpu": ("CPU", "AutogradCPU")}
_CACHE_TAG = "flashmetal-sdpa"
_core: Any = torch._C  # pyright: ignore[reportPrivateUsage] torch has no public question
_operator: Any = torch.ops.aten.scaled_dot_product_attention.default
_COMPOSITE = _core.DispatchKey.CompositeImplicitAutograd
_compiler_config: Any = torch.compiler.config


class Installation(NamedTuple):
    """What :func:`install` was asked for."""

    devices: tuple[str, ...]
    always: bool


class _Active(NamedTuple):
    installation: Installation
    library: Any


_active: list[_Active] = []  # none or one


def install(*, devices: Sequence[str] = ("mps",), always: bool = False) -> None:
    """Let flashmetal serve scaled_dot_product_attention on ``devices``, of "mps" and "cpu".

    ``always=True`` serves every call of a known form, also where PyTorch is as good. A second
    call replaces the first.
    """
    unknown = [name for name in devices if name not in DEVICES]
    if isinstance(devices, str) or unknown or not devices:
        raise ValueError(
            f"sdpa.install: devices must be some of {DEVICES}, as a tuple, got {devices!r}"
        )
    uninstall()
    library = torch.library.Library("aten", "IMPL")
    for device in devices:
        for key in _KEYS[device]:
            library.impl("scaled_dot_product_attention", _Kernel(device, always), key)
    _active.append(_Active(Installation(tuple(devices), always), library))
    _forget(f"{_CACHE_TAG}:{','.join(devices)}:{always}")


def uninstall() -> None:
    """Undo :func:`install`; without one, do nothing."""
    if _active:
        _active.pop().library._destroy()
        _forget("")


def installation() -> Installation | None:
    """What is installed now, or None."""
    return _active[0].installation if _active else None


@contextmanager
def installed(*, devices: Sequence[str] = ("mps",), always: bool = False) -> Generator[None]:
    """:func:`install` for the length of a ``with`` block; what was installed before comes back."""
    before = installation()
    install(devices=devices, always=always)
    try:
        yield
    finally:
        uninstall()
        if before is not None:
            install(devices=before.devices, always=before.always)


def explain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
    always: bool = False,
    device: str | None = None,
    software: Software | None = None,
) -> Verdict:
    """Who would serve a call, and why; nothing runs. The arguments are torch's, and

    Args:
        always: as in :func:`install`.
        device: ask for "mps" with tensors of another device.
        software: ask for other versions of torch and macOS.

    Which of flashmetal's engines then serves is told by :func:`flashmetal.explain`.
    """
    tensors = query, key, value
    reason = _refuse_tensors(tensors, attn_mask, scale)
    if reason is not None:
        return Verdict(False, "form", reason)
    options = dropout_p, is_causal, enable_gqa
    facts = _Facts.of(tensors, attn_mask, options, always, device or query.device.type)
    return decide(facts.call(), software or installed_software())


class _Kernel:
    """The operator's kernel for one device."""

    def __init__(self, device: str, always: bool) -> None:
        self.device, self.always = device, always

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        *,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        tensors = query, key, value
        if _refuse_tensors(tensors, attn_mask, scale) is None:
            options = dropout_p, is_causal, enable_gqa
            facts = _Facts.of(tensors, attn_mask, options, self.always, self.device)
            if _judge(facts).flashmetal:
                return _attend(tensors, attn_mask, dropout_p, is_causal, scale)
        # What _operator.decompose() does, without asking the dispatcher by name first.
        return _operator._op_dk(
            _COMPOSITE,
            query,
            key,
            value,
            attn_mask,
            dropout_p,
            is_causal,
            scale=scale,
            enable_gqa=enable_gqa,
        )


def _forget(tag: str) -> None:
    """Make new graphs ask the dispatcher again: both caches would answer for what was before."""
    for keys in _KEYS.values():
        for key in keys:
            _operator._uncache_dispatch(getattr(_core.DispatchKey, key))
    tags = [x for x in _compiler_config.cache_key_tag.split() if not x.startswith(_CACHE_TAG)]
    _compiler_config.cache_key_tag = " ".join([*tags, tag]).strip()


def _refuse_tensors(
    tensors: tuple[Tensor, ...], mask: Tensor | None, scale: float | None
) -> str | None:
    """Why a call is none of ours that no shape shows, or None."""
    for x in tensors if mask is None else (*tensors, mask):
        if x.device != tensors[0].device:
            return "the tensors are on different devices"
        if type(x) is not Tensor and is_traceable_wrapper_subclass(x):
            return "a tensor subclass (nested, DTensor) has rules of its own"
    if _core._functorch.maybe_current_level() is not None:
        return "function transforms (torch.func) see through PyTorch's own operators"
    if scale is not None and not -torch.inf < scale < torch.inf:
        return f"scale is {scale}"
    return None


class _Facts(NamedTuple):
    """What a verdict depends on, as cheaply as a call can tell it."""

    device: str
    tensors: tuple[_Fact, _Fact, _Fact]
    mask: _Fact | None
    options: tuple[float, bool, bool]  # dropout_p, is_causal, enable_gqa
    always: bool
    recording: bool
    fused_allowed: bool

    @classmethod
    def of(
        cls,
        tensors: tuple[Tensor, Tensor, Tensor],
        mask: Tensor | None,
        options: tuple[float, bool, bool],
        always: bool,
        device: str,
    ) -> _Facts:
        query, key, value = tensors
        return cls(
            device,
            (_fact(query), _fact(key), _fact(value)),
            None if mask is None else _fact(mask),
            options,
            always,
            torch.is_grad_enabled(),
            _core._get_flash_sdp_enabled(),
        )

    def call(self) -> Call:
        query, key, value = self.tensors
        mask_needs_grad = self.recording and self.mask is not None and self.mask[3]
        return Call(
            self.device,
            (query[1], key[1], value[1]),
            query[0],
            key[0],
            value[0],
            None if self.mask is None else self.mask[:2],
            mask_needs_grad,
            *self.options,
            mask_needs_grad or (self.recording and any(fact[3] for fact in self.tensors)),
            all(fact[2] == (1,) for fact in self.tensors),
            self.fused_allowed,
            self.always,
        )


# The shape, the dtype, the last stride (none of a tensor without dimensions), requires_grad.
_Fact = tuple[tuple[int, ...], torch.dtype, tuple[int, ...], bool]


def _fact(x: Tensor) -> _Fact:
    return x.shape, x.dtype, x.stride()[-1:], x.requires_grad


def _verdict(facts: _Facts) -> Verdict:
    return decide(facts.call(), installed_software())


_cached_verdict = lru_cache(maxsize=4096)(_verdict)


def _judge(facts: _Facts) -> Verdict:
    try:
        return _cached_verdict(facts)
    except TypeError:  # the symbolic sizes of a traced graph have no hash
        return _verdict(facts)


def _attend(
    tensors: tuple[Tensor, Tensor, Tensor],
    mask: Tensor | None,
    dropout_p: float,
    is_causal: bool,
    scale: float | None,
) -> Tensor:
    """The call in flashmetal's layout and alignment, and its output in torch's."""
    query, key, value = tensors
    flat = query.ndim == 3
    if flat:
        query, key, value = (x.unsqueeze(1) for x in tensors)
        mask = mask.unsqueeze(1) if mask is not None and mask.ndim == 3 else mask
    keys, window = key.shape[2], (-1, -1)
    if is_causal:
        seen, window = top_left_causal(query.shape[2], keys)
        key, value = key[:, :, :seen], value[:, :, :seen]
    out = flash_attn_func(
        query.transpose(1, 2),
        key.transpose(1, 2),
        value.transpose(1, 2),
        dropout_p=dropout_p,
        softmax_scale=scale,
        window_size=window,
        bias=None if mask is None else bias_of_mask(mask, query.dtype, keys),
    ).transpose(1, 2)
    return out.squeeze(1) if flat else out
