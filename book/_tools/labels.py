"""Number every equation, figure, table, section and exercise of the book as Sphinx does."""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jupytext.myst
import yaml
from myst_blocks import HEADING, Block, MystError, blocks

CAPTIONED = {"figure": "figure", "table": "table", "list-table": "table"}
# The body of these is MyST again, so that labels may sit inside.
ADMONITIONS = frozenset(
    (
        *("note", "tip", "warning", "important", "caution", "attention", "danger", "error", "hint"),
        *("seealso", "margin", "sidebar", "admonition", "dropdown"),
    )
)
CONTAINERS = ADMONITIONS | {"exercise", "exercise-start", "solution"}


@dataclass(frozen=True)
class Label:
    """What a label points at: its kind, its number ("3.2", "" where unnumbered), its title, its page."""

    kind: str
    number: str
    title: str
    page: str


@dataclass
class Page:
    """A page of the book: its path, chapter number (None in unnumbered parts) and cells.

    Each cell is ("markdown" | "code", source, metadata, line of the file where the source starts).
    """

    path: Path
    chapter: int | None
    cells: list[tuple[str, str, dict[str, Any], int]]
    is_notebook: bool


def read_pages(root: Path) -> list[Page]:
    """Read the Markdown pages that ``_toc.yml`` lists, in its order, numbered as Sphinx numbers them."""
    toc = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))
    pages, chapter = [_read(root, toc["root"], None)], 0
    for part in toc["parts"]:
        for entry in part["chapters"]:
            chapter += bool(part.get("numbered"))
            pages.append(_read(root, entry["file"], chapter if part.get("numbered") else None))
    return [page for page in pages if page is not None]


def _read(root: Path, name: str, chapter: int | None) -> Page | None:
    path = root / f"{name}.md"
    if not path.exists():
        raise MystError(f"_toc.yml lists {name}, but {path} does not exist")
    text = path.read_text(encoding="utf-8")
    notebook = jupytext.myst.myst_to_notebook(text, add_source_map=True)
    starts = notebook.metadata["source_map"]
    lines = text.splitlines()
    cells = []
    for cell, start in zip(notebook.cells, starts, strict=True):
        while cell.cell_type == "markdown" and not lines[start].strip():
            start += 1  # jupytext strips blank lines off a cell but counts from them
        cells.append((cell.cell_type, cell.source, dict(cell.metadata), start + 1))
    is_notebook = "kernelspec" in notebook.metadata
    header = notebook.metadata.get("jupytext", {}).get("text_representation", {})
    if is_notebook and header.get("format_name") != "myst":
        raise MystError(f"{path.name}: the header names a kernel but not jupytext's format_name: myst")
    return Page(path, chapter, cells, is_notebook)


def number_labels(pages: list[Page]) -> dict[str, Label]:
    """Return label -> Label for the whole book.

    Equations, figures, tables and exercises count separately within a chapter; pages of unnumbered parts
    share one count, as in Sphinx.
    """
    table: dict[str, Label] = {}
    counts: defaultdict[tuple[str, int | None], int] = defaultdict(int)
    for page in pages:
        sections: list[int] = []
        pending: list[str] = []
        for block in _page_blocks(page):
            if block.kind == "target":
                pending.append(str(block.label))
                continue
            entry = _numbered(block, page, counts, sections)
            if entry is not None:
                names = [*pending, *([block.label] if block.label else [])]
                for name in names:
                    if name in table:
                        raise MystError(f"{page.path.name}:{block.line}: the label {name!r} is given twice")
                    table[name] = entry
            if block.kind != "text" or any(line.strip() for line in block.lines):
                pending = []
    return table


def _page_blocks(page: Page) -> Iterator[Block]:
    """Yield the blocks of a page in reading order, those inside containers and figures of cells included."""
    for kind, source, metadata, line in page.cells:
        if kind == "markdown":
            yield from _nested(blocks(source.split("\n"), page.path.name, line), page.path.name)
        figure = metadata.get("mystnb", {}).get("figure")
        if figure:
            yield Block("figure", line, [], label=figure.get("name"), argument=figure.get("caption", ""))


def _nested(found: Iterator[Block], where: str) -> Iterator[Block]:
    for block in found:
        if block.kind == "directive" and block.name in ("math", "exercise", "exercise-start"):
            block.label = block.options.get("label")
        if block.kind == "directive" and block.name in CAPTIONED:
            block.label = block.options.get("name")
        yield block
        if block.kind == "directive" and block.name in CONTAINERS:
            yield from _nested(blocks(block.lines, where, block.body_line), where)


def _numbered(block: Block, page: Page, counts: dict, sections: list[int]) -> Label | None:
    """Return the Label this block would give, counting it; None for blocks without a number or title."""
    name = page.path.stem
    if block.kind == "heading":
        return _section(block, page, sections)
    if block.kind == "math" or (block.kind == "directive" and block.name == "math"):
        return Label("equation", _next(counts, "equation", page), "", name) if block.label else None
    if block.kind == "figure" or (block.kind == "directive" and block.name in CAPTIONED):
        kind = CAPTIONED.get(block.name, "figure")
        captioned_by_argument = kind == "table" or block.kind == "figure"
        title = block.argument if captioned_by_argument else " ".join(block.lines).strip()
        return Label(kind, _next(counts, kind, page), title, name) if title else None
    if block.kind == "directive" and block.name in ("exercise", "exercise-start"):
        number = "" if "nonumber" in block.options else _next(counts, "exercise", page)
        return Label("exercise", number, block.argument, name)
    return None


def _section(block: Block, page: Page, sections: list[int]) -> Label:
    match = HEADING.match(block.lines[0])
    assert match is not None
    depth = len(match["hashes"])
    title = re.sub(r"\s*\{#[\w-]+\}$", "", match["title"])
    if page.chapter is None:
        return Label("section", "", title, page.path.stem)
    if depth == 1:
        sections[:] = [page.chapter]
    else:
        sections[:] = [*(sections + [0] * depth)[: depth - 1], (sections + [0] * depth)[depth - 1] + 1]
    return Label("chapter" if depth == 1 else "section", ".".join(map(str, sections)), title, page.path.stem)


def _next(counts: dict, kind: str, page: Page) -> str:
    counts[kind, page.chapter] += 1
    number = str(counts[kind, page.chapter])
    return number if page.chapter is None else f"{page.chapter}.{number}"
