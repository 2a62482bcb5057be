"""What the pages of the book need beside the package: numbers for the prose, and a slider over figures.

Both work in the built book, in Jupyter, on Colab and in a plain Python session, without the network.
"""

import hashlib
import html
import importlib.util
import io
import re
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from IPython.display import HTML
    from matplotlib.figure import Figure

__all__ = ["glue", "slider", "table"]


def glue(name: str, value: object) -> None:
    """Give the prose of a page a value, and print it as ``name = value``.

    Parameters
    ----------
    name : str
        The name by which the page quotes the value, for example ``{glue:text}`name:.2f```.
    value : object
        A number or a string; quoted with a format, it must be a number.

    Examples
    --------
    >>> glue("n_schools", 139)
    n_schools = 139
    """
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a NumPy or torch scalar would show its type in the prose
    print(f"{name} = {value}")
    # Only a kernel has prose to serve; without the book's tools (Colab) the printed line is enough.
    if "ipykernel" in sys.modules and importlib.util.find_spec("myst_nb") is not None:
        from myst_nb import glue as paste

        paste(name, value, display=False)


def slider(figures: Sequence["Figure"], labels: Sequence[str], title: str = "step", start: int = 0) -> "HTML":
    """Show one figure of many, chosen by a slider: every frame is drawn beforehand and needs no kernel.

    Parameters
    ----------
    figures : sequence of F matplotlib figures
        One per position of the slider, all of one size. They are closed.
    labels : sequence of F str
        What the position means, for example ``"alpha = 0.1"``; read aloud by screen readers.
    title : str
        Name of the quantity that moves.
    start : int
        Position shown first, 0 <= start < F.

    Returns
    -------
    IPython.display.HTML
        Self-contained: inline SVG, a range input (arrow keys work), and a few lines of script.
    """
    from IPython.display import HTML

    if not figures or len(figures) != len(labels):
        raise ValueError(f"expected one label per figure, at least one; got {len(figures)} and {len(labels)}")
    if not 0 <= start < len(figures):
        raise ValueError(f"start must be in 0..{len(figures) - 1}, got {start}")
    drawn = [_svg(figure) for figure in figures]
    key = hashlib.sha256("\0".join([title, *labels, *drawn]).encode()).hexdigest()[:10]
    frames = [_unique_ids(svg, f"s{key}f{k}-") for k, svg in enumerate(drawn)]
    return HTML(_page(f"slider-{key}", frames, labels, title, start))


def table(header: Sequence[object], rows: Sequence[Sequence[object]]) -> "HTML":
    """Show a table that scrolls by itself where the page is narrow.

    Parameters
    ----------
    header : sequence of C cells
    rows : sequence of R sequences of C cells
        Shown as text; an ``IPython.display.HTML`` object is shown as what it holds.

    Returns
    -------
    IPython.display.HTML
    """
    from IPython.display import HTML

    if any(len(row) != len(header) for row in rows):
        lengths = sorted({len(row) for row in rows})
        raise ValueError(f"every row must have {len(header)} cells, one per column of the header; got {lengths}")

    def line(cells: Sequence[object], tag: str) -> str:
        shown = (str(cell.data) if isinstance(cell, HTML) else html.escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in shown) + "</tr>"

    body = "".join(line(row, "td") for row in rows)
    return HTML(
        '<div style="overflow-x: auto"><table class="dataframe table">'  # the class that dark mode knows
        f"<thead>{line(header, 'th')}</thead><tbody>{body}</tbody></table></div>"
    )


def _svg(figure: "Figure") -> str:
    """Draw a figure as SVG text with the same bytes each time, scaling with its box, and close it."""
    import matplotlib.pyplot as plt

    # Without a fixed salt the ids are random, without Date=None the file holds the time of day.
    with plt.rc_context({"svg.hashsalt": "companion", "svg.fonttype": "path"}), io.StringIO() as buffer:
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight")
        text = buffer.getvalue()
    plt.close(figure)
    text = text[text.index("<svg") :]
    return _fluid(text)


def _fluid(svg: str) -> str:
    """Drop the fixed width and height of the outermost element: its viewBox then scales with the page."""
    head, rest = svg.split(">", 1)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    return f'{head} style="width:100%;height:auto">{rest}'


def _unique_ids(svg: str, prefix: str) -> str:
    """Prefix every id and every use of one: frames on one page would else borrow each other's clip paths."""
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    return re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)


def _page(key: str, frames: list[str], labels: Sequence[str], title: str, start: int) -> str:
    shown = [
        f'<div class="frame"{"" if k == start else " hidden"} role="img" aria-label="{html.escape(label)}">{svg}</div>'
        for k, (svg, label) in enumerate(zip(frames, labels, strict=True))
    ]
    names = "".join(f"<li>{html.escape(label)}</li>" for label in labels)
    return f"""\
<div class="book-slider" id="{key}">
<div style="display:flex;flex-wrap:wrap;gap:0.3em 1em;align-items:center">
<label for="{key}-input">{html.escape(title)}</label>
<input id="{key}-input" type="range" min="0" max="{len(frames) - 1}" value="{start}" step="1"
 aria-valuetext="{html.escape(labels[start])}" style="flex:1 1 10em;min-width:8em">
<output for="{key}-input">{html.escape(labels[start])}</output>
</div>
<ol hidden>{names}</ol>
{"".join(shown)}
<script>
(function () {{
  var box = document.getElementById("{key}");
  var input = box.querySelector("input"), output = box.querySelector("output");
  var frames = box.querySelectorAll(".frame"), names = box.querySelectorAll("ol > li");
  input.addEventListener("input", function () {{
    frames.forEach(function (frame, k) {{ frame.hidden = k !== Number(input.value); }});
    output.textContent = names[input.value].textContent;
    input.setAttribute("aria-valuetext", output.textContent);
  }});
}})();
</script>
</div>"""
