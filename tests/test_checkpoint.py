"""States of a run: they come back as they were, whole or not at all, damage is named, nothing is executed."""

import errno
import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import listing
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from paperlib import files
from paperlib.engine import checkpoint
from paperlib.files import DamagedFileError


def tensors(step: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"network.w": torch.randn(5, 10, generator=generator), "step": torch.tensor(float(step))}


def save(directory: Path, step: int, **options: Any) -> Path:
    return checkpoint.save_state(directory, tensors(step), {"step": step, "history": [{"loss": 0.1 * step}]}, **options)


def load(path: Path) -> dict[str, Tensor]:
    found = {name: torch.zeros_like(tensor) for name, tensor in tensors(0).items()}
    checkpoint.load_tensors(path, found)
    return found


def newest(directory: Path) -> Path:
    found = checkpoint.newest_state(directory)
    assert found is not None
    assert found[1] == checkpoint.read_values(found[0])
    return found[0]


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    assert checkpoint.read_values(path) == {"step": 7, "history": [{"loss": 0.1 * 7}]}
    assert all(torch.equal(tensor, tensors(7)[name]) for name, tensor in load(path).items())
    assert listing(tmp_path) == ["step_000000007"]
    shard = "shard-00001-model-00001-of-00001.safetensors"
    assert listing(path) == [shard, "state.json"]


@given(
    st.lists(st.integers(0, 4), max_size=4),
    st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool]),
    st.recursive(st.floats(allow_nan=False) | st.integers() | st.text() | st.none(), st.lists, max_leaves=5),
)
@settings(max_examples=25)
def test_tensors_of_any_shape_and_type_and_plain_values_come_back_to_the_bit(
    tmp_path_factory: pytest.TempPathFactory, shape: list[int], dtype: torch.dtype, value: object
) -> None:
    original = (100 * torch.randn(shape)).to(dtype)
    path = checkpoint.save_state(tmp_path_factory.mktemp("state"), {"x": original}, {"step": 0, "value": value})
    found = {"x": torch.zeros_like(original)}
    checkpoint.load_tensors(path, found)
    assert torch.equal(found["x"], original)
    assert checkpoint.read_values(path)["value"] == value


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    (tmp_path / "step_notes").mkdir()
    (tmp_path / "step_000000001").write_text("somebody's own file")
    for step in (5, 900, 1000, 10_000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step_000001000", "step_000010000"]
    assert listing(tmp_path) == ["step_000000001", "step_000001000", "step_000010000", "step_notes"]
    assert newest(tmp_path) == tmp_path / "step_000010000"


@pytest.mark.parametrize("keep", [1, 2, 4, 7])
def test_as_many_states_are_kept_as_there_are_and_are_asked_for(tmp_path: Path, keep: int) -> None:
    for step in range(1, 7):
        save(tmp_path, step, keep=keep)
        kept = [int(path.name[5:]) for path in checkpoint.states(tmp_path)]
        assert kept == list(range(max(1, step - keep + 1), step + 1))


def test_a_state_replaces_an_older_one_of_its_step(tmp_path: Path) -> None:
    (save(tmp_path, 3) / "state.json").write_text("damaged")
    assert checkpoint.read_values(save(tmp_path, 3))["step"] == 3


def test_no_states_are_no_state(tmp_path: Path) -> None:
    assert checkpoint.newest_state(tmp_path / "absent") is None
    with pytest.raises(FileNotFoundError, match=r"no state .*absent"):
        checkpoint.read_values(tmp_path / "absent")


def truncate(part: float) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(part * path.stat().st_size)])  # type: ignore[return-value]


def flip(position: float) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[int(position * len(content))] ^= 1
        path.write_bytes(content)

    return change


@pytest.mark.parametrize("file", ["shard-00001-model-00001-of-00001.safetensors", "state.json"])
@pytest.mark.parametrize(
    "damage",
    [truncate(0), truncate(0.5), truncate(0.99), flip(0), flip(0.4), flip(0.99), Path.unlink],
    ids=["emptied", "halved", "cut", "first bit", "middle bit", "last bit", "removed"],
)
def test_any_damage_is_refused_by_name_and_the_state_passed_over(
    tmp_path: Path, file: str, damage: Callable[[Path], None]
) -> None:
    old, new = save(tmp_path, 1), save(tmp_path, 2)
    damage(new / file)
    with pytest.raises(DamagedFileError, match=new.name):
        checkpoint.read_values(new)
    with pytest.warns(UserWarning, match=f"{new.name}.* is not .* Going back"):
        assert newest(tmp_path) == old


