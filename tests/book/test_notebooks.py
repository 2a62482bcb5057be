"""The generator of the notebooks: each MyST form becomes plain Markdown, anything unknown is refused by line."""

import json
import re
import sys
from pathlib import Path

import pytest
from jupyter_cache import get_cache
from jupyter_cache.base import CacheBundleIn
from nbformat import v4

# The tools of the book are no part of the package.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "book" / "_tools"))

import included_code
import notebooks
import outputs
from myst_blocks import MystError

ROOT = Path(__file__).resolve().parents[2]

HEADER = """\
---
jupytext:
  text_representation:
    extension: .md
    format_name: myst
kernelspec:
  display_name: Python 3
  language: python
  name: python3
---
"""
BIBLIOGRAPHY = r"""
@article{one, author = {Caruana, Rich}, title = {Multitask Learning}, journal = {Machine Learning}, year = 1997}
@inproceedings{two, author = {Kumar, Abhishek and {Daum{\'e} III}, Hal}, title = {Grouping}, year = {2012}}
@misc{three, author = {Argyriou, A. and Evgeniou, T. and Pontil, M.}, title = {Convex}, year = {2008}, doi = {10.1/x}}
"""
CODE = """\
import os


@cache
def f():
    return 1


class C:
    def g(self):
        return 2
"""
TOC = """\
format: jb-book
root: book/index
parts:
  - caption: Front
    chapters: [{file: book/how-to-read}]
  - caption: Part I
    numbered: true
    chapters: [{file: book/01-first}, {file: book/02-second}]
  - caption: Part II
    numbered: true
    chapters: [{file: book/03-third}]
"""
SECOND = """\
(ch-second)=
# The *second* chapter

$$ a = 1 $$ (eq-a)

$$ unnumbered $$

:::{note}
Inside: $x$.

$$
b = 2
$$ (eq-b)
:::

(sec-one)=
## One
### Deeper
(sec-two)=
## Two

```{figure} picture.png
:name: fig-file
:alt: three lines

A picture with {eq}`eq-a`.
```

```{code-cell} ipython3
---
mystnb:
  figure:
    name: fig-cell
    caption: Drawn, see {cite:p}`one`.
tags: [hide-input]
---
plot()
```

```{exercise} Swap
:label: ex-swap

Show {eq}`eq-b`.
```
"""


@pytest.fixture
def book(tmp_path):
    """A book of five pages; ``book(text)`` writes the first chapter and returns its cells after the set-up."""
    files = {
        "_toc.yml": TOC,
        "_config.yml": "repository:\n  url: https://example.org/o/r\n",
        "pyproject.toml": '[project]\nname = "x"\nversion = "7.8.9"\n',
        "companion/code.py": CODE,
        "book/references.bib": BIBLIOGRAPHY,
        "book/index.md": "# Index\n",
        "book/how-to-read.md": "(sec-how)=\n# How to read\n",
        "book/02-second.md": HEADER + SECOND,
        "book/03-third.md": "# Third\n\n$$ c = 3 $$ (eq-c)\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8", newline="\n")

    def write(text):
        (tmp_path / "book" / "01-first.md").write_text(HEADER + text, encoding="utf-8", newline="\n")
        made = notebooks.generate(tmp_path)
        return json.loads(made[tmp_path / "book" / "01-first.ipynb"])["cells"][1:]

    write.root = tmp_path
    return write


def plain(book, text):
    """Return the plain Markdown of a page that holds ``text`` below its title."""
    cells = book(f"# First\n\n{text}\n")
    assert [cell["cell_type"] for cell in cells] == ["markdown"]
    return "".join(cells[0]["source"]).removeprefix("# First\n\n")


