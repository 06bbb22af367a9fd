"""Masks kept as structure hide what transformers' own masks hide, for every query that is real."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import masking_utils
from transformers.masking_utils import sdpa_mask

from flashmetal.integrations.transformers_masks import Structure, attention_mask, read

WINDOW = 5
PATTERNS: dict[str, Any] = {
    "causal": masking_utils.causal_mask_function,
    "window": masking_utils.sliding_window_causal_mask_function(WINDOW),
    "both": masking_utils.bidirectional_mask_function,
    "both-window": masking_utils.sliding_window_bidirectional_mask_function(WINDOW - 1),
}
TOKENS = 16
# q_length, kv_length, q_offset, kv_offset: a prompt, a part of one, a token in a full window, and
# with a static cache a prompt and a token.
PLACES: dict[str, Any] = {
    "whole": (TOKENS, TOKENS, 0, 0),
    "part": (4, TOKENS, TOKENS - 4, 0),
    "full-window": (1, WINDOW, TOKENS - 1, TOKENS - WINDOW),
    "static-prompt": (TOKENS, 24, torch.tensor(0), 0),
    "static-token": (1, 24, torch.tensor(TOKENS - 1), 0),
}
MASKS = [(x, y) for x in PATTERNS for y in PLACES if y == "whole" or not x.startswith("both")]
REAL = ("all", "left", "right", "holes")


def real_tokens(padding: str) -> Tensor | None:
    real = torch.ones(3, TOKENS, dtype=torch.bool)
    for row, count in enumerate((0, 3, 11)):
        if padding == "left":
            real[row, :count] = False
        if padding == "right":
            real[row, TOKENS - count :] = False
        if padding == "holes":
            real[row, 1 : count // 2] = False
    return None if padding == "all" else real


def visible(found: Structure, batch: int, queries: int, keys: int) -> Tensor:
    """The structure as transformers' sdpa has a mask: (B, 1, queries, keys), True is visible."""
    columns = torch.arange(keys)
    ends = torch.full((batch,), found.keys) if found.end is None else found.end
    starts = torch.zeros(batch, dtype=torch.int32) if found.first is None else found.first
    inside = (columns >= starts[:, None]) & (columns < ends[:, None])
    rows = torch.arange(queries) + ends[:, None] - queries
    left, right = found.band.bounds(found.keys)
    away = columns - rows[..., None]
    seen = inside[:, None] & ((left < 0) | (away >= -left)) & ((right < 0) | (away <= right))
    if found.bias is not None:
        hidden = torch.nn.functional.pad(found.bias == -torch.inf, (0, keys - found.keys))
        seen = seen & ~hidden[:, 0]
    return seen[:, None]


def is_kept(pattern: str, place: str, padding: str) -> bool:
    """A window and padding amid the keys of a static cache, whose length is unread, is a bias."""
    if pattern.startswith("both"):
        return True
    return not (place == "static-token" and pattern == "window" and padding != "all")


