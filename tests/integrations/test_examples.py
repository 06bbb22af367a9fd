"""The scripts of examples/ run through and find themselves right, on tiny models."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from flashmetal.integrations import transformers as integration

from .tiny_models import ENCODER, make_model

EXAMPLES = Path(__file__).parents[2] / "examples"


class Counting:
    """A tokenizer that reads any text as a count to seven, which a model soon learns."""

    def __call__(self, text: str | list[str], **options: Any) -> Any:
        if isinstance(text, str):
            return {"input_ids": [3 + i % 7 for i in range(len(text))]}
        rows = [torch.tensor(self(x[:9])["input_ids"]) for x in text]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        return {"input_ids": ids, "attention_mask": (ids > 0).long()}

    def decode(self, ids: Any, **options: Any) -> str:
        return " ".join(map(str, ids))

    def apply_chat_template(self, messages: Any, **options: Any) -> dict[str, torch.Tensor]:
        ids = torch.tensor([self("a question of 29 characters..")["input_ids"]])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The module demo, from which the others take their model; undone afterwards."""
    for name in ("HF_HUB_OFFLINE", "TQDM_DISABLE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.syspath_prepend(EXAMPLES)
    demo = import_module("demo")
    monkeypatch.setattr(demo, "load_language_model", lambda: (make_model("llama-gqa"), Counting()))
    yield demo
    integration.unregister()
    for name in ("demo", "serve", "train"):
        sys.modules.pop(name, None)


def run(monkeypatch: pytest.MonkeyPatch, script: str, *options: str) -> int:
    monkeypatch.setattr(sys, "argv", [script, *options])
    return import_module(script).main()


@pytest.mark.usefixtures("examples")
def test_serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "serve", "--requests", "3", "--tokens", "3") == 0
    assert "all 3 answers equal eager's" in capsys.readouterr().out


@pytest.mark.usefixtures("examples")
def test_train(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = "--steps", "4", "--batches", "2", "--tokens", "48", "--checked", "1"
    options = *sizes, "--plot", str(tmp_path / "a.png")
    assert run(monkeypatch, "train", *options) == 0
    assert capsys.readouterr().out.count("right: ") == 2
    assert (tmp_path / "a.png").stat().st_size


def test_demo(
    examples: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    bert = BertModel(BertConfig(**ENCODER)).eval()
    monkeypatch.setattr(examples, "load_embedding_model", lambda: (bert, Counting()))
    monkeypatch.setattr(examples, "LAYER", 1)
    assert run(monkeypatch, "demo", "--tokens", "2") == 0
    assert capsys.readouterr().out.count("right: ") == 3


def test_every_example_is_run() -> None:
    """test_comfyui.py runs the node."""
    scripts = {path.stem for path in EXAMPLES.glob("*.py")}
    assert {f"test_{name}" for name in scripts} <= set(globals())
    assert {path.name for path in EXAMPLES.iterdir() if path.is_dir()} - {"__pycache__"} == {
        "comfyui_flashmetal"
    }