@pytest.mark.parametrize(
    ("myst", "markdown"),
    [
        ("{eq}`eq-a` and {eq}`eq-b`, {eq}`eq-c`", "(2.1) and (2.2), (3.1)"),
        ("{ref}`ch-second`", "The *second* chapter"),
        ("{ref}`this <ch-second>`", "this"),
        ("{numref}`ch-second`", "Section 2"),
        ("{numref}`Chapter {number} <ch-second>`", "Chapter 2"),
        ("{numref}`sec-one`, {numref}`sec-two`", "Section 2.1, Section 2.2"),
        ("{numref}`fig-file`, {numref}`fig-cell`", "Fig. 2.1, Fig. 2.2"),
        ("{ref}`ex-swap`", "Exercise 2.1"),
        ("[](#sec-two), [](#eq-b), [there](#sec-one)", "Two, (2.2), there"),
        ("{ref}`sec-how`", "How to read"),
        ("[a](02-second.md) [b](how-to-read.md) [c](https://d.org)", "[a](02-second.ipynb) b [c](https://d.org)"),
        ("{cite:p}`one`", "(Caruana, 1997)"),
        ("{cite:p}`one, two`", "(Caruana, 1997; Kumar and Daumé III, 2012)"),
        ("{cite:t}`three`", "Argyriou et al. (2008)"),
        ("{glue:text}`rmse:.2f` of {glue:text}`n`", "**`rmse`** of **`n`**"),
        ("**at {glue:text}`rmse:.2f`**", "**at `rmse`**"),
        ("{term}`task`, {term}`tasks <task>`", "task, tasks"),
        ("{term}`one\nterm`", "one term"),
        ("{numref}`Figure %s (again) <fig-cell>`", "Figure 2.2 (again)"),
        ("{py:class}`~companion.Tasks` {func}`companion.f`", "`Tasks` `companion.f`"),
        ("{math}`x^2` and $y_{eq}$", "$x^2$ and $y_{eq}$"),
        ("`{eq}` and ``{eq}`eq-a` ``", "`{eq}` and ``{eq}`eq-a` ``"),
        ("(label)=\n## Head {#x}", "## Head"),
        ("before\n\n% a comment\n\nafter", "before\n\nafter"),
        ("$$ x = 1 $$ (eq-own)", "$$\n x = 1 \n\\tag{1.1}\n$$"),
        ("```{math}\n:label: eq-own\nx = 1\n```", "$$\nx = 1\n\\tag{1.1}\n$$"),
        ("$$\na &= b \\\\\nc &= d\n$$", "$$\n\\begin{aligned}\na &= b \\\\\nc &= d\n\\end{aligned}\n$$"),
        ("$$\na \\\\\nb\n$$", "$$\n\\begin{aligned}\na \\\\\nb\n\\end{aligned}\n$$"),
        (":::{note}\nHello {eq}`eq-a`.\n:::", "> **Note**\n>\n> Hello (2.1)."),
        ("```{tip}\nHello\n```", "> **Tip**\n>\n> Hello"),
        (":::{admonition} What {term}`x`\n:class: tip\n- a\n- b\n:::", "> **What x**\n>\n> - a\n> - b"),
        ("::::{dropdown} More\n:::{margin}\nside\n:::\n::::", "> **More**\n>\n> > side"),
        ("- a\n\n  ```{note}\n  b\n  ```", "- a\n\n  > **Note**\n  >\n  > b"),
        ("```python\nx = '{eq}`a`'\n:::{note}\n```", "```python\nx = '{eq}`a`'\n:::{note}\n```"),
        ("```{code-block} python\nx = 1\n```", "```python\nx = 1\n```"),
        ("```{table} Of things\n| a |\n|---|\n| 1 |\n```", "Of things\n\n| a |\n|---|\n| 1 |"),
        (
            "```{figure} p.png\n:name: fig-own\n:alt: words\n\nThe *caption*.\n```",
            "![words](p.png)\n\n**Fig. 1.1.** The *caption*.",
        ),
        (
            "```{literalinclude} ../companion/code.py\n:pyobject: C.g\n```",
            "From `companion/code.py`:\n\n```python\ndef g(self):\n    return 2\n```",
        ),
        ("```{tableofcontents}\n```\nend", "end"),
        (
            "{cite:t}`one`\n\n```{bibliography}\n:filter: docname in docnames\n```",
            "Caruana (1997)\n\n- Caruana (1997). Multitask Learning. *Machine Learning*",
        ),
    ],
)
def test_each_form(book, myst, markdown):
    assert plain(book, myst) == markdown


