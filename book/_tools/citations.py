"""Author-year citations, as plain text, from the book's bibliography."""

from pathlib import Path

from pybtex.database import Entry, parse_file
from pybtex.richtext import Text


class Citations:
    """The entries of a BibTeX file, cited by author and year.

    Parameters
    ----------
    path : Path
        The ``.bib`` file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.entries = parse_file(str(path), bib_format="bibtex").entries if path.exists() else {}

    def _entry(self, key: str) -> Entry:
        if key not in self.entries:
            raise KeyError(f"{key!r} is not an entry of {self.path.name}")
        return self.entries[key]

    def authors(self, key: str) -> str:
        """Return "Caruana", "Kumar and Daumé III" or "Argyriou et al."."""
        entry = self._entry(key)
        people = entry.persons.get("author") or entry.persons.get("editor") or []
        names = [_plain(" ".join([*p.prelast_names, *p.last_names, *p.lineage_names])) for p in people]
        if not names:
            return _plain(entry.fields.get("title", key))
        if len(names) <= 2:
            return " and ".join(names)
        return f"{names[0]} et al."

    def year(self, key: str) -> str:
        """Return the year of an entry, "n.d." where it has none."""
        return str(self._entry(key).fields.get("year", "n.d."))

    def parenthetical(self, keys: str) -> str:
        """Return "(Caruana, 1997; Kumar and Daumé III, 2012)" for comma-separated keys."""
        parts = [f"{self.authors(key)}, {self.year(key)}" for key in _split(keys)]
        return f"({'; '.join(parts)})"

    def textual(self, keys: str) -> str:
        """Return "Caruana (1997)" for one key, joined by commas for more."""
        return ", ".join(f"{self.authors(key)} ({self.year(key)})" for key in _split(keys))

    def reference(self, key: str) -> str:
        """Return one line of a reference list: authors, year, title, venue, link."""
        fields = self._entry(key).fields
        venue = next((fields[f] for f in ("journal", "booktitle", "publisher", "school") if f in fields), "")
        parts = [f"{self.authors(key)} ({self.year(key)})", _plain(fields.get("title", ""))]
        parts += [f"*{_plain(venue)}*"] if venue else []
        if "doi" in fields:
            parts.append(f"https://doi.org/{fields['doi']}")
        elif "url" in fields:
            parts.append(fields["url"])
        return ". ".join(part.rstrip(".") for part in parts if part)


def _split(keys: str) -> list[str]:
    return [key.strip() for key in keys.split(",") if key.strip()]


def _plain(latex: str) -> str:
    """Turn LaTeX accents and braces into plain text."""
    return str(Text.from_latex(latex))
