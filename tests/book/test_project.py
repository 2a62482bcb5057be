"""Rules of the whole tree: imports point one way, the package loads little, the version is written once."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import companion

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "companion"

# A module may import from its own layer's modules named with it, and from every layer above.
LAYERS = (
    {"_checks"},
    {"tasks", "metrics", "records", "tensors", "book"},
    {"losses", "penalties", "sharing", "datasets"},
    {"solvers", "factorized", "plotting"},
    {"linear", "layers", "weighting"},
    {"networks", "training"},
    {"comparison", "experiments", "__main__"},
)
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}
# Narrower than its layer: a solver calls the methods it is given, so it knows what a penalty must have, not one.
PROTOCOLS_ONLY = {("solvers", "penalties")}
ONLY = {"_checks": set(), "datasets": {"tasks"}, "plotting": {"sharing", "records", "metrics"}, "book": set()}


def modules():
    """Return every module file of the package but its front door, which imports from everywhere."""
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imports_of(path):
    """Return (line, module, name) of what a file imports from companion, at its top or inside a function."""
    here = ["companion", *path.relative_to(PACKAGE).with_suffix("").parts]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [(alias.name, "") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level] if node.level else []
            stem = ".".join([*base, *([node.module] if node.module else [])])
            found = [(stem, alias.name) for alias in node.names]
        else:
            continue
        yield from ((node.lineno, module, name) for module, name in found if module.split(".")[0] == "companion")


def complaint(part, module, name):
    """Say why ``part`` must not import ``name`` from ``module``, or return None."""
    other = [*module.split("."), name][1]
    if part == other or other not in LEVEL:
        return None  # names such as companion.Tasks or companion.__version__: the front door
    if part in ONLY:
        return None if other in ONLY[part] else f"{part} may import only {sorted(ONLY[part])}, not {other}"
    if (part, other) in PROTOCOLS_ONLY:
        known = getattr(importlib.import_module(module), name, None)
        return None if getattr(known, "_is_protocol", False) else f"{part} may know only protocols of {other}"
    return None if LEVEL[other] <= LEVEL[part] else f"{other} is a later layer than {part}"


@pytest.mark.parametrize("path", modules(), ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_one_way(path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    assert part in LEVEL, f"{part} has no layer: give it one in LAYERS"
    wrong = [f"line {line}: {why}" for line, *what in imports_of(path) if (why := complaint(part, *what))]
    assert wrong == []


@pytest.mark.parametrize(
    ("part", "module", "name", "allowed"),
    [
        ("tasks", "companion.metrics", "rmse", True),
        ("tasks", "companion.linear", "Pooled", False),
        ("tasks", "companion", "linear", False),
        ("tasks", "companion", "Tasks", True),
        ("penalties", "companion.solvers", "certify", False),
        ("solvers", "companion.penalties.elementwise", "torch", False),
        ("datasets", "companion.losses", "SquaredLoss", False),
        ("plotting", "companion.records", "RunRecord", True),
    ],
)
def test_the_rule_itself(part, module, name, allowed):
    assert (complaint(part, module, name) is None) == allowed


def test_import_companion_is_light():
    """Neither plotting nor optional libraries are loaded by ``import companion``."""
    code = "import sys, companion; print([m for m in ('matplotlib', 'tensorly', 'IPython') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_does_not_know_the_book():
    """No module imports from book/ (its pages, its tools)."""
    tools = {path.stem for path in (ROOT / "book" / "_tools").glob("*.py")} | {"book"}
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                assert not {alias.name.split(".")[0] for alias in node.names} & tools, path
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                assert node.module.split(".")[0] not in tools, path


def test_one_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    citation = re.search(r'^version:\s*"?([^"\s]+)"?\s*$', (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.M)
    assert citation is not None
    assert project["version"] == citation[1] == companion.__version__


def test_pins_satisfy_the_lower_bounds():
    """Each dependency that pyproject.toml names is pinned in constraints.txt, within its bounds."""
    from packaging.requirements import Requirement

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.lower().replace("_", "-").split("==") for line in lines if line and line[0] != "#")
    for requirement in map(Requirement, wanted):
        pin = pins[requirement.name.lower().replace("_", "-")]
        assert requirement.specifier.contains(pin, prereleases=True), f"{requirement} is pinned at {pin}"
    assert not [pin for pin in pins.values() if "+" in pin], "a local version, such as +cpu, exists on no public index"
