"""Members of types, and what MLX's headers write beside them: run, not only translated."""

from __future__ import annotations

import pytest
import torch

import metalsim

LIMITS = """
template <typename T>
struct Limits {
  static const constant float top = 3.5;
  static const constant T low = -metal::numeric_limits<T>::max();
  static constant constexpr const float plain = 2.0;
  static constant const int count = 4;
};
kernel void f(device float* out) {
  int values[Limits<half>::count] = {1};
  out[0] = Limits<float>::top;
  out[1] = Limits<half>::low;
  out[2] = Limits<float>::plain;
  out[3] = values[0] + Limits<float>::count;
}
"""

UNIFORM = """
kernel void f(device float* out, constant float& scale) {
  const metal::uniform<float> a = metal::make_uniform(scale);
  const metal::uniform<float> b = a * metal::make_uniform(2.0f) + metal::make_uniform(1.0f);
  const metal::uniform<float> c = (b - a) / metal::make_uniform(4.0f);
  out[0] = b;
  out[1] = c * out[0];
}
"""


def test_static_constants_of_a_type() -> None:
    out = torch.zeros(4)
    metalsim.compile_shader(LIMITS).f(out, threads=1)
    assert out.tolist() == [3.5, -65504.0, 2.0, 5.0]


def test_arithmetic_on_uniform_values_is_uniform() -> None:
    out = torch.zeros(2)
    metalsim.compile_shader(UNIFORM).f(out, 3.0, threads=1)
    assert out.tolist() == [7.0, 7.0]


def test_a_varying_value_is_not_uniform() -> None:
    source = UNIFORM.replace("metal::make_uniform(scale);", "scale;")
    with pytest.raises(SyntaxError, match="^program_source:3:"):
        metalsim.compile_shader(source)
