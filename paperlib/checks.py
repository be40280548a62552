"""Checks of arguments, shared by every public function: what was given, what was expected, what to do.

Checks that read values of a tensor are skipped while `torch.compile` traces, where they would break the graph.
"""

import math
from collections.abc import Sequence
from dataclasses import fields
from itertools import pairwise
from numbers import Integral, Real
from types import UnionType
from typing import Annotated, Any, get_args

import torch
from torch import Tensor


def require_range(logsnr_min: float, logsnr_max: float) -> None:
    """Refuse a log-SNR range that is empty, reversed or not finite."""
    if not (math.isfinite(logsnr_min) and math.isfinite(logsnr_max)):
        raise ValueError(f"logsnr_min ({logsnr_min}) and logsnr_max ({logsnr_max}) must be finite numbers.")
    if logsnr_min >= logsnr_max:
        raise ValueError(f"logsnr_min ({logsnr_min}) must be below logsnr_max ({logsnr_max}).")


def require_positive(name: str, value: float, or_zero: bool = False, whole: bool = False) -> None:
    """Refuse a parameter that is not a positive finite number, ``or_zero`` where that is said, ``whole`` too."""
    kind = Integral if whole else Real
    if not (isinstance(value, kind) and math.isfinite(value) and (value > 0 or (or_zero and value == 0))):
        what = f"a positive {'whole ' if whole else ''}number{' or zero' if or_zero else ''}"
        raise ValueError(f"{name} must be {what}, got {value!r}.")


Positive = Annotated[float, "positive"]
"""The type of a parameter that :func:`require_parameters` wants positive and finite."""
PositiveInt = Annotated[int, "positive"]
NotNegative = Annotated[float, "positive or zero"]
NotNegativeInt = Annotated[int, "positive or zero"]


def require_parameters(values: Any) -> None:
    """Refuse a dataclass with a field of the types above that is not what its type says."""
    for one in fields(values):
        if one.type in (Positive, PositiveInt, NotNegative, NotNegativeInt):
            or_zero = one.type in (NotNegative, NotNegativeInt)
            require_positive(one.name, getattr(values, one.name), or_zero)


def require_instance(name: str, value: object, kind: type | UnionType, remedy: str) -> None:
    """Refuse what is no ``kind``: a name, a class in place of one of its objects, a bare function."""
    if isinstance(value, kind):
        return
    if isinstance(value, type) and issubclass(value, kind):
        remedy = f"make an object of it, {value.__name__}(…)"
    called = getattr(kind, "__name__", None) or " or ".join(one.__name__ for one in get_args(kind))
    raise TypeError(f"{name} must be a {called}, got {value!r} ({type(value).__name__}); {remedy}.")


def require_floating(name: str, value: Tensor) -> None:
    """Refuse anything but a floating-point tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; wrap it in torch.tensor(…).")
    if not value.is_floating_point():
        remedy = "scale pixels v of n levels to [-1, 1], as 2 v/(n - 1) - 1; .float() alone leaves them at 0 … n - 1"
        if value.dtype != torch.uint8:
            remedy = f"convert numbers with .float(), but {remedy}"
        raise TypeError(f"{name} must be a floating-point tensor, got {value.dtype}; {remedy}.")


def require_within(name: str, value: Tensor, low: float, high: float) -> None:
    """Refuse values outside [low, high], NaN included."""
    require_floating(name, value)
    if torch.compiler.is_compiling() or value.numel() == 0:
        return
    least, most = value.aminmax()  # one pass: this is called at every training step
    if not (least >= low and most <= high):  # NaN too
        worst = most if most > high else least
        raise ValueError(f"{name} must lie in [{low:g}, {high:g}], got {worst.item():g}.")


def end_slack(low: float, high: float, dtype: torch.dtype) -> float:
    """How far an end point of [low, high] may lie outside for having been rounded to ``dtype``."""
    return torch.finfo(dtype).eps * max(1.0, abs(low), abs(high))


def outside(value: Tensor, low: float, high: float) -> Tensor:
    """Whether each value lies outside [low, high]; an end point that was rounded to the dtype of ``value`` does not."""
    slack = end_slack(low, high, value.dtype)
    return (value < low - slack) | (value > high + slack)


def require_levels(name: str, value: Tensor, low: float, high: float) -> None:
    """As :func:`require_within`, for levels in a range of log-SNR: an end may have been through float32."""
    slack = end_slack(low, high, torch.float32)
    require_within(name, value, low - slack, high + slack)


def at_least_float32(dtype: torch.dtype) -> torch.dtype:
    """``dtype``, or float32 where it is coarser: levels, densities and sums need more digits than it has."""
    return torch.promote_types(dtype, torch.float32)


def require_finite(name: str, value: Tensor) -> None:
    """Refuse NaN and infinities."""
    require_floating(name, value)
    if torch.compiler.is_compiling():
        return
    if not torch.isfinite(value).all():
        bad = (~torch.isfinite(value)).sum().item()
        raise ValueError(f"{name} has {bad} value(s) that are NaN or infinite; clean the data before using it.")


def require_no_nan(name: str, log_weight: Tensor, logsnr: Tensor) -> None:
    """Refuse a log w that is NaN at any of the levels, (N,) each."""
    if (nan := log_weight.isnan()).any():
        raise ValueError(f"{name} is NaN at log-SNR {logsnr[nan][0].item():g}; return -inf where w is zero.")


def require_finite_at(name: str, value: Tensor, logsnr: Tensor) -> None:
    """Refuse NaN and infinities in ``value`` (B, *), naming the first of the levels ``logsnr`` (B,) that has any."""
    if torch.compiler.is_compiling() or torch.isfinite(value.sum()):  # one pass; a sum may also overflow
        return
    bad = ~torch.isfinite(value.flatten(1)).all(1)
    if bad.any():
        raise ValueError(
            f"{name} is NaN or infinite for {bad.sum().item()} of {len(bad)} examples at log-SNR "
            f"{logsnr[bad][0].item():g}; look at the network's output at that level, and at its weights."
        )


def require_same_shape(name: str, value: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two tensors whose shapes differ, and what is no tensor, such as a network's tuple or output object."""
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor, got {type(value).__name__}; of a tuple or an output object take the "
            f"tensor alone, as lambda z, logsnr: network(z, logsnr)[0] does."
        )
    if value.shape != other.shape:
        raise ValueError(f"{name} has shape {tuple(value.shape)}, but {other_name} has {tuple(other.shape)}.")


Row = Sequence[float] | Tensor
"""Numbers in a row, (N,)."""


def numbers(name: str, values: Row) -> tuple[float, ...]:
    """A row of finite numbers as a tuple, so that what is made of it can be compared, hashed and printed in full."""
    row = torch.as_tensor(values, dtype=torch.float64)
    if row.ndim != 1:
        raise ValueError(f"{name} must be a row of finite numbers, got a shape of {tuple(row.shape)}.")
    if (bad := ~row.isfinite()).any():
        raise ValueError(
            f"{name} must be a row of finite numbers, got {row[bad][0].item()} at index {bad.tolist().index(True)}."
        )
    return tuple(row.tolist())


def table(name: str, levels: Row, of: str, values: Row, spare: int = 0) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Ascending levels, and one number ``of`` each, or of the bins between where there is a ``spare`` level."""
    at, found = numbers(name, levels), numbers(of, values)
    count = len(found) + spare
    if len(at) != count or count < 2 or any(second <= first for first, second in pairwise(at)):
        raise ValueError(
            f"{name} must be at least 2 ascending levels, {count} for {len(found)} {of}; got {len(at)}, or equal ones."
        )
    return at, found
