"""``python -m companion.experiments NAME [--smoke] [--device D] [--output DIR]``: compute a record of the book."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from companion.datasets import DataCorruptError, DataMissingError
from companion.experiments import EXPERIMENTS
from companion.experiments._frame import check_device, run
from companion.records import results_folder

INTERRUPTED = 130  # as shells report it


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the experiment that the command line names; 0 when its record is saved."""
    parser = _parser()
    chosen = parser.parse_args(arguments)
    experiments = {experiment.name: experiment for experiment in EXPERIMENTS}
    if chosen.list:
        width = max(map(len, experiments))
        print("\n".join(f"{name:<{width}}  {experiments[name].title}" for name in sorted(experiments)))
        return 0
    if chosen.name not in experiments:
        parser.error(f"NAME must be one of {', '.join(sorted(experiments))}; got {chosen.name or 'nothing'}")
    experiment = experiments[chosen.name]
    try:
        check_device(chosen.device, experiment.dtype)
        folder = results_folder() if chosen.output is None else chosen.output
    except (ValueError, FileNotFoundError) as error:
        return _fail(parser, error)
    try:
        record = run(experiment, smoke=chosen.smoke, device=chosen.device, folder=folder, resume=not chosen.anew)
    except (DataMissingError, DataCorruptError) as error:
        return _fail(parser, error)
    except KeyboardInterrupt:
        return INTERRUPTED
    path = folder / f"{record.name}{'.smoke' if record.smoke else ''}.json"
    print(f"{len(record.results)} units in {record.seconds:.1f} s: {path}")
    return 0


def _fail(parser: argparse.ArgumentParser, error: Exception) -> int:
    print(f"{parser.prog}: {error}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m companion.experiments",
        description="Compute a record of the book. Interrupt it with Ctrl-C; the same command goes on from there.",
    )
    parser.add_argument("name", metavar="NAME", nargs="?", help="experiment to run; see --list")
    parser.add_argument("--list", action="store_true", help="list the experiments and stop")
    parser.add_argument("--smoke", action="store_true", help="a small version in seconds; its numbers mean nothing")
    parser.add_argument("--device", metavar="D", default="cpu", help="torch device to compute on (default: cpu)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="folder of the record (default: book/results)")
    parser.add_argument("--anew", action="store_true", help="compute everything, whatever an interrupted run left")
    return parser


if __name__ == "__main__":
    sys.exit(main())
