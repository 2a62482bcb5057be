"""Records: what goes to the file comes back, files are whole, damaged ones are named, and settings are paired."""

import dataclasses
import json
import subprocess

import numpy as np
import pytest

from companion import records
from companion.records import RunRecord, load_record, load_records, results_folder, to_json


def row(split, method, rmse, tasks):
    return {"unit": {"split": split, "method": method}, "metrics": {"rmse": rmse}, "per_task": {"rmse": tasks}}


def make(**changes):
    """A record of 3 splits, out of order, of 2 methods on 4 tasks."""
    values = dict(
        name="toy",
        title="A toy — with ünicode",
        config={"alphas": (0.1, 1.0), "n": np.int64(3), "grid": np.array([1.5, 2.5])},
        seeds=[7],
        results=[
            row(2, "single", 0.1 + 0.2, [1.0, 2.0, 3.0, 4.0]),
            row(10, "single", 1e-17, [5, 6, 7, 8]),
            row(1, "single", 2.5, [0.0, 0.5, 1.0, 1.5]),
            row(1, "pooled", 3.5, [9, 9, 9, 8]),
        ],
        data={"a.mat": "00ff"},
        dtype="float64",
        smoke=False,
        commit=None,
        dirty=None,
        created="2026-01-02T03:04:05+00:00",
        versions={"python": "3.11.0"},
        device="cpu",
        seconds=1.25,
        peak_memory_mb=None,
    )
    return RunRecord(**{**values, **changes})


def test_a_record_survives_the_round_trip(tmp_path):
    record = make()
    record.save(tmp_path / "toy.json")
    assert RunRecord.load(tmp_path / "toy.json") == record
    assert record.config == {"alphas": [0.1, 1.0], "n": 3, "grid": [1.5, 2.5]}


def test_the_same_record_has_the_same_bytes(tmp_path):
    """Whatever the order in which dictionaries were filled; no carriage returns on any system."""
    make(config={"a": 1, "b": [1, 2]}).save(tmp_path / "one.json")
    make(config={"b": [1, 2], "a": 1}).save(tmp_path / "two.json")
    text = (tmp_path / "one.json").read_bytes()
    assert text == (tmp_path / "two.json").read_bytes()
    assert text.endswith(b"\n}\n") and b"\r" not in text
    assert b'\n  "b": [1, 2]\n' in text  # indented by one per level, plain lists on one line


def test_to_json_is_json():
    value = {"b": [], "a": {}, "c": [[1, 2.5], {"x": None, "y": [True]}], "d": 'quote " and\nline'}
    assert json.loads(to_json(value)) == value


def test_a_failing_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "toy.json"
    make().save(path)
    before = path.read_bytes()

    def full_disk(*args, **kwargs):
        raise OSError("no space left")

    monkeypatch.setattr(records.os, "replace", full_disk)
    with pytest.raises(OSError, match="no space left"):
        make(title="another").save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["toy.json"]
    assert path.read_bytes() == before


