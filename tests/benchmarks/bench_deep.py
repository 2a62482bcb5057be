"""Networks that share weights: the time of a training step, against a loop over tasks and other ways to train them.

``python tests/benchmarks/bench_deep.py`` measures every case on one thread and on two, prints a table and verdicts, and
writes the record ``book/results/bench-deep.json``; ``--smoke`` runs a small version on one thread in half a minute,
whose numbers mean nothing. ``--device`` names an accelerator to measure instead of the CPU.

How it is measured. Before anything is timed, networks that should compute the same are compared: a loop with the
batched network, and the two ways to contract factors. Then the contestants of a case run in turn, a few steps of each
per round after one that is not timed, for the others have pushed its weights out of the caches; cases that differ only
in the number of tasks take turns too. Medians over the rounds are compared with those of STL-batched, all T tasks in
one network without sharing. On one thread the time is that of the processor, which means the same on a machine that
also does other things; on two threads, and on an accelerator, it is that of the clock on the wall, which does not: let
the machine be idle.

The floor of a step comes from counts and from rates that are measured before and after, see ``_deep_floor.py``. Memory
is measured in a process of its own for each network, above what the process holds before the network is made.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import STATUS, cpu_model, in_new_process, show_verdicts, status_mb, verdict
from _deep_cases import (
    COMPILED,
    IN_MEMORY,
    LAF_FULL,
    LEARNING_RATE,
    LOOP_CHANNELS_LAST,
    LOOPS,
    SEED,
    STL,
    TRAIN,
    TUCKER,
    Case,
    Method,
    Training,
    TrainingsInTurn,
    all_cases,
    latent_tasks,
    loss,
)
from _deep_floor import Rates, better, floors, measure_rates

from companion.experiments import _provenance as provenance
from companion.records import RunRecord, results_folder

NAME, TITLE = (
    "bench-deep",
    "Time of a training step of networks that share weights, against other ways to train T tasks",
)
AGREE = 1e-4  # relative difference of outputs that should be the same, in float32
AGREE_ACCELERATOR = 1e-2  # whose convolutions may round their inputs to ten bits
STEPS_IN_MEMORY = 3

Row = dict[str, Any]  # of the record: unit, metrics, per_task
Summary = dict[str, Any]  # of one case
Trainings = dict[str, Training | TrainingsInTurn]  # by the name of the method

# --- measuring --------------------------------------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    """Wait for an accelerator to finish what it was told to do."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


def timed(run: Callable[[], object], device: torch.device, repeats: int = 1) -> dict[str, float]:
    """Seconds on the wall and of the processor that one of several runs takes."""
    synchronise(device)
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(repeats):
        run()
    synchronise(device)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"seconds": wall / repeats, "cpu_seconds": cpu / repeats}


def clock(threads: int, device: torch.device) -> str:
    """Which of the two times is compared."""
    return "cpu_seconds" if threads == 1 and device.type == "cpu" else "seconds"


def begin(case: Case, device: torch.device) -> tuple[Trainings, Summary]:
    """Trainings of all contestants, ready to be timed, and notes: who cannot take part, and how far outputs differ."""
    trainings: Trainings = {}
    failed: dict[str, str] = {}
    x = case.inputs(device)
    for method in case.methods:
        if reason := method.obstacle():
            failed[method.name] = reason
            continue
        training = method.train(case, x)
        try:
            loss(training.outputs()).backward()
        except RuntimeError as error:
            if method is not COMPILED:
                raise
            # Whether a compiler that is there does what torch asks of it can only be tried.
            failed[method.name] = f"cannot be compiled: {type(error).__name__}"
            continue
        trainings[method.name] = training
    differences = check_agreement(case, trainings, device)
    for training in trainings.values():
        training.step()  # makes the state of the optimizer
    return trainings, {"failed": failed, "differences": differences}


def check_agreement(case: Case, trainings: Trainings, device: torch.device) -> dict[str, float]:
    """Largest difference between outputs that should be the same, over the largest output; refuses a large one."""
    differences = {}
    for method in case.methods:
        if method.same_as in trainings and method.name in trainings:
            found, wanted = (trainings[name].outputs().detach() for name in (method.name, method.same_as))
            differences[method.name] = difference = float((found - wanted).abs().max() / wanted.abs().max())
            if not difference <= (AGREE if device.type == "cpu" else AGREE_ACCELERATOR):
                raise RuntimeError(f"{case.name}: {method.name} and {method.same_as} differ by {difference:.1e}")
    return differences