@pytest.mark.parametrize("padding", REAL)
@pytest.mark.parametrize(("pattern", "place"), MASKS)
def test_a_band_hides_what_transformers_hides(pattern: str, place: str, padding: str) -> None:
    queries, keys, offset, first_key = PLACES[place]
    real = real_tokens(padding)
    arguments = dict(
        batch_size=3,
        q_length=queries,
        kv_length=keys,
        q_offset=offset,
        kv_offset=first_key,
        mask_function=PATTERNS[pattern],
        attention_mask=real,
    )
    expected = sdpa_mask(**arguments, allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
    mask = attention_mask(**arguments, allow_is_bidirectional_skip=True)
    kept = mask is None or mask.dtype in (torch.uint8, torch.int8)
    assert kept == is_kept(pattern, place, padding)
    found = read(mask, keys, not pattern.startswith("both"), torch.float32)
    queried = torch.ones(3, queries, dtype=torch.bool)
    if real is not None:
        queried = real[:, int(offset) :][:, :queries]
    assert expected is not None
    shown = visible(found, 3, queries, keys)
    assert torch.equal(shown[:, 0][queried], expected.expand_as(shown)[:, 0][queried])


def test_what_the_engines_get() -> None:
    """No mask where none is needed, and no bias but for holes."""
    sizes: dict[str, Any] = dict(batch_size=3, q_length=TOKENS, kv_length=TOKENS)
    assert attention_mask(**sizes) is None
    assert attention_mask(**sizes, attention_mask=torch.ones(3, TOKENS)) is None
    for pattern in ("causal", "window"):
        for padding in ("left", "right", "holes"):
            mask = attention_mask(
                **sizes, attention_mask=real_tokens(padding), mask_function=PATTERNS[pattern]
            )
            found = read(mask, TOKENS, True, torch.float32)
            assert (found.bias is not None) == (padding == "holes")
            assert found.band.bounds(TOKENS) == (-1 if pattern == "causal" else WINDOW - 1, 0)
            # What every layer asks again is answered once.
            assert read(mask, TOKENS, True, torch.float32).first is found.first


def test_what_is_kept_with_a_mask_serves_what_it_was_read_for() -> None:
    mask = attention_mask(
        batch_size=3,
        q_length=TOKENS,
        kv_length=TOKENS,
        attention_mask=real_tokens("left"),
        mask_function=PATTERNS["causal"],
    )
    assert mask is not None
    with torch.inference_mode():
        assert read(mask, TOKENS, True, torch.float32).first.is_inference()
    assert not read(mask, TOKENS, True, torch.float32).first.is_inference()
    with FakeTensorMode(allow_non_fake_inputs=True):
        read(mask, TOKENS, True, torch.float32)
    found = read(mask, TOKENS, True, torch.float32)
    assert found.first.tolist() == [0, 3, 11]
    mask[1, 0, 0, :5] = 0
    assert read(mask, TOKENS, True, torch.float32).first.tolist() == [0, 5, 11]
    holes = attention_mask(3, TOKENS, TOKENS, attention_mask=real_tokens("holes"))
    for dtype in (torch.float32, torch.bfloat16):
        bias = read(holes, TOKENS, True, dtype).bias
        assert bias is not None
        assert bias.dtype == dtype


@pytest.mark.parametrize("pattern", ["causal", "window"])
def test_the_last_rows_may_be_cut_out(pattern: str) -> None:
    """Gemma 4 computes the last token's row alone, and cuts its mask to fit."""
    mask = attention_mask(
        3, TOKENS, TOKENS, mask_function=PATTERNS[pattern], attention_mask=real_tokens("left")
    )
    assert mask is not None
    whole, cut = (read(x, TOKENS, True, torch.float32) for x in (mask, mask[:, :, slice(-2, None)]))
    last = visible(whole, 3, TOKENS, TOKENS)[:, :, -2:]
    assert torch.equal(visible(cut, 3, 2, TOKENS), last)


@pytest.mark.parametrize("pattern", ["causal", "window", "chunks"])
def test_packed_sequences_say_where_they_end(pattern: str) -> None:
    positions = torch.cat([torch.arange(n) for n in (4, 9, 3)])[None]
    inner = PATTERNS.get(pattern)
    if inner is None:
        inner = masking_utils.chunked_causal_mask_function(3, torch.zeros(1, dtype=torch.int64))
    number = masking_utils.find_packed_sequence_indices(positions)
    if hasattr(masking_utils, "packed_sequence_compatibility_function"):
        packed = masking_utils.packed_sequence_compatibility_function(inner, positions, number)
    else:
        packed = masking_utils.and_masks(inner, masking_utils.packed_sequence_mask_function(number))
    mask = attention_mask(1, TOKENS, TOKENS, mask_function=packed, allow_is_causal_skip=False)
    found = read(mask, TOKENS, True, torch.float32)
    if pattern == "chunks":
        assert found.bias is not None
        return
    assert found.ends is not None
    assert found.ends.tolist() == [4, 13, 16]
    assert found.longest == (9 if pattern == "causal" else TOKENS)
    assert found.band.bounds(TOKENS) == (-1 if pattern == "causal" else WINDOW - 1, 0)


def test_other_patterns_become_a_bias() -> None:
    chunked = masking_utils.chunked_causal_mask_function(3, torch.zeros(2, dtype=torch.int64))
    mask = attention_mask(2, 6, 6, mask_function=chunked)
    assert mask is not None
    rows, columns = torch.arange(6)[:, None], torch.arange(6)[None]
    seen = (columns <= rows) & (columns // 3 == rows // 3)
    assert torch.equal(mask == 0, seen.expand(2, 1, 6, 6))
    assert torch.equal(mask == float("-inf"), ~seen.expand(2, 1, 6, 6))


def test_a_mask_that_a_model_takes_apart_is_whole() -> None:
    mask = attention_mask(2, 6, 6, allow_is_causal_skip=False)
    assert mask is not None
    assert mask.shape == (2, 1, 6, 6)
    assert torch.equal(mask[0, 0] == 0, torch.ones(6, 6).tril().bool())


@pytest.mark.parametrize(
    "mask", [torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0.0, 0.0, 1.0, 1.0]])]
)
def test_masks_over_the_keys_alone_are_padding(mask: Tensor) -> None:
    """As flash attention takes them, from models that make their own."""
    found = read(mask, 4, False, torch.float32)
    assert torch.equal(visible(found, 1, 2, 4)[0, 0], (mask != 0).expand(2, 4))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 3, 4, 4), (2, 1, 1, 4), (1, 4, 4)], ids=str)
def test_complete_masks_of_integers_are_refused(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """As transformers' sdpa does: they are neither structures of ours nor scores."""
    mask = torch.ones(4, 4).tril()[-shape[-2] :].expand(shape).to(dtype)
    with pytest.raises(TypeError, match=f"metal_attention: attention_mask must be.*got {dtype}"):
        read(mask, 4, True, torch.float32)
    assert read(mask.bool(), 4, True, torch.float32).bias is not None
