"""The Fréchet distance: how fast beside a general matrix root, and how exact where covariances are singular."""

import warnings
from collections.abc import Iterator

import torch
from bench import Row, in_turn, main
from cleanfid.fid import frechet_distance as general_root
from torch import Tensor

from paperlib.engine.metrics import Moments, frechet_distance

THREADS = 1
FEATURES = 2048
ROUNDS = 3
FASTER = 5.0
AGREEMENT = 1e-6
RANK = 1000


def spread(rank: int, seed: int) -> Tensor:
    """A covariance of Inception's size and that rank, its spectrum falling over two decades."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(FEATURES, rank, generator=generator, dtype=torch.float64)
    mixing = mixing * torch.logspace(0, -1, rank, dtype=torch.float64)
    return mixing @ mixing.mT / FEATURES


def general(a: Moments, b: Moments) -> float:
    """clean-fid's distance, by scipy's root of the product."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(general_root(*(m.numpy() for one in (a, b) for m in (one.mean, one.covariance))))


def rows() -> Iterator[Row]:
    """Time, agreement on full rank, error on singular covariances whose distance is known."""
    mean, count = torch.zeros(FEATURES, dtype=torch.float64), 50_000
    a, b = (Moments(mean + seed, spread(3 * FEATURES, seed), count) for seed in (0, 1))
    times = in_turn(ROUNDS, ours=lambda: frechet_distance(a, b), theirs=lambda: general(a, b))
    ratio = times["theirs"] / times["ours"]
    peers = {"ours, s": times["ours"], "scipy's sqrtm in clean-fid, s": times["theirs"]}
    yield Row(f"Fréchet distance at {FEATURES} features", ratio, "×", f"≥ {FASTER:g}", ratio >= FASTER, peers)

    theirs = general(a, b)
    difference = abs(frechet_distance(a, b) - theirs) / theirs
    yield Row(
        "relative difference to clean-fid, full rank", difference, "", f"≤ {AGREEMENT:g}", difference <= AGREEMENT
    )

    singular = spread(RANK, 2)
    low, high = (Moments(mean, factor * singular, count) for factor in (1.0, 2.25))
    exact = 0.25 * singular.trace().item()
    errors = {
        name: abs(f(low, high) - exact) / exact for name, f in (("ours", frechet_distance), ("clean-fid", general))
    }
    yield Row(
        f"relative error, rank {RANK} of {FEATURES}",
        errors["ours"],
        "",
        "below clean-fid's",
        errors["ours"] < errors["clean-fid"],
        errors,
    )


if __name__ == "__main__":
    main(rows)
