"""Records: what an experiment measured, with everything needed to trace the numbers and to run it again.

A record is one JSON file, ``book/results/NAME.json``. Its *content* (configuration, seeds, results, checksums of the
data) is what a second run must reproduce; the rest (commit, versions, device, seconds, memory) says how it came about
and may differ from run to run.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import companion

FORMAT = 1
# Folder with records, instead of book/results of the checkout that holds the package.
RESULTS_VARIABLE = "COMPANION_RESULTS"
# Keys of a unit that number its repetitions: results are paired, and ordered, by these.
REPEAT_KEYS = ("seed", "split", "repeat")
PACKAGE = Path(companion.__file__).resolve().parent


@dataclass(frozen=True, kw_only=True)
class RunRecord:
    """One run of one experiment.

    Attributes
    ----------
    name, title : str
        Name on the command line, and what it is in one sentence.
    config : dict
        Everything that was chosen: grids, protocol, sizes.
    seeds : list of int
        Every seed a random generator was given.
    results : list of dict
        One row per unit: ``{"unit": {"split": 1, "method": ...}, "metrics": {"rmse": ...}, "per_task": {"rmse":
        [...]}}``, metrics over the pooled rows and lists of one number per task.
    data : dict of str to str
        Name of each data source -> sha256 of its bytes.
    summary : dict
        Aggregates that describe the data; never its rows.
    dtype : str
        Floating-point type of the computation.
    smoke : bool
        A small version whose numbers mean nothing.
    commit : str or None
        Commit of the checkout; ``None`` where the package does not lie in one.
    dirty : bool or None
        Whether the package or its pins differed from that commit.
    created : str
        When the run ended, ISO 8601 in UTC.
    versions : dict of str to str
        Of Python, the libraries, the package and the operating system.
    device : str
        What it was computed on.
    seconds : float
        Time of all units, added up over interrupted and resumed runs.
    peak_memory_mb : float or None
        Largest memory of the process, or of the GPU where one was used; ``None`` where it cannot be measured.
    """

    name: str
    title: str
    config: dict[str, Any]
    seeds: list[int]
    results: list[dict[str, Any]]
    data: dict[str, str]
    summary: dict[str, Any] = field(default_factory=dict)
    dtype: str
    smoke: bool
    commit: str | None
    dirty: bool | None
    created: str
    versions: dict[str, str]
    device: str
    seconds: float
    peak_memory_mb: float | None

    def __post_init__(self) -> None:
        for part in dataclasses.fields(self):
            value = plain(getattr(self, part.name), part.name)
            wanted, words = _TYPES[part.name]
            if not isinstance(value, wanted):
                raise ValueError(f"{part.name} must be {words}; got {value!r}")
            object.__setattr__(self, part.name, value)
        for i, row in enumerate(self.results):
            if not isinstance(row, dict) or set(row) != {"unit", "metrics", "per_task"}:
                found = sorted(row) if isinstance(row, dict) else row
                raise ValueError(f"results[{i}] must hold exactly unit, metrics and per_task; got {found}")

    # --- what it says ------------------------------------------------------------------------------------------------

    @property
    def content(self) -> dict[str, Any]:
        """What another run of the same experiment must reproduce."""
        return {name: getattr(self, name) for name in _CONTENT}

    def same_results(self, other: RunRecord) -> bool:
        """Whether both hold the same content; commit, versions, device, times and memory may differ."""
        return self.content == other.content

    def values(self, metric: str, unit: Mapping[str, Any]) -> NDArray[np.float64]:
        """A pooled metric over the repetitions of one setting.

        Parameters
        ----------
        metric : str
            Such as ``"rmse"``.
        unit : mapping
            Keys of the setting, such as ``{"method": "single"}``; enough of them to leave one row per repetition.

        Returns
        -------
        (R,) float64 array
            Ordered by seed or split, so that two settings are paired.
        """
        return self._stack("metrics", metric, unit)

    def task_values(self, metric: str, unit: Mapping[str, Any]) -> NDArray[np.float64]:
        """A metric of every task over the repetitions of one setting, as :meth:`values`: ``(R, T)``."""
        return self._stack("per_task", metric, unit)

    def _stack(self, part: str, metric: str, unit: Mapping[str, Any]) -> NDArray[np.float64]:
        rows = self._select(unit)
        for row in rows:
            if metric not in row[part]:
                raise ValueError(f"{self.name} has no {metric!r} among the {part} of this unit: {sorted(row[part])}")
        return np.array([row[part][metric] for row in rows], dtype=np.float64)

    def _select(self, unit: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Rows whose unit agrees with ``unit``, one per repetition and in their order."""
        wanted = plain(unit, "unit")
        rows = [row for row in self.results if all(k in row["unit"] and row["unit"][k] == wanted[k] for k in wanted)]
        if not rows:
            known = {key: self._known(key) for key in sorted({k for row in self.results for k in row["unit"]})}
            raise ValueError(f"{self.name} has no unit with {wanted}; its units have {known}")
        seen: dict[tuple[Any, ...], dict[str, Any]] = {}
        for row in rows:
            first = seen.setdefault(_repetition(row), row)
            if first is not row:
                differ = sorted(k for k in row["unit"] if row["unit"][k] != first["unit"].get(k))
                raise ValueError(
                    f"{wanted} leaves more than one row per repetition of {self.name}; choose also {differ}"
                )
        return sorted(rows, key=_repetition)

    def _known(self, key: str) -> list[Any]:
        values: list[Any] = []
        for row in self.results:
            if key in row["unit"] and row["unit"][key] not in values:
                values.append(row["unit"][key])
        return values

    # --- file --------------------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write the record as JSON; the file is complete or, whatever goes wrong, what it was before."""
        content = {part.name: getattr(self, part.name) for part in dataclasses.fields(self)}
        replace_text(path, to_json({"format": FORMAT, **content}))

    @classmethod
    def load(cls, path: str | Path) -> RunRecord:
        """Read a record.

        Raises
        ------
        FileNotFoundError
            No such file.
        ValueError
            The file is cut off, of another format, or lacks or has other fields than a record.
        """
        path = Path(path)
        content = read_json(path)
        found = content.pop("format", None)
        if found != FORMAT:
            raise ValueError(f"{path} is not a record this version can read: expected format {FORMAT}, found {found}")
        names = {part.name for part in dataclasses.fields(cls)}
        if content.keys() != names:
            missing, extra = sorted(names - content.keys()), sorted(content.keys() - names)
            raise ValueError(f"{path} does not have the fields of a record: missing {missing}, unexpected {extra}")
        try:
            return cls(**content)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error