def test_exercise_with_its_solution_around_a_cell(book):
    exercise = "```{exercise} Easy\n:label: ex-own\n\nShow it.\n```\n\n"
    start = "```{solution-start} ex-own\n:class: dropdown\n```\n\nSo:\n\n"
    cell = "```{code-cell} ipython3\n:tags: [a, b]\nassert 1\n```\n\n"
    cells = book("# First\n\n" + exercise + start + cell + "```{solution-end}\n```\n\nEnd.\n")
    texts = ["".join(cell["source"]) for cell in cells]
    assert texts == [
        "# First\n\n**Exercise 1.1 (Easy)**\n\nShow it.\n\n**Solution to Exercise 1.1**\n\nSo:",
        "assert 1",
        "End.",
    ]
    assert cells[1]["metadata"] == {"tags": ["a", "b"]}
    assert cells[1]["outputs"] == [] and cells[1]["execution_count"] is None


def test_caption_of_a_drawn_figure_follows_its_cell(book):
    book("# First\n")
    path = book.root / "book" / "02-second.ipynb"
    cells = json.loads(notebooks.generate(book.root)[path])["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    k = texts.index("plot()")
    assert texts[k + 1] == "**Fig. 2.2.** Drawn, see (Caruana, 1997)."
    assert cells[k]["metadata"] == {"tags": ["hide-input"]}


@pytest.mark.parametrize(
    ("myst", "line", "message"),
    [
        ("x\n\n:::{mermaid}\ny\n:::", 14, r"the directive \{mermaid\} has no plain form"),
        ("x {kbd}`y`", 12, r"the role \{kbd\}`y` has no plain form"),
        ("x\ny {doc}`z`", 13, r"\{doc\}`z`: refer by label"),
        ("{eq}`nowhere`", 12, "no page of the book defines the label 'nowhere'"),
        ("a\n{cite:p}`nobody`", 13, "'nobody' is not an entry of references.bib"),
        ("{numref}`sec-how`", 12, "the section has no number; use"),
        ("> :::{note}\n> x\n> :::", 12, r"directives and \$\$ start a line of their own"),
        ("a $$ x $$", 12, r"directives and \$\$ start a line of their own"),
        ("a of 7\n% of b", 13, "begins with % is a comment"),
        ("- a of 7\n  % of b", 13, "begins with % is a comment"),
        ("a\n$$\nx\n$$", 13, r"\$\$ needs an empty line before it"),
        ("\\begin{align}\nx\n\\end{align}", 12, r"LaTeX environments stand inside \$\$"),
        (":::{note}\nx", 12, r":::\{note\} is never closed"),
        ("$$\nx", 12, r"the equation \$\$ is never closed"),
        ("::: note\nx\n:::", 12, r"expected :::\{name\}"),
        ("\n\n```{code-cell} ipython3\n1\n```\n\n{kbd}`y`", 18, r"the role \{kbd\}"),
        ("{eq}`unfinished", 12, r"unfinished role"),
        (":::{note}\n\nx\n\n{kbd}`y`\n:::", 16, r"the role \{kbd\}"),
        ("```{literalinclude} ../companion/code.py\n:pyobject: h\n```", 12, "code.py defines no 'h'"),
        ("```{exercise}\nx\n```", 12, "needs a :label:"),
        ("(eq-a)=\n## Again\n", 13, "the label 'eq-a' is given twice"),
    ],
)
def test_what_has_no_plain_form_is_refused_with_its_line(book, myst, line, message):
    """The header fills lines 1 to 10 and the title line 11, so the text starts on line 12."""
    assert HEADER.count("\n") == 10
    with pytest.raises(MystError, match=message) as caught:
        book(f"# First\n{myst}\n")
    # The second page is read after the first, so a label given twice is found there.
    if "twice" not in message:
        assert f"01-first.md:{line}:" in str(caught.value)


def test_a_kernel_without_the_jupytext_header_is_refused(book):
    (book.root / "book" / "01-first.md").write_text("---\nkernelspec: {name: python3, display_name: P}\n---\n# F\n")
    with pytest.raises(MystError, match="format_name: myst"):
        notebooks.generate(book.root)


def test_setup_cell_takes_repository_and_version_from_their_one_place(book):
    book("# First\n")
    data = notebooks.generate(book.root)[book.root / "book" / "01-first.ipynb"]
    first = json.loads(data)["cells"][0]
    assert first["metadata"] == {"tags": [notebooks.SETUP_TAG]}
    source = "".join(first["source"])
    assert "!git clone --quiet --depth 1 --branch v7.8.9 https://example.org/o/r mtl-book\n" in source
    assert 'os.environ["COMPANION_RESULTS"] = os.path.abspath("mtl-book/book/results")' in source
    assert 'find_spec("companion") is None' in source


def test_bytes_are_deterministic_and_the_notebook_valid(book):
    text = "# First\n\nx\n\n```{code-cell} ipython3\n1\n```\n"
    book(text)
    path = book.root / "book" / "01-first.ipynb"
    one = notebooks.generate(book.root)[path]
    book(text)
    assert notebooks.generate(book.root)[path] == one
    assert one.endswith(b"}\n") and b"\r" not in one
    notebook = v4.reads(one.decode())
    ids = [cell.id for cell in notebook.cells]
    assert len(set(ids)) == len(ids) == 3
    from nbformat.validator import validate

    validate(notebook)


def test_write_then_check(book, capsys):
    book("# First\n")
    assert notebooks.main(["--check"], book.root) == 1
    assert "book/01-first.ipynb differs" in capsys.readouterr().out
    assert notebooks.main([], book.root) == 0
    assert notebooks.main(["--check"], book.root) == 0
    made = book.root / "book" / "01-first.ipynb"
    made.write_bytes(made.read_bytes().replace(b"\n", b"\r\n"))  # as git leaves it on Windows
    assert notebooks.main(["--check"], book.root) == 0
    made.write_bytes(made.read_bytes().replace(b"First", b"Frist"))
    assert notebooks.main(["--check"], book.root) == 1
    notebooks.main([], book.root)
    orphan = book.root / "book" / "09-gone.ipynb"
    orphan.write_text("{}")
    capsys.readouterr()
    assert notebooks.main(["--check"], book.root) == 1
    assert "09-gone" in capsys.readouterr().out
    notebooks.main([], book.root)
    assert not orphan.exists() and made.exists()


def test_an_error_is_printed_and_nothing_written(book, capsys):
    (book.root / "book" / "01-first.md").write_text(HEADER + "# First\n\n{kbd}`x`\n")
    assert notebooks.main([], book.root) == 1
    assert "error: 01-first.md:13: the role {kbd}`x`" in capsys.readouterr().err
    assert not list((book.root / "book").glob("*.ipynb"))


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ({"pyobject": "f"}, "@cache\ndef f():\n    return 1"),
        ({"pyobject": "C"}, "class C:\n    def g(self):\n        return 2"),
        ({"lines": "1,4-5"}, "import os\n@cache\ndef f():"),
        ({"lines": "10-"}, "    def g(self):\n        return 2"),
        ({"pyobject": "C", "lines": "2"}, "def g(self):"),
        ({"start-after": "class C", "dedent": ""}, "def g(self):\n    return 2"),
        ({"start-at": "def f", "end-before": "class"}, "def f():\n    return 1"),
        ({"start-at": "def f", "end-at": "return"}, "def f():\n    return 1"),
    ],
)
def test_included_code(book, options, shown):
    assert included_code.included_code(book.root / "companion" / "code.py", options) == shown


