"""The file of a run: written as a whole or not at all, read without running anything that is in it."""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from companion.records import written_aside
from companion.training.history import History

FORMAT = 1
PARTS = {"format", "key", "network", "optimizer", "random", "history", "best"}


def write(path: Path, content: dict[str, Any]) -> None:
    """Write the file aside and move it into place; what could not be read again is refused."""
    _check_plain(content, "checkpoint")
    with written_aside(path) as aside:
        torch.save({"format": FORMAT, **content}, aside)


def read(path: Path) -> dict[str, Any]:
    """The parts of a file, all on the CPU.

    Raises
    ------
    ValueError
        The file is cut off, damaged, something else, of another format, or asks for code to be run.
    """
    with path.open("rb") as file:
        if not _is_whole(file):
            raise ValueError(f"{path} is not a complete checkpoint; it was cut off or damaged, or is something else")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is not a checkpoint: it holds something else than tensors and plain values, which is not loaded"
        ) from error
    except RuntimeError as error:
        raise ValueError(f"{path} is not a checkpoint but another archive") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or content.keys() != PARTS:
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} is not a checkpoint of format {FORMAT}; found {found}")
    return content


def _is_whole(file: IO[bytes]) -> bool:
    """Whether it is an archive, as torch writes them, with the check sums that it says."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except zipfile.BadZipFile:
        return False


def check_key(found: Any, wanted: Mapping[str, str], path: Path) -> None:
    """The file must be of this very run."""
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        raise ValueError(f"{path} does not say what run it belongs to")
    for name, value in wanted.items():
        if not isinstance(found[name], str) or found[name] != value:
            raise ValueError(
                f"{path} belongs to another run, with another {name}: {_short(found[name])} there, "
                f"{_short(value)} here; use another file for this run"
            )


def check_tensors(found: Any, wanted: Mapping[str, Any], path: Path, what: str) -> None:
    """The tensors must have the names, shapes and types of those that they will replace."""
    if not isinstance(found, dict) or found.keys() != wanted.keys():
        names = set(found) if isinstance(found, dict) else set()
        missing, extra = sorted(wanted.keys() - names), sorted(map(str, names - wanted.keys()))
        raise ValueError(f"{path} belongs to another {what}: it lacks {missing[:5]} and has {extra[:5]} too many")
    for name, value in wanted.items():
        there, here = _form(found[name]), _form(value)
        if there != here:
            raise ValueError(f"{path} belongs to another {what}: {name} is {there} there, {here} here")


def check_random(found: Any, wanted: Mapping[str, list[Tensor]], n_processes: int, path: Path) -> None:
    """For every process, states of as many generators as there are."""
    forms = {name: [_form(state) for state in states] for name, states in wanted.items()}
    good = isinstance(found, list) and len(found) == n_processes
    for states in found if good else []:
        good = good and isinstance(states, dict) and all(isinstance(part, list) for part in states.values())
        good = good and {name: [_form(state) for state in part] for name, part in states.items()} == forms
    if not good:
        raise ValueError(f"{path} does not have the states of the random generators of this run")


def check_optimizer(found: Any, wanted: Mapping[str, Any], path: Path) -> None:
    """A state of as many parameters, in the same groups."""
    groups = found.get("param_groups") if isinstance(found, dict) and found.keys() == wanted.keys() else None
    sizes = [len(group["params"]) for group in wanted["param_groups"]]
    if not isinstance(groups, list) or [len(group.get("params", ())) for group in groups] != sizes:
        raise ValueError(f"{path} does not have the state of an optimizer with groups of {sizes} parameters")


def read_history(found: Any, steps: int, path: Path) -> History:
    """The history of a run that has not gone beyond its budget."""
    try:
        measured = History.from_state(found)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if measured.steps > steps:
        raise ValueError(f"{path} has taken {measured.steps} steps, more than steps={steps}; use another file")
    return measured


def _form(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _short(value: Any, most: int = 200) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= most else f"{text[:most]} ..."


def _check_plain(value: Any, where: str) -> None:
    """What would not be read again must not be written."""
    if isinstance(value, Mapping):
        for name, part in value.items():
            _check_plain(part, f"{where}[{name!r}]")
    elif isinstance(value, (list, tuple)):
        for i, part in enumerate(value):
            _check_plain(part, f"{where}[{i}]")
    elif value is not None and not isinstance(value, (Tensor, bool, int, float, str)):
        raise TypeError(f"{where} must be tensors and plain values, to be read without running code; got {type(value)}")
