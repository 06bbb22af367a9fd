"""Metal to PTX on machines without a GPU: what compiles, what is refused, what the cache keeps."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import metalsim
from metalsim.cuda.compiler import find_libdevice, find_ptx_compiler
from metalsim.fidelity.corpus import launches

torch = pytest.importorskip("torch")
GALLERY = Path(__file__).parents[2] / "gallery"
FILL = "kernel void fill(device float* x, uint i [[thread_position_in_grid]]) { x[i] = 1; }"


def _has_compiler() -> bool:
    try:
        find_ptx_compiler(), find_libdevice()
    except metalsim.CompilerNotFoundError:
        return False
    return True


needs_compiler = pytest.mark.skipif(
    not _has_compiler(), reason="PTX needs a clang and NVIDIA's libdevice (pip install triton)"
)
SOURCES = {path.stem: path.read_text() for path in sorted(GALLERY.glob("*.metal"))}
SOURCES |= {launch.file: launch.source for launch in launches()}


def ptx_of(directory: Path) -> str:
    (path,) = directory.glob("*.ptx")
    return path.read_text()


QUICK = ("functions", "matmul", "simdgroups", "tensor_attention")


@needs_compiler
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in QUICK else pytest.mark.long) for name in SOURCES],
)
def test_the_gallery_and_the_corpus_compile(name: str, tmp_path: Path) -> None:
    library = metalsim.compile_shader(SOURCES[name], engine="cuda", cache_dir=tmp_path)
    text = ptx_of(tmp_path)
    assert text.count(".visible .entry metalsim_entry_") == len(dir(library)) > 0
    if ptxas := shutil.which("ptxas"):
        (path,) = tmp_path.glob("*.ptx")
        command = [ptxas, "-arch=sm_90a", str(path), "-o", str(tmp_path / "cubin")]
        subprocess.run(command, check=True, capture_output=True)


@needs_compiler
def test_threadgroup_memory_is_known_before_a_launch(tmp_path: Path) -> None:
    source = """
    #include <metal_stdlib>
    using namespace metal;
    template <int n> kernel void two(device float* x, uint i [[thread_index_in_threadgroup]]) {
      threadgroup float a[n], b[3];
      a[i] = x[i]; b[i % 3] = 0;
      threadgroup_barrier(mem_flags::mem_threadgroup);
      x[i] = a[i ^ 1] + b[i % 3];
    }
    template [[host_name("small")]] kernel void two<32>(device float*, uint);
    template [[host_name("large")]] kernel void two<9000>(device float*, uint);
    kernel void none(device float* x) { *x = 1; }
    """
    library = metalsim.compile_shader(source, engine="cuda", cache_dir=tmp_path)
    sizes = {
        name: getattr(library, name).static_thread_group_memory_length for name in dir(library)
    }
    assert sizes == {"small": 128 + 16, "large": 36000 + 16, "none": 0}


@needs_compiler
def test_errors_are_placed_in_the_source(tmp_path: Path) -> None:
    source = "kernel void f(device float* x) {\n  *x = missing(1);\n}"
    with pytest.raises(SyntaxError, match=r"program_source:2:8: error: .*missing"):
        metalsim.compile_shader(source, engine="cuda", cache_dir=tmp_path)


@needs_compiler
def test_a_cache_serves_a_machine_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metalsim.compile_shader(FILL, engine="cuda", cache_dir=tmp_path)
    monkeypatch.delenv("METALSIM_CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert dir(metalsim.compile_shader(FILL, engine="cuda", cache_dir=tmp_path)) == ["fill"]
    with pytest.raises(metalsim.CompilerNotFoundError, match="pip install ziglang"):
        metalsim.compile_shader(f"{FILL} ", engine="cuda", cache_dir=tmp_path)


@needs_compiler
def test_float_products_are_a_part_of_the_build(tmp_path: Path) -> None:
    source = (GALLERY / "matmul.metal").read_text().replace("half", "float")
    for float_products, expected in (("fma", False), ("3xtf32", True)):
        directory = tmp_path / float_products
        metalsim.compile_shader(
            source, engine="cuda", float_products=float_products, cache_dir=directory
        )
        assert (".tf32.tf32." in ptx_of(directory)) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "metal"}, "engine must be 'cpu' or 'cuda', not 'metal'"),
        ({"engine": "cuda", "check": True}, "neither counts nor checks"),
        ({"engine": "cuda", "profile": True}, "neither counts nor checks"),
        ({"engine": "cuda", "float_products": "tf32"}, "float_products must be one of fma, 3xtf32"),
        ({"float_products": "3xtf32"}, "float_products is for engine='cuda'"),
    ],
)
def test_what_an_engine_has_not_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        metalsim.compile_shader(FILL, **options)


@needs_compiler
def test_arguments_on_the_host_are_refused(tmp_path: Path) -> None:
    kernel = metalsim.compile_shader(FILL, engine="cuda", cache_dir=tmp_path).fill
    with pytest.raises(RuntimeError, match=r"argument 0 is a tensor on cpu; .* call \.cuda\(\)"):
        kernel(torch.zeros(4))
    with pytest.raises(metalsim.ArgumentError, match="a list of numpy arrays"):
        kernel([torch.zeros(4).numpy()], threads=1)