def measure(cases: Sequence[Case], threads: int, device: torch.device, rounds: int) -> tuple[list[Summary], list[Row]]:
    """Run all contestants of some cases in turn; a summary of every case, and a row for every turn."""
    ready = [(case, *begin(case, device)) for case in cases]
    rows: list[Row] = []
    for repeat in range(rounds):
        for case, trainings, _ in ready:
            for name, training in trainings.items():
                training.step()
                unit = {"case": case.name, "method": name, "repeat": repeat, "threads": threads}
                rows.append({"unit": unit, "metrics": timed(training.step, device, case.steps), "per_task": {}})
    return [summarise(case, threads, device, rows, trainings) | notes for case, trainings, notes in ready], rows


def summarise(case: Case, threads: int, device: torch.device, rows: Sequence[Row], trainings: Trainings) -> Summary:
    """Medians and minima of every contestant, and the median of its time over that of STL-batched in the same turn."""
    methods, compared = [], clock(threads, device)
    turns: dict[str, list[float]] = {}
    for name, training in trainings.items():
        runs = [row["metrics"] for row in rows if (row["unit"]["case"], row["unit"]["method"]) == (case.name, name)]
        turns[name] = [metrics[compared] for metrics in runs]
        method: Summary = {"method": name, "parameters": training.n_parameters, "repeats": len(runs)}
        for key in ("seconds", "cpu_seconds"):
            values = [metrics[key] for metrics in runs]
            method |= {f"{key}_median": median(values), f"{key}_min": min(values)}
        methods.append(method)
    medians = {method["method"]: method[f"{compared}_median"] for method in methods}
    return {
        **{"case": case.name, "kind": case.kind, "sizes": list(case.sizes), "T": case.T, "B": case.B},
        **{"threads": threads, "clock": compared, "methods": methods},
        "ratios": {name: over(seconds, turns[STL]) for name, seconds in turns.items()},
        "turns": turns,
        "seconds_per_task": {name: seconds / case.T for name, seconds in medians.items()},
    }


