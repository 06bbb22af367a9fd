"""The pages: every relative link and anchor leads somewhere, and every block of Python compiles.

tests/integrations/test_recipes.py and tests/distributed/test_docs.py run whole recipes.
"""

from __future__ import annotations

import ast
import doctest
import re
import runpy
from pathlib import Path
from urllib.parse import unquote

import pytest
import torch

from flashmetal.checks import IMPLS, KERNELS
from flashmetal.tools import cli

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "docs" / "scripts"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "DESIGN.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "metalsim" / "README.md",
    *sorted((ROOT / "metalsim" / "docs").rglob("*.md")),
]
# Those whose blocks need nothing but themselves; the first block of each runs.
RUNNABLE = ("README.md", "docs/index.md")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(text: str) -> str:
    """A page without its fenced and inline code, where brackets are no links."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    return re.sub(r"`[^`\n]*`", "code", text)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and mkdocs name them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    headings = [h.lower().strip() for h in re.findall(r"^#+ (.*)$", text, re.MULTILINE)]
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading)) for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page's text that lead nowhere."""
    broken: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        is_known = not anchor or (target.is_file() and anchor in anchors(target))
        if not (target.exists() and target.is_relative_to(ROOT) and is_known):
            broken.append(link)
    return broken


def python_blocks(text: str) -> list[str]:
    """The Python of a page; of a session with >>> what was typed."""
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [doctest.script_from_examples(b) if b.startswith(">>>") else b for b in blocks]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    assert not broken_links(page, page.read_text())


@pytest.mark.parametrize(
    "link", ["no.md", "docs/sdpa.md#no", "#no", "../elsewhere.md", "docs/no.png"]
)
def test_a_broken_link_is_seen(link: str) -> None:
    assert broken_links(ROOT / "README.md", f"See [this]({link}).") == [link]
    assert not broken_links(ROOT / "README.md", f"See [this](docs/sdpa.md) and `[x]({link})`.")


@every_page
def test_python_compiles(page: Path) -> None:
    for block in python_blocks(page.read_text()):
        compile(block, str(page), "exec")


@pytest.mark.parametrize("name", RUNNABLE)
def test_first_example_runs(name: str) -> None:
    page = ROOT / name
    exec(compile(python_blocks(page.read_text())[0], str(page), "exec"), {})


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]
    listed = set(re.findall(r"[\w/]+\.md", navigation))
    assert {page.name for page in (ROOT / "docs").glob("*.md")} <= listed


def test_environment_variables_are_listed() -> None:
    """Those that the package and the shim read, with the values that a choice has."""
    paths = [path for folder in ("src", "shim") for path in (ROOT / folder).rglob("*.py")]
    nodes = [node for path in paths for node in ast.walk(ast.parse(path.read_text()))]
    words = {str(node.value) for node in nodes if isinstance(node, ast.Constant)}
    read = {word for word in words if re.fullmatch("FLASHMETAL_[A-Z_]+", word)}
    table = (ROOT / "docs" / "tools.md").read_text().partition("## Environment variables")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", table, re.MULTILINE))
    assert read == set(rows)
    for name, values in (("IMPL", IMPLS), ("KERNEL", KERNELS)):
        assert [x for x in values if f"`{x}`" not in rows[f"FLASHMETAL_{name}"]] in ([], ["auto"])


def test_commands_are_listed() -> None:
    table = (ROOT / "docs" / "tools.md").read_text().partition("\n## ")[0]
    usage = cli._parser().format_usage()
    commands = re.findall(r"\{(.*?)\}", usage)[0].split(",")
    assert set(re.findall(r"^\| `flashmetal (\w+)", table, re.MULTILINE)) == set(commands)


def test_numbers_are_those_of_the_results() -> None:
    """If this fails: python docs/scripts/write_numbers.py."""
    written = runpy.run_path(str(SCRIPTS / "write_numbers.py"))
    assert (ROOT / "docs" / "numbers.md").read_text() == written["page"]()
    assert (ROOT / "README.md").read_text() == written["readme"]()


def test_pictures_show_the_contract() -> None:
    """Each mask is that of the rules in words: band, lengths, padding and packing."""
    drawn = runpy.run_path(str(SCRIPTS / "draw_masks.py"))
    for title, (queries, keys, options) in drawn["CASES"].items():
        used, left = options.get("seqused_k", keys), options.get("leftpad_k", 0)
        window = options.get("window_size", (-1, 0 if options.get("causal") else -1))
        i, j = torch.arange(queries)[:, None] + used - queries, torch.arange(keys)
        expected = (j >= left) & (j < used)
        expected = expected & ((j >= i - window[0]) | (window[0] < 0))
        expected = expected & ((j <= i + window[1]) | (window[1] < 0))
        if "packed" in options:
            sequence = torch.repeat_interleave(torch.tensor(options["packed"]))
            expected = expected & (sequence[:, None] == sequence)
        assert torch.equal(drawn["visible"](queries, keys, options), expected), title
