"""Rotary position embeddings (Su et al., 2021): flash_attn's ``layers.rotary`` in torch operations.

``cos`` and ``sin`` are tables (seqlen_rotary, rotary_dim / 2), a row a position. The first
rotary_dim elements of a head are turned, the rest stay. Elements i and i + rotary_dim / 2 form a
pair, or 2 i and 2 i + 1 if ``interleaved``. Sums are float32; everything is differentiable in x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .packed import sequence_and_row

__all__ = [
    "RotaryEmbedding",
    "apply_rotary",
    "apply_rotary_emb",
    "apply_rotary_emb_func",
    "apply_rotary_emb_kv_",
    "apply_rotary_emb_qkv_",
    "apply_rotary_emb_torch",
    "rotate_half",
]


def rotate_half(x: Tensor, interleaved: bool = False) -> Tensor:
    """x (..., D) with every pair (a, b) replaced by (-b, a)."""
    if interleaved:
        return torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1).flatten(-2)
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def apply_rotary_emb_torch(
    x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False
) -> Tensor:
    """x (B, S, H, D) turned in its own dtype by tables ([B,] S, rotary_dim / 2)."""
    cos, sin = (_both(t, interleaved)[..., None, :] for t in (cos, sin))
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    return torch.cat((turned * cos + rotate_half(turned, interleaved) * sin, rest), dim=-1)


def apply_rotary(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
    interleaved: bool = False,
    inplace: bool = False,
    conjugate: bool = False,
) -> Tensor:
    """x turned by its positions, as a new tensor or, ``inplace``, in x itself.

    Args:
        x: (B, S, H, D), or packed (total, H, D) with ``cu_seqlens``.
        cos: (seqlen_rotary, rotary_dim / 2), rotary_dim <= D; so sin.
        seqlen_offsets: the position of the first row, an int or (B,) int32 or int64.
        cu_seqlens: (B + 1,) int32, from 0 to total, where each packed sequence starts.
        max_seqlen: the longest packed sequence; only checked against the tables.
        conjugate: turn the other way, which undoes it and is its gradient.

    Raises:
        ValueError: wrong shapes, or positions behind the end of the tables. Offsets in a tensor
            are only checked on the CPU: elsewhere that would wait for the device.
    """
    _check(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen)
    cos, sin = (_rows(t, x, seqlen_offsets, cu_seqlens) for t in (cos, sin))
    dtype = torch.promote_types(x.dtype, torch.float32)
    sin = -sin if conjugate else sin
    turned = x[..., : 2 * cos.shape[-1]]
    result = apply_rotary_emb_torch(turned.to(dtype), cos.to(dtype), sin.to(dtype), interleaved)
    if inplace:
        turned.copy_(result)
        return x
    return torch.cat((result.to(x.dtype), x[..., 2 * cos.shape[-1] :]), dim=-1)


def apply_rotary_emb(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    inplace: bool = False,
    seqlen_offsets: int | Tensor = 0,
    cu_seqlens: Tensor | None = None,
    max_seqlen: int | None = None,
) -> Tensor:
    """:func:`apply_rotary` with the arguments in the order of flash_attn's layer."""
    return apply_rotary(x, cos, sin, seqlen_offsets, cu_seqlens, max_seqlen, interleaved, inplace)


apply_rotary_emb_func = apply_rotary_emb  # its name before flash_attn 2.1


