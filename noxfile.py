"""The commands of the project: ``nox -s book``, ``nox -s tests``, ``nox -s lint``, ``nox -s bench``, ``nox -s gpu``.

The first four share one environment, ``.nox/companion``, so that a fresh clone installs torch once. It is made
again only when pyproject.toml or constraints.txt change; from then on nothing here needs the network.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import nox

ROOT = Path(__file__).resolve().parent
BUILD = ROOT / "_build"
CACHE = BUILD / ".jupyter_cache"
NBMAKE = ["--nbmake", "--overwrite", "--nbmake-timeout=120", "-p", "no:cacheprovider"]
# One worker per core; whoever has nothing left takes over from the others.
PARALLEL = ["-n", "auto", "--dist", "worksteal"]
# Not below _build, which nbmake skips.
NOTEBOOKS = ROOT / "build" / "notebooks"
ENVIRONMENT = ROOT / ".nox" / "companion"
PYTHON = ENVIRONMENT / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
# jupyter-book has no "python -m" of its own.
JUPYTER_BOOK = "import sys; from jupyter_book.cli.main import main; sys.exit(main(prog_name='jupyter-book'))"

nox.needs_version = ">=2024.10.9"
nox.options.default_venv_backend = "none"  # nox knows one environment per session; install() makes the shared one
nox.options.sessions = ["book"]
nox.options.error_on_external_run = False


@nox.session
def book(session: nox.Session) -> None:
    """Build the book; prints the page to open."""
    install(session)
    build_book(session)


@nox.session
def tests(session: nox.Session) -> None:
    """Build the book, run every test, run every notebook and compare its outputs with the book's.

    Arguments after ``--`` go to pytest, which then runs alone: ``nox -s tests -- tests/linear -k ridge``.
    """
    install(session)
    if session.posargs:
        python(session, "-m", "pytest", *session.posargs)
        return
    build_book(session)
    python(session, "-m", "pytest", *PARALLEL, "tests", "companion")
    copy_notebooks()
    python(session, "-m", "pytest", *PARALLEL, *NBMAKE, str(NOTEBOOKS))
    python(session, "book/_tools/outputs.py", str(CACHE), str(NOTEBOOKS))


@nox.session
def lint(session: nox.Session) -> None:
    """Check style and types, and that the committed notebooks are those of the pages."""
    install(session)
    python(session, "-m", "ruff", "check", ".")
    python(session, "-m", "ruff", "format", "--check", ".")
    python(session, "-m", "mypy")
    python(session, "book/_tools/notebooks.py", "--check")


@nox.session
def bench(session: nox.Session) -> None:
    """Run the benchmarks, or those named after ``--``: slow, and meaningful only on an idle machine."""
    install(session)
    names = session.posargs or [path.stem for path in sorted((ROOT / "tests" / "benchmarks").glob("bench_*.py"))]
    for name in names:
        python(session, f"tests/benchmarks/{name}.py")


@nox.session
def gpu(session: nox.Session) -> None:
    """Run the tests that need an accelerator, with the Python and the torch that are active."""
    session.run("python", "-m", "pytest", "-m", "gpu", *session.posargs)


@nox.session
def colab(session: nox.Session) -> None:
    """Run the notebooks on the Python that is active, as Colab would, whatever versions it holds."""
    session.run("python", "-m", "pip", "install", "--quiet", "-e", ".", "nbmake")
    copy_notebooks()
    session.run("python", "-m", "pytest", *NBMAKE, str(NOTEBOOKS), env={"MPLBACKEND": None})


def install(session: nox.Session) -> None:
    """Make the shared environment, unless it already holds what is asked for.

    Plain pip with exact pins: a resolver that ignored them would bring gigabytes of another torch.
    """
    wanted = digest([ROOT / "pyproject.toml", ROOT / "constraints.txt"]) + sys.version
    stamp = ENVIRONMENT / "installed.txt"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return
    session.run(sys.executable, "-m", "virtualenv", "--clear", "--quiet", str(ENVIRONMENT))
    python(session, "-m", "pip", "install", "-c", "constraints.txt", "-e", ".[book,test]", "ruff", "mypy")
    stamp.write_text(wanted, encoding="utf-8")


def python(session: nox.Session, *arguments: str) -> None:
    """Run the Python of the shared environment, drawing figures inline as the pages do."""
    # MPLBACKEND=Agg would leave the pages without figures; a foreign virtual environment must not leak in.
    clean = {"MPLBACKEND": None, "VIRTUAL_ENV": None, "PYTHONPATH": None}
    # Small matrices are the rule here, and on a busy machine two threads on them are many times slower than one.
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    session.run(str(PYTHON), *arguments, env=clean | threads)


def build_book(session: nox.Session) -> None:
    """Build the HTML with warnings as errors, with no output kept from another state of the package."""
    inputs = [*(ROOT / "companion").rglob("*.py"), *(ROOT / "book" / "results").glob("*.json")]
    wanted = digest([ROOT / "constraints.txt", *sorted(inputs)]) + os.environ.get("COMPANION_DATA", "")
    stamp = BUILD / "inputs.txt"
    if not stamp.exists() or stamp.read_text(encoding="utf-8") != wanted:
        # jupyter-cache looks at the code of the cells only: it would show what an earlier package printed.
        shutil.rmtree(BUILD, ignore_errors=True)
        BUILD.mkdir()
        stamp.write_text(wanted, encoding="utf-8")
    try:
        python(session, "-c", JUPYTER_BOOK, "build", ".", "-W", "-n", "--keep-going")
    except BaseException:
        # Sphinx does not repeat the warnings of a page it has read: the next build would pass.
        shutil.rmtree(BUILD / ".doctrees", ignore_errors=True)
        raise
    session.log(f"open {(BUILD / 'html' / 'index.html').as_uri()}")


def copy_notebooks() -> None:
    """Copy the notebooks to where they are executed: the committed ones keep no outputs."""
    shutil.rmtree(NOTEBOOKS, ignore_errors=True)
    NOTEBOOKS.mkdir(parents=True)
    for notebook in sorted((ROOT / "book").glob("*.ipynb")):
        shutil.copy(notebook, NOTEBOOKS)


def digest(paths: list[Path]) -> str:
    """Return one sha256 of the names and contents of files."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()
