"""What the tests of Metal 4's tensors share: the headers in front of every program, and
`TENSORS(a, b, c)`: operands of 16x16 times 16x32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import metalsim

_HEADERS = """
#include <metal_stdlib>
#include <metal_tensor>
#include <MetalPerformancePrimitives/MetalPerformancePrimitives.h>
using namespace metal;
using namespace mpp::tensor_ops;
#define TENSORS(a, b, c)                       \\
  auto ta = tensor(a, extents<int, 16, 16>()); \\
  auto tb = tensor(b, extents<int, 32, 16>()); \\
  auto tc = tensor(c, extents<int, 32, 16>())
#line 1
"""


@pytest.fixture(scope="session")
def tensor_library() -> Callable[..., metalsim.ShaderLibrary]:
    """`metalsim.compile_shader` of a program that need not include the headers of tensors."""

    def compile_tensors(source: str, **options: Any) -> metalsim.ShaderLibrary:
        return metalsim.compile_shader(_HEADERS + source, **options)

    return compile_tensors
