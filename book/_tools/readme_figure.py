"""``python book/_tools/readme_figure.py EXECUTED_NOTEBOOK``: save the picture of the README.

The figure is the output of the cell tagged ``readme-figure`` in a chapter, taken from an executed copy of its
notebook (``nox -s tests`` leaves them in ``build/notebooks``), so that the README shows what the book computes.
"""

import base64
import sys
from pathlib import Path

import nbformat

TAG = "readme-figure"
TARGET = Path(__file__).resolve().parents[1] / "_static" / "readme-figure.png"


def picture(path: Path) -> bytes:
    """Return the PNG of the tagged cell; exits with a message if there is not exactly one."""
    notebook = nbformat.read(path, as_version=4)
    outputs = [o for c in notebook.cells if TAG in c.metadata.get("tags", []) for o in c.get("outputs", [])]
    images = [o["data"]["image/png"] for o in outputs if "image/png" in o.get("data", {})]
    if len(images) != 1:
        sys.exit(f"{path} must hold one picture in a cell tagged {TAG}; it holds {len(images)}")
    return base64.b64decode(images[0])


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    TARGET.write_bytes(picture(Path(sys.argv[1])))
