"""Turn the MyST of a page into Markdown that Jupyter, Colab and GitHub show as meant.

Every role and directive the book uses has a converter here; any other is an error, so that a notebook
never shows raw MyST. Supported directives are the keys of ``PlainMarkdown.directives`` and the admonitions.
"""

import re
from collections.abc import Callable

from citations import Citations
from included_code import included_code
from labels import ADMONITIONS, Label, Page
from myst_blocks import HEADING, Block, MystError, blocks, inline_pieces

NUMBER_FORMAT = {
    "equation": "({})",
    "figure": "Fig. {}",
    "table": "Table {}",
    "section": "Section {}",
    "chapter": "Section {}",  # Sphinx has one word for both; prose writes {numref}`Chapter {number} <label>`
    "exercise": "Exercise {}",
}
CODE_ROLES = frozenset(["func", "class", "meth", "attr", "mod", "obj", "code"])
WITH_TITLE = re.compile(r"^(?P<title>.*?)\s*<(?P<target>[^<>]+)>$", re.DOTALL)


class PlainMarkdown:
    """Converter of one page.

    Parameters
    ----------
    page : Page
        The page; errors name its file.
    labels : dict of str to Label
        Numbers and titles of the whole book (``labels.number_labels``).
    citations : Citations
        The bibliography.
    notebooks : set of str
        File names of the pages that have a notebook; links to other pages keep their text alone.
    """

    def __init__(
        self,
        page: Page,
        labels: dict[str, Label],
        citations: Citations,
        notebooks: frozenset[str] = frozenset(),
    ) -> None:
        self.page, self.labels, self.citations, self.notebooks = page, labels, citations, notebooks
        self.where = page.path.name
        self.cited: list[str] = []
        self.directives: dict[str, Callable[[Block], str]] = {
            "figure": self._figure,
            "image": self._figure,
            "table": self._table,
            "math": self._math,
            "literalinclude": self._literalinclude,
            "code-block": self._code,
            "code": self._code,
            "exercise": self._exercise,
            "exercise-start": self._exercise,
            "solution": self._solution,
            "solution-start": self._solution,
            "exercise-end": lambda block: "",
            "solution-end": lambda block: "",
            "tableofcontents": lambda block: "",
            "contents": lambda block: "",
            "bibliography": self._bibliography,
        } | dict.fromkeys(ADMONITIONS, self._admonition)

    def convert(self, source: str, line: int) -> str:
        """Return ``source``, which starts on ``line`` of the page, as plain Markdown."""
        parts = [self._block(block) for block in blocks(source.split("\n"), self.where, line)]
        text = "\n".join(part for part in parts if part is not None)
        return re.sub(r"\n{3,}", "\n\n", text).strip("\n")

    def _error(self, line: int, message: str) -> MystError:
        return MystError(f"{self.where}:{line}: {message}")

    def _block(self, block: Block) -> str | None:
        if block.kind in ("target", "comment"):
            return None
        if block.kind == "code":
            return "\n".join(block.lines)
        if block.kind == "math":
            return _indent(self._math(block), block.indent)
        if block.kind == "directive":
            if block.name not in self.directives:
                known = ", ".join(sorted(self.directives))
                raise self._error(block.line, f"the directive {{{block.name}}} has no plain form; known: {known}")
            return _indent("\n" + self.directives[block.name](block) + "\n", block.indent)
        if block.kind == "heading":
            match = HEADING.match(block.lines[0])
            assert match is not None
            title = re.sub(r"\s*\{#[\w-]+\}$", "", match["title"])
            return f"{match['hashes']} {self.inline(title, block.line)}"
        return self._prose(block)

    def _prose(self, block: Block) -> str:
        text = "\n".join(block.lines)
        for offset, line in enumerate(block.lines):
            misplaced = re.search(r"(:{3,}|`{3,}|~{3,})\s*\{", line) or re.match(r"^\s*\\begin\{", line)
            if misplaced or "$$" in line:
                message = "directives and $$ start a line of their own, LaTeX environments stand inside $$"
                raise self._error(block.line + offset, f"{message}; got {line.strip()!r}")
        return self.inline(text, block.line)

    # ------------------------------------------------------------------ inline

    def inline(self, text: str, line: int) -> str:
        """Convert roles and links in prose that starts on ``line``; code spans and formulas stay."""
        out = []
        for kind, piece in inline_pieces(text):
            if isinstance(piece, str):
                if left := re.search(r"\{[A-Za-z][\w:+.-]*\}`", piece):
                    raise self._error(line + piece.count("\n", 0, left.start()), f"unfinished role {left[0]}...")
                out.append(piece)
                new = piece
            else:
                new = piece[0]
                if kind == "role":
                    shown = self._role(piece["role_name"], " ".join(piece["role_text"].split()), line)
                    bold = "".join(out).count("**") % 2 == 1
                    out.append(shown.strip("*") if bold else shown)  # bold inside bold would end it
                elif kind == "link":
                    out.append(self._link(piece["link_text"], piece["link_target"], line))
                else:
                    out.append(new)
            line += new.count("\n")
        return "".join(out)

    def _role(self, name: str, text: str, line: int) -> str:
        try:
            if name in ("cite:p", "cite"):
                return self.citations.parenthetical(self._cite(text))
            if name == "cite:t":
                return self.citations.textual(self._cite(text))
        except KeyError as error:
            raise self._error(line, f"{{{name}}}`{text}`: {error.args[0]}") from None
        if name in ("ref", "numref", "eq"):
            return self._reference(name, text, line)
        titled = WITH_TITLE.match(text)
        if name == "term":
            return titled["title"] if titled else text
        if name.removeprefix("py:") in CODE_ROLES:
            return f"`{titled['title'] if titled else text.rsplit('.', 1)[-1] if text[0] == '~' else text}`"
        if name in ("glue:text", "glue"):
            return f"**`{text.split(':')[0]}`**"
        if name == "math":
            return f"${text}$"
        if name == "abbr":
            return text
        if name == "doc":
            raise self._error(
                line,
                f"{{doc}}`{text}`: refer by label, {{ref}} or {{numref}}, which Jupyter Book 2 knows too",
            )
        raise self._error(line, f"the role {{{name}}}`{text}` has no plain form")

    def _cite(self, keys: str) -> str:
        self.cited += [key.strip() for key in keys.split(",") if key.strip() not in self.cited]
        return keys

    def _label(self, name: str, line: int) -> Label:
        if name not in self.labels:
            raise self._error(line, f"no page of the book defines the label {name!r}")
        return self.labels[name]

    def _reference(self, role: str, text: str, line: int) -> str:
        titled = WITH_TITLE.match(text)
        label = self._label(titled["target"] if titled else text, line)
        if role == "numref" and not label.number:
            raise self._error(line, f"{{numref}}`{text}`: the {label.kind} has no number; use {{ref}}")
        if titled:
            shown = titled["title"].replace("{number}", label.number).replace("%s", label.number)
            return shown.replace("{name}", label.title)
        if role != "ref" or label.kind in ("equation", "exercise"):
            return NUMBER_FORMAT[label.kind].format(label.number).strip()
        return self.inline(label.title, line)

    def _link(self, text: str, target: str, line: int) -> str:
        shown = self.inline(text, line)
        if target.startswith("#"):
            label = self._label(target[1:], line)
            return shown or self._reference("ref", target[1:], line) or label.title
        page = re.match(r"^(?P<stem>[\w./-]+)\.md(?:#.*)?$", target)
        if page is None:
            return f"[{shown}]({target})"
        name = page["stem"].rsplit("/", 1)[-1]
        return f"[{shown}]({page['stem']}.ipynb)" if name in self.notebooks else shown

    # -------------------------------------------------------------- directives

    def _inside(self, block: Block) -> str:
        return self.convert("\n".join(block.lines), block.body_line)

    def _numbered(self, name: str | None, line: int) -> str:
        if not name:
            return ""
        label = self._label(name, line)
        return NUMBER_FORMAT[label.kind].format(label.number).strip() + "."

    def _admonition(self, block: Block) -> str:
        body = self._inside(block)
        if block.name in ("admonition", "dropdown", "sidebar"):
            title, first = block.argument or block.name.capitalize(), ""
        else:
            title = "" if block.name == "margin" else block.name.capitalize()
            first = block.argument  # of a {note}, text after the name is already body
        head = [f"**{self.inline(title, block.line)}**"] if title else []
        text = "\n\n".join([*head, *([self.inline(first, block.line)] if first else []), *([body] if body else [])])
        return "\n".join(f"> {line}".rstrip() for line in text.split("\n"))

    def _figure(self, block: Block) -> str:
        alt = block.options.get("alt", "")
        caption = self._inside(block)
        number = self._numbered(block.options.get("name"), block.line)
        parts = [f"![{alt}]({block.argument})"]
        if caption:
            parts.append(f"**{number}** {caption}" if number else caption)
        return "\n\n".join(parts)

    def _table(self, block: Block) -> str:
        number = self._numbered(block.options.get("name"), block.line)
        caption = self.inline(block.argument, block.line)
        head = f"**{number}** {caption}" if number else caption
        return "\n\n".join(part for part in (head, self._inside(block)) if part)

    def _math(self, block: Block) -> str:
        label = block.label or block.options.get("label")
        body = "\n".join(line for line in block.lines if line.strip())
        if block.argument:
            body = f"{block.argument}\n{body}".strip()
        if ("\\\\" in body or "&" in body) and "\\begin{" not in body:
            body = f"\\begin{{aligned}}\n{body}\n\\end{{aligned}}"  # Sphinx wraps such equations itself
        tag = f"\n\\tag{{{self._label(label, block.line).number}}}" if label else ""
        return f"\n$$\n{body}{tag}\n$$\n"

    def _literalinclude(self, block: Block) -> str:
        path = (self.page.path.parent / block.argument).resolve()
        try:
            code = included_code(path, block.options)
        except (OSError, ValueError) as error:
            raise self._error(block.line, f"{{literalinclude}} {block.argument}: {error}") from None
        shown = block.argument.removeprefix("../")
        language = block.options.get("language", "python" if path.suffix == ".py" else "")
        return f"From `{shown}`:\n\n```{language}\n{code}\n```"

    def _code(self, block: Block) -> str:
        return "\n".join([f"```{block.argument}", *block.lines, "```"])

    def _exercise(self, block: Block) -> str:
        label = block.options.get("label")
        if label is None:
            raise self._error(block.line, "{exercise} needs a :label:, which its solution names")
        title = f"{NUMBER_FORMAT['exercise'].format(self._label(label, block.line).number).strip()}"
        title += f" ({self.inline(block.argument, block.line)})" if block.argument else ""
        return "\n\n".join(part for part in (f"**{title}**", self._inside(block)) if part)

    def _solution(self, block: Block) -> str:
        label = self._label(block.argument, block.line)
        title = f"**Solution to {NUMBER_FORMAT['exercise'].format(label.number).strip()}**"
        return "\n\n".join(part for part in (title, self._inside(block)) if part)

    def _bibliography(self, block: Block) -> str:
        return "\n".join(f"- {self.citations.reference(key)}" for key in sorted(self.cited))


def _indent(text: str, indent: str) -> str:
    return "\n".join(indent + line if line else line for line in text.split("\n"))