def test_half_a_write_is_never_seen_under_the_name(tmp_path, monkeypatch):
    """The file that is moved into place is complete at that moment."""
    seen = []
    replace = records.os.replace
    monkeypatch.setattr(
        records.os, "replace", lambda a, b: (seen.append(json.loads(a.read_text("utf-8"))), replace(a, b))
    )
    make().save(tmp_path / "new" / "toy.json")
    assert [content["name"] for content in seen] == ["toy"]
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["toy.json"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"config": {"a": [1.0, float("nan")]}}, r"config\.a\[1\] must be finite or None; got nan"),
        ({"results": [row(1, "x", float("inf"), [])]}, r"results\[0\]\.metrics\.rmse must be finite or None; got inf"),
        ({"config": {"a": {1, 2}}}, r"config\.a must be numbers, strings, lists and dictionaries; got set"),
        ({"config": {3: "x"}}, "config must have strings as keys; got 3"),
        ({"results": [{"unit": {}}]}, r"results\[0\] must hold exactly unit, metrics and per_task; got \['unit'\]"),
        ({"results": [3]}, r"results\[0\] must hold exactly unit, metrics and per_task; got 3"),
        ({"seconds": "1"}, "seconds must be a number; got '1'"),
        ({"dirty": 1}, "dirty must be true, false or null; got 1"),
    ],
)
def test_a_record_refuses_what_json_cannot_hold(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


def damaged(tmp_path, change):
    """A saved record with its content changed by hand."""
    path = tmp_path / "toy.json"
    make().save(path)
    content = json.loads(path.read_text("utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("seeds"), r"toy\.json does not have the fields of a record: missing \['seeds'\], unexpected"),
        (lambda c: c.update(colour=1), r"missing \[\], unexpected \['colour'\]"),
        (lambda c: c.update(format=2), "can read: expected format 1, found 2"),
        (lambda c: c.pop("format"), "expected format 1, found None"),
        (lambda c: c.update(data=[]), r"toy\.json: data must be a dictionary; got \[\]"),
    ],
)
def test_a_damaged_record_is_refused(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        RunRecord.load(damaged(tmp_path, change))


def test_a_cut_off_record_is_refused(tmp_path):
    path = tmp_path / "toy.json"
    make().save(path)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"toy\.json is not complete JSON .*cut off or edited"):
        RunRecord.load(path)
    path.write_text("[]\n", encoding="utf-8")
    with pytest.raises(ValueError, match="must hold one JSON object; found a list"):
        RunRecord.load(path)


def test_same_results_ignores_how_it_came_about_only():
    record = make()
    later = dataclasses.replace(record, seconds=9.0, created="x", commit="y", dirty=True, device="z", versions={})
    assert record.same_results(dataclasses.replace(later, peak_memory_mb=3.0))
    for name in ("config", "data", "summary"):
        assert not record.same_results(dataclasses.replace(record, **{name: {"other": "1"}}))
    assert not record.same_results(dataclasses.replace(record, results=record.results[:-1]))
    assert not record.same_results(dataclasses.replace(record, seeds=[8]))


def test_values_are_ordered_by_split_as_numbers():
    """Split 10 comes after 2, and rows are stored in another order."""
    record = make()
    np.testing.assert_array_equal(record.values("rmse", {"method": "single"}), [2.5, 0.1 + 0.2, 1e-17])
    expected = [[0.0, 0.5, 1.0, 1.5], [1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]
    np.testing.assert_array_equal(record.task_values("rmse", {"method": "single"}), expected)


@pytest.mark.parametrize(
    ("metric", "unit", "message"),
    [
        ("rmse", {}, r"leaves more than one row per repetition of toy; choose also \['method'\]"),
        ("rmse", {"method": "ridge"}, r"no unit with .*ridge.*'method': \['single', 'pooled'\], 'split': \[2, 10, 1\]"),
        ("rmse", {"scaling": "raw"}, "no unit with"),
        ("accuracy", {"method": "pooled"}, r"no 'accuracy' among the metrics of this unit: \['rmse'\]"),
    ],
)
def test_values_refuses_an_unclear_choice(metric, unit, message):
    with pytest.raises(ValueError, match=message):
        make().values(metric, unit)


def test_load_records_takes_complete_ones_by_name(tmp_path):
    for name in ("b", "a", "a.smoke"):
        make(name=name).save(tmp_path / f"{name}.json")
    (tmp_path / "c.partial.json").write_text("{", encoding="utf-8")
    assert [record.name for record in load_records(tmp_path)] == ["a", "b"]
    assert load_record("b", tmp_path).name == "b"
    with pytest.raises(FileNotFoundError, match=r"present: \['a', 'b'\]. To compute it: .*experiments c$"):
        load_record("c", tmp_path)


def test_results_folder_is_the_checkouts_or_the_variables(monkeypatch, tmp_path):
    monkeypatch.delenv("COMPANION_RESULTS", raising=False)
    (tmp_path / "book").mkdir()
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "companion")
    assert results_folder() == tmp_path / "book" / "results"
    monkeypatch.setenv("COMPANION_RESULTS", str(tmp_path / "mine"))
    assert results_folder() == tmp_path / "mine"
    monkeypatch.setenv("COMPANION_RESULTS", "")
    monkeypatch.setattr(records, "PACKAGE", tmp_path / "site-packages" / "companion")
    with pytest.raises(FileNotFoundError, match=r"not used from a checkout.*set COMPANION_RESULTS"):
        results_folder()


def test_git_must_not_be_needed_to_read_records(monkeypatch, tmp_path):
    """Reading asks no other program."""
    make().save(tmp_path / "toy.json")
    monkeypatch.setattr(subprocess, "run", lambda *a, **k: pytest.fail("a program was started"))
    assert load_record("toy", tmp_path).commit is None
