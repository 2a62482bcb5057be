"""Compare two executions of the book: the outputs its build shows with those that nbmake saved.

    python book/_tools/outputs.py _build/.jupyter_cache build/notebooks

Text and HTML must agree to the character, images to the pixel. Execution counts, times and the set-up cell,
which only the notebooks have, are left aside.
"""

import argparse
import base64
import difflib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import nbformat
import numpy as np
from jupyter_cache import get_cache
from notebooks import SETUP_TAG
from PIL import Image

# The same object sits at another address in another process.
ADDRESS = re.compile(r"(?<= at )0x[0-9a-fA-F]+")


def code_cells(notebook: Any) -> list[Any]:
    """Return the code cells of a notebook, without the set-up cell."""
    cells = [c for c in notebook.cells if c.cell_type == "code"]
    return [c for c in cells if SETUP_TAG not in c.metadata.get("tags", [])]


def built_cells(cache: Path) -> dict[str, list[list[Any]]]:
    """Return page name -> its cached executions, newest first, from the folder the build keeps them in.

    The copies in ``_build/jupyter_execute`` will not do: of a page taken from the cache they hold no outputs.
    """
    store = get_cache(cache)
    found: dict[str, list[list[Any]]] = {}
    for record in sorted(store.list_cache_records(), key=lambda record: record.pk, reverse=True):
        cells = code_cells(store.get_cache_bundle(record.pk).nb)
        found.setdefault(PurePath(record.uri.replace("\\", "/")).stem, []).append(cells)
    return found


def printed(cell: Any) -> list[tuple[str, str]]:
    """Return what a cell shows as (kind, content) pairs; neighbouring pieces of one stream are joined."""
    shown: list[tuple[str, str]] = []
    for output in cell.outputs:
        if "scrapbook" in output.get("metadata", {}):
            continue  # a value for the prose: the build takes it out, and it is printed as well
        for kind, content in _contents(output):
            if shown and kind == shown[-1][0] and kind.startswith("stream"):
                content = shown.pop()[1] + content
            shown.append((kind, content))
    return shown


def _contents(output: Any) -> Iterator[tuple[str, str]]:
    if output.output_type == "stream":
        yield f"stream {output.name}", output.text
    elif output.output_type == "error":
        yield "error", f"{output.ename}: {output.evalue}"
    else:
        for kind in sorted(output.data):
            content = output.data[kind]
            text = content if isinstance(content, str) else repr(content)
            yield kind, text if kind.startswith("image/") else ADDRESS.sub("0x...", text)


def cell_difference(first: Any, second: Any) -> str:
    """Return a readable account of how the outputs of two cells differ, empty when they are the same."""
    one, two = printed(first), printed(second)
    if [kind for kind, _ in one] != [kind for kind, _ in two]:
        return f"  the build shows {[kind for kind, _ in one]}, the notebook {[kind for kind, _ in two]}\n"
    return "".join(_difference(kind, a, b) for (kind, a), (_, b) in zip(one, two, strict=True))


def _difference(kind: str, first: str, second: str) -> str:
    if first == second:
        return ""
    if kind in ("image/png", "image/jpeg"):
        return _image_difference(kind, first, second)
    lines = difflib.unified_diff(first.splitlines(), second.splitlines(), "build", "notebook", "", "", 1, "")
    return f"  {kind}:\n" + "".join(f"    {line[:200]}\n" for line in list(lines)[:20])


def _image_difference(kind: str, first: str, second: str) -> str:
    one, two = _pixels(first), _pixels(second)
    if one.shape != two.shape:
        return f"  {kind}: {one.shape} pixels in the build, {two.shape} in the notebook\n"
    if np.array_equal(one, two):
        return ""  # other bytes, the same picture
    return f"  {kind}: {int((one != two).any(axis=-1).sum())} of {one.shape[0] * one.shape[1]} pixels differ\n"


def _pixels(encoded: str) -> np.ndarray:
    with Image.open(io.BytesIO(base64.b64decode(encoded))) as image:
        return np.asarray(image.convert("RGBA"))


def compare(cache: Path, executed: Path) -> tuple[str, int, int]:
    """Return (differences as text, number of notebooks, number of cells).

    Parameters
    ----------
    cache : Path
        The build's folder of kept executions, ``_build/.jupyter_cache``.
    executed : Path
        A folder of executed notebooks.
    """
    built = built_cells(cache)
    report, n_cells, paths = "", 0, sorted(executed.glob("*.ipynb"))
    for path in paths:
        second = code_cells(nbformat.read(str(path), as_version=4))
        n_cells += len(second)
        first = next((cells for cells in built.get(path.stem, []) if _same_code(cells, second)), None)
        if first is None:
            report += f"{path.name}: the build ran no page of this name with this code\n"
            continue
        for k, (one, two) in enumerate(zip(first, second, strict=True), start=1):
            if difference := cell_difference(one, two):
                head = (one.source.strip().splitlines() or ["(empty)"])[0]
                report += f"{path.name}, code cell {k} ({head}):\n{difference}"
    return report, len(paths), n_cells


def _same_code(first: list[Any], second: list[Any]) -> bool:
    return [cell.source.strip() for cell in first] == [cell.source.strip() for cell in second]


def main(arguments: list[str] | None = None) -> int:
    """Compare the executions named on the command line; return the exit status."""
    parser = argparse.ArgumentParser(description="Compare the outputs of two executions of the book.")
    parser.add_argument("cache", type=Path, help="the build's kept executions, _build/.jupyter_cache")
    parser.add_argument("executed", type=Path, help="notebooks as nbmake executed and saved them")
    options = parser.parse_args(arguments)
    report, n_notebooks, n_cells = compare(options.cache, options.executed)
    if not report and n_notebooks == 0:
        report = f"no notebooks in {options.executed}: run nbmake on copies of them first\n"
    print(report, end="")
    if not report:
        print(f"{n_notebooks} notebooks, {n_cells} cells print the same twice")
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