def over(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Median ratio of two contestants that ran in turn: what slows the machine down for a while slows both."""
    return median(one / other for one, other in zip(seconds, reference, strict=True))


def in_short(rows: Sequence[Row]) -> list[Row]:
    """One row for every contestant of a case: quartiles of its turns, and how many there were."""
    turns: dict[str, list[Row]] = {}
    for row in rows:
        turns.setdefault(json.dumps({k: v for k, v in row["unit"].items() if k != "repeat"}), []).append(row)
    short = []
    for unit, found in turns.items():
        metrics: dict[str, float] = {"turns": len(found)}
        for key in ("seconds", "cpu_seconds"):
            quartiles = np.quantile([row["metrics"][key] for row in found], (0.25, 0.5, 0.75))
            metrics |= dict(zip((f"{key}_low", f"{key}_median", f"{key}_high"), quartiles.tolist(), strict=True))
        short.append({"unit": json.loads(unit), "metrics": metrics, "per_task": {}})
    return short


# --- processes of their own -------------------------------------------------------------------------------------------


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Measure the cases on the threads that this process was given."""
    threads, device = options.threads[0], torch.device(options.device)
    torch.set_num_threads(threads)
    seconds_of = lambda run: timed(run, device)[clock(threads, device)]
    first = measure_rates(seconds_of, device, options.smoke)
    print(f"\n{'=' * 20} {threads} thread{'s' if threads > 1 else ''}", flush=True)
    cases, rows = [], []
    for _, group in groupby(chosen_cases(options), lambda case: case.kind):
        together = list(group)
        summaries, runs = measure(together, threads, device, n_rounds(together[0], options))
        for summary in summaries:
            show_case(summary)
        cases += summaries
        rows += in_short(runs)
    rates = better(first, measure_rates(seconds_of, device, options.smoke))
    found = floors(chosen_cases(options), cases, rates)
    show_floors(found, rates)
    return {
        **{"cases": cases, "rows": rows, "rates": {"threads": threads, **rates._asdict()}},
        **{"floors": [{"threads": threads, **floor} for floor in found]},
        "peak_memory_mb": provenance.peak_memory_mb(device),
    }


def in_worker(options: argparse.Namespace, threads: int) -> dict[str, Any]:
    """What :func:`work` finds in a new process, which prints as it goes."""
    libraries = ("OMP", "OPENBLAS", "MKL", "NUMBA", "VECLIB_MAXIMUM")
    environment = os.environ | {f"{library}_NUM_THREADS": str(threads) for library in libraries}
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", str(result), "--threads", str(threads)]
        subprocess.run([*command, *common_arguments(options)], env=environment, check=True)
        return json.loads(result.read_text(encoding="utf-8"))


def common_arguments(options: argparse.Namespace) -> list[str]:
    """The command line again, for a process of its own."""
    arguments = ["--device", options.device, *(["--smoke"] if options.smoke else [])]
    arguments += [] if options.repeat is None else ["--repeat", str(options.repeat)]
    return arguments + [part for name in options.only or () for part in ("--only", name)]


def memory(method: Method, options: argparse.Namespace) -> dict[str, float]:
    """Largest memory of a network, its optimizer and a few steps, above what is held before, in megabytes.

    A tiny network is trained first: what libraries load at their first use counts for nobody. Making a network is told
    apart from training it.
    """
    device = torch.device(options.device)
    for case in (memory_case(smoke=True), memory_case(options.smoke)):
        x = case.inputs(device)
        before, _ = memory_mb(device)
        training = method.train(case, x)
        _, making = memory_mb(device)
        for _ in range(STEPS_IN_MEMORY):
            training.step()
        held, peak = memory_mb(device)
    return {
        **{"peak_mb": peak - before, "peak_making_mb": making - before, "held_mb": held - before},
        "parameters_mb": 4 * training.n_parameters / 1e6,
    }


def memory_mb(device: torch.device) -> tuple[float, float]:
    """Megabytes held now, and at most so far: by the process, or by tensors on an accelerator."""
    if device.type == "cpu":
        return status_mb("VmRSS"), status_mb("VmHWM")
    return torch.accelerator.memory_allocated() / 1e6, torch.accelerator.max_memory_allocated() / 1e6


def measure_memory(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """:func:`memory` of some contestants at the largest T, where the system tells it."""
    wanted = tuple(options.only or ("",))
    if not "memory".startswith(wanted) or (options.device == "cpu" and not STATUS.exists()):
        return {}
    T, found = memory_case(options.smoke).T, {}
    for method in IN_MEMORY:
        arguments = ("--memory", method.name, "--threads", "1", *common_arguments(options))
        found[method.name] = in_new_process(__file__, *arguments, OMP_NUM_THREADS="1")
        show_memory(f"T={T}, {method.name}", **found[method.name])
    return found


def memory_case(smoke: bool) -> Case:
    """The network and the number of tasks whose memory is measured."""
    return max((case for case in all_cases(smoke) if case.kind == "growth"), key=lambda case: case.T)


# --- verdicts ---------------------------------------------------------------------------------------------------------


def verdicts(cases: Sequence[Summary], memories: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """What was to be reached, and what was; lines whose cases were not measured are left out.

    Returns
    -------
    list of dict
        As :func:`_common.verdict` has them, with the number of ``threads``.
    """
    lines = []
    for threads in sorted({case["threads"] for case in cases}):
        ours = [case for case in cases if case["threads"] == threads]
        found = [line for case in ours for line in step_verdicts(case)]
        found += growth_verdicts([case for case in ours if case["kind"] == "growth"])
        name = "1 thread" if threads == 1 else f"{threads} threads"
        lines += [line | {"line": f"{line['line']}, {name}", "threads": threads} for line in found]
    if memories:
        tucker = TUCKER["quarter"].name
        figure = memories[tucker]["peak_mb"] / memories[STL]["peak_mb"]
        lines.append(verdict(f"peak memory: {tucker}", "of STL-batched", figure, 0.25) | {"threads": 1})
    return lines


def step_verdicts(case: Summary) -> list[dict[str, Any]]:
    """Lines about the step of one case; its kind says which there are."""
    ratios, kind = case["ratios"], case["kind"]
    faster = {"MLP": 2.0, "small nets": 8.0, "LeNet-heavy": 1.0}
    lines = []
    if kind in faster:
        for loop in (*LOOPS, LOOP_CHANNELS_LAST):
            if loop.name in ratios:
                lines.append((f"STL-batched over {loop.name}", "times", ratios[loop.name], faster[kind]))
    if kind in ("MLP", "LeNet-heavy"):
        base = 1.25 if case["threads"] == 1 else 1.55
        for name, K in latent_tasks(case["T"]).items():
            lines.append((name, "of STL-batched", ratios[name], base + K / case["B"]))
        for formats in (TUCKER, TRAIN):
            for part, wanted in (("half", 1.2), ("quarter", 0.8)):
                lines.append((formats[part].name, "of STL-batched", ratios[formats[part].name], wanted))
    if kind == "MLP":
        for formats in (TUCKER, TRAIN):
            name, turns = formats["full"].name, case["turns"]
            lines.append((name, f"of {LAF_FULL.name}", over(turns[name], turns[LAF_FULL.name]), 1.0))
    return [verdict(f"{case['case']}: {line}", unit, figure, wanted) for line, unit, figure, wanted in lines]


def growth_verdicts(cases: Sequence[Summary]) -> list[dict[str, Any]]:
    """Lines about the time per task when there are more tasks; none for LAF with K = T, whose arithmetic grows."""
    lines = []
    for name, factor in growth(cases).items():
        if name != LAF_FULL.name:
            lines.append(verdict(f"growth: {name}, time per task", "of that at the smallest T", factor, 1.3))
    return lines


def growth(cases: Sequence[Summary]) -> dict[str, float]:
    """Largest time per task over that at the smallest T, for every method."""
    if not cases:
        return {}
    first, *_ = ordered = sorted(cases, key=lambda case: case["T"])
    return {
        name: max(over(case["turns"][name], turns) * first["T"] / case["T"] for case in ordered)
        for name, turns in first["turns"].items()
    }


# --- output -----------------------------------------------------------------------------------------------------------


def show_case(case: Summary) -> None:
    """Print one case as a block of the table."""
    sizes = "-".join(map(str, case["sizes"]))
    print(f"\n{case['case']} [{sizes}; T={case['T']}, B={case['B']}; {case['clock']}]")
    for m in case["methods"]:
        typical, least = (1e3 * m[f"{case['clock']}_{which}"] for which in ("median", "min"))
        print(
            f"  {m['method']:<38} {typical:8.2f} ms (min {least:8.2f})  wall {1e3 * m['seconds_median']:8.2f}  "
            f"ratio {case['ratios'][m['method']]:5.2f}  {m['parameters']:>11,} numbers"
        )
    for name, reason in case["failed"].items():
        print(f"  {name:<38} {reason}")
    sys.stdout.flush()


def show_floors(found: Sequence[dict[str, Any]], rates: Rates) -> None:
    """Print the rates of the machine, and how near to the floor steps are."""
    print(
        f"\nmatrix products {rates.flops / 1e9:.0f} GFLOP/s, reading {rates.read / 1e9:.1f} GB/s, "
        f"writing {rates.written / 1e9:.1f} GB/s"
    )
    for f in found:
        print(
            f"  {f['case']:<14} {f['method']:<12} {f['gflop']:6.2f} GFLOP, {f['gbyte']:6.2f} GB: at least "
            f"{1e3 * f['seconds']:7.2f} ms, {f['fraction']:.2f} of what it takes"
        )
    sys.stdout.flush()


def show_memory(who: str, peak_mb: float, peak_making_mb: float, held_mb: float, parameters_mb: float) -> None:
    """Print what one network holds."""
    print(
        f"memory, {who}: at most {peak_mb:.0f} MB, {peak_making_mb:.0f} MB of it until it is made; in the end "
        f"{held_mb:.0f} MB; parameters {parameters_mb:.1f} MB",
        flush=True,
    )


def load_average() -> list[float] | None:
    """Processes that want to run, over 1, 5 and 15 minutes; None where the system does not tell."""
    return list(os.getloadavg()) if hasattr(os, "getloadavg") else None


def build_record(
    options: argparse.Namespace, parts: Sequence[dict[str, Any]], summary: Summary, started: tuple[Any, ...]
) -> RunRecord:
    """The record; times do not repeat exactly, everything else about them does."""
    since, commit, dirty = started
    device = torch.device(options.device)
    peaks = [part["peak_memory_mb"] for part in parts if part["peak_memory_mb"] is not None]
    return RunRecord(
        name=options.name,
        title=TITLE,
        config={
            "cases": {
                case.name: {
                    **{"network": case.network.__name__, "sizes": case.sizes, "sample": case.sample},
                    **{"T": case.T, "B": case.B, "steps": case.steps, "rounds": n_rounds(case, options)},
                }
                for case in chosen_cases(options)
            },
            **{"threads": options.threads, "learning_rate": LEARNING_RATE, "steps_in_memory": STEPS_IN_MEMORY},
            "loss": "mean squared output, summed over tasks",
        },
        seeds=[SEED],
        results=[row for part in parts for row in part["rows"]],
        data={},
        summary=summary,
        dtype="float32",
        smoke=options.smoke,
        commit=commit,
        dirty=dirty,
        created=provenance.now(),
        versions=provenance.library_versions(),
        device=f"cpu ({cpu_model()})" if device.type == "cpu" else provenance.device_name(device),
        seconds=round(time.perf_counter() - since, 1),
        peak_memory_mb=max(peaks, default=None),
    )


def chosen_cases(options: argparse.Namespace) -> list[Case]:
    """Cases whose names begin as asked for."""
    return [case for case in all_cases(options.smoke) if case.name.startswith(tuple(options.only or ("",)))]


def n_rounds(case: Case, options: argparse.Namespace) -> int:
    """Turns of every contestant."""
    return options.repeat or (1 if options.smoke else case.rounds)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Benchmark of the deep networks; see the head of this file.")
    parser.add_argument("--smoke", action="store_true", help="a small version whose numbers mean nothing")
    parser.add_argument(
        "--threads", choices=["1", "2", "both"], help="default: both; 1 on an accelerator or with --smoke"
    )
    parser.add_argument("--device", default="cpu", help="device to measure, such as cuda (default: cpu)")
    parser.add_argument("--repeat", type=int, help="rounds (default: those of the case; 1 with --smoke)")
    parser.add_argument("--only", metavar="NAME", action="append", help="cases whose names begin so; no record is kept")
    parser.add_argument("--output", metavar="FILE", type=Path, help="where the record goes, also with --only")
    parser.add_argument("--worker", metavar="FILE", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--memory", choices=[method.name for method in IN_MEMORY], help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    accelerated = torch.device(options.device).type != "cpu"
    threads = options.threads or ("1" if accelerated or options.smoke else "both")
    options.threads = [1, 2] if threads == "both" else [int(threads)]
    options.name = f"{NAME}-{torch.device(options.device).type}" if accelerated else NAME
    if options.output is None and options.only is None:
        options.output = results_folder() / f"{options.name}{'.smoke' if options.smoke else ''}.json"
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and write the record."""
    options = parse(arguments)
    if options.worker is not None:
        options.worker.write_text(json.dumps(work(options)), encoding="utf-8")
        return
    if options.memory is not None:
        method = next(method for method in IN_MEMORY if method.name == options.memory)
        print(json.dumps(memory(method, options)))
        return
    started = (time.perf_counter(), *provenance.git_state())
    before = load_average()
    print(f"load average at the start: {before}", flush=True)
    parts = [in_worker(options, threads) for threads in options.threads] if chosen_cases(options) else []
    memories = measure_memory(options)
    cases = [case for part in parts for case in part["cases"]]
    lines = verdicts(cases, memories)
    show_verdicts(lines)
    for case in cases:
        del case["turns"]  # the record has their quartiles
    if options.output is not None:
        system = {"cpu": cpu_model(), "cores": os.cpu_count(), "threads": options.threads}
        system |= {"platform": platform.platform(), "load_average": {"start": before, "end": load_average()}}
        summary = {"cases": cases, "rates": [part["rates"] for part in parts]}
        summary |= {"floors": [floor for part in parts for floor in part["floors"]]}
        summary |= {"memory": memories, "verdicts": lines, "system": system}
        build_record(options, parts, summary, started).save(options.output)
        print(f"\n{options.output}")


if __name__ == "__main__":
    main()
