"""Files that hold weights and training states: written whole or not at all, and refused by name when damaged.

* **Weights** are safetensors with a *card* in their metadata: what the weights are, how they were made, and the hash of
  their values.  Small, in bf16 where asked, safe to publish.
* A **state** holds all that a run needs to go on.  It is torch's own format behind a line that names the format and the
  hash of the rest, and is read with ``weights_only=True``: nothing in a file is ever executed.

A file is written under a temporary name in its own folder and renamed when it is complete, so a crash, a full disk or a
killed process leaves the previous file as it was.
"""

import hashlib
import io
import json
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

MAGIC = b"paperlib training state 1\n"
STATE_NAME = re.compile(r"step_(\d{9})\.pt")


class DamagedFileError(ValueError):
    """A file that is truncated, corrupt or of another kind; the message names it."""


# Files ---------------------------------------------------------------------------------------------------------------


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed to ``path`` when the block ends well and removed when it fails.

    Raises:
        OSError: when the folder cannot be made or written, or the disk is full; the message names ``path``.
    """
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        temporary.chmod(0o644)
        _flush(temporary)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            reason = error.strerror or str(error)
            raise type(error)(
                error.errno,
                f"{reason}; nothing was written to it. Choose a folder with room and write access",
                str(path),
            ) from error
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file whole or not at all, see :func:`replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _flush(path: Path) -> None:
    """Have the file on the disk before it takes its name."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


# Weights -------------------------------------------------------------------------------------------------------------


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def save_weights(path: Path, network: nn.Module, card: Mapping[str, Any], dtype: torch.dtype | None = None) -> str:
    """Write the state dict of ``network`` and a card that describes it.

    Args:
        path: the file, conventionally \\*.safetensors.
        network: whose weights.
        card: what they are and how they were made; anything that JSON holds.
        dtype: type to round floating-point weights to, for example torch.bfloat16; None keeps theirs.

    Returns:
        The hash of the weights, which is in the file's card too, as ``weights_sha256``.
    """
    from safetensors.torch import save

    tensors = {name: _rounded(tensor, dtype) for name, tensor in network.state_dict().items()}
    digest = tensors_sha256(tensors)
    text = json.dumps({**card, "weights_sha256": digest}, ensure_ascii=False, sort_keys=True)
    write_bytes(path, save(tensors, metadata={"card": text}))
    return digest


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    tensor = tensor.detach().contiguous().cpu()
    return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor


def read_card(path: Path) -> dict[str, Any]:
    """The card of a file of weights.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when it is not a whole file that :func:`save_weights` wrote.
    """
    from safetensors import SafetensorError, safe_open

    _require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads((file.metadata() or {})["card"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise _damaged(path, "weights with a card in safetensors format") from error


def load_weights(path: Path, network: nn.Module) -> dict[str, Any]:
    """Read weights into ``network``, in the types that its parameters have.

    Returns:
        The card of the file.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when the file is truncated or corrupt, or not one that :func:`save_weights` wrote.
        ValueError: when the weights do not fit the network; the message names the first that does not.
    """
    from safetensors.torch import load

    card = read_card(path)
    tensors = load(path.read_bytes())
    if tensors_sha256(tensors) != card.get("weights_sha256"):
        raise _damaged(path, "the weights that its card describes (their hash differs)")
    _require_fit(path, tensors, network.state_dict())
    network.load_state_dict(tensors)
    return card


def _require_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "nothing" for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit the network: {name} is {shapes[0]} in the file, {shapes[1]} in the network. "
                f"Build the network with the options in the file's card (checkpoints.read_card)."
            )


# States --------------------------------------------------------------------------------------------------------------


def save_state(directory: Path, state: Mapping[str, Any], keep: int = 2) -> Path:
    """Write the state of a run as ``step_<step>.pt`` and remove all but the newest ``keep`` states.

    Args:
        directory: where states lie.
        state: tensors, numbers, strings and containers of them; ``state["step"]`` is the number of steps done.
        keep: states to keep, at least 1.
    """
    if keep < 1:
        raise ValueError(f"keep must be at least 1, got {keep}.")
    payload = io.BytesIO()
    torch.save(dict(state), payload)
    content = payload.getvalue()
    path = directory / f"step_{state['step']:09d}.pt"
    write_bytes(path, MAGIC + hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
    for old in states(directory)[:-keep]:
        old.unlink(missing_ok=True)
    return path


def load_state(path: Path) -> dict[str, Any]:
    """Read a state.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when the file is truncated or corrupt, or not one that :func:`save_state` wrote.
    """
    _require_file(path)
    content = path.read_bytes()
    start = len(MAGIC) + 65
    if not content.startswith(MAGIC):
        raise _damaged(path, "a training state")
    if hashlib.sha256(content[start:]).hexdigest().encode() != content[len(MAGIC) : start - 1]:
        raise _damaged(path, "a whole training state (its hash differs)")
    try:
        return torch.load(io.BytesIO(content[start:]), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _damaged(path, "a training state of tensors and plain values") from error


def states(directory: Path) -> list[Path]:
    """The states in a folder, oldest first."""
    return sorted(path for path in directory.glob("step_*.pt") if STATE_NAME.fullmatch(path.name))


def latest_state(directory: Path) -> dict[str, Any] | None:
    """The newest whole state in a folder; damaged ones are passed over with a warning that names them."""
    for path in reversed(states(directory)):
        try:
            return load_state(path)
        except DamagedFileError as error:
            warnings.warn(f"{error} Going back to the state before it.", stacklevel=2)
    return None


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; train the network first, or correct the path.")


def _damaged(path: Path, wanted: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is not {wanted}: it is truncated, corrupt or of another kind. Delete or replace it."
    )
