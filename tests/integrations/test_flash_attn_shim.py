"""``import flash_attn``: what is found, what is not, and who comes first."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import flashmetal
from flashmetal.integrations import flash_attn as shim
from flashmetal.integrations.flash_attn.finder import SWITCH, is_ours

from ..interpreter import ROOT, output

# What libraries import, by module; diffusers takes the two wrapped operators.
NAMES = {
    "flash_attn": (
        "__version__ flash_attn_func flash_attn_kvpacked_func flash_attn_qkvpacked_func "
        "flash_attn_varlen_func flash_attn_varlen_kvpacked_func flash_attn_varlen_qkvpacked_func "
        "flash_attn_with_kvcache"
    ),
    "flash_attn.flash_attn_interface": (
        "flash_attn_func flash_attn_varlen_func flash_attn_with_kvcache _flash_attn_forward "
        "_flash_attn_backward _flash_attn_varlen_forward _flash_attn_varlen_backward "
        "_wrapped_flash_attn_forward _wrapped_flash_attn_backward"
    ),
    "flash_attn.bert_padding": (
        "index_first_axis index_first_axis_residual index_put_first_axis pad_input unpad_input "
        "unpad_input_for_concatenated_sequences"
    ),
    "flash_attn.layers.rotary": (
        "RotaryEmbedding apply_rotary_emb apply_rotary_emb_func apply_rotary_emb_kv_ "
        "apply_rotary_emb_qkv_ apply_rotary_emb_torch rotate_half"
    ),
    "flash_attn.ops.triton.rotary": "apply_rotary",
    "flash_attn_interface": (
        "flash_attn_combine flash_attn_func flash_attn_qkvpacked_func flash_attn_varlen_func "
        "flash_attn_with_kvcache get_scheduler_metadata"
    ),
}
OURS = sorted({*NAMES, "flash_attn.layers", "flash_attn.ops", "flash_attn.ops.triton"})


@pytest.fixture(autouse=True)
def uninstalled(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv(SWITCH, raising=False)
    shim.uninstall()
    yield
    shim.uninstall()


@pytest.fixture
def real_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A flash_attn on sys.path that has nothing but a function."""
    package = tmp_path / "flash_attn"
    package.mkdir()
    (package / "__init__.py").write_text("def flash_attn_func(): return 'real'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    sys.modules.pop("flash_attn", None)


def test_the_package_has_its_interface_as_an_attribute() -> None:
    """As the real one, whose __init__ imports from it."""
    shim.install()
    package = importlib.import_module("flash_attn")
    assert is_ours(package.flash_attn_interface)
    assert package.flash_attn_interface.flash_attn_func is flashmetal.flash_attn_func


@pytest.mark.parametrize("name", NAMES)
def test_names_are_found(name: str) -> None:
    shim.install()
    module = importlib.import_module(name)
    for wanted in NAMES[name].split():
        assert hasattr(module, wanted), wanted
    assert is_ours(module)
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec is module.__spec__
    assert (spec.submodule_search_locations is not None) == (name == "flash_attn")


def test_functions_are_flashmetals() -> None:
    shim.install()
    import flash_attn  # pyright: ignore[reportMissingImports]

    assert flash_attn.flash_attn_func is flashmetal.flash_attn_func
    assert flash_attn.flash_attn_with_kvcache is flashmetal.flash_attn_with_kvcache
    assert flash_attn.__version__ == "2.8.3"


@pytest.mark.parametrize("name", ["flash_attn", "flash_attn_interface"])
def test_nothing_is_found_before_and_after(name: str) -> None:
    assert importlib.util.find_spec(name) is None
    shim.install()
    for module in OURS:
        importlib.import_module(module)
    shim.uninstall()
    assert importlib.util.find_spec(name) is None
    assert not [module for module in OURS if module in sys.modules]


def test_installing_twice_leaves_one_finder() -> None:
    before = len(sys.meta_path)
    shim.install()
    shim.install(metadata=True)
    assert len(sys.meta_path) == before + 1
    shim.uninstall()
    assert len(sys.meta_path) == before


def test_a_switch_that_means_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    shim.install()
    monkeypatch.setenv(SWITCH, "off")
    for call in (shim.install, lambda: importlib.import_module("flash_attn")):
        with pytest.raises(ValueError, match=f"{SWITCH} must be one of 0, metadata, got 'off'"):
            call()
    assert "flash-attn" not in {x.name for x in importlib.metadata.distributions()}


@pytest.mark.parametrize("name", ["flash_attn.cute", "flash_attn.losses", "flash_attn_2_cuda"])
def test_what_is_not_there_is_not_found(name: str) -> None:
    shim.install()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(name)


def test_a_real_flash_attn_comes_first(real_one: Path) -> None:
    with pytest.warns(UserWarning, match=f"a real flash_attn was found at {real_one}"):
        shim.install(metadata=True)
    import flash_attn  # pyright: ignore[reportMissingImports]

    assert flash_attn.flash_attn_func() == "real"
    for name in ("flash_attn.bert_padding", "flash_attn_interface"):  # never a mixture
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(name)
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash-attn")


def test_one_that_another_finder_finds_comes_first_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of an editable install does, whichever of the two is asked first."""
    spec = importlib.machinery.ModuleSpec("flash_attn", None, origin="elsewhere")

    class Editable:
        @staticmethod
        def find_spec(name: str, path: object = None, target: object = None) -> object:
            return spec if name == "flash_attn" else None

    shim.install()
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Editable])
    assert importlib.util.find_spec("flash_attn") is spec
    assert importlib.util.find_spec("flash_attn_interface") is None


def test_the_environment_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SWITCH, "0")
    with pytest.warns(UserWarning, match="FLASHMETAL_FLASH_ATTN=0"):
        shim.install(metadata=True)
    assert importlib.util.find_spec("flash_attn") is None
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash-attn")


@pytest.mark.parametrize("way", ["argument", "environment"])
def test_metadata_is_false_only_where_asked(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shim.install()
    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.version("flash_attn")
    assert "flash_attn" not in importlib.metadata.packages_distributions()
    if way == "argument":
        shim.install(metadata=True)
    else:
        monkeypatch.setenv(SWITCH, "metadata")
    assert importlib.metadata.version("flash-attn") == "2.8.3"
    assert importlib.metadata.version("flash_attn") == "2.8.3"
    assert importlib.metadata.packages_distributions()["flash_attn"] == ["flash-attn"]


@pytest.fixture(scope="module")
def distribution(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site directory with flashmetal-flash-attn, from the wheel that its project builds."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=ROOT / "shim", check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site")
    return folder / "site"


def start(distribution: Path) -> str:
    add = f"import site; site.addsitedir({str(distribution)!r})"
    return f"import sys; before = {{*sys.modules}}; {add}"


def test_the_distribution_serves_every_process(distribution: Path) -> None:
    code = f"{start(distribution)}; import flash_attn; print(flash_attn.flash_attn_func.__module__)"
    assert output(code) == "flashmetal.api"


def test_its_start_imports_nothing_else(distribution: Path) -> None:
    """Least of all torch: the start of an interpreter stays as fast as it was."""
    assert output(f"{start(distribution)}; print({{*sys.modules}} - before)") == (
        "{'flashmetal_flash_attn'}"
    )


def test_it_yields_to_the_environment_and_to_install(distribution: Path) -> None:
    find = "from importlib.util import find_spec; print(find_spec('flash_attn'))"
    assert output(f"{start(distribution)}; {find}", FLASHMETAL_FLASH_ATTN="0") == "None"
    again = "from flashmetal.integrations import flash_attn as shim"
    assert (
        output(f"{start(distribution)}; {again}; shim.install(); shim.uninstall(); {find}")
        == "None"
    )


def test_transformers_is_not_misled() -> None:
    """Without CUDA it never takes flash_attn, and its checks must not trip over ours."""
    code = """if True:
        from flashmetal.integrations import flash_attn as shim
        shim.install()
        from transformers.utils import is_flash_attn_2_available, is_flash_attn_greater_or_equal
        import transformers.modeling_flash_attention_utils
        print(is_flash_attn_2_available(), is_flash_attn_greater_or_equal("2.1.0"))"""
    assert output(code) == "False False"
