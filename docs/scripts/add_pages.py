"""A hook of mkdocs: pages that lie outside docs/ join the site at their path in the repository.

So a link such as ../metalsim/README.md works on GitHub and, one level up, on the site.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
OUTSIDE = (
    "DESIGN.md",
    "metalsim/README.md",
    "metalsim/docs/**/*.md",
    "metalsim/gallery/*.metal",
    "src/flashmetal/engines/metal/tiles.txt",
    "src/flashmetal/engines/metal/msl/*",
    "benchmarks/*.py",
    "benchmarks/results/*",
    "metalsim/benchmarks/results/*",
)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of OUTSIDE, and what they and docs/ link to."""
    for pattern in OUTSIDE:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file():
                name = path.relative_to(ROOT).as_posix()
                files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The folder docs/ is the root of the site."""
    del config, files
    return markdown.replace("](../", "](") if "/" not in page.file.src_uri else markdown
