"""Files of weights and states: they come back as they were, whole or not at all, and damage is named."""

import errno
import hashlib
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paperlib.engine import checkpoints
from paperlib.engine.checkpoints import DamagedFileError

CARD = {"name": "a network", "steps": 3, "data": {"sha256": "00"}}


def network(seed: int = 0, width: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def state(step: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(step)
    return {"step": step, "history": [{"loss": 0.1 * step}], "network": {"w": torch.randn(50, generator=generator)}}


# Weights -------------------------------------------------------------------------------------------------------------


def test_weights_and_their_card_come_back(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "weights.safetensors", network(1)
    digest = checkpoints.save_weights(path, network(0), CARD)
    assert checkpoints.load_weights(path, other) == CARD | {"weights_sha256": digest}
    assert same(other, network(0))


def test_weights_are_rounded_where_asked_and_counts_are_not(tmp_path: Path) -> None:
    path, original, other = tmp_path / "w.safetensors", network(0), network(1)
    original[1].num_batches_tracked.fill_(1001)  # not a bfloat16
    checkpoints.save_weights(path, original, CARD, torch.bfloat16)
    checkpoints.load_weights(path, other)
    assert torch.equal(other[0].weight, original[0].weight.bfloat16().float())
    assert other[1].num_batches_tracked == 1001


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    checkpoints.save_weights(a, network(), CARD)
    checkpoints.save_weights(b, network(), dict(reversed(CARD.items())))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_weights_are_refused_by_name(tmp_path: Path, part: float) -> None:
    path = tmp_path / "weights.safetensors"
    checkpoints.save_weights(path, network(), CARD)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DamagedFileError, match=r"weights\.safetensors is not weights"):
        checkpoints.load_weights(path, network())


def test_one_changed_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    checkpoints.save_weights(path, network(), CARD)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="hash differs"):
        checkpoints.load_weights(path, network())


def test_foreign_weights_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bare, pickled = tmp_path / "bare.safetensors", tmp_path / "pickled.pt"
    save_file(network().state_dict(), bare)
    torch.save(network().state_dict(), pickled)
    for path in (bare, pickled):
        with pytest.raises(DamagedFileError, match=path.name):
            checkpoints.load_weights(path, network())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(width=5), r"0\.bias is \(3,\) in the file, \(5,\)"),
        (nn.Linear(4, 3), r"0\.bias is \(3,\) .* nothing in"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    path = tmp_path / "w.safetensors"
    checkpoints.save_weights(path, network(), CARD)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        checkpoints.load_weights(path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        checkpoints.load_weights(tmp_path / "absent", network())


# States --------------------------------------------------------------------------------------------------------------


def test_a_state_comes_back(tmp_path: Path) -> None:
    found = checkpoints.load_state(checkpoints.save_state(tmp_path, state(7)))
    assert found["step"] == 7
    assert found["history"] == [{"loss": 0.1 * 7}]
    assert torch.equal(found["network"]["w"], state(7)["network"]["w"])


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    (tmp_path / "step_notes.pt").write_text("somebody's own file")
    for step in (5, 900, 1000, 10_000):
        checkpoints.save_state(tmp_path, state(step), keep=2)
    assert [path.name for path in checkpoints.states(tmp_path)] == ["step_000001000.pt", "step_000010000.pt"]
    assert (tmp_path / "step_notes.pt").exists()
    newest = checkpoints.latest_state(tmp_path)
    assert newest is not None
    assert newest["step"] == 10_000


def test_no_states_are_no_state(tmp_path: Path) -> None:
    assert checkpoints.latest_state(tmp_path / "absent") is None


@pytest.mark.parametrize("part", [0.0, 0.01, 0.05, 0.5, 0.999])
def test_a_truncated_state_is_refused_by_name_and_passed_over(tmp_path: Path, part: float) -> None:
    checkpoints.save_state(tmp_path, state(1))
    path = checkpoints.save_state(tmp_path, state(2))
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DamagedFileError, match=path.name):
        checkpoints.load_state(path)
    with pytest.warns(UserWarning, match=f"{path.name} is not .* Going back"):
        found = checkpoints.latest_state(tmp_path)
    assert found is not None
    assert found["step"] == 1


@pytest.mark.parametrize("position", [3, 40, 200, -1])
def test_one_changed_bit_in_a_state_is_noticed(tmp_path: Path, position: int) -> None:
    path = checkpoints.save_state(tmp_path, state(1))
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=path.name):
        checkpoints.load_state(path)


class Exploit:
    """A pickle that runs a command when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > executed",)


@pytest.mark.parametrize("whole", [True, False], ids=["with our header", "without"])
def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    monkeypatch.chdir(tmp_path)
    content = pickle.dumps({"step": Exploit()}, protocol=2)
    header = checkpoints.MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n"
    path = tmp_path / "step_000000001.pt"
    path.write_bytes(header + content if whole else content)
    with pytest.raises(DamagedFileError, match=path.name):
        checkpoints.load_state(path)
    assert not (tmp_path / "executed").exists()


def test_a_state_with_objects_of_other_kinds_is_refused_when_read(tmp_path: Path) -> None:
    path = checkpoints.save_state(tmp_path, {"step": 1, "path": tmp_path})
    with pytest.raises(DamagedFileError, match=path.name):
        checkpoints.load_state(path)


def test_at_least_one_state_must_be_kept(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep must be at least 1"):
        checkpoints.save_state(tmp_path, state(1), keep=0)


# Writing -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["mkstemp", "fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "text"),
    [(errno.ENOSPC, "No space left"), (errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only")],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str, number: int, text: str
) -> None:
    path = tmp_path / "file"
    checkpoints.write_bytes(path, b"old")

    def fail(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    target = {"mkstemp": "tempfile.mkstemp", "fsync": "os.fsync", "replace": "pathlib.Path.replace"}[when]
    monkeypatch.setattr(target, fail)
    with pytest.raises(OSError, match=f"{text}.*Choose a folder.*file"):
        checkpoints.write_bytes(path, b"new")
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    checkpoints.write_bytes(path, b"old")

    def interrupted() -> None:
        with checkpoints.replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]
    assert path.read_bytes() == b"old"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="Choose a folder"):
        checkpoints.write_bytes(tmp_path / "taken" / "file", b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match="Choose a folder"):
        checkpoints.write_bytes(tmp_path / "file", b"")
