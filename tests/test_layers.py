"""The shape of the library: imports point down, theory needs torch alone, style and types hold."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

HEAVY = ("torchvision", "cleanfid", "diffusers", "matplotlib", "pandas", "sklearn", "papermill")
THEORY = (
    *("checks", "registry", "quadrature", "process", "schedules", "tables", "adaptive", "augmentation", "weightings"),
    *("predictions", "loss_weights", "objectives", "recipes", "oracles", "elbo"),
)


def run(repository: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this interpreter in the checkout."""
    return subprocess.run(
        [sys.executable, *command], cwd=repository, capture_output=True, text=True, timeout=300, check=False
    )


def test_imports_point_down(repository: Path) -> None:
    result = run(repository, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())")
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_contract_names_every_module(repository: Path) -> None:
    """A module outside the contract could import what it likes."""
    contract = tomllib.loads((repository / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"][0]
    named = set(re.findall(r"paperlib\.\w+", " ".join(contract["layers"])))
    package = repository / "paperlib"
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert named == {f"paperlib.{module}" for module in modules - {"__init__"}}


def test_theory_imports_nothing_heavy(repository: Path) -> None:
    """Not even in passing: what a module of the theory imports, it imports here."""
    modules = ", ".join(f"paperlib.{module}" for module in THEORY)
    result = run(repository, "-c", f"import sys, {modules}; print(*({set(HEAVY)} & sys.modules.keys()))")
    assert result.returncode == 0, result.stderr
    assert not result.stdout.split()


def test_theory_states_no_other_dependency(repository: Path) -> None:
    """torch, numpy, the standard library and what lies below."""
    for module in (*THEORY, "checks"):
        tree = ast.parse((repository / "paperlib" / f"{module}.py").read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                root = name.split(".")[0]
                assert root in {"torch", "numpy", "paperlib"} | sys.stdlib_module_names, f"{module} imports {name}"


def test_ruff(repository: Path) -> None:
    for command in (("check",), ("format", "--check")):
        result = run(repository, "-m", "ruff", *command, "paperlib", "tools", "tests", "notebooks")
        assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_types(repository: Path) -> None:
    result = run(repository, "-m", "mypy")
    assert result.returncode == 0, result.stdout + result.stderr