def test_included_code_refuses(book):
    path = book.root / "companion" / "code.py"
    with pytest.raises(ValueError, match=r"\['diff'\] is not understood"):
        included_code.included_code(path, {"diff": "x"})
    with pytest.raises(ValueError, match="'4-99' are not within 1-11"):
        included_code.included_code(path, {"lines": "4-99"})
    with pytest.raises(ValueError, match=r"no line of code\.py holds end-at 'nope'"):
        included_code.included_code(path, {"end-at": "nope"})


def test_the_notebooks_of_the_book_are_up_to_date(capsys):
    status = notebooks.main(["--check"])
    report = capsys.readouterr()
    assert status == 0, report.out + report.err


def test_no_myst_is_left_in_the_notebooks_of_the_book():
    """Independently of the converter: outside code, no role, directive, target or glue is left."""
    made = notebooks.generate(ROOT)
    for path, data in made.items():
        for cell in json.loads(data)["cells"]:
            if cell["cell_type"] == "markdown":
                text = re.sub(r"^(> ?)+", "", "".join(cell["source"]), flags=re.M)
                text = re.sub(r"^ *```.*?^ *```|``.*?``|(?<!\})`[^`\n]+`", "", text, flags=re.S | re.M)
                assert re.findall(r"\{[\w:]+\}`|:::+|```\{|^\([\w-]+\)=|\]\(#", text, flags=re.M) == [], path.name


