"""Files of weights: written whole or not at all, and refused by name when damaged.

They are safetensors with a *card* in their metadata: what the weights are, how they were made, and the hash of their
values.  Small, in bf16 where asked, safe to publish; :func:`write_model_card` puts the card beside them for people.
Nothing in a file is ever executed.  What a run needs to go on is kept by :mod:`paperlib.engine.checkpoint`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from paperlib import predictions
from paperlib.files import damaged, json_sha256, write_bytes, write_text
from paperlib.models.conditioning import ConditionedNetwork
from paperlib.models.presets import MODELS, build
from paperlib.predictions import Prediction


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hash of names, types, shapes and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().contiguous().cpu()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def save_weights(
    path: str | Path,
    weights: nn.Module | Mapping[str, Tensor],
    card: Mapping[str, Any],
    dtype: torch.dtype | None = None,
) -> str:
    """Write weights and a card that describes them.

    Args:
        path: the file, conventionally \\*.safetensors.
        weights: a network or its state dict.
        card: what they are and how they were made; anything that JSON holds.
        dtype: type to round floating-point weights to, for example torch.bfloat16; None keeps theirs.

    Returns:
        The hash of the weights, which is in the file's card too, as ``weights_sha256``; beside it ``card_sha256`` is
        that of all other entries of the card.
    """
    from safetensors.torch import save

    tensors = {}
    for name, tensor in (weights.state_dict() if isinstance(weights, nn.Module) else weights).items():
        rounded = dtype if tensor.is_floating_point() else None
        tensors[name] = tensor.detach().contiguous().to("cpu", rounded or tensor.dtype)
    digest = tensors_sha256(tensors)
    whole = {**card, "weights_sha256": digest}
    text = json.dumps(whole | {"card_sha256": card_sha256(whole)}, ensure_ascii=False, sort_keys=True)
    write_bytes(path, save(tensors, metadata={"card": text}))
    return digest


def card_sha256(card: Mapping[str, Any]) -> str:
    """Hash of a card but for this entry of its own."""
    content = {name: value for name, value in card.items() if name != "card_sha256"}
    return json_sha256(content)


def read_card(path: str | Path) -> dict[str, Any]:
    """The card of a file of weights.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when it is not a whole file that :func:`save_weights` wrote.
    """
    from safetensors import SafetensorError, safe_open

    if not (path := Path(path)).is_file():
        raise FileNotFoundError(f"there is no file {path}; train the network first, or correct the path.")
    try:
        with safe_open(path, framework="pt") as file:
            card = json.loads((file.metadata() or {})["card"])
        whole = card["card_sha256"] == card_sha256(card)
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise damaged(path, "weights with a card, as paperlib writes them") from error
    if not whole:
        raise damaged(path, "weights whose card is as it was written (its hash differs)")
    return card


def load_weights(path: str | Path, network: nn.Module) -> dict[str, Any]:
    """Read weights into ``network``, in the types that its parameters have.

    Returns:
        The card of the file.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when the file is truncated or corrupt, or not one that :func:`save_weights` wrote.
        ValueError: when the weights do not fit the network; the message names the first that does not.
    """
    card, tensors = _read(path)
    _require_fit(path, tensors, network)
    _fill(network, tensors)
    return card


def load(path: str | Path) -> tuple[ConditionedNetwork, Prediction]:
    """The network in a file of weights, in evaluation mode on the CPU, and what it predicts: its card says both.

    Nothing large is made before the file is known to hold it: shapes are compared on the meta device first, and for
    paperlib's own networks no option may be larger than what is in the file.

    Raises:
        FileNotFoundError: when there is no such file.
        DamagedFileError: when it is not a whole file that :func:`save_weights` wrote.
        ValueError: when the card does not describe a network of paperlib's, or not the one in the file.
    """
    card, tensors = _read(path)
    try:
        config, described = dict(card["network"]), dict(card["loss"]["prediction"])
        config["image_shape"] = tuple(config["image_shape"])
        largest = max(len(tensors), *config["image_shape"], *(side for t in tensors.values() for side in t.shape))
        options = (value if isinstance(value, list | tuple) else [value] for value in config.values())
        large = any(isinstance(number, int) and number > largest for number in chain(*options))
        if large and MODELS[config["name"]].__module__.startswith("paperlib."):
            raise ValueError(f"{config} is larger than what is in the file")
        kinds = {type(known).__name__: type(known) for known in predictions.PREDICTIONS.values()}
        prediction = kinds[described.pop("name")](**described)
        with torch.device("meta"):
            outline = build(**config)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"the card of {path} does not describe a network and a prediction that paperlib can build "
            f"({type(error).__name__}: {error}); it was not trained by paperlib, or with a network of your own: build "
            f"that yourself and call load_weights."
        ) from error
    _require_fit(path, tensors, outline)
    network = build(**config, seed=0)  # not from the outline, which has no values for what is in no file
    _fill(network, tensors)
    return network.eval(), prediction


def _read(path: str | Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The card and the tensors of a whole file."""
    from safetensors.torch import load_file

    card, tensors = read_card(path), load_file(path)
    if tensors_sha256(tensors) != card.get("weights_sha256"):
        raise damaged(path, "the weights that its card describes (their hash differs)")
    return card, tensors


def _require_fit(path: str | Path, tensors: Mapping[str, Tensor], network: nn.Module) -> None:
    found, wanted = ({name: tuple(t.shape) for name, t in held.items()} for held in (tensors, network.state_dict()))
    for name in sorted(found.keys() | wanted.keys()):
        shapes = [sizes.get(name, "nothing") for sizes in (found, wanted)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"{path} does not fit the network: {name} is {shapes[0]} in the file, {shapes[1]} in the network. "
                f"Build the network with the options in the file's card (weights.read_card)."
            )


def _fill(network: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in network.state_dict().items():
            parameter.copy_(_share(tensors[name], parameter))


def _share(tensor: Tensor, like: Any) -> Tensor:
    """What this process holds of a tensor: the whole, or its part where the one that it is ``like`` is sharded."""
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(like, DTensor):
        return tensor
    placed = tensor.to(like.device, like.dtype)
    return distribute_tensor(placed, like.device_mesh, like.placements, src_data_rank=None)  # cut out by everyone


# The card for people -------------------------------------------------------------------------------------------------


def write_model_card(path: str | Path, card: Mapping[str, Any], files: Mapping[str, str]) -> None:
    """Write what a card says as Markdown.

    Args:
        path: the file, conventionally MODEL_CARD.md.
        card: of the weights.
        files: what each file beside it holds, by its name.
    """
    lines = ["# Model card", "", *(f"* `{name}`: {what}" for name, what in files.items()), ""]
    for name, value in _flat(card):
        text = " ".join(str(value).split()).replace("|", "\\|")
        lines += ["| | |", "|---|---|"] * (lines[-1] == "")
        lines.append(f"| {name} | {text[:200]}{' …' * (len(text) > 200)} |")
    write_text(path, "\n".join(lines) + "\n")


def _flat(card: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of a card, those within entries by both their names; nothing for empty ones."""
    for name, value in card.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name} ")
        elif value not in ("", None):
            yield f"{prefix}{name}", value
