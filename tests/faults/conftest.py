"""What can happen to a run, tried; and the table of what became of it: ``pytest tests/faults --fault-table FILE``."""

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from paperlib import files

Note = Callable[[str, str], None]

TRIED = pytest.StashKey[list[tuple[str, str, str]]]()
TITLE = """\
# Faults that were tried

What can happen to a run on somebody else's machine, and what becomes of it. The table is made by the tests that it
names: `python -m pytest tests/faults --fault-table docs/faults.md`; a row is there only if its test passed, or, for
those of other folders, if there is such a test.

"""
ELSEWHERE = [
    (
        "`reproduce` asked to stop by SIGTERM or Ctrl-C",
        "notebook and Snakemake end with it; exit 143 or 130; the same command goes on",
        "tests/test_runner.py::test_a_run_that_is_asked_to_stop_leaves_nobody_behind",
    ),
    (
        "training killed at 8 random moments, one after another",
        "goes on from the last state; weights and log equal those of a run undisturbed, to the bit",
        "tests/test_interruption.py::test_a_run_that_is_killed_many_times_equals_one_that_is_not_to_the_bit",
    ),
    (
        "training asked to stop by SIGTERM, by Ctrl-C",
        "saves its state, says so, and goes on from there",
        "tests/test_interruption.py::test_a_run_that_is_asked_to_stop_saves_its_state_and_equals_one_that_is_not",
    ),
    (
        "one of two processes under torchrun killed",
        "both start again and go on",
        "tests/test_distributed.py::test_a_run_whose_process_is_killed_is_restarted_by_torchrun_and_goes_on",
    ),
    (
        "`train` twice, or beside `reproduce`",
        "the second says who is training, waits, and finds the run finished",
        "tests/test_training.py::test_a_second_training_waits_for_the_first_and_says_for_whom",
    ),
    (
        "tasks of SLURM without torchrun",
        "refused: each would train the same",
        "tests/test_training.py::test_tasks_of_slurm_that_do_not_know_of_one_another_are_refused",
    ),
    (
        "a profile changed between two runs",
        "what depends on it runs again; networks are chosen by the key of the profile as it is",
        "tests/test_experiments.py::test_weights_are_those_of_the_profile_as_it_is_or_none",
    ),
    (
        "`steps` raised, `log_every` changed on an interrupted run",
        "it goes on",
        "tests/test_training.py::test_a_run_goes_on_where_only_its_housekeeping_has_changed",
    ),
    (
        "the newest state damaged in any of its files",
        "named and removed; the state before it is taken",
        "tests/test_training.py::test_a_damaged_newest_state_costs_only_the_steps_since_the_one_before",
    ),
    (
        "a log, a second average or a card of a finished run damaged or gone",
        "refused by name",
        "tests/test_training.py::test_every_file_of_a_finished_run_is_checked",
    ),
    (
        "a decoded data cache with a changed byte",
        "found by its hash, and made anew",
        "tests/test_decoding.py::test_a_changed_pixel_is_found",
    ),
    (
        "a parquet file cut short, or a pointer of git-lfs",
        "refused by name",
        "tests/test_decoding.py::test_files_that_are_not_whole_are_named",
    ),
    (
        "shards missing, two snapshots below one folder",
        "refused, with their names",
        "tests/test_shards.py::test_a_missing_file_is_refused",
    ),
    (
        "PAPERLIB_DATA with `~`, with a typo",
        "expanded; refused",
        "tests/test_shards.py::test_the_data_folder_may_begin_at_home_and_must_exist",
    ),
    (
        "no connection, the data set in the cache of `datasets`",
        "read from there",
        "tests/test_shards.py::test_what_datasets_has_kept_is_read_without_a_connection",
    ),
    (
        "a kernelspec `python3` of another Python, MPLBACKEND set",
        "this interpreter runs the cells, and pictures are shown",
        "tests/test_runner.py::test_the_kernel_is_this_interpreter_and_shows_pictures_whatever_the_machine_says",
    ),
    (
        "the .py of a notebook edited, its .ipynb not",
        "refused, with the first cell that differs",
        "tests/test_runner.py::test_a_notebook_that_is_not_in_step_with_its_text_is_not_run",
    ),
    (
        "a kernel that is killed for memory, a cell that takes too long",
        "named with its cell; earlier results stay",
        "tests/test_runner.py::test_a_kernel_that_dies_is_reported",
    ),
    (
        "a checkout in a folder with spaces and ü",
        "reproduces, and stays clean",
        "tests/test_compare.py::test_a_clone_in_any_folder_reproduces_and_stays_clean",
    ),
    (
        "a range of log-SNR the wrong way round, zero images, NaN: parameters of every notebook",
        "refused before a kernel starts, with the parameter",
        "tests/test_runner.py::test_impossible_parameters_of_every_notebook_are_refused_before_it_runs",
    ),
    (
        "absurd numbers in a recipe of a profile",
        "refused with file, line and field",
        "tests/test_profiles.py::test_absurd_numbers_of_a_recipe_are_refused_with_file_line_and_field",
    ),
    (
        "a label in a profile that names a folder elsewhere",
        "refused with file and line",
        "tests/test_profiles.py::test_a_mistake_is_refused_with_file_and_line",
    ),
    (
        "output that nobody reads on, `paperlib claims | head -1`",
        "ends quietly, exit 141",
        "tests/test_cli.py::test_a_reader_who_has_seen_enough_ends_a_command_quietly",
    ),
    (
        "damaged states among those that are kept",
        "do not count, and go; the state just written stays",
        "tests/test_checkpoint.py::test_damaged_states_do_not_count_among_those_that_are_kept",
    ),
    (
        "a card that states a network of billions of parameters",
        "compared before anything is made",
        "tests/test_weights.py::test_a_card_of_something_else_is_refused_before_anything_large_is_made",
    ),
    (
        "a network whose output has no gradient, asked for its likelihood by flow",
        "refused",
        "tests/test_likelihood.py::test_the_flow_refuses_a_network_that_has_no_gradient",
    ),
    (
        "a network that returns NaN",
        "said at once, with the level of noise",
        "tests/test_likelihood.py::test_nan_is_said_with_its_level",
    ),
    (
        "a network, null branch or time whose batch is 1",
        "refused, not broadcast",
        "tests/test_sampling.py::test_a_batch_of_one_is_not_broadcast",
    ),
    (
        "data from the hub that others may change",
        "asked for by its revision",
        "tests/test_shards.py::test_the_hub_and_files_are_read_alike",
    ),
    (
        "git that turns the ends of lines, core.autocrlf",
        "every text file has an attribute that forbids it",
        "tests/test_project.py::test_the_ends_of_lines_are_those_of_the_repository_on_every_machine",
    ),
]
"""Situations that tests of other folders try: what happens, what becomes of it, and the test."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fault-table", type=Path, help="write what was tried, and what became of it, to this file")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[TRIED] = []


@pytest.fixture
def became(request: pytest.FixtureRequest) -> Note:
    """``became(situation, outcome)``, called where a test has seen what it states."""

    def note(situation: str, outcome: str) -> None:
        path, name = request.path.relative_to(request.config.rootpath).as_posix(), request.function.__name__
        request.config.stash[TRIED].append((situation, outcome, f"{path}::{name}"))

    return note


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    target = session.config.getoption("--fault-table", default=None)
    if target is None or exitstatus != pytest.ExitCode.OK:
        return
    rows = [f"| {what} | {outcome} | `{test}` |" for what, outcome, test in (*session.config.stash[TRIED], *ELSEWHERE)]
    files.write_text(
        target, TITLE + "\n".join(["| what happens | what becomes of it | test |", "|---|---|---|", *rows, ""])
    )


def functions(path: Path) -> set[str]:
    """Names of the functions of a file."""
    return {node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)}
