"""What the benchmarks share: processes of their own, memory, the machine, and verdicts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")  # where Linux states the memory of a process


def status_mb(key: str) -> float:
    """Memory of this process as Linux states it, in megabytes: held now (VmRSS) or at most so far (VmHWM).

    The largest memory that ``getrusage`` tells is no use here: a process inherits it from the one that started it.
    """
    for line in STATUS.read_text(encoding="ascii").splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise LookupError(f"{STATUS} does not tell {key}")


def in_new_process(script: str | Path, *arguments: str, **environment: str) -> Any:
    """What a script prints as JSON, in its last line, when it is run anew."""
    command = [sys.executable, str(Path(script).resolve()), *arguments]
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def cpu_model() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def verdict(line: str, unit: str, figure: float, wanted: float) -> dict[str, Any]:
    """What was to be reached, and what was: speed has to be at least what is wanted, all else at most.

    Returns
    -------
    dict
        ``line`` in words, ``figure`` with its ``unit``, whether ``at_least`` or at most ``wanted`` was to be reached,
        and whether it was ``reached``.
    """
    at_least = unit == "times"
    reached = figure >= wanted if at_least else figure <= wanted
    return {"line": line, "figure": figure, "unit": unit, "at_least": at_least, "wanted": wanted, "reached": reached}


def show_verdicts(lines: Sequence[dict[str, Any]]) -> None:
    """Print what was to be reached, and what was."""
    print()
    for line in lines:
        sign = ">=" if line["at_least"] else "<="
        print(
            f"{'reached' if line['reached'] else 'MISSED ':<8} {line['figure']:7.2f} {line['unit']} "
            f"(wanted {sign} {line['wanted']:g}): {line['line']}"
        )
