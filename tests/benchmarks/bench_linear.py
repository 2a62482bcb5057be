"""The convex models against scikit-learn, celer, skglm and a plain NumPy FISTA: time to a relative gap of 1e-6.

``python tests/benchmarks/bench_linear.py`` measures every case, prints a table and verdicts, and writes the record
``book/results/bench-linear.json``; ``--smoke`` runs a small version in half a minute, whose numbers mean nothing.

How it is measured. All contestants solve the same problem, and one function computes the duality gap of what each
returns. The tolerances of the libraries mean different things, so each library gets, for each case, the loosest of its
settings (in steps of a quarter decade) with which the common gap is at most 1e-6; this search is not timed, and it
leaves everything compiled and warm. Then they run in turn, one run of each per round, and medians over the rounds are
compared. A case in which a contestant has spent a minute goes on without it.

Everything runs on one thread: the matrices are small, threads of several libraries would get in each other's way, and
seconds of processor time then mean the same for everybody, also on a machine that does other things.
"""

import os

# Before NumPy is imported: its BLAS reads them once.
THREADS = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")}
os.environ.update(THREADS)

# ruff: noqa: E402
import argparse
import importlib.metadata
import importlib.util
import inspect
import json
import platform
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import geometric_mean, median
from typing import Any

import numpy as np
import torch
from _common import STATUS, cpu_model, in_new_process, show_verdicts, status_mb, verdict
from _reference import (
    ROWS,
    TOL,
    TRACE,
    Celer,
    Companion,
    Contestant,
    Data,
    Fista,
    Norm,
    ScikitLearn,
    Skglm,
    ToldCompanion,
    ToldFista,
    alpha_max,
    certify,
    null_objective,
    optimum,
    ragged_data,
    school_data,
    shared_data,
)

from companion.datasets import DataCorruptError, DataMissingError
from companion.experiments import _provenance as provenance
from companion.records import RunRecord, results_folder

ROOT = Path(__file__).resolve().parents[2]
NAME, TITLE = "bench-linear", "Time of the convex models to a relative duality gap of 1e-6, against other software"
# Installed where they are missing; the modules that are used of each.
RIVALS = {"celer": ("celer==0.7.4", "celer.homotopy"), "skglm": ("skglm==0.5", "skglm.solvers")}
LIBRARIES = (ScikitLearn(), Celer(), Skglm())
LIMIT = 600.0  # seconds that one run may take
PATIENCE = 60.0  # processor seconds after which a contestant sits out the remaining rounds of a case

Row = dict[str, Any]  # of the record: unit, metrics, per_task
Summary = dict[str, Any]  # of one case