_CONTENT = ("name", "title", "config", "seeds", "results", "data", "summary", "dtype", "smoke")
_TYPES: dict[str, tuple[Any, str]] = {
    **{name: (str, "a string") for name in ("name", "title", "dtype", "created", "device")},
    **{name: (dict, "a dictionary") for name in ("config", "data", "summary", "versions")},
    **{name: (list, "a list") for name in ("seeds", "results")},
    "smoke": (bool, "true or false"),
    "commit": (str | None, "a string or null"),
    "dirty": (bool | None, "true, false or null"),
    "seconds": (int | float, "a number"),
    "peak_memory_mb": (int | float | None, "a number or null"),
}


def _repetition(row: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(row["unit"].get(key, -1) for key in REPEAT_KEYS)


# --- finding records --------------------------------------------------------------------------------------------------


def results_folder() -> Path:
    """The folder of records: ``COMPANION_RESULTS``, else ``book/results`` of the checkout the package is used from.

    Raises
    ------
    FileNotFoundError
        The variable is not set and the package is installed apart from its repository.
    """
    if value := os.environ.get(RESULTS_VARIABLE, ""):
        return Path(value).expanduser()
    book = PACKAGE.parent / "book"
    if not book.is_dir():
        raise FileNotFoundError(
            f"there is no folder of records: {book} does not exist, as companion is not used from a checkout of its "
            f"repository. Get the repository and set {RESULTS_VARIABLE} to its folder book/results"
        )
    return book / "results"


def load_record(name: str, folder: str | Path | None = None) -> RunRecord:
    """The record of the experiment ``name``, from ``folder`` or :func:`results_folder`."""
    folder = results_folder() if folder is None else Path(folder)
    path = folder / f"{name}.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"there is no record {path}; present: {[p.stem for p in _record_files(folder)]}. "
            f"To compute it: python -m companion.experiments {name}"
        )
    return RunRecord.load(path)


def load_records(folder: str | Path | None = None) -> list[RunRecord]:
    """All complete records of a folder by name, without smoke runs and unfinished ones."""
    return [RunRecord.load(path) for path in _record_files(results_folder() if folder is None else Path(folder))]


def _record_files(folder: Path) -> list[Path]:
    """NAME.json; NAME.smoke.json and NAME.partial.json have a second dot."""
    return sorted(path for path in folder.glob("*.json") if "." not in path.stem)


# --- JSON -------------------------------------------------------------------------------------------------------------


def plain(value: Any, where: str) -> Any:
    """The same value in the types of JSON: arrays and tuples become lists, NumPy numbers Python's.

    Raises
    ------
    ValueError
        NaN, infinity or a type that JSON does not have; ``where`` begins the place that the message names.
    """
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, Mapping):
        wrong = [key for key in value if not isinstance(key, str)]
        if wrong:
            raise ValueError(f"{where} must have strings as keys; got {wrong[0]!r}")
        return {key: plain(entry, f"{where}.{key}") for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry, f"{where}[{i}]") for i, entry in enumerate(value)]
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"{where} must be numbers, strings, lists and dictionaries; got {type(value).__name__}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite or None; got {value}")
    return value


def to_json(value: Any) -> str:
    """JSON with the same bytes for the same value: sorted keys, indented by 1, lists of plain values on one line."""
    return _lines(value, "\n") + "\n"


def _lines(value: Any, newline: str) -> str:
    inner = newline + " "
    if isinstance(value, dict) and value:
        entries = [f"{json.dumps(key, ensure_ascii=False)}: {_lines(value[key], inner)}" for key in sorted(value)]
        return "{" + inner + ("," + inner).join(entries) + newline + "}"
    if isinstance(value, list) and any(isinstance(entry, dict | list) for entry in value):
        return "[" + inner + ("," + inner).join(_lines(entry, inner) for entry in value) + newline + "]"
    return json.dumps(value, allow_nan=False, ensure_ascii=False)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; ValueError if it is cut off or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not complete JSON ({error}); it was cut off or edited") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold one JSON object; found a {type(content).__name__}")
    return content


@contextmanager
def written_aside(path: str | Path) -> Iterator[Path]:
    """A file beside ``path`` to write to; at the end it is on the disk and takes the place of ``path``.

    No reader ever sees half of it, and no crash leaves half of it. If writing fails, ``path`` stays as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield aside
        _to_disk(aside)
        os.replace(aside, path)
        if os.name == "posix":  # elsewhere folders cannot be opened, and the move is safe without
            _to_disk(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def replace_text(path: str | Path, text: str) -> None:
    """Write a text file aside and move it into place."""
    with written_aside(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
