"""What the pages use: values for the prose and the slider over precomputed figures."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import matplotlib
import numpy as np
import pytest

from companion.book import glue, slider, table

matplotlib.use("Agg")


def figures(n_figures=3):
    """Figures with a clip path each, as every plotted line has one; the heights differ."""
    import matplotlib.pyplot as plt

    made = []
    for k in range(n_figures):
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([0, 1], [0, k + 1])
        made.append(figure)
    return made


def svgs(text):
    """Return the SVG elements of the slider, parsed: malformed markup fails here."""
    return [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_glue_prints_name_and_value(capsys):
    glue("n_tasks", 139)
    glue("error", 0.25)
    assert capsys.readouterr().out == "n_tasks = 139\nerror = 0.25\n"


def test_glue_gives_the_value_to_the_page_in_a_kernel(monkeypatch, capsys):
    import myst_nb

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    pasted = []
    monkeypatch.setattr(myst_nb, "glue", lambda *given, **options: pasted.append((given, options)), raising=False)
    glue("n_tasks", 139)
    assert pasted == [(("n_tasks", 139), {"display": False})]
    assert capsys.readouterr().out == "n_tasks = 139\n"


def test_slider_has_every_frame_and_shows_one():
    text = slider(figures(3), ["a", "b", "c"], title="alpha", start=1).data
    hidden = re.findall(r'<div class="frame"( hidden)? role="img" aria-label="(\w)"', text)
    assert hidden == [(" hidden", "a"), ("", "b"), (" hidden", "c")]
    assert re.findall(r'min="(\d+)" max="(\d+)" value="(\d+)"', text) == [("0", "2", "1")]
    assert len(svgs(text)) == 3


def test_slider_ids_are_unique_and_every_use_finds_its_own_frame():
    text = slider(figures(3), ["a", "b", "c"]).data
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for svg in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        inside = set(re.findall(r'\bid="([^"]+)"', svg))
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', svg))
        assert used and {a or b for a, b in used} <= inside


def test_slider_has_the_same_bytes_each_time_and_other_ids_for_other_figures():
    one, two = slider(figures(2), ["a", "b"]).data, slider(figures(2), ["a", "b"]).data
    assert one == two
    other = slider(figures(3)[1:], ["a", "b"]).data
    first_id = re.compile(r'id="(slider-\w+)"')
    assert first_id.findall(one)[0] != first_id.findall(other)[0]


def test_slider_needs_no_network_and_scales():
    text = slider(figures(2), ["a", "b"]).data
    assert re.findall(r'(?:src|href)="(?!#)[^"]*"', text) == []
    for svg in svgs(text):
        assert "viewBox" in svg.attrib and "width" not in svg.attrib and "height" not in svg.attrib
    # The width of a clip rectangle is not that of the picture: it must stay.
    assert re.findall(r'<clipPath[^>]*>\s*<rect[^>]*width="[\d.]+"[^>]*height="[\d.]+"', text)


def test_slider_escapes_labels():
    text = slider(figures(2), ["a < b", '"c" & d'], title="<x>").data
    assert "<li>a &lt; b</li><li>&quot;c&quot; &amp; d</li>" in text
    assert "<x>" not in text


def test_slider_closes_its_figures():
    import matplotlib.pyplot as plt

    before = plt.get_fignums()
    made = figures(3)
    slider(made, ["a", "b", "c"])
    assert plt.get_fignums() == before


@pytest.mark.parametrize(
    ("labels", "start", "message"),
    [
        (["a"], 0, "one label per figure, at least one; got 2 and 1"),
        (["a", "b"], 2, r"start must be in 0\.\.1, got 2"),
        (["a", "b"], -1, r"start must be in 0\.\.1, got -1"),
    ],
)
def test_slider_refuses(labels, start, message):
    made = figures(2)
    with pytest.raises(ValueError, match=message):
        slider(made, labels, start=start)
    matplotlib.pyplot.close("all")


def test_no_figures_are_refused():
    with pytest.raises(ValueError, match="got 0 and 0"):
        slider([], [])


def test_import_is_light():
    code = "import sys, companion.book; print([m for m in ('matplotlib', 'IPython', 'myst_nb') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_glue_hands_the_page_plain_numbers(monkeypatch):
    """A NumPy scalar would stand in the prose as np.float64(0.5)."""
    import myst_nb

    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    pasted = []
    monkeypatch.setattr(myst_nb, "glue", lambda name, value, **options: pasted.append(repr(value)), raising=False)
    glue("share", np.float64(0.5))
    glue("count", np.int64(3))
    assert pasted == ["0.5", "3"]


def test_table_escapes_text_and_keeps_html():
    from IPython.display import HTML

    shown = table(["a < b", "c"], [[1, HTML("<code>x</code>")], ["<i>", 2.5]]).data
    assert "<tr><th>a &lt; b</th><th>c</th></tr>" in shown
    assert "<tr><td>1</td><td><code>x</code></td></tr><tr><td>&lt;i&gt;</td><td>2.5</td></tr>" in shown
    with pytest.raises(ValueError, match=r"every row must have 2 cells.*got \[1, 2\]"):
        table(["a", "b"], [[1, 2], [3]])
