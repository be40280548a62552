"""Files that are damaged, and 200 mutations each of four kinds: our error or success, and nothing else."""

import random
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from helpers import FACTS, NotebookWriter, record

from faults.conftest import Note
from paperlib import files, models, objectives, predictions, schedules, weightings
from paperlib.companion import (
    claims,
    cli,
    compare,
    crate,
    documents,
    experiments,
    paths,
    profiles,
    provenance,
    workflow,
)
from paperlib.companion import notebooks as books
from paperlib.engine import data, training
from paperlib.models import weights

MUTATIONS = 200
STRANGE = [
    *("nan", "inf", "1e308", "-1", "0", "1e-3", "null", "true", "'a'", "[]", "{}", "[1, [2]]", "{a: 1}", "9" * 5000),
    *("../../up", "/abs", "*a", "&a [*a]", "!!python/object/apply:os.system ['true']", "!x y", "2020-13-45", "? [a]"),
    *("1.0e+30", "-1.0e+30", "1.0e-30", ".nan", ".inf", "-.inf"),
    *("\x00", "\x07", "\u2028", "é", "a: b: c", "- - -", "[" * 2000, "{" * 2000, '"', "<<: *x", "\t", "|\n  x", "#"),
]
"""What a value is replaced by."""


def mutated(content: bytes, dice: random.Random) -> bytes:
    """One change: a byte, a stretch that is gone or there twice, or something strange instead of a word."""
    start = dice.randrange(len(content))
    end = min(len(content), start + dice.choice([1, 1, 5, 40]))
    match dice.randrange(5):
        case 0:
            return content[:start] + bytes([dice.randrange(256)]) + content[start + 1 :]
        case 1:
            return content[:start] + content[end:]
        case 2:
            return content[:end] + content[start:]
        case _:
            words = list(re.finditer(rb"[\w.\-]+", content))
            word = dice.choice(words)
            return content[: word.start()] + dice.choice(STRANGE).encode() + content[word.end() :]


