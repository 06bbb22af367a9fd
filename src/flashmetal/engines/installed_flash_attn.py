"""An installed flash_attn 2, 3 or 4: the forward of calls that it answers as the contract says.

What each takes is in RULES, by its public functions. At its first use in a process it is held
against the reference on small problems with the features it is said to have; one that raises or is
wrong there is left alone with one warning, and torch's own kernels serve. Gradients are never its:
o and lse mean the same in every engine.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..problem import AttentionProblem
from ..request import AttentionInputs
from ..testing import assert_matches_reference, make_inputs

_OURS = "flashmetal"  # the origin of modules that our own `import flash_attn` serves
_EIGHTS = tuple(range(8, 257, 8))


class Rules(NamedTuple):
    """What a version of flash_attn takes, dense or packed, in float16 and bfloat16."""

    module: str
    capabilities: range  # the major number of the GPU's
    head_dims: tuple[int, ...]  # of q, k and v alike
    softcap: bool
    alibi: bool
    seqused_k: bool


# Version 4 lies in the package of version 2, which may be there without it.
# None takes dropout (its entries are others), a bias, paged or quantised caches, or left padding
# here. Sinks are added afterwards, in float32: version 4 takes them in bfloat16 alone.
RULES = {
    "flash_attn 2": Rules(
        "flash_attn.flash_attn_interface", range(8, 13), _EIGHTS, True, True, False
    ),
    "flash_attn 3": Rules("flash_attn_interface", range(9, 10), _EIGHTS, True, False, True),
    "flash_attn 4": Rules("flash_attn.cute", range(9, 12), (64, 96, 128), True, False, True),
}
# By the major number of the GPU: version 3 was made for 9, version 4 for 10 and 11.
_PREFERRED = {9: ("flash_attn 3", "flash_attn 4", "flash_attn 2")}
_OTHERWISE = ("flash_attn 4", "flash_attn 2")


def chosen(problem: AttentionProblem, capability: int) -> str | None:
    """The installed version that serves a call on a GPU of this major capability, or None.

    What no version takes (RULES) the caller has refused already.
    """
    for name in _PREFERRED.get(capability, _OTHERWISE):
        if refuse(name, problem, capability) is None and _is_right(name):
            return name
    return None


def refuse(name: str, problem: AttentionProblem, capability: int) -> str | None:
    """Why a version cannot serve a call, by its rules, or None."""
    rules = RULES[name]
    reasons = (
        (capability not in rules.capabilities, f"{name} has no kernels for this GPU"),
        (problem.head_dim not in rules.head_dims, f"{name} has no head dim {problem.head_dim}"),
        (problem.softcap != 0.0 and not rules.softcap, f"{name} has no softcap"),
        (problem.alibi is not None and not rules.alibi, f"{name} has no ALiBi"),
        (problem.seqused_k and not rules.seqused_k, f"{name} has no seqused_k"),
        (not _is_installed(rules.module), f"{name} is not installed"),
    )
    return next((reason for refused, reason in reasons if refused), None)


def attend(
    name: str,
    problem: AttentionProblem,
    inputs: AttentionInputs,
    lengths: tuple[Tensor | None, Tensor | None, int, int],
) -> tuple[Tensor, Tensor]:
    """(o, lse) by the public functions of a version, without sinks.

    ``lengths`` are the offsets of packed q and k, or None, and their largest lengths.
    """
    module = importlib.import_module(RULES[name].module)
    left, right = problem.window_left, problem.window_right
    options: dict[str, Any] = {
        "softmax_scale": problem.scale,
        "causal": (left, right) == (-1, 0),
        "softcap": problem.softcap,
    }
    if name == "flash_attn 4":
        options["window_size"] = None if left < 0 else left, None if right < 0 else right
        options["return_lse"] = True
    else:
        options["window_size"] = left, right
        options["return_attn_probs"] = True
    if inputs.alibi_slopes is not None:
        options["alibi_slopes"] = inputs.alibi_slopes
    if inputs.seqused_k is not None:
        options["seqused_k"] = inputs.seqused_k
    with torch.no_grad():
        if lengths[0] is None:
            o, lse, *_ = module.flash_attn_func(*inputs[:3], **options)
        else:
            names = "cu_seqlens_q", "cu_seqlens_k", "max_seqlen_q", "max_seqlen_k"
            options |= zip(names, lengths, strict=True)
            o, lse, *_ = module.flash_attn_varlen_func(*inputs[:3], **options)
    # Version 2 gives rows that see nothing the other infinity.
    return o.contiguous(), lse.masked_fill(lse == torch.inf, -torch.inf)


@functools.cache
def _is_installed(module: str) -> bool:
    """Whether a module is there that is not our own."""
    try:
        spec = importlib.util.find_spec(module.partition(".")[0])
        if spec is None or spec.origin == _OURS:
            return False
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # a broken install, or a module without a spec
        return False


_SMALL: dict[str, Any] = {"seqlen_q": 70, "seqlen_k": 40, "heads_q": 4, "heads_k": 2}
_PACKED: dict[str, Any] = {"lengths_q": (5, 0, 37, 1), "lengths_k": (40, 7, 70, 0)}


def _proofs(rules: Rules) -> list[dict[str, Any]]:
    """Calls with rows that see nothing and with empty sequences, and each feature."""
    calls: list[dict[str, Any]] = [
        {"window_right": 0},
        {"window_left": 20, "window_right": 5},
        {"window_right": 0, **_PACKED},
    ]
    if rules.softcap:
        calls.append({"softcap": 2.0})
    if rules.alibi:
        calls.append({"alibi": True, "window_right": 0})
    if rules.seqused_k:
        calls.append({"seqused_k": (8, 0, 70, 0), **_PACKED})
    return calls


@functools.cache
def _is_right(name: str) -> bool:
    """Whether a version gives the contract's answers here; the warning says where it does not."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for fields in _proofs(RULES[name]):
        for dtype in (torch.float16, torch.bfloat16):
            call: dict[str, Any] = {**_SMALL, **fields, "dtype": dtype, "device": device}
            problem, inputs = make_inputs(**call)
            lengths = problem.seqlen_q, problem.seqlen_k
            starts = inputs.cu_seqlens_q, inputs.cu_seqlens_k
            try:
                o, lse = attend(name, problem, inputs, (*starts, *lengths))
                assert_matches_reference(o, lse, problem, inputs)
            except Exception as error:  # whatever another package raises, torch's kernels serve
                warnings.warn(
                    f"flashmetal: {name} is installed and is not used: on a small problem with "
                    f"{fields} it failed: {error}",
                    stacklevel=2,
                )
                return False
    return True
