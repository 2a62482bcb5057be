"""The lines of a source file that a ``{literalinclude}`` shows."""

import ast
import textwrap
from pathlib import Path

UNDERSTOOD = frozenset(["pyobject", "lines", "start-after", "end-before", "start-at", "end-at", "dedent"])
# These change how the rendered page looks and nothing about which lines are shown.
DISPLAY_ONLY = frozenset(
    ["language", "caption", "name", "linenos", "lineno-start", "lineno-match", "emphasize-lines", "class"]
)


def included_code(path: Path, options: dict[str, str]) -> str:
    """Return the part of ``path`` that the options of a ``{literalinclude}`` select.

    Parameters
    ----------
    path : Path
        Python source (any text when ``pyobject`` is not used).
    options : dict of str to str
        ``pyobject`` (``name`` or ``Class.method``), ``lines`` ("1,4-6,9-"), ``start-at``, ``start-after``,
        ``end-at``, ``end-before``, ``dedent``; options that only change the look of the page are accepted.
    """
    if unknown := set(options) - UNDERSTOOD - DISPLAY_ONLY:
        raise ValueError(f"option {sorted(unknown)} is not understood; known: {sorted(UNDERSTOOD | DISPLAY_ONLY)}")
    lines = path.read_text(encoding="utf-8").splitlines()
    if "pyobject" in options:
        lines = _object_lines(lines, options["pyobject"], path)
    lines = _between(lines, options, path)
    if "lines" in options:
        lines = [lines[i] for i in _selected(options["lines"], len(lines))]
    text = "\n".join(lines).strip("\n")
    return textwrap.dedent(text) if "dedent" in options or "pyobject" in options else text


def _object_lines(lines: list[str], name: str, path: Path) -> list[str]:
    scope: list[ast.stmt] = ast.parse("\n".join(lines)).body
    node = None
    for part in name.split("."):
        named = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        node = next((n for n in scope if isinstance(n, named) and n.name == part), None)
        if node is None:
            raise ValueError(f"{path.name} defines no {name!r}")
        scope = node.body
    assert node is not None
    first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
    return lines[first - 1 : node.end_lineno]


def _between(lines: list[str], options: dict[str, str], path: Path) -> list[str]:
    def position(option: str) -> int:
        found = next((i for i, line in enumerate(lines) if options[option] in line), None)
        if found is None:
            raise ValueError(f"no line of {path.name} holds {option} {options[option]!r}")
        return found

    for option, shift in (("start-at", 0), ("start-after", 1)):
        if option in options:
            lines = lines[position(option) + shift :]
    for option, shift in (("end-at", 1), ("end-before", 0)):
        if option in options:
            lines = lines[: position(option) + shift]
    return lines


def _selected(spec: str, n_lines: int) -> list[int]:
    """Return the 0-based line numbers of "1,4-6,9-"."""
    chosen: list[int] = []
    for part in spec.split(","):
        first, dash, last = part.strip().partition("-")
        start, stop = int(first or 1), int(last or n_lines) if dash else int(first)
        if not 1 <= start <= stop <= n_lines:
            raise ValueError(f"lines {part.strip()!r} are not within 1-{n_lines}")
        chosen += range(start - 1, stop)
    return chosen