@contextmanager
def within(seconds: int) -> Iterator[None]:
    """Whatever takes longer than any machine would need hangs."""

    def late(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def contents(folder: Path) -> dict[str, bytes]:
    """Everything in a folder."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def fuzz(path: Path, use: Callable[[], object], allowed: type[Exception] | tuple[type[Exception], ...]) -> str:
    """Use a file after each of 200 mutations; how many of them were refused, by an error that names it."""
    good, dice, said = path.read_bytes(), random.Random(path.name), list[str]()
    home = paths.root().parent
    for number in range(MUTATIONS):
        path.write_bytes(bad := mutated(good, dice))
        before = contents(home)
        try:
            with within(120):
                use()
        except allowed as error:
            said.append(str(error))
        except BaseException as error:
            error.add_note(f"mutation {number}: {bad[:400]!r}")
            raise
        assert contents(home) == before, f"mutation {number} wrote something"
    path.write_bytes(good)
    use()
    assert all(path.name in error and len(error) < 20_000 for error in said)
    assert len(said) > 0.2 * MUTATIONS, "many mutations are not harmless"
    return f"{len(said)} refused with the file's name, {MUTATIONS - len(said)} harmless; no traceback, nothing written"


def test_mutated_profiles(checkout: Path, became: Note) -> None:
    path = checkout / "profiles" / "small.yaml"

    def use() -> None:
        profile = profiles.load("small")
        for one in (*experiments.grid(profile), *experiments.ablation(profile)):
            place = paths.runs("small") / f"{one.name}-{'0' * 12}"
            assert place.resolve().parent == paths.runs("small"), "a run lies among the runs"
        for name in profile.notebooks:
            assert paths.local("small", name).resolve().parent == paths.local("small")

    became(f"{MUTATIONS} mutations of a profile", fuzz(path, use, documents.DocumentError))


def test_mutated_claims(checkout: Path, repository: Path, became: Note) -> None:
    text = (repository / "claims.yaml").read_text()
    path = checkout / "claims.yaml"
    path.write_text("".join(re.split(r"^(?=- )", text, flags=re.MULTILINE)[:6]))
    became(f"{MUTATIONS} mutations of claims.yaml", fuzz(path, claims.load, documents.DocumentError))


@pytest.fixture
def results(checkout: Path, write_notebook: NotebookWriter) -> Path:
    """A result of the profile "small", published and made here, with all that may lie in one."""
    stated = "place: here, statement: so, cell: a, kind: check, why: so, falsifier: not so"
    (checkout / "claims.yaml").write_text(f"- {{id: C1, notebook: 01_first, {stated}}}")
    for name in ("01_first", "02_second"):
        write_notebook(name)
    for home in (paths.published("small"), paths.local("small")):
        folder = home / "01_first"
        for part in ("claims", "tables", "figures"):
            (folder / part).mkdir(parents=True)
        (folder / "claims" / "C1.json").write_text(record("C1", "PASS"))
        (folder / "tables" / "t.csv").write_text("x,y\n1,2\n3,4\n")
        (folder / "tables" / "t.md").write_text("t")
        np.savez_compressed(folder / "figures" / "f.npz", x=np.arange(9.0))
        provenance.write(folder, {"notebook": "01_first", "profile": "small", **FACTS})
        crate.write(home)
    (paths.published("small") / compare.INTERVALS).write_text(
        '{"runs": 3, "spread": {"01_first/tables/t.csv": {"x": 1}}}'
    )
    stamp = checkout / workflow.stamp("small", "01_first")
    stamp.parent.mkdir(parents=True)
    stamp.write_text(books.fingerprint(paths.local("small", "01_first")) + "\n")
    return paths.local("small", "01_first")


def test_mutated_manifests(results: Path, became: Note) -> None:
    path = results / "manifest.json"

    def use() -> None:
        provenance.problems(results)
        crate.problems(results.parent)
        workflow.report(profiles.load("small"))
        compare.results(paths.published("small"), paths.local("small")).text()

    became(f"{MUTATIONS} mutations of a manifest", fuzz(path, use, files.DamagedFileError))


def test_mutated_weights(checkout: Path, became: Note) -> None:
    images = data.load("digits", "train")
    shape = {"image_shape": images.image_shape, "num_classes": 10, "sigma_data": images.sigma_data}
    network = models.build("mlp", **shape, width=8, hidden=8, blocks=1)
    path = checkout / "weights.safetensors"
    loss = objectives.WeightedLoss(weightings.Sigmoid(2.0), schedules.Cosine(-10, 10), predictions.V)
    card = training.describe(network, loss, images, training.TrainingConfig(steps=1, batch_size=8))
    weights.save_weights(path, network.state_dict(), card)

    def use() -> None:
        weights.load(path)
        weights.load_weights(path, network)

    became(f"{MUTATIONS} mutations of a file of weights", fuzz(path, use, files.DamagedFileError))


HARM: dict[str, Callable[[bytes], bytes]] = {
    "emptied": lambda content: b"",
    "cut in half": lambda content: content[: len(content) // 2],
    "of zeros": lambda content: bytes(len(content)),
    "of another kind": lambda content: b"[1, 2]",
    "noise": lambda content: random.Random(0).randbytes(len(content)),
    "a pointer of git-lfs": lambda content: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "nested without end": lambda content: b'{"outputs": ' + b"[" * 50_000,
}
FILES = [
    *("manifest.json", "claims/C1.json", "tables/t.csv", "figures/f.npz", "../ro-crate-metadata.json"),
    *("../../../small/intervals.json", "../../../../.cache/small/01_first/done", "../../../../claims.yaml"),
    *("../../../../profiles/small.yaml", "../../../../notebooks/01_first.ipynb", "../../../../requirements.lock"),
]
"""Files of every kind, relative to a result."""
COMMANDS = [
    ["verify"],
    ["claims", "--profile", "small"],
    ["claims", "--profile", "small", "--json"],
    ["compare", "small"],
    ["run", "01_first", "--profile", "small", "-p", "unknown=1"],
    ["doctor"],
]


@pytest.mark.parametrize("harm", HARM)
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_an_error_of_a_line_or_harmless(
    checkout: Path, results: Path, capsys: pytest.CaptureFixture[str], became: Note, name: str, harm: str
) -> None:
    file = checkout / "profiles" / "small.yaml"
    file.write_text(file.read_text().partition("  02_second")[0])
    assert cli.main(["verify"]) == 0
    path = (results / name).resolve()
    path.write_bytes(HARM[harm](path.read_bytes()))
    codes = set()
    for command in COMMANDS:
        with within(120), suppress(SystemExit):
            codes.add(cli.main(command))
        shown = capsys.readouterr()
        assert "Traceback" not in shown.out + shown.err
    assert codes <= {0, 1}
    if path.is_relative_to(results) or "crate" in name:
        assert cli.main(["verify", "small"]) == 1, "what a manifest or a crate states is noticed"
        assert path.name in capsys.readouterr().out
    if (name, harm) == (FILES[-1], [*HARM][-1]):
        became(
            f"{', '.join(f'`{Path(file).name}`' for file in FILES)}, each {', '.join(HARM)}",
            "`verify`, `claims`, `compare`, `run`, `doctor` say so in a line, or need it not; what a manifest or crate "
            "states is noticed by `verify`",
        )
