"""Files of weights: they come back as they were, whole or not at all, and damage is named."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paperlib import models, predictions
from paperlib.files import DamagedFileError
from paperlib.models import weights

CARD = {"name": "a network", "steps": 3, "data": {"sha256": "00"}}


def network(seed: int = 0, width: int = 3) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# Weights -------------------------------------------------------------------------------------------------------------


def test_weights_and_their_card_come_back(tmp_path: Path) -> None:
    path, other = tmp_path / "new" / "weights.safetensors", network(1)
    digest = weights.save_weights(path, network(0), CARD)
    card = weights.load_weights(path, other)
    assert card == CARD | {"weights_sha256": digest, "card_sha256": weights.card_sha256(card)}
    assert same(other, network(0))


def test_weights_are_rounded_where_asked_and_counts_are_not(tmp_path: Path) -> None:
    path, original, other = tmp_path / "w.safetensors", network(0), network(1)
    original[1].num_batches_tracked.fill_(1001)  # not a bfloat16
    weights.save_weights(path, original, CARD, torch.bfloat16)
    weights.load_weights(path, other)
    assert torch.equal(other[0].weight, original[0].weight.bfloat16().float())
    assert other[1].num_batches_tracked == 1001


def test_a_state_dict_makes_the_same_file_as_its_network(tmp_path: Path) -> None:
    weights.save_weights(tmp_path / "a", network(), CARD)
    weights.save_weights(tmp_path / "b", network().state_dict(), CARD)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    weights.save_weights(a, network(), CARD)
    weights.save_weights(b, network(), dict(reversed(CARD.items())))
    assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.9, 0.999])
def test_truncated_weights_are_refused_by_name(tmp_path: Path, part: float) -> None:
    path = tmp_path / "weights.safetensors"
    weights.save_weights(path, network(), CARD)
    content = path.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(DamagedFileError, match=r"weights\.safetensors is not weights"):
        weights.load_weights(path, network())


def test_one_changed_bit_in_the_weights_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    weights.save_weights(path, network(), CARD)
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match="hash differs"):
        weights.load_weights(path, network())


def test_foreign_weights_are_refused_by_name(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    bare, pickled = tmp_path / "bare.safetensors", tmp_path / "pickled.pt"
    save_file(network().state_dict(), bare)
    torch.save(network().state_dict(), pickled)
    for path in (bare, pickled):
        with pytest.raises(DamagedFileError, match=path.name):
            weights.load_weights(path, network())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (network(width=5), r"0\.bias is \(3,\) in the file, \(5,\)"),
        (nn.Linear(4, 3), r"0\.bias is \(3,\) .* nothing in"),
    ],
)
def test_weights_of_another_network_are_refused(tmp_path: Path, other: nn.Module, message: str) -> None:
    path = tmp_path / "w.safetensors"
    weights.save_weights(path, network(), CARD)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        weights.load_weights(path, other)
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file .*absent"):
        weights.load_weights(tmp_path / "absent", network())


# A network from its file ---------------------------------------------------------------------------------------------


MLP = {"name": "mlp", "image_shape": [1, 8, 8], "num_classes": 10, "sigma_data": 0.75, "width": 16, "blocks": 1}


def written(path: Path, changes: Mapping[str, Any] | None = None, prediction: object = None) -> models.MLP:
    """A file as training leaves it, what its card says of the network changed."""
    made = models.build(**MLP, seed=1)
    described = {"name": "FPrediction", "sigma_data": 0.75} if prediction is None else prediction
    card = {"network": {**MLP, **(changes or {})}, "loss": {"prediction": described}}
    weights.save_weights(path, made, card)
    return made


def test_a_file_is_a_network_and_its_prediction(tmp_path: Path) -> None:
    made = written(tmp_path / "w.safetensors")
    found, prediction = weights.load(str(tmp_path / "w.safetensors"))
    assert prediction == predictions.FPrediction(0.75)
    assert same(found, made)
    assert not found.training
    z = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(found(z, torch.zeros(3)), made(z, torch.zeros(3)))


def test_a_network_of_ones_own_comes_back_with_what_no_file_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(models.MLP):
        def __init__(self, period: int = 10, **shape: Any) -> None:
            super().__init__(**shape)
            self.register_buffer("gain", torch.full((64,), float(period)), persistent=False)

    monkeypatch.setitem(models.MODELS, "own", Own)
    shape = {name: value for name, value in MLP.items() if name not in ("name", "blocks")}
    made = models.build("own", **shape, period=10_000)  # larger than anything in the file, which is its business
    card = {"network": made.config, "loss": {"prediction": {"name": "VPrediction"}}}
    weights.save_weights(tmp_path / "w.safetensors", made, card)
    before = torch.get_rng_state()
    found, _ = weights.load(tmp_path / "w.safetensors")
    assert same(found, made)
    assert torch.equal(found.gain, made.gain)  # type: ignore[arg-type]
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("name", predictions.PREDICTIONS)
def test_every_prediction_comes_back(tmp_path: Path, name: str) -> None:
    wanted = predictions.get(name)
    written(tmp_path / "w.safetensors", prediction={"name": type(wanted).__name__, **vars(wanted)})
    assert weights.load(tmp_path / "w.safetensors")[1] == wanted


@pytest.mark.parametrize(
    ("changes", "prediction", "says"),
    [
        ({"width": 30_000}, None, "larger than what is in the file"),
        ({"blocks": 10**7}, None, "larger than what is in the file"),
        ({"blocks": 2}, None, "does not fit the network"),
        ({"name": "resnet"}, None, "unknown model"),
        ({"image_shape": 8}, None, "TypeError"),
        ({"image_shape": [1, "8", 8]}, None, "TypeError"),
        ({"widht": 3}, None, "TypeError"),
        ({"sigma_data": None}, None, "sigma_data"),
        ({}, {"name": "Unknown"}, "KeyError: 'Unknown'"),
        ({}, {"name": "FPrediction", "sigma_data": -1.0}, "sigma_data"),
        ({}, "VPrediction()", "does not describe"),
        ({}, {}, "KeyError: 'name'"),
    ],
)
def test_a_card_of_something_else_is_refused_before_anything_large_is_made(
    tmp_path: Path, changes: dict[str, Any], prediction: object, says: str
) -> None:
    written(tmp_path / "w.safetensors", changes, prediction)
    with pytest.raises(ValueError, match=says):
        weights.load(tmp_path / "w.safetensors")


@pytest.mark.parametrize("card", [{}, {"network": None, "loss": {}}, {"network": [], "loss": None}])
def test_a_card_that_describes_nothing_is_refused(tmp_path: Path, card: dict[str, Any]) -> None:
    weights.save_weights(tmp_path / "w.safetensors", network(), card)
    with pytest.raises(ValueError, match=r"w\.safetensors does not describe a network"):
        weights.load(tmp_path / "w.safetensors")


def test_one_changed_word_of_a_card_is_noticed(tmp_path: Path) -> None:
    """A changed prediction would sample something else without a word."""
    path = tmp_path / "w.safetensors"
    written(path, prediction={"name": "VPrediction"})
    content = path.read_bytes()
    assert content.count(b"VPrediction") == 1
    path.write_bytes(content.replace(b"VPrediction", b"XPrediction"))
    with pytest.raises(DamagedFileError, match=r"card is as it was written \(its hash differs\)"):
        weights.load(path)


# The card for people -------------------------------------------------------------------------------------------------


def test_a_model_card_says_what_the_card_says_in_words_that_break_no_table(tmp_path: Path) -> None:
    card = {"licence": "MIT", "data": {"name": "a|b", "caution": ""}, "note": "two\nlines", "long": "x" * 500}
    weights.write_model_card(tmp_path / "MODEL_CARD.md", card, {"weights.safetensors": "the average"})
    text = (tmp_path / "MODEL_CARD.md").read_text()
    assert text.startswith("# Model card\n\n* `weights.safetensors`: the average\n\n| | |\n|---|---|\n")
    assert "| licence | MIT |\n| data name | a\\|b |\n| note | two lines |\n| long | xxx" in text
    assert "caution" not in text
    assert max(map(len, text.splitlines())) < 250
