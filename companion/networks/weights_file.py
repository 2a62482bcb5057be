"""Weights of a network in a safetensors file: tensors and their names, and nothing that could be run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from companion.records import written_aside

FORMAT = "companion.networks 1"


def save_weights(network: nn.Module, path: str | Path, layout: dict[str, str]) -> None:
    """Write all parameters and buffers; aside first, then moved into place.

    Parameters
    ----------
    network : nn.Module
    path : path
    layout : dict of str
        What the network is made of, to be compared when the file is read.
    """
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with written_aside(path) as aside:
        save_file(tensors, aside, metadata={"format": FORMAT, "layout": json.dumps(layout)})


def load_weights(network: nn.Module, path: str | Path, layout: dict[str, str]) -> None:
    """Read what :func:`save_weights` wrote into a network made the same way; nothing is changed unless all fits.

    Raises
    ------
    FileNotFoundError
    ValueError
        The file is cut off or something else, or holds the weights of another network.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; SharedNetwork.save writes it")
    tensors, metadata = _read(path)
    if metadata.get("format") != FORMAT:
        raise ValueError(f"{path} was not written by SharedNetwork.save: its format is {metadata.get('format')!r}")
    _compare(f"{path} holds another network", layout, json.loads(metadata["layout"]))
    state = network.state_dict()
    shapes = {name: f"{tuple(value.shape)} {value.dtype}" for name, value in state.items()}
    _compare(f"{path} holds other tensors", shapes, {k: f"{tuple(v.shape)} {v.dtype}" for k, v in tensors.items()})
    with torch.no_grad():
        for name, value in state.items():
            value.copy_(tensors[name])


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); it was cut off or is another"
        ) from error


def _compare(problem: str, wanted: dict[str, str], found: dict[str, str]) -> None:
    """ValueError that names the first difference."""
    for name in [*wanted, *(name for name in found if name not in wanted)]:
        if wanted.get(name) != found.get(name):
            raise ValueError(f"{problem}: {name} should be {wanted.get(name)}, the file has {found.get(name)}")
