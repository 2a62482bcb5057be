"""The frame: an interrupted run, resumed, leaves the record of an uninterrupted one; nothing stale is reused."""

import itertools
import json

import numpy as np
import pytest
import torch

from companion.experiments import _frame, _provenance
from companion.experiments._frame import Experiment, check_device, run
from companion.records import RunRecord


class Toy(Experiment):
    """Six units on made-up data; counts what it computes and can be told to stop inside a unit."""

    name = "toy"
    title = "A toy"

    def __init__(self, stop_at=None, n_rows=7, data="00"):
        self.stop_at, self.n_rows, self.data, self.computed = stop_at, n_rows, data, []

    def config(self, smoke):
        return {"seeds": (1, 2) if smoke else (3, 1, 2), "n_rows": self.n_rows}

    def units(self, config):
        return [{"seed": seed, "method": method} for seed in config["seeds"] for method in ("a", "b")]

    def run_unit(self, unit, config, device):
        if len(self.computed) == self.stop_at:
            raise KeyboardInterrupt
        self.computed.append((unit["seed"], unit["method"]))
        noise = np.random.default_rng(unit["seed"]).normal(size=config["n_rows"])
        values = noise + (unit["method"] == "b")
        return {"metrics": {"mean": values.mean()}, "per_task": {"value": values}}

    def seeds(self, config):
        return list(config["seeds"])

    def data_files(self):
        return {"toy.dat": self.data}

    def summary(self, config):
        return {"n_rows": config["n_rows"]}


ALL = [(3, "a"), (3, "b"), (1, "a"), (1, "b"), (2, "a"), (2, "b")]


@pytest.fixture
def interrupted(tmp_path):
    """A folder in which a run was stopped inside its fourth unit."""
    with pytest.raises(KeyboardInterrupt):
        run(Toy(stop_at=3), folder=tmp_path)
    return tmp_path


def test_a_run_leaves_its_record_and_nothing_else(tmp_path):
    toy = Toy()
    record = run(toy, folder=tmp_path)
    assert toy.computed == ALL
    assert [path.name for path in tmp_path.iterdir()] == ["toy.json"]
    assert RunRecord.load(tmp_path / "toy.json") == record
    assert record.values("mean", {"method": "b"}).shape == (3,)
    np.testing.assert_allclose(
        record.task_values("value", {"method": "b"}) - record.task_values("value", {"method": "a"}),
        np.ones((3, 7)),
        atol=1e-12,
    )
    assert (record.data, record.summary, record.seeds) == ({"toy.dat": "00"}, {"n_rows": 7}, [3, 1, 2])
    assert (record.smoke, record.device, record.dtype) == (False, "cpu", "float64")
    libraries = {"numpy", "scipy", "torch", "scikit-learn", "numba"}
    assert record.versions.keys() == {*libraries, "python", "companion", "platform"}


def test_an_interrupted_run_resumes_to_the_same_record(interrupted, tmp_path_factory, capsys):
    saved = json.loads((interrupted / "toy.partial.json").read_text("utf-8"))
    assert [tuple(row["unit"][k] for k in ("seed", "method")) for row in saved["rows"]] == ALL[:3]
    assert not (interrupted / "toy.json").exists()
    rest = Toy()
    record = run(rest, folder=interrupted)
    assert rest.computed == ALL[3:]
    assert "Resuming: 3 units" in capsys.readouterr().err
    assert [path.name for path in interrupted.iterdir()] == ["toy.json"]
    whole = run(Toy(), folder=tmp_path_factory.mktemp("whole"))
    assert record.results == whole.results
    assert record.same_results(whole)