def apply_rotary_emb_qkv_(
    qkv: Tensor,
    cos: Tensor,
    sin: Tensor,
    cos_k: Tensor | None = None,
    sin_k: Tensor | None = None,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
    num_heads_q: int | None = None,
) -> Tensor:
    """Turn q and k in place in qkv (B, S, 3, H, D), or (B, S, Hq + 2 Hk, D) with ``num_heads_q``.

    ``cos_k`` and ``sin_k`` are tables of k's own, where they differ. Returns qkv.
    """
    if qkv.ndim == 5:
        q, k = qkv[:, :, 0], qkv[:, :, 1]
    elif qkv.ndim == 4 and num_heads_q is not None and (qkv.shape[2] - num_heads_q) % 2 == 0:
        heads_k = (qkv.shape[2] - num_heads_q) // 2
        q, k = qkv[:, :, :num_heads_q], qkv[:, :, num_heads_q : num_heads_q + heads_k]
    else:
        raise ValueError(
            "apply_rotary_emb_qkv_: qkv must be (B, S, 3, H, D), or (B, S, Hq + 2 Hk, D) with "
            f"num_heads_q=Hq, got {tuple(qkv.shape)} and num_heads_q={num_heads_q}"
        )
    apply_rotary(q, cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
    cos, sin = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
    apply_rotary(k, cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
    return qkv


def apply_rotary_emb_kv_(
    kv: Tensor,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool = False,
    seqlen_offsets: int | Tensor = 0,
) -> Tensor:
    """Turn k in place in kv (B, S, 2, H, D), and return kv."""
    if kv.ndim != 5 or kv.shape[2] != 2:
        raise ValueError(f"apply_rotary_emb_kv_: kv must be (B, S, 2, H, D), got {tuple(kv.shape)}")
    apply_rotary(kv[:, :, 0], cos, sin, seqlen_offsets, interleaved=interleaved, inplace=True)
    return kv


class RotaryEmbedding(torch.nn.Module):
    """Rotary embeddings that keep their tables; with ``scale_base`` xPos (Sun et al., 2022).

    Position t turns pair i by t * base ** (-2 i / dim). The tables are made in float32 and kept in
    the dtype of what is turned.
    """

    inv_freq: Tensor
    scale: Tensor | None

    def __init__(
        self,
        dim: int,
        base: float = 10000.0,
        interleaved: bool = False,
        scale_base: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.dim = dim
        self.base = float(base)
        self.interleaved = interleaved
        self.scale_base = scale_base
        self.register_buffer("inv_freq", self._frequencies(device), persistent=False)
        scale = None
        if scale_base is not None:
            steps = torch.arange(0, dim, 2, device=device, dtype=torch.float32)
            scale = (steps + 0.4 * dim) / (1.4 * dim)
        self.register_buffer("scale", scale, persistent=False)
        self._seq_len_cached = 0
        self._cos_cached: Tensor | None = None
        self._sin_cached: Tensor | None = None
        self._cos_k_cached: Tensor | None = None
        self._sin_k_cached: Tensor | None = None

    def forward(
        self,
        qkv: Tensor,
        kv: Tensor | None = None,
        seqlen_offset: int | Tensor = 0,
        max_seqlen: int | None = None,
        num_heads_q: int | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Turn qkv (as :func:`apply_rotary_emb_qkv_` takes it), or q (B, S, H, D) and kv, in place.

        ``seqlen_offset`` is the position of the first row. Where it is a tensor (B,), the tables
        reach as far as ``max_seqlen`` says, or the last call that said. Returns qkv, or (q, kv).
        """
        longest = max_seqlen
        if longest is None and not isinstance(seqlen_offset, Tensor):
            longest = qkv.shape[1] + seqlen_offset
        if longest is not None:
            self._update_cos_sin_cache(longest, qkv.device, qkv.dtype)
        cos, sin = self._cos_cached, self._sin_cached
        if cos is None or sin is None:
            raise ValueError(
                "RotaryEmbedding: a seqlen_offset in a tensor needs max_seqlen, the length of the "
                "tables, in the first call"
            )
        cos_k, sin_k = self._cos_k_cached, self._sin_k_cached
        turn = self.interleaved, seqlen_offset
        if kv is None:
            return apply_rotary_emb_qkv_(qkv, cos, sin, cos_k, sin_k, *turn, num_heads_q)
        q = apply_rotary_emb(qkv, cos, sin, self.interleaved, True, seqlen_offset)
        cos_k, sin_k = cos if cos_k is None else cos_k, sin if sin_k is None else sin_k
        return q, apply_rotary_emb_kv_(kv, cos_k, sin_k, *turn)

    def _frequencies(self, device: torch.device | str | None) -> Tensor:
        steps = torch.arange(0, self.dim, 2, device=device, dtype=torch.float32)
        return self.base ** (-steps / self.dim)

    def _update_cos_sin_cache(
        self, seqlen: int, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        """Make the tables anew if they are too short or elsewhere."""
        kept = self._cos_cached
        if (
            kept is not None
            and seqlen <= self._seq_len_cached
            and kept.device == device
            and kept.dtype == dtype
        ):
            return
        self._seq_len_cached = seqlen
        positions = torch.arange(seqlen, device=device, dtype=torch.float32)
        # A model cast to half precision has cast its buffers too.
        whole = self.inv_freq.dtype == torch.float32
        frequencies = self.inv_freq.to(device) if whole else self._frequencies(device)
        angles = positions[:, None] * frequencies
        cos, sin = angles.cos(), angles.sin()
        if self.scale is not None and self.scale_base is not None:
            power = (positions - seqlen // 2) / self.scale_base
            scale = self.scale.to(angles) ** power[:, None]
            self._cos_k_cached, self._sin_k_cached = (
                (cos / scale).to(dtype),
                (sin / scale).to(dtype),
            )
            cos, sin = cos * scale, sin * scale
        self._cos_cached, self._sin_cached = cos.to(dtype), sin.to(dtype)


def _both(table: Tensor, interleaved: bool) -> Tensor:
    """(..., rotary_dim / 2) repeated for both elements of every pair."""
    if interleaved:
        return table.repeat_interleave(2, dim=-1)
    return torch.cat((table, table), dim=-1)


def _rows(
    table: Tensor, x: Tensor, seqlen_offsets: int | Tensor, cu_seqlens: Tensor | None
) -> Tensor:
    """The rows of a table that x's positions have: (S, r), (B, S, r) or packed (total, r)."""
    if cu_seqlens is None:
        if not isinstance(seqlen_offsets, Tensor):
            return table[seqlen_offsets : seqlen_offsets + x.shape[1]]
        return table[seqlen_offsets[:, None] + torch.arange(x.shape[1], device=x.device)]
    sequence, row = sequence_and_row(cu_seqlens, x.shape[0])
    offsets = seqlen_offsets
    if isinstance(offsets, Tensor):
        offsets = offsets[sequence]
    return table[row + offsets]


def _check(
    x: Tensor,
    cos: Tensor,
    sin: Tensor,
    offsets: int | Tensor,
    cu_seqlens: Tensor | None,
    max_seqlen: int | None,
) -> None:
    packed = cu_seqlens is not None
    if x.ndim != (3 if packed else 4):
        expected = "(total, H, D) with cu_seqlens" if packed else "(B, S, H, D)"
        raise ValueError(f"apply_rotary: x must be {expected}, got {tuple(x.shape)}")
    if cos.ndim != 2 or cos.shape != sin.shape or 2 * cos.shape[1] > x.shape[-1]:
        raise ValueError(
            "apply_rotary: cos and sin must be (seqlen_rotary, rotary_dim / 2) with rotary_dim at "
            f"most the head dim, {x.shape[-1]}; got {tuple(cos.shape)} and {tuple(sin.shape)}"
        )
    batch = x.shape[0] if cu_seqlens is None else cu_seqlens.shape[0] - 1
    if isinstance(offsets, Tensor) and offsets.shape != (batch,):
        raise ValueError(
            f"apply_rotary: seqlen_offsets must be an int or ({batch},), got {tuple(offsets.shape)}"
        )
    if batch == 0 or torch.compiler.is_compiling():
        return
    longest = max_seqlen or 0 if cu_seqlens is not None else x.shape[1]
    if cu_seqlens is not None and cu_seqlens.device.type == "cpu":
        longest = int(cu_seqlens.diff().max())
        if cu_seqlens[0] != 0 or cu_seqlens[-1] != x.shape[0]:
            raise ValueError(
                f"apply_rotary: cu_seqlens must go from 0 to the rows of x, {x.shape[0]}, got "
                f"{cu_seqlens.tolist()}"
            )
    if isinstance(offsets, Tensor):
        if offsets.device.type != "cpu":
            return
        first, last = (int(x) for x in offsets.aminmax())
    else:
        first = last = offsets
    if first < 0 or last + longest > cos.shape[0]:
        raise ValueError(
            f"apply_rotary: positions {first} to {last + longest - 1} must be rows of cos and sin, "
            f"which have {cos.shape[0]}; make longer tables"
        )
