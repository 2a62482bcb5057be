"""How a result came about: commit, versions, device, memory, and a fingerprint of the code."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import platform
import re
import subprocess
import sys
from pathlib import Path

import torch

import companion
from companion.records import PACKAGE


def now() -> str:
    """The time in UTC, to the second, ISO 8601."""
    return datetime.datetime.now(datetime.UTC).replace(microsecond=0).isoformat()


def library_versions() -> dict[str, str]:
    """Versions of all that takes part in a computation."""
    libraries = {
        name: importlib.metadata.version(name) for name in ("numpy", "scipy", "torch", "scikit-learn", "numba")
    }
    return {
        **libraries,
        "python": platform.python_version(),
        "companion": companion.__version__,
        "platform": f"{platform.system()} {platform.machine()}",
    }


def git_state(root: Path = PACKAGE.parent) -> tuple[str | None, bool | None]:
    """Commit of the checkout at ``root``, and whether the package or its pins differ from it.

    Chapters and other records may be in the middle of an edit: they do not change what an experiment computes.
    ``(None, None)`` where ``root`` is not a checkout, has no commit yet, or git is not installed.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    # An environment may lie inside another project's checkout, whose commit says nothing about this package.
    if top is None or Path(top).resolve() != root.resolve():
        return None, None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    if commit is None:
        return None, None
    changed = _git(root, "status", "--porcelain", "--", "companion", "pyproject.toml", "constraints.txt")
    return commit, None if changed is None else changed != ""


def _git(root: Path, *arguments: str) -> str | None:
    """What a git command prints; None where it fails or there is no git."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, encoding="utf-8", timeout=60
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def device_name(device: torch.device) -> str:
    """The type of a device, and the model of a GPU where torch knows it."""
    return f"cuda ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else device.type


def peak_memory_mb(device: torch.device) -> float | None:
    """Largest memory so far in megabytes: of this process, or of torch's tensors on a GPU; None if not measured."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    if device.type != "cpu" or sys.platform == "win32":
        return None
    if sys.platform == "linux":  # getrusage would tell what the process that started this one held, if that was more
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) * 1024 / 1e6, 1)
    import resource  # not on Windows

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6, 1)  # bytes on macOS, else KiB


def code_fingerprint(package: Path = PACKAGE) -> str:
    """sha256 over the names and bytes of all Python files of the package."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        digest.update(path.relative_to(package).as_posix().encode() + b"\0")
        digest.update(path.read_bytes() + b"\0")
    return digest.hexdigest()