# --- cases ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One problem, or a path of them, and who is measured against the package.

    Attributes
    ----------
    name : str
    data : callable
    norm : Norm
    ratio : float
        alpha_max over alpha, over the last alpha of a path.
    rivals : tuple of Contestant
    n_alphas : int
        Above 1: a path.
    """

    name: str
    data: Callable[[], Data]
    norm: Norm
    ratio: float
    rivals: tuple[Contestant, ...] = LIBRARIES
    n_alphas: int = 1

    def alphas(self, data: Data) -> np.ndarray:
        """Falling alphas, from alpha_max for a path."""
        largest = alpha_max(data, self.norm)
        if self.n_alphas == 1:
            return np.array([largest / self.ratio])
        return largest * np.geomspace(1, 1 / self.ratio, self.n_alphas)


def all_cases(smoke: bool) -> list[Case]:
    """The cases in order; those that share data stand together."""
    part = 10 if smoke else 1
    cases = []
    for n, d, T, rows, ratios in (
        (300, 10_000, 20, 32, (10, 50)),
        (2000, 2000, 50, 60, (10, 50)),
        (500, 5000, 10, 30, (10, 50)),
        (400, 6000, 30, 30, (10, 50)),
        (200, 5000, 10, 20, (50,)),
        (1000, 4000, 5, 30, (10,)),
    ):
        make = lambda n=n, d=d, T=T, rows=rows: shared_data(n // part, d // part, T, rows)
        cases += [Case(f"shared n={n} d={d} T={T} /{ratio}", make, ROWS, ratio) for ratio in ratios]
    path = lambda: shared_data(300 // part, 2000 // part, 20, 30)
    cases.append(Case("path n=300 d=2000 T=20 /20", path, ROWS, 20, n_alphas=5 if smoke else 30))
    loops = (Fista(), ToldCompanion(), ToldFista())
    school = lambda: school_data(139 // part)
    cases += [Case(f"School {norm.name} /{ratio}", school, norm, ratio, loops) for norm, ratio in SCHOOL]
    unequal = lambda: ragged_data((50, 200), 2000 // part, 100 // part, 30)
    many = lambda: ragged_data((100, 100), 50, 1000 // part, 20)
    cases.append(Case(UNEQUAL, unequal, ROWS, 10, loops))
    cases.append(Case(MANY, many, ROWS, 10, loops))
    return cases


SCHOOL = ((ROWS, 10), (ROWS, 50), (TRACE, 10), (TRACE, 50))
UNEQUAL = "per-task n_t=50..200 d=2000 T=100 /10"
MANY = "per-task n_t=100 d=50 T=1000 /10"


def kind(case: Case, active: int, data: Data) -> str:
    """What the case is an example of; for one alpha on shared inputs by how many rows of W are active."""
    if case.n_alphas > 1:
        return "path"
    if not data.is_shared:
        return " ".join(case.name.split()[:-1])
    if active > 0.95 * data.shape[0]:
        return "nearly all rows active"
    return "support exceeds n" if active > len(data.X) else "small support"


# --- measuring --------------------------------------------------------------------------------------------------------


class OutOfTime(Exception):
    """A run has used up its seconds."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Stop what runs inside after so much time, where the system can.

    A clock on the wall: an armed timer of processor time would make that time coarse, on Linux to 4 ms.
    """
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: object) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def run(who: Contestant, case: Case, data: Data, tol: float) -> tuple[dict[str, float], list[np.ndarray]]:
    """One timed run: what was measured, and the weights (d, T) for every alpha."""
    alphas = case.alphas(data)
    ready = who.prepare(data, case.norm, alphas)
    with warnings.catch_warnings(), limited(LIMIT):
        warnings.simplefilter("ignore")  # the gap says whether it converged
        wall, cpu = time.perf_counter(), time.process_time()
        weights = who.solve(ready, case.norm, alphas, tol)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    certificates = [certify(data, case.norm, alpha, W) for alpha, W in zip(alphas, weights, strict=True)]
    metrics = {
        "cpu_seconds": cpu,
        "seconds": wall,
        "relative_gap": max(gap for _, gap in certificates),
        "objective": certificates[-1][0],
        "tolerance": tol,
    }
    if who.goal == "relative_error":
        metrics["relative_error"] = (metrics["objective"] - optimum(data, case.norm, alphas[0])) / null_objective(data)
    return metrics, weights


def calibrate(who: Contestant, case: Case, data: Data) -> tuple[float, np.ndarray]:
    """The loosest tolerance with which a contestant reaches its goal, and the weights it gave.

    Half a decade at a time from the loosest, then one quarter back. LookupError where none reaches it.
    """
    settings, best = who.tolerances(case.alphas(data)), np.inf

    def reached(i: int) -> np.ndarray | None:
        nonlocal best
        metrics, weights = run(who, case, data, settings[i])
        best = min(best, metrics[who.goal])
        return weights[-1] if metrics[who.goal] <= TOL else None

    for i in range(0, len(settings), 2):
        if (W := reached(i)) is not None:
            looser = reached(i - 1) if i > 0 else None
            return (settings[i], W) if looser is None else (settings[i - 1], looser)
    raise LookupError(f"{who.goal} stays above {TOL:.0e}; it reaches {best:.1e}".replace("_", " "))


def measure(case: Case, data: Data, rounds: int, absent: dict[str, str]) -> tuple[Summary, list[Row]]:
    """Calibrate all contestants of a case and run them in turn; a summary, and a row for every run."""
    failed: dict[str, str] = {}
    weights: dict[str, np.ndarray] = {}
    rows: list[Row] = []
    tolerances: dict[Contestant, float] = {}
    for who in (Companion(), *case.rivals):
        try:
            if who.name in absent:
                raise LookupError(absent[who.name])
            tolerances[who], weights[who.name] = calibrate(who, case, data)
        except OutOfTime:
            failed[who.name] = f"not within {LIMIT:.0f} s"
        except LookupError as error:
            failed[who.name] = str(error)
    spent = dict.fromkeys(tolerances, 0.0)
    for repeat in range(rounds):
        for who, tol in tolerances.items():
            if spent[who] < PATIENCE:
                metrics, _ = run(who, case, data, tol)
                spent[who] += metrics["cpu_seconds"]
                unit = {"case": case.name, "solver": who.name, "repeat": repeat}
                rows.append({"unit": unit, "metrics": metrics, "per_task": {}})
    check_agreement(case, data, rows)
    return summarise(case, data, rows, failed, weights), rows


def check_agreement(case: Case, data: Data, rows: Sequence[Row]) -> None:
    """Everybody within the gap of the optimum is within the gap of everybody else, or the gap is wrong."""
    objectives = [row["metrics"]["objective"] / null_objective(data) for row in rows]
    if objectives and max(objectives) - min(objectives) > 2 * TOL:
        raise RuntimeError(f"{case.name}: objectives differ by {max(objectives) - min(objectives):.1e} of that at zero")


def summarise(
    case: Case, data: Data, rows: Sequence[Row], failed: dict[str, str], weights: dict[str, np.ndarray]
) -> Summary:
    """Medians and minima of every contestant, and their medians over the package's."""
    solvers = [
        solver_summary(name, [row["metrics"] for row in rows if row["unit"]["solver"] == name])
        for name in dict.fromkeys(row["unit"]["solver"] for row in rows)
    ]
    seconds = {solver["solver"]: solver["cpu_seconds_median"] for solver in solvers}
    W = next(iter(weights.values()), np.zeros(data.shape))
    active = int((W != 0).any(axis=1).sum())
    ratios: dict[str, float] = {}
    for ours in (Companion, ToldCompanion):
        rivals = [who.name for who in case.rivals if who.goal == ours.goal and who.name in seconds]
        # Where the package misses the goal it has no speed.
        ratios |= {name: seconds[name] / seconds.get(ours.name, np.inf) for name in rivals if name != ours.name}
    certified = [ratios[who.name] for who in case.rivals if who.goal == Companion.goal and who.name in ratios]
    return {
        **{"case": case.name, "kind": kind(case, active, data), "penalty": case.norm.name},
        **{"n": len(data.X), "d": data.shape[0], "T": data.shape[1], "alpha_ratio": case.ratio},
        **{"n_alphas": case.n_alphas, "active_rows": active, "rank": int(np.linalg.matrix_rank(W))},
        **{"solvers": solvers, "failed": failed, "ratios": ratios, "speedup": min(certified, default=None)},
    }


