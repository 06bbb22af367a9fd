"""flashmetal as a package of the Hugging Face kernels library, built and loaded by it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from kernels._rust import Digest, Metadata
from kernels.variants import get_variants_local

from ..interpreter import ROOT, output

REPOSITORY = "flashmetal/flashmetal"
VARIANTS = ("torch-metal", "torch-universal")


@pytest.fixture(scope="module")
def build() -> Any:
    spec = importlib.util.spec_from_file_location("hub_build", ROOT / "hub" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def repository(build: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hub")
    build.build(folder)
    return folder


def run(code: str, repository: Path) -> list[str]:
    """The lines that a new interpreter prints, to which the kernel is a local one."""
    return output(code, LOCAL_KERNELS=f"{REPOSITORY}={repository}", HF_HUB_OFFLINE="1").splitlines()


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_metadata_is_the_librarys(variant: str, repository: Path) -> None:
    folder = repository / "build" / variant
    metadata = Metadata.read_from_file(folder / "metadata.json")
    assert str(metadata.name) == "flashmetal"
    assert metadata.version == 1
    assert metadata.python_depends == []
    assert metadata.id.isidentifier()
    found = Digest.hash_variant(metadata.digest.algorithm, folder)
    metadata.digest.validate(found)
    assert "engines/metal/msl/tile.h" in found.files
    variants = get_variants_local(repository / "build")
    assert sorted(v.variant_str for v in variants) == sorted(VARIANTS)


def test_other_sources_have_other_ids(
    build: Any, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build.build(tmp_path / "again")
    for name in VARIANTS:
        texts = [
            (r / "build" / name / "metadata.json").read_text()
            for r in (repository, tmp_path / "again")
        ]
        assert texts[0] == texts[1]
    monkeypatch.setattr(build, "LEFT_OUT", (*build.LEFT_OUT, "bert_padding.py"))
    build.build(tmp_path / "again")
    other = json.loads((tmp_path / "again/build/torch-metal/metadata.json").read_text())
    assert other["id"] != json.loads(texts[0])["id"]


def test_only_torch_and_itself_are_imported(repository: Path) -> None:
    """The requirements allow nothing else; safetensors is asked for when a cache is saved."""
    code = f"""if True:
        import sys
        from pathlib import Path
        sys.path.insert(0, {str(repository / "torch-ext")!r})
        import torch
        torch.compile
        before = {{name.partition(".")[0] for name in sys.modules}}
        import flashmetal
        after = {{name.partition(".")[0] for name in sys.modules}}
        print(flashmetal.__file__)
        print(sorted(after - before - sys.stdlib_module_names))"""
    lines = run(code, repository)
    assert lines == [str(repository / "torch-ext/flashmetal/__init__.py"), "['flashmetal']"]


def test_a_folder_with_something_else_is_left_alone(build: Any, tmp_path: Path) -> None:
    (tmp_path / "work.txt").write_text("mine")
    with pytest.raises(SystemExit, match="holds something else"):
        build.build(tmp_path)
    assert (tmp_path / "work.txt").exists()


USE = """
import torch
import flashmetal
q = torch.randn(1, 5, 2, 8, requires_grad=True)
own = flashmetal.flash_attn_func(q, q, q, causal=True)
found = kernel.flash_attn_func(q, q, q, causal=True)
assert kernel.flash_attn_func is not flashmetal.flash_attn_func
assert torch.equal(found, own)
assert torch.equal(*(torch.autograd.grad(x.sum(), q)[0] for x in (found, own)))
compiled = torch.compile(
    lambda x: kernel.flash_attn_func(x, x, x, causal=True), fullgraph=True, backend="aot_eager"
)
assert torch.equal(compiled(q), own)
cache = torch.zeros(1, 8, 2, 8)
row = q[:, :1].detach()
kernel.flash_attn_with_kvcache(row, cache, cache.clone(), row, row, cache_seqlens=0)
assert torch.equal(cache[:, 0], q[:, 0])
print(kernel.__name__)
print(*sorted(name for name in dir(torch.ops) if "flashmetal" in name))
"""


def test_it_is_loaded_beside_the_package(repository: Path) -> None:
    """Its operators are in a namespace of their own; LOCAL_KERNELS leads to the same module."""
    identity = json.loads((repository / "build/torch-universal/metadata.json").read_text())["id"]
    code = f"""
