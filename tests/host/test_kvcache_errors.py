"""What a user can do wrong with a cache: told by name, and nothing is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import flashmetal
from flashmetal import CacheFullError, CacheShape, PagedKVCache
from flashmetal.cache import paged
from flashmetal.cache.formats import dequantise, quantise

SHAPE = CacheShape(layers=1, pages=4, page_size=4, heads=2, head_dim=8, head_dim_v=8)


def randn(*shape: int, **options: Any) -> torch.Tensor:
    return torch.randn(shape, **options)


def ints(*values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


def arguments(**changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = dict(
        q=randn(2, 1, 4, 8),
        k_cache=randn(6, 4, 2, 8),
        v_cache=randn(6, 4, 2, 8),
        k=randn(2, 1, 2, 8),
        v=randn(2, 1, 2, 8),
        cache_seqlens=ints(3, 5),
        block_table=ints((0, 1), (2, 3)),
    )
    return {**given, **changes}


# (changed arguments, the error, words that its message must hold)
CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no q": ({"q": None}, TypeError, "q must be a torch.Tensor, got NoneType"),
    "only k": ({"v": None}, TypeError, "needs k, v and cache_seqlens, got v=None"),
    "only v": ({"k": None}, TypeError, "needs k, v and cache_seqlens, got k=None"),
    "no lengths": ({"cache_seqlens": None}, TypeError, "got cache_seqlens=None"),
    "lengths as a list": (
        {"cache_seqlens": [3, 5]},
        TypeError,
        "cache_seqlens must be an int or a torch.Tensor, got list",
    ),
    "lengths as a list, nothing new": (
        {"cache_seqlens": [3, 5], "k": None, "v": None},
        TypeError,
        "cache_seqlens must be an int or a torch.Tensor, got list",
    ),
    "left padding as a list": (
        {"cache_leftpad": [0, 1]},
        TypeError,
        "cache_leftpad must be a torch.Tensor, got list",
    ),
    "rows as a list": (
        {"cache_batch_idx": [0, 1], "block_table": None},
        TypeError,
        "cache_batch_idx must be a torch.Tensor, got list",
    ),
    "k as a list": ({"k": [1.0]}, TypeError, "k must be a torch.Tensor, got list"),
    "k of one dimension": ({"k": randn(8)}, ValueError, "k must be (B, S, heads, head_dim)"),
    "lengths as int64": ({"cache_seqlens": ints(3, 5).long()}, TypeError, "must be int32"),
    "lengths of three": ({"cache_seqlens": ints(3, 5, 1)}, ValueError, "cache_seqlens must be (2,"),
    "past the pages": ({"cache_seqlens": ints(3, 8)}, ValueError, "sequence 1 has 8 keys, and 1"),
    "negative length": ({"cache_seqlens": ints(-1, 5)}, ValueError, "sequence 0 has -1 keys"),
    "page out of range": ({"block_table": ints((0, 1), (2, 6))}, ValueError, "from 0 to 5, or -1"),
    "page below -1": ({"block_table": ints((0, -2), (2, 3))}, ValueError, "got -2"),
    "missing page": (
        {"block_table": ints((-1, 1), (2, 3))},
        ValueError,
        "no page for the new keys",
    ),
    "one page for two": ({"block_table": ints((3, 1), (2, 3))}, ValueError, "both write page 3"),
    "table of another batch": ({"block_table": ints((0, 1))}, ValueError, "must be (2, pages"),
    "table of int64": ({"block_table": ints((0, 1), (2, 3)).long()}, TypeError, "must be int32"),
    "table and rows": ({"cache_batch_idx": ints(0, 1)}, ValueError, "pass one of them"),
    "k of other heads": (
        {"k": randn(2, 1, 4, 8), "v": randn(2, 1, 4, 8)},
        ValueError,
        "k_cache mu",
    ),
    "k of another dtype": ({"k": randn(2, 1, 2, 8).half()}, TypeError, "convert one, or use"),
    "a half cache": (
        {name: randn(6, 4, 2, 8).half() for name in ("k_cache", "v_cache")},
        TypeError,
        "k_cache torch.float16; convert one",
    ),
    "codes without a scale": (
        {"k_cache": torch.zeros(6, 4, 2, 8, dtype=torch.int8)},
        ValueError,
        "an int8 k_cache needs k_scale (6, 4, 2) torch.float32, got none",
    ),
    "a scale without codes": ({"v_scale": randn(6, 4, 2)}, ValueError, "belongs to a quantised v"),
    "cos without sin": ({"rotary_cos": randn(9, 2)}, ValueError, "rotary_cos and rotary_sin must"),
    "too few positions": (
        {"rotary_cos": randn(5, 2), "rotary_sin": randn(5, 2)},
        ValueError,
        "has 5 positions, and the last new key stands at 5",
    ),
    "too few positions for the queries": (
        {
            "q": randn(2, 3, 4, 8),
            "rotary_cos": randn(6, 2),
            "rotary_sin": randn(6, 2),
            "causal": True,
        },
        ValueError,
        "rotary_cos has 6 positions, and the last query stands at 7",
    ),
    "rotary wider than a head": (
        {"rotary_cos": randn(9, 6), "rotary_sin": randn(9, 6)},
        ValueError,
        "at most the head_dim 8, got 12",
    ),
    "left padding of three": (
        {"cache_leftpad": ints(0, 0, 0)},
        ValueError,
        "cache_leftpad must be",
    ),
    "left padding past the cache": (
        {"cache_leftpad": ints(9, 0)},
        ValueError,
        "cache_leftpad must",
    ),
    "splits below 0": ({"num_splits": -1}, ValueError, "num_splits must be a positive int"),
    "an engine that cannot": (
        {"impl": "stock", "softcap": 2.0},
        NotImplementedError,
        "has no softcap",
    ),
    "gradients wanted": (
        {"k": randn(2, 1, 2, 8, requires_grad=True)},
        NotImplementedError,
        "no_grad",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_is_told_and_nothing_is_written(case: str) -> None:
    changes, error, words = CASES[case]
    given = arguments(**changes)
    before = [given[name].clone() for name in ("k_cache", "v_cache")]
    with pytest.raises(error) as caught:
        flashmetal.flash_attn_with_kvcache(**given)
    assert words in str(caught.value)
    assert str(caught.value).startswith(("flash_attn_with_kvcache: ", "flashmetal: impl="))
    assert torch.equal(given["k_cache"], before[0])
    assert torch.equal(given["v_cache"], before[1])


OFFSETS = ints(0, 1, 2)
# The same of flash_attn 3's function, with packed q, k and v.
PACKED_CASES: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "offsets as a list": (
        {"cu_seqlens_q": [0, 1, 2]},
        TypeError,
        "cu_seqlens_q must be a torch.Tensor, got list",
    ),
    "no offsets in them": ({"cu_seqlens_q": OFFSETS[:0]}, ValueError, "must hold batch + 1"),
    "offsets of a number": ({"cu_seqlens_q": OFFSETS[0]}, ValueError, "must be (batch + 1,)"),
    "new offsets as a list": (
        {"cu_seqlens_k_new": [0, 1, 2]},
        TypeError,
        "cu_seqlens_k_new must be a torch.Tensor, got list",
    ),
    "new offsets of three": (
        {"cu_seqlens_k_new": ints(0, 1, 1, 2)},
        ValueError,
        "block_table must be (3, pages",
    ),
    "new offsets past the rows": (
        {"cu_seqlens_k_new": ints(0, 1, 3)},
        ValueError,
        "cu_seqlens_k_new must run from 0 to the 2 rows",
    ),
    "no lengths": (
        {"cache_seqlens": None, "k": None, "v": None, "cu_seqlens_k_new": None},
        TypeError,
        "packed queries need cache_seqlens, the keys of each sequence, got None",
    ),
    "a longest that is none": ({"max_seqlen_q": 1.5}, TypeError, "max_seqlen_q must be an int"),
    "a longest of dense queries": (
        {"q": randn(2, 1, 4, 8), "cu_seqlens_q": None, "max_seqlen_q": "1"},
        TypeError,
        "max_seqlen_q must be an int or a tensor of one, got str",
    ),
}


@pytest.mark.parametrize("case", PACKED_CASES)
def test_flash_attn_3_tells_it_too(case: str) -> None:
    changes, error, words = PACKED_CASES[case]
    packed = {name: randn(2, 4 if name == "q" else 2, 8) for name in "qkv"}
    starts = {"cu_seqlens_q": OFFSETS, "cu_seqlens_k_new": OFFSETS}
    given = arguments(**{**packed, **starts, **changes})
    given["page_table"] = given.pop("block_table")
    before = given["k_cache"].clone()
    with pytest.raises(error) as caught:
        flashmetal.flash_attn_3_with_kvcache(**given)
    assert str(caught.value).startswith("flash_attn_3_with_kvcache: ")
    assert words in str(caught.value)
    assert torch.equal(given["k_cache"], before)


def test_a_rotation_without_new_keys() -> None:
    given = arguments(k=None, v=None, rotary_cos=randn(9, 2), rotary_sin=randn(9, 2))
    with pytest.raises(ValueError, match="pass k and v too"):
        flashmetal.flash_attn_with_kvcache(**given)


@pytest.mark.parametrize(
    "name", ["qv", "q_descale", "k_descale", "v_descale", "attention_chunk", "scheduler_metadata"]
)
def test_what_flash_attn_3_has_and_we_do_not(name: str) -> None:
    given = arguments(**{name: 1 if name == "attention_chunk" else randn(1)})
    given["page_table"] = given.pop("block_table")
    with pytest.raises(NotImplementedError, match=f"{name} is not implemented"):
        flashmetal.flash_attn_3_with_kvcache(**given)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pages": 0}, "pages must be at least 1, got 0"),
        ({"k_format": "int2"}, "k_format must be one of"),
        ({"v_format": "int4"}, "multiple of it, got 8"),
    ],
    ids=str,
)
def test_a_cache_that_cannot_be(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as caught:
        PagedKVCache(SHAPE._replace(**changes))
    assert words in str(caught.value)


def test_what_is_no_count_is_told(tmp_path: Path) -> None:
    for changes in ({"pages": 2.5}, {"layers": "1"}, {"dtype": torch.int32}):
        (name,) = changes
        with pytest.raises(TypeError, match=f"PagedKVCache: {name} must be"):
            PagedKVCache(SHAPE._replace(**changes))
    cache = PagedKVCache(SHAPE)
    sequence = cache.allocate(8)
    cache.append(sequence, *randn(2, 1, 6, 2, 8))
    calls: dict[str, Any] = {
        "allocate: tokens must be an int": lambda: cache.allocate(2.5),
        "truncate: length must be an int": lambda: cache.truncate(sequence, 2.5),
        "evict: keys must be an int": lambda: cache.evict(sequence, 2.5),
        "step: sequences must be a mapping": lambda: cache.step([sequence]),
        "step: the new tokens of sequence 0 must be an int": lambda: cache.step({sequence: "a"}),
        "step: the new tokens of sequence 0 must be an int or": lambda: cache.step({sequence: 1.5}),
    }
    state = cache.memory()
    for words, call in calls.items():
        with pytest.raises(TypeError, match=f"PagedKVCache.{words}"):
            call()
    assert cache.memory() == state
    cache.save(tmp_path / "cache.safetensors")
    with pytest.raises(ValueError, match="pages must be at least 1, got 0"):
        PagedKVCache.load(tmp_path / "cache.safetensors", pages=0)


def test_exhaustion_double_release_and_wrong_rows_change_nothing() -> None:
    cache = PagedKVCache(SHAPE)
    sequence = cache.allocate()
    k, v = randn(1, 7, 2, 8), randn(1, 7, 2, 8)
    cache.append(sequence, k, v)
    state = cache.memory()
    for wrong in (
        lambda: cache.append(sequence, *2 * [randn(1, 10, 2, 8)]),
        lambda: cache.allocate(9),
        lambda: cache.step({sequence: 10}),
    ):
        with pytest.raises(CacheFullError, match=r"pages are needed and 2 of 4 are free"):
            wrong()
    for call in (cache.release, cache.fork, cache.length):
        with pytest.raises(ValueError, match="there is no sequence 9"):
            call(9)
    with pytest.raises(ValueError, match="there is no sequence 9"):
        cache.step({sequence: 1, 9: 1})
    with pytest.raises(ValueError, match=r"v must be \(1, 3, 2, 8\)"):
        cache.append(sequence, randn(1, 3, 2, 8), randn(1, 3, 1, 8))
    with pytest.raises(ValueError, match="k must be"):
        cache.append(sequence, k[0], v[0])
    assert cache.memory() == state
    assert torch.equal(cache.gather(sequence, 0)[0], k[0])


def test_an_append_that_raises_takes_no_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = PagedKVCache(SHAPE)
    sequence = cache.allocate()
    cache.append(sequence, *randn(2, 1, 3, 2, 8))
    fork = cache.fork(sequence)
    state, table = cache.memory(), cache.step({fork: 0}).block_table
    k = randn(1, 7, 2, 8)
    with pytest.raises(NotImplementedError, match="append: k requires gradients"):
        cache.append(fork, k.clone().requires_grad_(), k)
    with pytest.raises(ValueError, match=r"append: k must be \(.*on cpu, got .* on meta"):
        cache.append(fork, k.to("meta"), k.to("meta"))
    with pytest.raises(TypeError, match=r"append: v must be a torch.Tensor, got NoneType"):
        cache.append(fork, k, None)
    monkeypatch.setattr(paged, "append_to_cache", interrupted)
    with pytest.raises(KeyboardInterrupt):
        cache.append(fork, k, k)
    assert cache.memory() == state
    assert torch.equal(cache.step({fork: 0}).block_table, table)


def interrupted(*_: object) -> None:
    raise KeyboardInterrupt


def test_a_step_of_pages_that_moved_is_not_committed() -> None:
    cache = PagedKVCache(SHAPE)
    first, second = cache.allocate(4), cache.allocate(4)
    step = cache.step({second: 2})
    cache.release(first)
    assert cache.defragment() == 1
    with pytest.raises(ValueError, match="sequence 1 has changed since the step was made"):
        cache.commit(step)
    assert cache.length(second) == 0
    cache.commit(cache.step({second: 2}))
    assert cache.length(second) == 2


def test_pages_that_were_allocated_outlive_rejected_tokens(tmp_path: Path) -> None:
    cache = PagedKVCache(SHAPE)
    sequence = cache.allocate(12)
    cache.append(sequence, *randn(2, 1, 6, 2, 8))
    cache.truncate(sequence, 1)
    assert cache.memory().pages_used == 3
    cache.save(tmp_path / "cache.safetensors")
    for kept in (cache, PagedKVCache.load(tmp_path / "cache.safetensors")):
        kept.truncate(sequence, 0)
        kept.allocate(4)
        kept.append(sequence, *randn(2, 1, 12, 2, 8))
        with pytest.raises(CacheFullError):
            kept.append(sequence, *randn(2, 1, 1, 2, 8))


def test_files_that_are_no_cache(tmp_path: Path) -> None:
    path = tmp_path / "cache.safetensors"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="is no safetensors file"):
        PagedKVCache.load(path)
    cache = PagedKVCache(SHAPE)
    cache.append(cache.allocate(), randn(1, 7, 2, 8), randn(1, 7, 2, 8))
    cache.save(path)
    with pytest.raises(ValueError, match="use 2 pages, and the cache has 1"):
        PagedKVCache.load(path, pages=1)


@pytest.mark.parametrize("formats", [("int8", "fp8"), ("fp8", "int4")], ids=str)
def test_a_quantised_cache_is_saved_whole(formats: tuple[str, str], tmp_path: Path) -> None:
    shape = SHAPE._replace(head_dim=32, head_dim_v=64, k_format=formats[0], v_format=formats[1])
    cache = PagedKVCache(shape)
    sequence = cache.allocate()
    k, v = randn(1, 7, 2, 32), randn(1, 7, 2, 64)
    cache.append(sequence, k, v)
    cache.save(tmp_path / "cache.safetensors")
    loaded = PagedKVCache.load(tmp_path / "cache.safetensors", pages=9)
    for x, cache_format, kept in zip((k, v), formats, loaded.gather(sequence, 0), strict=True):
        assert torch.equal(kept, dequantise(*quantise(x[0], cache_format), torch.float32))
    assert loaded.memory().pages == 9