def solver_summary(name: str, runs: Sequence[dict[str, float]]) -> Summary:
    """Medians and minima of the times, and the worst accuracy, of one contestant in one case."""
    summary: Summary = {"solver": name, "repeats": len(runs), "tolerance": runs[0]["tolerance"]}
    for key in ("cpu_seconds", "seconds"):
        values = [metrics[key] for metrics in runs]
        summary |= {f"{key}_median": median(values), f"{key}_min": min(values)}
    return summary | {
        key: max(metrics[key] for metrics in runs) for key in ("relative_gap", "relative_error") if key in runs[0]
    }


# --- first runs and memory, each in a process of its own --------------------------------------------------------------


def first_run(name: str) -> float:
    """Seconds by which the first use takes longer than the second: imports, and compilation where there is any."""
    contestants = {who.name: who for who in (Companion(), *LIBRARIES)}
    cases = [
        Case("wide", lambda: shared_data(30, 70, 3, 5), ROWS, 10),
        Case("tall", lambda: shared_data(70, 30, 3, 5), ROWS, 10),
        Case("path", lambda: shared_data(30, 70, 3, 5), ROWS, 10, n_alphas=3),
    ]
    if name == Companion.name:
        cases += [
            Case("wide tasks", lambda: ragged_data((10, 20), 30, 5, 5), ROWS, 10),
            Case("tall tasks", lambda: ragged_data((30, 40), 20, 5, 5), ROWS, 10),
            Case("trace norm", lambda: ragged_data((30, 40), 20, 5, 5), TRACE, 10),
        ]
    times = [sum(run(contestants[name], case, case.data(), 1e-4)[0]["seconds"] for case in cases) for _ in range(2)]
    return times[0] - times[1]


def first_runs(absent: dict[str, str]) -> dict[str, float]:
    """:func:`first_run` of everybody; of the package with nothing compiled on disk, and with what that left there."""
    seconds = {}
    with tempfile.TemporaryDirectory() as cache:
        for label, name in (
            ("companion, nothing compiled yet", Companion.name),
            ("companion, compiled before", Companion.name),
            *((who.name, who.name) for who in LIBRARIES if who.name not in absent),
        ):
            seconds[label] = in_new_process(__file__, "--first-run", name, NUMBA_CACHE_DIR=cache)
    return seconds


