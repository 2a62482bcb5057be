"""The frame of an experiment: ordered units, saved one by one, so that a run can be interrupted and resumed."""

from __future__ import annotations

import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

import torch
from tqdm import tqdm

from companion.experiments import _provenance as provenance
from companion.records import RunRecord, plain, read_json, replace_text, results_folder, to_json

PARTIAL_FORMAT = 1
Unit = dict[str, Any]


class UnitResult(TypedDict):
    """What a unit measures: one number per metric over the pooled rows, and lists of one number per task."""

    metrics: Mapping[str, float]
    per_task: Mapping[str, Sequence[float]]


class Experiment(ABC):
    """One experiment: what it varies (:meth:`units`) and how one variant is measured (:meth:`run_unit`).

    A unit is the smallest piece that is run and saved as a whole. Its result may depend on the unit and the
    configuration only, never on the units run before, or a resumed run would give another record.

    Attributes
    ----------
    name : str
        Letters, digits and hyphens; ``python -m companion.experiments NAME``.
    title : str
        What it is, in one sentence.
    dtype : str
        Floating-point type it computes in.
    """

    name: str
    title: str
    dtype: str = "float64"

    @abstractmethod
    def config(self, smoke: bool) -> dict[str, Any]:
        """Everything that is chosen; with ``smoke`` a version that runs in seconds."""

    @abstractmethod
    def units(self, config: Mapping[str, Any]) -> list[Unit]:
        """All units in order; a key ``seed`` or ``split`` numbers the repetitions, which are paired."""

    @abstractmethod
    def run_unit(self, unit: Unit, config: Mapping[str, Any], device: torch.device) -> UnitResult:
        """Compute one unit."""

    def seeds(self, config: Mapping[str, Any]) -> list[int]:
        """Every seed that a random generator is given."""
        return []

    def data_files(self) -> dict[str, str]:
        """Name of each data source -> sha256 of the bytes that are used."""
        return {}

    def summary(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Aggregates that describe the data, for text and figures."""
        return {}


@dataclass
class _Partial:
    """The units done so far, in a file beside the record to come."""

    path: Path
    key: dict[str, Any]  # what must agree for a saved part to be of use
    rows: dict[str, dict[str, Any]]  # unit as JSON -> row of the record
    seconds: float = 0.0
    peak_memory_mb: float | None = None

    def read(self) -> None:
        """Take over what an interrupted run left, if it computed the same with the same code."""
        if not self.path.exists():
            return
        try:
            saved = read_json(self.path)
        except ValueError as error:
            _say(f"Starting anew: {error}")
            return
        if reason := self._unfit(saved):
            _say(f"Starting anew: {self.path} {reason}.")
            return
        self.rows = {to_json(row["unit"]): row for row in saved["rows"]}
        self.seconds, self.peak_memory_mb = saved["seconds"], saved["peak_memory_mb"]
        _say(f"Resuming: {len(self.rows)} units are in {self.path}.")

    def _unfit(self, saved: dict[str, Any]) -> str:
        """Why a saved part cannot be gone on with; empty if it can."""
        key = saved.get("key")
        if saved.get("format") != PARTIAL_FORMAT or not isinstance(key, dict) or key.keys() != self.key.keys():
            return "was written by another version"
        differ = [name for name in self.key if key[name] != self.key[name]]
        return f"was computed with another {', '.join(differ)}" if differ else ""

    def add(self, unit: Unit, result: UnitResult, seconds: float, memory: float | None) -> None:
        """Save one more unit."""
        where = f"result of unit {unit}"
        row = {"unit": unit, "metrics": result["metrics"], "per_task": result["per_task"]}
        self.rows[to_json(unit)] = plain(row, where)
        self.seconds += seconds
        measured = [m for m in (self.peak_memory_mb, memory) if m is not None]
        self.peak_memory_mb = max(measured, default=None)
        content = {
            "format": PARTIAL_FORMAT,
            "key": self.key,
            "rows": list(self.rows.values()),
            "seconds": self.seconds,
            "peak_memory_mb": self.peak_memory_mb,
        }
        replace_text(self.path, to_json(content))


def run(
    experiment: Experiment,
    *,
    smoke: bool = False,
    device: str = "cpu",
    folder: str | Path | None = None,
    resume: bool = True,
) -> RunRecord:
    """Run an experiment and save its record; after an interruption, run it again to go on where it stopped.

    Parameters
    ----------
    experiment : Experiment
    smoke : bool, default False
        The small version, saved as ``NAME.smoke.json`` so that it never replaces a real record.
    device : str, default "cpu"
        Any torch device.
    folder : path, optional
        Where the record goes; by default :func:`companion.records.results_folder`.
    resume : bool, default True
        Go on from ``NAME.partial.json`` if configuration, data, type, device and the code of the package are what
        they were; else all units are computed.

    Returns
    -------
    RunRecord
        As saved in ``NAME.json``; the partial file is gone.
    """
    target = check_device(device, experiment.dtype)
    folder = results_folder() if folder is None else Path(folder)
    stem = f"{experiment.name}.smoke" if smoke else experiment.name
    config = plain(experiment.config(smoke), "config")
    units = [plain(unit, "unit") for unit in experiment.units(config)]
    data = experiment.data_files()
    key = {
        **{"config": config, "data": data, "dtype": experiment.dtype, "smoke": smoke},
        **{"device": provenance.device_name(target), "code": provenance.code_fingerprint()},
    }
    commit, dirty = provenance.git_state()  # before the run: this is the code that is loaded
    partial = _Partial(folder / f"{stem}.partial.json", key, rows={})
    if resume:
        partial.read()
    _compute(experiment, units, config, target, partial)
    record = RunRecord(
        name=experiment.name,
        title=experiment.title,
        config=config,
        seeds=experiment.seeds(config),
        results=[partial.rows[to_json(unit)] for unit in units],
        data=data,
        summary=experiment.summary(config),
        dtype=experiment.dtype,
        smoke=smoke,
        commit=commit,
        dirty=dirty,
        created=provenance.now(),
        versions=provenance.library_versions(),
        device=provenance.device_name(target),
        seconds=round(partial.seconds, 3),
        peak_memory_mb=partial.peak_memory_mb,
    )
    record.save(folder / f"{stem}.json")
    partial.path.unlink(missing_ok=True)
    return record


def _compute(
    experiment: Experiment, units: list[Unit], config: Mapping[str, Any], device: torch.device, partial: _Partial
) -> None:
    """Compute the units that are missing, saving each."""
    missing = [unit for unit in units if to_json(unit) not in partial.rows]
    progress = tqdm(missing, initial=len(units) - len(missing), total=len(units), desc=experiment.name, unit="unit")
    try:
        for unit in progress:
            start = time.perf_counter()
            result = experiment.run_unit(unit, config, device)
            partial.add(unit, result, time.perf_counter() - start, provenance.peak_memory_mb(device))
    except KeyboardInterrupt:
        progress.close()
        kept = f"they are kept in {partial.path}: run the same command again to go on" if partial.rows else "none kept"
        _say(f"Interrupted after {len(partial.rows)} of {len(units)} units; {kept}.")
        raise


def check_device(device: str, dtype: str) -> torch.device:
    """The torch device of that name, if this machine has it and it computes in ``dtype``.

    Raises
    ------
    ValueError
        No such device here; the message lists those that there are.
    """
    try:
        found = torch.device(device)
        torch.empty(1, device=found, dtype=getattr(torch, dtype))
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"device must be one that computes in {dtype} here, one of {_devices()}; got {device!r} ({reason})"
        ) from error
    if found.type == "meta":
        raise ValueError(f"device must be one of {_devices()}; 'meta' computes nothing")
    return found


def _devices() -> list[str]:
    return ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]


def _say(message: str) -> None:
    print(message, file=sys.stderr)
