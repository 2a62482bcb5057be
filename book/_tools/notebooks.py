"""Write book/NAME.ipynb beside each book/NAME.md that holds code: one way, no outputs, deterministic bytes.

python book/_tools/notebooks.py            write what changed
python book/_tools/notebooks.py --check    write nothing; exit 1 and name the notebooks that are out of date
"""

import argparse
import hashlib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

import yaml
from citations import Citations
from labels import Label, Page, number_labels, read_pages
from myst_blocks import MystError
from plain_markdown import NUMBER_FORMAT, PlainMarkdown

ROOT = Path(__file__).resolve().parents[2]
SETUP_TAG = "book-setup"
SETUP = """\
# Where the book's package is missing (Colab, Kaggle, Binder), installs it and puts the measured records beside it.
# In the text below, a **`name`** in bold code is a number that one of the cells prints as "name = value".
import importlib.util
import os

if importlib.util.find_spec("companion") is None:
    !git clone --quiet --depth 1 --branch v{version} {url} mtl-book
    %pip install --quiet ./mtl-book
if os.path.isdir("mtl-book"):
    os.environ["COMPANION_RESULTS"] = os.path.abspath("mtl-book/book/results")"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


def setup_source(root: Path) -> str:
    """Return the set-up cell: repository from ``_config.yml``, version from ``pyproject.toml``."""
    config = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return SETUP.format(url=config["repository"]["url"], version=project["version"])


def notebook_cells(page: Page, setup: str, writer: PlainMarkdown, labels: dict[str, Label]) -> list[dict[str, Any]]:
    """Return the cells of a page's notebook, the set-up cell first, without ids."""
    cells = [_code(setup, [SETUP_TAG])]
    for kind, source, metadata, line in page.cells:
        if kind == "markdown":
            text = writer.convert(source, line)
            if text:
                cells.append(_markdown(text))
            continue
        if kind != "code":
            raise MystError(f"{page.path.name}:{line}: expected a code cell, got a {kind} cell")
        cells.append(_code(source, metadata.get("tags", [])))
        figure = metadata.get("mystnb", {}).get("figure")
        if figure:
            number = NUMBER_FORMAT["figure"].format(labels[figure["name"]].number) + "." if "name" in figure else ""
            caption = writer.convert(figure.get("caption", "").strip(), line)
            cells.append(_markdown(f"**{number}** {caption}" if number else caption))
    return cells


def notebook_bytes(page: Page, cells: list[dict[str, Any]]) -> bytes:
    """Return the .ipynb file: ids made from page and position, sorted keys, ``\\n`` on every system."""
    for index, cell in enumerate(cells):
        cell["id"] = hashlib.sha256(f"{page.path.stem}:{index}".encode()).hexdigest()[:12]
    notebook = {"cells": cells, "metadata": METADATA, "nbformat": 4, "nbformat_minor": 5}
    return (json.dumps(notebook, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def generate(root: Path) -> dict[Path, bytes]:
    """Return path -> bytes of every notebook of the book."""
    pages = read_pages(root)
    labels = number_labels(pages)
    citations = Citations(root / "book" / "references.bib")
    setup = setup_source(root)
    notebooks = frozenset(page.path.stem for page in pages if page.is_notebook)
    made = {}
    for page in (page for page in pages if page.is_notebook):
        writer = PlainMarkdown(page, labels, citations, notebooks)
        made[page.path.with_suffix(".ipynb")] = notebook_bytes(page, notebook_cells(page, setup, writer, labels))
    return made


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """Write or check the notebooks; return the exit status."""
    parser = argparse.ArgumentParser(description="Generate the notebooks of the book from its Markdown pages.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when a notebook is out of date")
    check = parser.parse_args(arguments).check
    try:
        made = generate(root)
    except MystError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    stale = [path for path, data in made.items() if _existing(path) != data]
    orphans = [path for path in sorted((root / "book").glob("*.ipynb")) if path not in made]
    if check:
        for path in stale + orphans:
            name = path.relative_to(root).as_posix()
            print(f"{name} differs from its page: run python book/_tools/notebooks.py")
        return 1 if stale or orphans else 0
    for path in stale:
        path.write_bytes(made[path])
        print(f"wrote {path.relative_to(root).as_posix()}")
    for path in orphans:
        path.unlink()
        print(f"removed {path.relative_to(root).as_posix()}: it has no page")
    return 0


def _existing(path: Path) -> bytes | None:
    """Return the file's bytes with the line ends of the generator: git on Windows may have changed them."""
    return path.read_bytes().replace(b"\r\n", b"\n") if path.exists() else None


def _lines(source: str) -> list[str]:
    return source.splitlines(keepends=True)


def _markdown(source: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(source)}


def _code(source: str, tags: list[str]) -> dict[str, Any]:
    metadata = {"tags": list(tags)} if tags else {}
    return {
        "cell_type": "code",
        "execution_count": None,
        "metadata": metadata,
        "outputs": [],
        "source": _lines(source),
    }


if __name__ == "__main__":
    sys.exit(main())