def test_an_interruption_says_how_to_go_on(tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(Toy(stop_at=2), folder=tmp_path)
    message = capsys.readouterr().err
    assert "Interrupted after 2 of 6 units" in message
    assert f"kept in {tmp_path / 'toy.partial.json'}: run the same command again" in message


def test_two_interruptions_and_a_failing_unit_keep_what_was_done(interrupted):
    with pytest.raises(KeyboardInterrupt):
        run(Toy(stop_at=1), folder=interrupted)
    broken = Toy()
    broken.run_unit = lambda unit, config, device: {"metrics": {"mean": float("nan")}, "per_task": {}}
    with pytest.raises(ValueError, match=r"result of unit \{'seed': 2, 'method': 'a'\}\.metrics\.mean must be finite"):
        run(broken, folder=interrupted)
    last = Toy()
    run(last, folder=interrupted)
    assert last.computed == ALL[4:]


def test_seconds_add_up_and_memory_is_the_largest(interrupted, monkeypatch):
    path = interrupted / "toy.partial.json"
    saved = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**saved, "seconds": 1000.0, "peak_memory_mb": 70.0}), encoding="utf-8")
    clock, memory = itertools.count(step=2.0), iter([50.0, 90.0, 60.0])
    monkeypatch.setattr(_frame.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(_provenance, "peak_memory_mb", lambda device: next(memory))
    record = run(Toy(), folder=interrupted)
    assert (record.seconds, record.peak_memory_mb) == (1000 + 3 * 2.0, 90.0)


def test_memory_that_cannot_be_measured_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(_provenance, "peak_memory_mb", lambda device: None)
    assert run(Toy(), folder=tmp_path).peak_memory_mb is None


@pytest.mark.parametrize(("changed", "what"), [({"n_rows": 5}, "config"), ({"data": "11"}, "data")])
def test_another_configuration_or_data_starts_anew(interrupted, capsys, changed, what):
    toy = Toy(**changed)
    record = run(toy, folder=interrupted)
    assert toy.computed == ALL
    assert f"was computed with another {what}." in capsys.readouterr().err
    assert len(record.results) == 6


def test_another_type_starts_anew(interrupted, capsys):
    toy = Toy()
    toy.dtype = "float32"
    run(toy, folder=interrupted)
    assert toy.computed == ALL
    assert "another dtype" in capsys.readouterr().err


def test_edited_code_starts_anew(interrupted, capsys, monkeypatch):
    monkeypatch.setattr(_provenance, "code_fingerprint", lambda: "edited")
    toy = Toy()
    run(toy, folder=interrupted)
    assert toy.computed == ALL
    assert "another code" in capsys.readouterr().err


def test_a_cut_off_partial_file_starts_anew(interrupted, capsys):
    path = interrupted / "toy.partial.json"
    path.write_bytes(path.read_bytes()[:-20])
    toy = Toy()
    run(toy, folder=interrupted)
    assert toy.computed == ALL
    assert "Starting anew" in (message := capsys.readouterr().err) and "cut off" in message


def test_a_partial_file_of_another_format_starts_anew(interrupted, capsys):
    (interrupted / "toy.partial.json").write_text('{"format": 0, "key": {}}', encoding="utf-8")
    toy = Toy()
    run(toy, folder=interrupted)
    assert toy.computed == ALL
    assert "written by another version" in capsys.readouterr().err


def test_resume_can_be_declined(interrupted):
    toy = Toy()
    run(toy, folder=interrupted, resume=False)
    assert toy.computed == ALL


def test_a_smoke_run_touches_neither_the_record_nor_its_partial_file(interrupted):
    before = (interrupted / "toy.partial.json").read_bytes()
    toy = Toy()
    record = run(toy, smoke=True, folder=interrupted)
    assert record.smoke and toy.computed == ALL[2:]
    assert sorted(path.name for path in interrupted.iterdir()) == ["toy.partial.json", "toy.smoke.json"]
    assert (interrupted / "toy.partial.json").read_bytes() == before


def test_the_folder_of_results_is_the_default(tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "here"))
    run(Toy(), smoke=True)
    assert (tmp_path / "here" / "toy.smoke.json").is_file()


@pytest.mark.parametrize(
    ("device", "reason"), [("cuda:99", r"got 'cuda:99'"), ("abacus", "got 'abacus'"), ("meta", "computes nothing")]
)
def test_an_unavailable_device_is_refused_before_anything_runs(tmp_path, device, reason):
    toy = Toy()
    with pytest.raises(ValueError, match=rf"device must be .*'cpu'.*{reason}"):
        run(toy, device=device, folder=tmp_path)
    assert toy.computed == [] and list(tmp_path.iterdir()) == []
    assert check_device("cpu", "float64").type == "cpu"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device")
def test_a_run_on_a_gpu_records_its_name_and_memory(tmp_path):
    record = run(Toy(), device="cuda", folder=tmp_path)
    assert record.device.startswith("cuda (") and record.peak_memory_mb is not None
    assert _frame.check_device("cuda", "float64").type == "cuda"
