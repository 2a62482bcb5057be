"""``python -m companion.experiments``, as a reader types it."""

import os
import subprocess
import sys

import pytest

from companion.experiments import EXPERIMENTS, __main__
from companion.experiments._frame import Experiment
from companion.records import RunRecord
from tests.needs import needs_school


def command(*arguments, **environment):
    """Run the command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "companion.experiments", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


def test_list_names_every_experiment():
    done = command("--list")
    assert done.returncode == 0
    assert [line.split()[0] for line in done.stdout.splitlines()] == sorted(e.name for e in EXPERIMENTS)


@pytest.mark.parametrize("arguments", [["school-baseline"], []])
def test_an_unknown_name_lists_those_there_are(arguments):
    done = command(*arguments)
    assert done.returncode == 2
    names = ", ".join(sorted(experiment.name for experiment in EXPERIMENTS))
    expected = f"NAME must be one of {names}; got {arguments[0] if arguments else 'nothing'}"
    assert expected in done.stderr


def test_an_unavailable_device_is_named(tmp_path):
    done = command("school-baselines", "--device", "cuda:99", "--output", str(tmp_path))
    assert done.returncode == 1
    assert "device must be one that computes in float64 here" in done.stderr and "'cuda:99'" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_data_are_named_with_the_way_to_get_them(tmp_path):
    """No files, no cache, and a proxy at a port where nothing listens."""
    nowhere = {name: "http://127.0.0.1:9" for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")}
    empty = {"COMPANION_DATA": str(tmp_path / "data"), "COMPANION_CACHE": str(tmp_path / "cache")}
    done = command("school-controls", "--smoke", "--output", str(tmp_path / "out"), **nowhere, **empty)
    assert done.returncode == 1
    assert "school/school_b.mat" in done.stderr and "COMPANION_DATA" in done.stderr
    assert "Traceback" not in done.stderr and not (tmp_path / "out").exists()


class Stopping(Experiment):
    """Two units; the second is interrupted the first time."""

    name, title, stopped = "stopping", "Stops once", False

    def config(self, smoke):
        return {}

    def units(self, config):
        return [{"seed": 0}, {"seed": 1}]

    def run_unit(self, unit, config, device):
        if unit["seed"] == 1 and not self.stopped:
            self.stopped = True
            raise KeyboardInterrupt
        return {"metrics": {"seed": unit["seed"]}, "per_task": {}}


def test_ctrl_c_ends_with_its_status_and_the_same_command_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(__main__, "EXPERIMENTS", (Stopping(),))
    arguments = ["stopping", "--output", str(tmp_path)]
    assert __main__.main(arguments) == 130
    assert "run the same command again" in capsys.readouterr().err
    assert __main__.main(arguments) == 0
    printed = capsys.readouterr()
    assert "Resuming: 1 units" in printed.err
    assert printed.out.startswith("2 units in ") and printed.out.endswith(f"{tmp_path / 'stopping.json'}\n")


def smoke_record(name, folder):
    """The record of a smoke run from the command line, which leaves nothing else behind."""
    done = command(name, "--smoke", "--output", str(folder))
    assert done.returncode == 0, done.stderr
    assert [path.name for path in folder.iterdir()] == [f"{name}.smoke.json"]
    record = RunRecord.load(folder / f"{name}.smoke.json")
    assert record.smoke and record.name == name
    assert len(record.results) == len({str(row["unit"]) for row in record.results}) > 1
    return record


@needs_school
@pytest.mark.parametrize("name", [e.name for e in EXPERIMENTS if e.name.startswith("school-")])
def test_smoke_run_on_school_writes_a_smoke_record(name, tmp_path):
    record = smoke_record(name, tmp_path)
    assert len(record.data) == 11 and len(record.results) > 10
    assert all(len(row["per_task"]["rmse"]) == 20 for row in record.results)


#: Beside the experiments on School: what they read, and the number of files.
WITH_DATA = {
    "computer-survey": ("computer_survey/", 1),
    "gomtl-computer": ("computer_survey/", 1),
    "gomtl-mnist": ("kang_digits/ and mnist/", 5),
    "gomtl-new-tasks": ("school/school_b.mat and its splits", 11),
    "gomtl-school": ("school/school_b.mat and its splits", 11),
    "gomtl-usps": ("kang_digits/ and usps/", 2),
}


@pytest.mark.parametrize(
    "name", [e.name for e in EXPERIMENTS if not e.name.startswith("school-") and e.name not in WITH_DATA]
)
def test_smoke_run_without_data_writes_a_smoke_record(name, tmp_path):
    record = smoke_record(name, tmp_path)
    assert set(record.data) == ({"scikit-learn digits"} if name == "dmtrl-digits" else set())  # which it brings along


def reading(name):
    """The experiment, skipped where its data are not named."""
    reason = f"needs {WITH_DATA[name][0]}: COMPANION_DATA is not set"
    return pytest.param(name, marks=pytest.mark.skipif(not os.environ.get("COMPANION_DATA"), reason=reason))


@pytest.mark.parametrize("name", [reading(name) for name in WITH_DATA if name.startswith("gomtl-")])
def test_smoke_run_of_latent_tasks_on_data_writes_a_smoke_record(name, tmp_path):
    record = smoke_record(name, tmp_path)
    assert len(record.data) == WITH_DATA[name][1]
    assert max(row["metrics"].get("certificate", 0.0) for row in record.results) <= record.config["latent_tol"]