def test_each_process_finds_the_damage_of_its_share_alone(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    extra = path / "shard-00002-model-00001-of-00001.safetensors"
    shard = next(path.glob("shard-00001-*"))
    extra.write_bytes(shard.read_bytes())
    vouch_for(path, extra.name)
    flip(0.99)(extra)
    checkpoint.read_values(path, 0, 2)
    for share, shares in ((1, 2), (0, 1)):
        with pytest.raises(DamagedFileError, match="shard-00002"):
            checkpoint.read_values(path, share, shares)


def vouch_for(path: Path, name: str) -> None:
    """Have a state say of a file in it what the file is."""
    state = json.loads((path / "state.json").read_text())
    state["files"][name] = checkpoint._facts(path / name)
    del state["sha256"]
    (path / "state.json").write_text(json.dumps({**state, "sha256": files.json_sha256(state)}))


class Exploit:
    """A pickle that runs a command when it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("echo executed > executed",)


@pytest.mark.parametrize("name", [".metadata", "state.json", "shard-00001-model-00001-of-00001.safetensors"])
@pytest.mark.parametrize("indexed", [True, False], ids=["with our index", "without"])
def test_nothing_in_a_state_is_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, indexed: bool
) -> None:
    """Not even where the index vouches for it: a pickle is never read."""
    monkeypatch.chdir(tmp_path)
    path = save(tmp_path, 1)
    (path / name).write_bytes(pickle.dumps({"step": Exploit()}))
    if indexed and name != "state.json":
        vouch_for(path, name)
    try:
        checkpoint.read_values(path)
        load(path)
    except (DamagedFileError, ValueError):
        pass
    assert not (tmp_path / "executed").exists()
    pickle.loads((path / name).read_bytes())
    assert (tmp_path / "executed").exists()


def test_a_foreign_folder_is_refused(tmp_path: Path) -> None:
    from torch.distributed import checkpoint as dcp

    path = tmp_path / "step_000000001"
    dcp.save(tensors(1), checkpoint_id=path, no_dist=True)
    with pytest.raises(DamagedFileError, match="step_000000001 is not a training state"):
        checkpoint.read_values(path)


def test_a_state_of_another_network_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    for wanted in ({"network.v": torch.zeros(1)}, {"network.w": torch.zeros(5, 11)}):
        with pytest.raises(ValueError, match=r"step_000000001 does not fit the run: .*network"):
            checkpoint.load_tensors(path, wanted)


@pytest.mark.parametrize(
    "when",
    [
        "torch.distributed.checkpoint.save",
        *(f"paperlib.engine.checkpoint.{name}" for name in ("write_text", "flush", "_facts")),
        "pathlib.Path.rename",
    ],
)
def test_a_write_that_fails_leaves_the_states_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    save(tmp_path, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(when, fail)
        with pytest.raises(files.UnwritableError, match=r"step_000000002.*free some space"):
            save(tmp_path, 2)
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step_000000001"]
    assert newest(tmp_path) == tmp_path / "step_000000001"
    save(tmp_path, 2)  # what was left over is no obstacle
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step_000000001", "step_000000002"]


def test_an_error_of_the_disk_while_tensors_are_written_is_no_error_of_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("torch.distributed.checkpoint.HuggingFaceStorageWriter.write_data", fail)
    with pytest.raises(files.UnwritableError, match="free some space"):
        save(tmp_path, 1)


def test_remnants_are_removed_with_the_states(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / ".step_000000002.part").mkdir()
    shutil.copytree(tmp_path / "step_000000001", tmp_path / ".step_000000000.old")
    checkpoint.remove_states(tmp_path)
    assert listing(tmp_path) == []


def test_half_a_removed_state_is_not_taken_for_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a process is killed while it removes one."""
    save(tmp_path, 1)
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    save(tmp_path, 2, keep=1)
    assert [path.name for path in checkpoint.states(tmp_path)] == ["step_000000002"]


def test_the_state_that_was_just_written_is_kept_whatever_lies_beside_it(tmp_path: Path) -> None:
    """After a damaged state of a later step, from which a run went back."""
    save(tmp_path, 120)
    (save(tmp_path, 125) / "state.json").write_text("{")
    path = save(tmp_path, 123, keep=1)
    assert path.is_dir()
    assert newest(tmp_path) == path


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_damaged_states_do_not_count_among_those_that_are_kept(tmp_path: Path, keep: int) -> None:
    for step in range(1, 4):
        save(tmp_path, step, keep=5)
    (tmp_path / "step_000000003" / "state.json").write_text("{")
    with pytest.warns(UserWarning, match="step_000000003"):
        assert newest(tmp_path) == tmp_path / "step_000000002"
    assert not (tmp_path / "step_000000003").exists()
    save(tmp_path, 4, keep=keep)
    whole = ["step_000000001", "step_000000002", "step_000000004"]
    assert [path.name for path in checkpoint.states(tmp_path)] == whole[-keep:]
