"""Commit, dirty flag, fingerprint and memory, against repositories made for the purpose."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from companion.experiments import _provenance
from companion.experiments._provenance import code_fingerprint, git_state, library_versions, now, peak_memory_mb

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")


@pytest.fixture
def checkout(tmp_path):
    """A repository of one commit with a package and a book."""
    for name in ("companion/a.py", "book/page.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1\n", encoding="utf-8")
    git(tmp_path, "init", "--quiet")
    commit(tmp_path)
    return tmp_path


def git(folder, *arguments):
    person = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", folder, *person, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def commit(folder):
    git(folder, "add", ".")
    git(folder, "commit", "--quiet", "--no-verify", "-m", "x")


@needs_git
def test_git_state_knows_commit_and_changes_of_the_package(checkout):
    head = git(checkout, "rev-parse", "HEAD")
    assert git_state(checkout) == (head, False)
    (checkout / "book" / "page.md").write_text("2\n", encoding="utf-8")
    assert git_state(checkout) == (head, False)  # a chapter changes no result
    (checkout / "companion" / "b.py").write_text("new\n", encoding="utf-8")
    assert git_state(checkout) == (head, True)
    commit(checkout)
    assert git_state(checkout) == (git(checkout, "rev-parse", "HEAD"), False)
    (checkout / "companion" / "a.py").write_text("2\n", encoding="utf-8")
    assert git_state(checkout)[1] is True


@needs_git
def test_git_state_of_what_is_no_checkout_is_unknown(checkout, tmp_path_factory):
    assert git_state(checkout / "companion") == (None, None)  # inside another project's repository
    empty = tmp_path_factory.mktemp("no-commit-yet")
    git(empty, "init", "--quiet")
    assert git_state(empty) == (None, None)


def test_git_state_without_git_is_unknown(monkeypatch, tmp_path):
    def missing(*args, **kwargs):
        raise FileNotFoundError("git")

    monkeypatch.setattr(_provenance.subprocess, "run", missing)
    assert git_state(tmp_path) == (None, None)


def test_fingerprint_sees_contents_names_and_subfolders(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "a.py").write_text("1", encoding="utf-8")
    seen = [code_fingerprint(tmp_path)]
    assert code_fingerprint(tmp_path) == seen[0]
    (tmp_path / "notes.txt").write_text("not code", encoding="utf-8")
    assert code_fingerprint(tmp_path) == seen[0]
    (tmp_path / "sub" / "a.py").write_text("2", encoding="utf-8")
    seen.append(code_fingerprint(tmp_path))
    (tmp_path / "sub" / "a.py").rename(tmp_path / "sub" / "b.py")
    seen.append(code_fingerprint(tmp_path))
    (tmp_path / "sub" / "b.py").rename(tmp_path / "b.py")
    seen.append(code_fingerprint(tmp_path))
    assert len(set(seen)) == 4


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no resource module")
def test_peak_memory_is_in_megabytes():
    held = np.ones(25_000_000)  # 200 MB
    measured = peak_memory_mb(torch.device("cpu"))
    assert held.nbytes / 1e6 < measured < 64_000
    assert peak_memory_mb(torch.device("meta")) is None


def test_peak_memory_is_unknown_on_windows(monkeypatch):
    monkeypatch.setattr(_provenance.sys, "platform", "win32")
    assert peak_memory_mb(torch.device("cpu")) is None


def test_versions_and_time_are_as_a_reader_expects():
    assert library_versions()["numpy"] == np.__version__
    assert now().endswith("+00:00") and "." not in now()