# ---------------------------------------------------------------------- the comparison of two executions


def executed(*cells):
    """Return a notebook whose code cells hold the given (source, outputs)."""
    return v4.new_notebook(
        cells=[v4.new_code_cell(source, outputs=outs, id=f"c{k}") for k, (source, outs) in enumerate(cells)]
    )


def stream(text):
    return v4.new_output("stream", name="stdout", text=text)


def display(kind, content, **metadata):
    return v4.new_output("display_data", data={kind: content}, metadata=metadata)


def png(colour, level):
    import base64
    import io

    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (5, 3), colour).save(buffer, "png", compress_level=level)
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture
def compared(tmp_path):
    """Compare two executed notebooks of the page ``page``, the first as the build keeps it."""

    def compare(built, saved):
        cache = get_cache(tmp_path / "cache")
        cache.cache_notebook_bundle(
            CacheBundleIn(built, str(tmp_path / "page.md"), data={}), check_validity=False, overwrite=True
        )
        folder = tmp_path / "saved"
        folder.mkdir(exist_ok=True)
        setup = v4.new_code_cell("set up", id="setup", metadata={"tags": [notebooks.SETUP_TAG]})
        saved.cells.insert(0, setup)
        (folder / "page.ipynb").write_text(v4.writes(saved), encoding="utf-8")
        return outputs.compare(tmp_path / "cache", folder)

    return compare


@pytest.mark.parametrize(
    ("built", "saved", "difference"),
    [
        ([stream("a\nb\n")], [stream("a\n"), stream("b\n")], None),
        ([stream("a\n")], [stream("b\n")], "+b"),
        ([stream("a\n")], [], "the build shows ['stream stdout'], the notebook []"),
        ([display("text/html", "<b>")], [display("text/html", "<i>")], "+<i>"),
        ([display("text/plain", "<T at 0x7f01>")], [display("text/plain", "<T at 0x9a2b>")], None),
        ([display("image/png", png("red", 1))], [display("image/png", png("red", 9))], None),
        ([display("image/png", png("red", 1))], [display("image/png", png("blue", 1))], "15 of 15 pixels differ"),
        ([stream("x\n"), display("text/plain", "1", scrapbook={"name": "n"})], [stream("x\n")], None),
        ([display("image/svg+xml", "<svg at 0x1>")], [display("image/svg+xml", "<svg at 0x2>")], "0x2"),
    ],
)
def test_outputs_are_compared(compared, built, saved, difference):
    report, n_notebooks, n_cells = compared(
        executed(("one", []), ("two", built)), executed(("one", []), ("two", saved))
    )
    assert (n_notebooks, n_cells) == (1, 2)
    if difference is None:
        assert report == ""
    else:
        assert difference in report and "page.ipynb, code cell 2 (two)" in report


def test_outputs_of_other_code_are_no_match(compared):
    report, _, _ = compared(executed(("one", [])), executed(("another", [])))
    assert report == "page.ipynb: the build ran no page of this name with this code\n"


def test_nothing_to_compare_is_a_failure(tmp_path, capsys):
    get_cache(tmp_path / "cache").list_cache_records()
    (tmp_path / "saved").mkdir()
    assert outputs.main([str(tmp_path / "cache"), str(tmp_path / "saved")]) == 1
    assert "run nbmake" in capsys.readouterr().out