def memory(norm: Norm, smoke: bool) -> dict[str, float]:
    """Largest memory of one fit above what the process holds when the data exist, in megabytes, and the gap reached.

    The first fit of the process: what it imports and loads counts.
    """
    case = next(case for case in all_cases(smoke) if case.name == UNEQUAL)
    data, who = case.data(), Companion()
    alphas = replace(case, norm=norm).alphas(data)
    ready = who.prepare(data, norm, alphas)
    before = status_mb("VmRSS")
    (W,) = who.solve(ready, norm, alphas, TOL)
    return {
        "peak_above_data_mb": status_mb("VmHWM") - before,
        "data_mb": (data.X.nbytes + data.Y.nbytes) / 1e6,
        "relative_gap": certify(data, norm, alphas[0], W)[1],
    }


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(cases: Sequence[Summary], memories: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What was to be reached, and what was; lines whose cases were not measured are left out.

    Returns
    -------
    list of dict
        As :func:`_common.verdict` has them.
    """

    def speedups(kind: str, rival: str | None = None) -> list[float]:
        found = [case for case in cases if case["kind"] == kind]
        values = [case["speedup"] if rival is None else case["ratios"].get(rival) for case in found]
        return [value for value in values if value is not None]

    small, beyond = speedups("small support"), speedups("support exceeds n")
    mean = lambda values: [geometric_mean(values) if min(values) > 0 else 0.0] if values else []
    best, fista = "over the best of the three libraries", "over plain NumPy FISTA"
    told = f"{fista}, both stopped within 1e-6 of the known optimum"
    lines = [
        (f"small support, geometric mean, {best}", "times", mean(small), 4.0),
        (f"small support, worst case, {best}", "times", small, 3.0),
        (f"support exceeds n, geometric mean, {best}", "times", mean(beyond), 2.0),
        (f"support exceeds n, worst case, {best}", "times", beyond, 1.5),
        (f"nearly all rows active, {best}", "times", speedups("nearly all rows active"), 0.9),
        (f"path, {best}", "times", speedups("path"), 2.0),
    ]
    for norm, wanted in ((ROWS, 50.0), (TRACE, 4.0)):
        school = f"School {norm.name}"
        lines.append((f"{school}, worst case, {fista}", "times", speedups(school), wanted))
        lines.append((f"{school}, worst case, {told}", "times", speedups(school, ToldFista.name), wanted))
    many = [{s["solver"]: s["seconds_median"] for s in case["solvers"]} for case in cases if case["case"] == MANY]
    seconds = [medians.get(Companion.name, LIMIT) for medians in many]
    lines.append((f"{MANY}, time", "s", seconds, 10.0))
    lines += [(f"{name}, above the data", "MB", [m["peak_above_data_mb"]], 500.0) for name, m in memories.items()]
    return [verdict(line, unit, min(values), wanted) for line, unit, values, wanted in lines if values]


# --- output -----------------------------------------------------------------------------------------------------------


def show_case(case: Summary) -> None:
    """Print one case as a block of the table."""
    what = (
        f"rank {case['rank']}" if case["penalty"] == TRACE.name else f"{case['active_rows']} of {case['d']} rows active"
    )
    speedup = "" if case["speedup"] is None else f"; companion is {case['speedup']:.2f} times as fast as the best"
    print(f"\n{case['case']} [{case['kind']}; {what}{speedup}]")
    for s in case["solvers"]:
        ratio = case["ratios"].get(s["solver"])
        print(
            f"  {s['solver']:<29} cpu {s['cpu_seconds_median']:8.4f} (min {s['cpu_seconds_min']:8.4f})  wall "
            f"{s['seconds_median']:8.4f}  gap {s['relative_gap']:.1e}  tol {s['tolerance']:.1e}  x{s['repeats']}"
            + (f"  error {s['relative_error']:.1e}" if "relative_error" in s else "")
            + ("" if ratio is None else f"  ratio {ratio:6.2f}")
        )
    for name, reason in case["failed"].items():
        print(f"  {name:<29} {reason}")
    sys.stdout.flush()


def install_rivals() -> dict[str, str]:
    """Import the libraries, installing those that are missing; reasons for the ones that cannot be had."""
    absent = {}
    constraints = ROOT / "constraints.txt"
    pins = ["-c", str(constraints)] if constraints.exists() else []
    for name, (requirement, module) in RIVALS.items():
        if importlib.util.find_spec(name) is None:
            print(f"installing {requirement}", flush=True)
            command = [sys.executable, "-m", "pip", "install", "--quiet", *pins, requirement]
            if subprocess.run(command).returncode != 0:
                absent[name] = f"could not be installed: pip install {requirement} failed"
                continue
            importlib.invalidate_caches()
        try:
            importlib.import_module(module)
        except Exception as error:  # a compiled library that does not fit the others can raise anything
            absent[name] = f"cannot be imported: {type(error).__name__}: {error}"
    return absent


def versions(absent: dict[str, str]) -> dict[str, str]:
    """Versions of all that took part."""
    extra = ["numba", *(name for name in RIVALS if name not in absent)]
    return provenance.library_versions() | {name: importlib.metadata.version(name) for name in extra}


def build_record(
    options: argparse.Namespace,
    chosen: Sequence[Case],
    rows: list[Row],
    summary: dict[str, Any],
    sources: dict[str, str],
    started: tuple[float, str | None, bool | None],
) -> RunRecord:
    """The record; times do not repeat exactly, everything else about them does."""
    begin, commit, dirty = started
    return RunRecord(
        name=NAME,
        title=TITLE,
        config={
            **{"cases": [case.name for case in chosen], "repeat": options.repeat, "relative_gap": TOL},
            **{"limit_seconds": LIMIT, "patience_seconds": PATIENCE, "threads": 1, "fit_intercept": False},
            "data": {make.__name__: inspect.getdoc(make) for make in (shared_data, ragged_data, school_data)},
        },
        seeds=[0],
        results=rows,
        data=sources,
        summary=summary,
        dtype="float64",
        smoke=options.smoke,
        commit=commit,
        dirty=dirty,
        created=provenance.now(),
        versions=versions(summary["absent"]),
        device=f"cpu ({cpu_model()})",
        seconds=round(time.perf_counter() - begin, 1),
        peak_memory_mb=provenance.peak_memory_mb(torch.device("cpu")),
    )


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the convex models; see the head of this file.")
    parser.add_argument("--smoke", action="store_true", help="a small version whose numbers mean nothing")
    parser.add_argument("--repeat", type=int, help="rounds (default: 5; 1 with --smoke)")
    parser.add_argument("--only", metavar="NAME", action="append", help="cases whose names begin so; no record is kept")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the record goes, also with --only")
    parser.add_argument("--first-run", metavar="NAME", help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=[ROWS.name, TRACE.name], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.repeat = options.repeat or (1 if options.smoke else 5)
    if options.output is None and options.only is None:
        options.output = results_folder() / f"{NAME}{'.smoke' if options.smoke else ''}.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    options = parse(arguments)
    if options.first_run or options.memory:
        norm = TRACE if options.memory == TRACE.name else ROWS
        print(json.dumps(first_run(options.first_run) if options.first_run else memory(norm, options.smoke)))
        return
    started = (time.perf_counter(), *provenance.git_state())
    absent = install_rivals()
    wanted = tuple(options.only or ("",))
    chosen = [case for case in all_cases(options.smoke) if case.name.startswith(wanted)]
    rows, cases, sources, no_data = [], [], {}, {}
    for case in chosen:
        try:
            data = case.data()
        except (DataMissingError, DataCorruptError) as error:
            no_data[case.name] = str(error)
            print(f"\n{case.name}: no data ({error})")
            continue
        summary, runs = measure(case, data, options.repeat, absent)
        sources |= data.sources
        show_case(summary)
        cases.append(summary)
        rows += runs
    memories = {}
    for norm in (ROWS, TRACE):
        name = f"memory, {norm.name}, {UNEQUAL}"
        if name.startswith(wanted) and STATUS.exists():
            memories[name] = in_new_process(__file__, "--memory", norm.name, *(["--smoke"] if options.smoke else []))
            unit = {"case": name, "solver": Companion.name, "repeat": 0}
            rows.append({"unit": unit, "metrics": memories[name], "per_task": {}})
            print(f"\n{name}: {memories[name]}")
    first = first_runs(absent) if options.only is None and not options.smoke else {}
    print("".join(f"\nfirst run, {name}: {seconds:.1f} s more than the second" for name, seconds in first.items()))
    lines = verdicts(cases, memories)
    show_verdicts(lines)
    if options.output is not None:
        summary = {
            **{"cases": cases, "verdicts": lines, "memory": memories, "first_run_seconds": first},
            **{"absent": absent, "no_data": no_data},
            "system": {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": 1, "platform": platform.platform()},
        }
        build_record(options, chosen, rows, summary, sources, started).save(options.output)
        print(f"\n{options.output}")


if __name__ == "__main__":
    main()
