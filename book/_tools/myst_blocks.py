"""Split the MyST text of a page into blocks (directives, equations, targets, prose) and inline pieces.

This is a reader for the part of MyST the book uses, no more: what it does not know is left to its caller,
which refuses it with the file and the line.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

FENCE = re.compile(r"^(?P<indent> *)(?P<mark>`{3,}|~{3,}|:{3,})(?P<info>.*)$")
DIRECTIVE = re.compile(r"^\{(?P<name>[^}]+)\}\s*(?P<argument>.*)$")
TARGET = re.compile(r"^\((?P<label>[^()\s]+)\)=\s*$")
HEADING = re.compile(r"^(?P<hashes>#{1,6})\s+(?P<title>.*?)\s*$")
MATH_END = re.compile(r"^(?P<body>.*?)\$\$\s*(?:\((?P<label>[^()]+)\))?\s*$", re.DOTALL)
LIST_ITEM = re.compile(r"^(?P<lead>\s*(?:[-*+]|\d+[.)])\s+)(?P<rest>.*)$")


class MystError(ValueError):
    """A page holds MyST that has no plain-Markdown form; the message names the file and the line."""


@dataclass
class Block:
    """One block of a page: its kind, first line (from 1), raw lines, and the parts its kind has.

    Parameters
    ----------
    kind : str
        "text", "heading", "code" (a plain fence), "directive", "math", "target" or "comment".
    line : int
        Line of the file on which the block starts.
    lines : list of str
        The block as written (of a directive or equation: its body).
    """

    kind: str
    line: int
    lines: list[str]
    name: str = ""
    argument: str = ""
    options: dict[str, str] = field(default_factory=dict)
    label: str | None = None
    indent: str = ""
    body_line: int = 0


def blocks(lines: list[str], where: str, first: int = 1) -> Iterator[Block]:
    """Yield the blocks of ``lines``, whose first line is line ``first`` of the file ``where``."""
    i, text = 0, Block("text", first, [])
    while i < len(lines):
        found, used = _structured(lines, i, where, first)
        if found is None:
            if not text.lines:
                text.line = first + i
            text.lines.append(lines[i])
            i += 1
            continue
        if text.lines:
            if found.kind == "math" and text.lines[-1].strip():
                raise MystError(f"{where}:{found.line}: $$ needs an empty line before it, else it is no equation")
            if found.kind == "comment" and text.lines[-1].strip():
                raise MystError(f"{where}:{found.line}: a line that begins with % is a comment: its text is lost")
            yield text
            text = Block("text", 0, [])
        yield found
        i += used
    if text.lines:
        yield text


def _structured(lines: list[str], i: int, where: str, first: int) -> tuple[Block | None, int]:
    """Read the block that starts at ``lines[i]``: (block, number of lines), or (None, 0) for prose."""
    line = lines[i]
    if FENCE.match(line):
        return _fence(lines, i, where, first)
    if line.lstrip().startswith("$$"):
        return _equation(lines, i, where, first)
    if target := TARGET.match(line):
        return Block("target", first + i, [line], label=target["label"]), 1
    if HEADING.match(line):
        return Block("heading", first + i, [line]), 1
    if line.lstrip().startswith("%"):
        return Block("comment", first + i, [line]), 1
    return None, 0


def _fence(lines: list[str], i: int, where: str, first: int) -> tuple[Block, int]:
    opening = FENCE.match(lines[i])
    assert opening is not None
    indent, mark, info = opening["indent"], opening["mark"], opening["info"].strip()
    closing = re.compile(rf"^\s*{re.escape(mark[0])}{{{len(mark)},}}\s*$")
    end = next((j for j in range(i + 1, len(lines)) if closing.match(lines[j])), None)
    if end is None:
        raise MystError(f"{where}:{first + i}: the fence {mark}{info} is never closed")
    body = [line.removeprefix(indent) for line in lines[i + 1 : end]]
    used = end + 1 - i
    directive = DIRECTIVE.match(info)
    if directive is None:
        if mark[0] == ":":
            raise MystError(f"{where}:{first + i}: expected {mark}{{name}}, got {lines[i].strip()!r}")
        return Block("code", first + i, lines[i : end + 1], indent=indent), used
    options, body, skipped = _options(body, f"{where}:{first + i}")
    return (
        Block(
            "directive",
            first + i,
            body,
            name=directive["name"],
            argument=directive["argument"].strip(),
            options=options,
            indent=indent,
            body_line=first + i + 1 + skipped,
        ),
        used,
    )


def _options(body: list[str], where: str) -> tuple[dict[str, str], list[str], int]:
    """Take the ``:key: value`` lines, or the ``---`` block, off the top of a directive's body."""
    if body and body[0].strip() == "---":
        end = next((j for j in range(1, len(body)) if body[j].strip() == "---"), None)
        if end is None:
            raise MystError(f"{where}: the option block --- is never closed")
        options = yaml.safe_load("\n".join(body[1:end])) or {}
        return (
            {key: "" if value is None else str(value) for key, value in options.items()},
            body[end + 1 :],
            end + 1,
        )
    options, count = {}, 0
    for line in body:
        option = re.match(r"^:([\w-]+):\s*(.*)$", line.strip())
        if option is None:
            break
        options[option[1]] = option[2].strip()
        count += 1
    return options, body[count:], count


def _equation(lines: list[str], i: int, where: str, first: int) -> tuple[Block, int]:
    indent = lines[i][: len(lines[i]) - len(lines[i].lstrip())]
    text = lines[i].strip()[2:]
    for j in range(i, len(lines)):
        if j > i:
            text += "\n" + lines[j].removeprefix(indent)
        if end := MATH_END.match(text):
            body = end["body"].strip("\n").split("\n")
            return Block("math", first + i, body, label=end["label"], indent=indent), j + 1 - i
    raise MystError(f"{where}:{first + i}: the equation $$ is never closed")


# Order matters: a role is tried before the code span it contains, code and math before links.
INLINE = re.compile(
    r"""(?P<role>\{(?P<role_name>[A-Za-z][\w:+.-]*)\}(?P<ticks>`+)(?P<role_text>.+?)(?<!`)(?P=ticks)(?!`))
      | (?P<code>(?P<fence>`+)(?!`).+?(?<!`)(?P=fence)(?!`))
      | (?P<math>(?<![\\$])\$(?![\s$])(?:\\.|[^$\\])+?(?<!\s)\$(?![\d$]))
      | (?P<link>(?<!!)\[(?P<link_text>[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*)\]\((?P<link_target>[^()\s]+)\))
    """,
    re.VERBOSE | re.DOTALL,
)


def inline_pieces(text: str) -> Iterator[tuple[str, re.Match[str] | str]]:
    """Yield ("role" | "code" | "math" | "link", match) and ("text", str) pieces that join to ``text``."""
    last = 0
    for match in INLINE.finditer(text):
        if match.start() > last:
            yield "text", text[last : match.start()]
        kind = next(name for name in ("role", "code", "math", "link") if match[name] is not None)
        yield kind, match
        last = match.end()
    if last < len(text):
        yield "text", text[last:]
