"""Data files: from the user's folder, from the cache or from the network; always checked by sha256."""

from __future__ import annotations

import os
import tempfile
import warnings
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import TqdmWarning

with warnings.catch_warnings():
    # In a notebook without ipywidgets, pooch's import warns about a progress bar that is not used here.
    warnings.simplefilter("ignore", TqdmWarning)
    import pooch

# Folder laid out as <COMPANION_DATA>/<folder>/<name>; only ever read.
DATA_VARIABLE = "COMPANION_DATA"
# Where downloads are kept, instead of the operating system's own place for caches.
CACHE_VARIABLE = "COMPANION_CACHE"
TIMEOUT = 30.0  # seconds without a byte from the server


class DataMissingError(OSError):
    """A data file is not on this machine and could not be downloaded (offline, moved, interrupted)."""


class DataCorruptError(ValueError):
    """A data file is not the published one: cut off, changed or replaced by something else."""


@dataclass(frozen=True)
class DataFile:
    """One published file and the bytes it must hold.

    Attributes
    ----------
    folder, name : str
        The file is kept as ``<folder>/<name>``, below ``COMPANION_DATA`` or below the cache.
    sha256 : str
        Lower-case hexadecimal digest of the whole file.
    size : int
        Its length in bytes.
    url : str
        Where it is published: an address pinned to one commit, so that the bytes cannot change.
    """

    folder: str
    name: str
    sha256: str
    size: int
    url: str

    def __str__(self) -> str:
        return f"{self.folder}/{self.name}"


def fetch(file: DataFile) -> Path:
    """Find a data file on this machine, or download it; the bytes are checked either way.

    The places are tried in this order:

    1. ``<COMPANION_DATA>/<folder>/<name>``, if that environment variable is set and the file is there. A file
       with the wrong bytes is refused; the folder is never written to.
    2. The cache: ``<COMPANION_CACHE>/<folder>/<name>`` or, without that variable, pooch's folder for this
       operating system. A damaged copy is not used, and a good download replaces it.
    3. ``file.url``. The download goes to a temporary folder and is moved to the cache once its sha256 is
       right, so that a failure, or Ctrl-C, leaves nothing behind.

    Parameters
    ----------
    file : DataFile
        What to look for.

    Returns
    -------
    pathlib.Path
        A file with the expected sha256.

    Raises
    ------
    DataMissingError
        The file is nowhere on this machine and the download failed.
    DataCorruptError
        The file below ``COMPANION_DATA``, or the one that arrived, has other bytes than the published one.
    """
    own = _folder_from(DATA_VARIABLE)
    if own is not None and (path := own / file.folder / file.name).is_file():
        advice = f"Replace this file yourself, or unset {DATA_VARIABLE} to download {file.url}"
        _check(path, file, came_from=str(path), advice=advice)
        return path
    cache = _folder_from(CACHE_VARIABLE) or Path(pooch.os_cache("mtl-companion"))
    path = cache / file.folder / file.name
    if path.is_file() and _sha256(path) == file.sha256:
        return path
    try:
        _download(file, cache, path)
    except OSError as cause:  # what requests raises are OSErrors too, as are a full disk or a cache without permission
        raise DataMissingError(_missing(file, own, path, cause)) from cause
    return path


def _folder_from(variable: str) -> Path | None:
    """The folder an environment variable names; unset and empty mean the same."""
    value = os.environ.get(variable, "")
    return Path(value).expanduser() if value else None


def _sha256(path: Path) -> str:
    return pooch.file_hash(str(path), alg="sha256")


def _check(path: Path, file: DataFile, came_from: str, advice: str) -> None:
    """Refuse a file whose bytes are not the published ones."""
    found, size = _sha256(path), path.stat().st_size
    if found == file.sha256:
        return
    looks = " (it looks cut off)" if size < file.size else ""
    raise DataCorruptError(
        f"{came_from} does not hold the published {file}: expected sha256 {file.sha256} ({file.size} bytes), "
        f"found {found} ({size} bytes){looks}. {advice}"
    )


def _download(file: DataFile, cache: Path, path: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    # Inside the cache, so that the move stays on one disk and is atomic; removed whatever happens.
    with tempfile.TemporaryDirectory(prefix=".download-", dir=cache) as folder:
        arrived = Path(folder) / "file"
        with ExitStack() as answers:  # pooch leaves the connection of a failed download open

            def close_later(answer: Any, *_: Any, **__: Any) -> None:
                answers.callback(answer.close)

            hooks = {"response": close_later}
            download = pooch.HTTPDownloader(progressbar=False, timeout=TIMEOUT, hooks=hooks)
            download(file.url, str(arrived), None)
        advice = "Nothing was kept; try again, or get the file by another way"
        _check(arrived, file, came_from=file.url, advice=advice)
        path.parent.mkdir(exist_ok=True)
        os.replace(arrived, path)


def _missing(file: DataFile, own: Path | None, cached: Path, cause: OSError) -> str:
    state = f"{DATA_VARIABLE} is not set" if own is None else f"{DATA_VARIABLE} is {own}, which does not hold it"
    damaged = f" The copy at {cached} has other bytes and was not used." if cached.is_file() else ""
    return (
        f"{file} ({file.size} bytes) is not on this machine and could not be downloaded from {file.url}: "
        f"{type(cause).__name__}: {cause}.{damaged} To work offline, get the file once, save it as "
        f"FOLDER/{file} and set the environment variable {DATA_VARIABLE} to FOLDER ({state})"
    )
