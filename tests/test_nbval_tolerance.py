"""The numeric tolerance of nbval: a wrong number fails, a right one within the tolerance passes."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import nbformat
import pandas as pd
import pytest


@pytest.fixture(scope="module")
def tolerance(repository: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("nbval_tolerance", repository / "notebooks" / "conftest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        ("loss 1.23456", "loss 1.23457", True),
        ("loss 1.23456", "loss 1.24", False),
        ("loss 1.5", "loss -1.5", False),
        ("loss −1.50001", "loss −1.5", True),
        ("x  1.0\ny 10.0", "x 0.99999\ny  10.0", True),
        ("1e-17", "0.0", True),
        ("1e-3", "2e-3", False),
        ("300 samples", "301 samples", False),
        ("C1 PASS", "C2 PASS", False),
        ("C1 PASS", "C1 FAIL", False),
        ("1.0 2.0", "1.0", False),
        ("a 1.0 b", "a 1.0 c", False),
        ("nan", "1.0", False),
        ("| 1.000 |\n|-------|", "| 0.99999 |\n|---------|", True),
        ("07_train", "08_train", False),
        ("[-8.7, 12.4]", "[-8.7, 12.5]", False),
    ],
)
def test_outputs_compare_as_numbers_and_words(tolerance: ModuleType, left: str, right: str, equal: bool) -> None:
    assert (tolerance.Output(left) == tolerance.Output(right)) is equal
    assert (tolerance.Output(left) != tolerance.Output(right)) is not equal
    assert (tolerance.Output(right) == tolerance.Output(left)) is equal


def test_nbval_rejects_a_wrong_number_and_accepts_a_right_one(repository: Path, tmp_path: Path) -> None:
    cells = [
        ("print('value', 1.23456)", "value 1.23457\n"),
        ("print('value', 1.23456)", "value 1.30000\n"),
        ("print('C1 PASS')", "C1 FAIL\n"),
    ]
    node = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    for count, (source, text) in enumerate(cells, start=1):
        output = nbformat.v4.new_output("stream", name="stdout", text=text)
        node.cells.append(nbformat.v4.new_code_cell(source, execution_count=count, outputs=[output]))
    nbformat.write(node, tmp_path / "numbers.ipynb")
    shutil.copy(repository / "notebooks" / "conftest.py", tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval", "--nbval-current-env", "-rA", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    found = {
        number: verdict for verdict, number in re.findall(r"^(PASSED|FAILED) \S*::Cell (\d)", result.stdout, flags=re.M)
    }
    assert found == {"0": "PASSED", "1": "FAILED", "2": "FAILED"}, result.stdout


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.01, 1)])
def test_data_that_no_output_shows_are_held_too(repository: Path, tmp_path: Path, factor: float, code: int) -> None:
    """A notebook whose cells pass, beside a figure's data in which the largest number is another."""
    for name in ("claims.yaml", "profiles", "results/tiny/01_schedules"):
        (shutil.copytree if (repository / name).is_dir() else shutil.copy)(repository / name, tmp_path / name)
    written = tmp_path / "results" / "interactive" / "tiny" / "01_schedules"
    shutil.copytree(tmp_path / "results/tiny/01_schedules", written)
    path = written / "figures" / "fig2_schedules.csv"
    table = pd.read_csv(path)
    table["p(λ)"] *= factor
    table.to_csv(path, index=False)
    node = nbformat.v4.new_notebook(metadata={"kernelspec": {"name": "python3", "display_name": "Python 3"}})
    node.cells.append(nbformat.v4.new_code_cell("1 + 1", execution_count=1))
    nbformat.write(node, tmp_path / "01_schedules.ipynb")
    shutil.copy(repository / "notebooks" / "conftest.py", tmp_path)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "."],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": "", "PAPERLIB_ROOT": str(tmp_path), "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == code, result.stdout + result.stderr
    assert ("not as published in results/:\n01_schedules/figures/fig2_schedules.csv p(λ): " in result.stdout) == code
