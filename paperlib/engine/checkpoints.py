"""Files of weights: written whole or not at all, and refused by name when damaged.

They are safetensors with a *card* in their metadata: what the weights are, how they were made, and the hash of their
values.  Small, in bf16 where asked, safe to publish; :func:`write_model_card` puts the card beside them for people.
Nothing in a file is ever executed.  What a run needs to go on is kept by :mod:`paperlib.engine.states`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib.engine.files import write_bytes, write_text


class DamagedFileError(ValueError):
    """A file that is truncated, corrupt or of another kind; the message names it."""


def damaged(path: Path, wanted: str) -> DamagedFileError:
    """The error for a file that is not what it should be."""
    return DamagedFileError(
        f"{path} is not {wanted}: it is truncated, corrupt or of another kind. Delete or replace it."
    )


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(
    path: Path, weights: nn.Module | Mapping[str, Tensor], card: Mapping[str, Any], dtype: torch.dtype | None = None
) -> str:
    """Write weights and a card that describes them.

    Args:
        path: the file, conventionally \\*.safetensors.
        weights: a network or its state dict.
        card: what they are and how they were made; anything that JSON holds.
        dtype: type to round floating-point weights to, for example torch.bfloat16; None keeps theirs.

    Returns:
        The hash of the weights, which is in the file's card too, as ``weights_sha256``.
    """
    from safetensors.torch import save

    named = weights.state_dict() if isinstance(weights, nn.Module) else weights
    tensors = {name: _rounded(tensor, dtype) for name, tensor in named.items()}
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
        raise damaged(path, "weights with a card in safetensors format") from error


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
        raise damaged(path, "the weights that its card describes (their hash differs)")
    _require_fit(path, tensors, network.state_dict())
    _assign(network, tensors)
    return card


def _require_fit(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [tuple(tensors[name].shape) if name in tensors else "nothing" for tensors in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit the network: {name} is {shapes[0]} in the file, {shapes[1]} in the network. "
                f"Build the network with the options in the file's card (checkpoints.read_card)."
            )


def _require_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; train the network first, or correct the path.")


@torch.no_grad()
def _assign(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Put whole tensors into a network, of which each process may hold a share only."""
    for name, wanted in network.state_dict().items():
        wanted.copy_(_share(tensors[name], wanted) if hasattr(wanted, "full_tensor") else tensors[name])


def _share(tensor: Tensor, like: Any) -> Tensor:
    """The part of ``tensor`` that this process holds of ``like``; every process cuts out its own."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device, like.dtype), like.device_mesh, like.placements, src_data_rank=None)


# The card for people -------------------------------------------------------------------------------------------------


def write_model_card(path: Path, card: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write what a card says as Markdown.

    Args:
        path: the file, conventionally MODEL_CARD.md.
        card: of the weights.
        files: what each file beside it holds, by its name.
    """
    lines = ["# Model card", "", *(f"* `{name}`: {what}" for name, what in files.items()), ""]
    for name, text in _flat(card):
        lines += ["| | |", "|---|---|"] * (lines[-1] == "")
        lines.append(f"| {name} | {_cell(text)} |")
    write_text(path, "\n".join(lines) + "\n")


def _flat(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a card, those within entries by both their names; nothing for empty ones."""
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value not in ("", None):
            yield f"{prefix}{name}", value


def _cell(value: object, longest: int = 200) -> str:
    """A value in a cell of a table, long ones cut."""
    text = " ".join(str(value).split()).replace("|", "\\|")
    return text if len(text) <= longest else f"{text[:longest]} …"