from pathlib import Path
from kernels import get_kernel, get_local_kernel, has_kernel
kernel = get_local_kernel(Path({str(repository)!r}))
assert has_kernel({REPOSITORY!r}, version=1)
assert get_kernel({REPOSITORY!r}, version=1) is kernel
{USE}"""
    assert run(code, repository) == [identity, f"{identity} flashmetal"]


def test_both_variants_live_side_by_side_without_the_package(repository: Path) -> None:
    folder = repository / "build"
    code = f"""if True:
        import sys
        from pathlib import Path
        import torch
        from kernels.importer import _import_from_path
        sys.modules["flashmetal"] = None  # whatever is installed is not looked at
        names = {VARIANTS!r}
        kernels = [_import_from_path(Path({str(folder)!r}) / name, {{}}) for name in names]
        q = torch.randn(1, 3, 2, 8)
        assert torch.equal(*(kernel.flash_attn_func(q, q, q) for kernel in kernels))
        print(*(kernel.__name__ for kernel in kernels))"""
    ids = [json.loads((folder / v / "metadata.json").read_text())["id"] for v in VARIANTS]
    assert run(code, repository) == [" ".join(ids)]


def test_the_nested_package_is_the_same(repository: Path) -> None:
    """Old versions of the library look for the package one folder deeper."""
    folder = repository / "build" / "torch-universal"
    code = f"""if True:
        import sys
        sys.path.insert(0, {str(folder)!r})
        import flashmetal, torch
        q = torch.randn(1, 3, 2, 8)
        print(flashmetal.__file__, flashmetal.flash_attn_func.__module__)
        flashmetal.flash_attn_func(q, q, q)"""
    (line,) = run(code, repository)
    identity = json.loads((folder / "metadata.json").read_text())["id"]
    assert line == f"{folder / 'flashmetal' / '__init__.py'} {identity}.api"


TRANSFORMERS = """
import importlib.metadata
import kernels
from transformers.utils import import_utils
# Some releases of transformers ask for a release of kernels that does not exist yet: they are told
# that it is there, and get the newest there is.
if not import_utils.is_kernels_available():
    version = importlib.metadata.version
    wanted = import_utils.KERNELS_MIN_VERSION
    importlib.metadata.version = lambda name: wanted if name == "kernels" else version(name)
    import_utils.is_kernels_available.cache_clear()
    assert import_utils.is_kernels_available()

import torch
from transformers import GptOssConfig, GptOssForCausalLM
torch.manual_seed(0)
config = GptOssConfig(
    vocab_size=97, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
    num_attention_heads=4, num_key_value_heads=2, head_dim=16, sliding_window=5,
    num_local_experts=2, num_experts_per_tok=2, max_position_embeddings=64, pad_token_id=0,
    bos_token_id=1, eos_token_id=2,
)
model = GptOssForCausalLM(config).eval()
for name, parameter in model.named_parameters():
    if "sinks" in name:
        parameter.data.normal_()
ids = torch.randint(3, 97, (2, 11))
mask = torch.ones_like(ids)
mask[1, :4] = 0
options = dict(attention_mask=mask, min_new_tokens=8, max_new_tokens=8, do_sample=False)
# A name that a model with sinks does not list is replaced by one that it does.
GptOssForCausalLM._compatible_flash_implementations = [REPOSITORY]
tokens = []
for name in ("eager", REPOSITORY):
    model.set_attn_implementation(name, allow_all_kernels=True)
    tokens.append(model.generate(ids, **options))
assert torch.equal(*tokens)
print(model.config._attn_implementation)
print(*(loaded.metadata.name for loaded in kernels.get_loaded_kernels()))
"""


def test_transformers_loads_it_by_its_name(repository: Path) -> None:
    lines = run(f"REPOSITORY = {REPOSITORY!r}\n{TRANSFORMERS}", repository)
    assert lines == [REPOSITORY, "flashmetal"]
