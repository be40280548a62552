"""The audit: what does a loss really optimise?

``paperlib.audit(anything)``, or the command ``paperlib audit``, says which weighting w(λ) a loss amounts to, how far it
is from monotone, where its draws and its loss lie, and of which noisy data it is the ELBO.  *Anything* is

* a recipe by name (:data:`paperlib.recipes.RECIPES`), a description (prediction, schedule, loss weight), a weighting;
* a scheduler of diffusers, its ``scheduler_config.json``, or the folder of a saved pipeline; a schedule of azula or
  flow_matching (:mod:`paperlib.auditing.schedulers`);
* any function ``loss(model, x, generator)``, which is *measured* (:mod:`paperlib.auditing.probe`);
* with ``data=…``, a trained network or a file of weights: what its errors come to (:mod:`paperlib.auditing.trained`).
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from paperlib import loss_weights, objectives, predictions, recipes, schedules, weightings
from paperlib.auditing import probe, result, schedulers
from paperlib.auditing.result import Audit, BelowPeak
from paperlib.objectives import PublishedLoss
from paperlib.recipes import Recipe
from paperlib.registry import Registry, near
from paperlib.weightings import Binned, Custom, Weighting

if TYPE_CHECKING:  # which needs the engine
    from paperlib.auditing.trained import NetworkAudit

__all__ = ["Audit", "BelowPeak", "audit"]


def audit(what: Any, *, name: str | None = None, expect: Any = None, **options: Any) -> "Audit | NetworkAudit":
    """What ``what`` optimises.

    Args:
        what: a name of a recipe or weighting, a dictionary as :func:`paperlib.objectives.weighting` takes it, a loss,
            recipe or weighting of this library; a scheduler of diffusers, its configuration file or folder; a schedule
            of azula or flow_matching; or a function ``loss(model, x, generator)``; with ``data=…`` a network, or the
            path of its weights.
        name: what to call it; by default its own name.
        expect: what it was meant to be, in any of these forms, or an audit: the ratio of the two is reported.
        options: ``logsnr_min`` and ``logsnr_max`` for a weighting without a range of its own; those of
            :func:`paperlib.auditing.schedulers.loss` for a scheduler; those of :func:`paperlib.auditing.probe.measure`
            for a function; those of :func:`paperlib.auditing.trained.audit` for a network.

    Raises:
        TypeError: for what is none of these.
        ValueError: for what cannot be read, and where no curve can be shown: levels that do not ascend, weights that
            are NaN or infinite, a loss that does not draw its noise from the generator.
    """
    if "data" in options:
        from paperlib.auditing import trained

        if expect is not None:
            raise ValueError("expect compares weightings of losses; a trained network is compared with oracle=….")
        options |= {} if name is None else {"name": name}
        return (trained.of_weights if isinstance(what, str | PathLike) else trained.audit)(what, **options)
    meant = None if expect is None else _meant(expect)
    found = _audit(what, name, options)
    return found if meant is None else result.compared(found, *meant)


def _audit(what: Any, name: str | None, options: dict[str, Any]) -> Audit:
    known = _known(what, options)
    if known is None:
        if _is_network(what):
            raise TypeError(f"{type(what).__name__} is a network, no loss(model, x, generator): give data=… beside it.")
        return probe.measure(what, name=name or str(getattr(what, "__name__", type(what).__name__)), **options)
    if isinstance(known.formula, PublishedLoss):
        found = result.of_loss(known.formula, name or known.name, known.said, known.notes)
        return replace(found, learns=known.learns)
    low, high = known.formula.ends or (-15.0, 15.0)
    low, high = options.get("logsnr_min", low), options.get("logsnr_max", high)
    return result.of_weighting(known.formula, low, high, name or known.name, known.said)


def _is_network(what: Any) -> bool:
    """Whether it is a module that wants other than the three things of a loss."""
    if not isinstance(what, torch.nn.Module):
        return False
    wanted = [one for one in inspect.signature(what.forward).parameters.values() if one.default is one.empty]
    return len(wanted) != 3


def _meant(expect: Any) -> tuple[str, Weighting]:
    """Name and weighting of what was meant."""
    known = None if isinstance(expect, Audit) else _known(expect, {})
    if known is not None:
        formula = known.formula
        return known.name, formula.weighting if isinstance(formula, PublishedLoss) else formula
    found = expect if isinstance(expect, Audit) else _audit(expect, None, {})
    return found.name, Binned(found.edges.tolist(), found.weighting.tolist())


class Known(NamedTuple):
    """What is known by a formula: the loss, or the weighting alone, and what an audit says of it."""

    name: str
    formula: PublishedLoss | Weighting
    said: Mapping[str, Any] = {}
    notes: tuple[str, ...] = ()
    learns: bool | None = None


def _known(what: Any, options: Mapping[str, Any]) -> Known | None:
    """What is described; None for code, which is to be measured."""
    if isinstance(what, str):
        what = _named(what)
    if isinstance(what, Recipe) or (isinstance(what, str) and what in recipes.RECIPES):
        _require_no(options)
        recipe = recipes.get(what)
        unknown = (f"not known: {recipe.unknown}",) if recipe.unknown else ()
        notes = (f"read in {recipe.source}; w(λ) = {recipe.formula}", *unknown)
        name, said = (what, {"what": what}) if isinstance(what, str) else (recipe.source, {})
        return Known(name, recipe.loss, said, notes, recipe.learned_uncertainty or None)
    if isinstance(what, PublishedLoss):
        _require_no(options)
        return Known(_called(vars(what)), what)
    if isinstance(what, Mapping) and ("prediction" in what or "name" not in what):
        _require_no(options)
        said = {part: value for part, value in what.items() if part != "name"}
        name = str(what.get("name") or _called(said))
        said, notes = _on_a_range(said)
        return Known(name, objectives.get(said), said, notes)
    if isinstance(what, str | Mapping | Weighting):
        _require_no({key: value for key, value in options.items() if key not in recipes.ENDS})
        weighting = weightings.get(what)
        name = (
            "a weighting by a function"
            if isinstance(what, Custom)
            else str(what if isinstance(what, str) else weighting)
        )
        return Known(name, weighting, {} if isinstance(what, Weighting) else {"what": what, **options})
    if isinstance(what, PathLike) or schedulers.is_scheduler(what):
        scheduled, described, notes = schedulers.loss(what, **options)
        return Known(described.pop("name"), scheduled, described, notes)
    if isinstance(what, type):
        raise TypeError(f"nothing to audit in a class; make an object of it, {what.__name__}(…).")
    if callable(what):
        return None
    raise TypeError(
        f"nothing to audit in {what!r}; give a recipe's name, a dictionary of prediction and schedule, a scheduler, or "
        f"a function loss(model, x, generator)."
    )


def _on_a_range(said: dict[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """A description whose schedule has both its ends: those that it needs and were not given are the recipes'."""
    named = said.get("schedule")
    if not isinstance(named, str | Mapping):
        return said, ()
    schedule = {"name": named} if isinstance(named, str) else named
    for ends in ((), ("logsnr_max",), ("logsnr_min", "logsnr_max")):  # none has a native upper end alone
        taken = {end: recipes.ENDS[end] for end in ends if end not in schedule}
        try:
            schedules.get({**schedule, **taken})
            break
        except ValueError:
            if len(ends) == 2:  # something else is wrong
                raise
    if not taken:
        return said, ()
    note = f"no range was given: {', '.join(f'{end} = {value:g}' for end, value in taken.items())} taken"
    return {**said, "schedule": {**schedule, **taken}}, (note,)


def _named(what: str) -> str | Path:
    """The name of a recipe or weighting, whatever lies in the folder, "-" for "_"; else the path of a file."""
    name = what.replace("-", "_")
    if name in recipes.RECIPES or name in weightings.WEIGHTINGS:
        return name
    path = Path(what)
    if path.exists() or path.suffix or len(path.parts) > 1:
        return path
    try:
        weightings.WEIGHTINGS[what]  # which a package may add
    except ValueError as error:
        raise ValueError(
            f"{what!r} is no recipe, weighting or file.{near(what, [*recipes.RECIPES, *weightings.WEIGHTINGS])} "
            f"The recipes are {', '.join(recipes.RECIPES)}; the weightings are {', '.join(weightings.WEIGHTINGS)}."
        ) from error
    return what


def _called(said: Mapping[str, Any]) -> str:
    """Prediction, schedule and loss weight in the words that they can be said in."""
    words = []
    registries: dict[str, Registry[Any]] = {
        "prediction": predictions.PREDICTIONS,
        "schedule": schedules.SCHEDULES,
        "loss_weight": loss_weights.LOSS_WEIGHTS,
    }
    for part, registry in registries.items():
        one = said.get(part)
        one = one["name"] if isinstance(one, Mapping) else one
        one = one.weighting if isinstance(one, loss_weights.OfEps) else one  # Min-SNR and its like
        words.append(one if one is None or isinstance(one, str) else registry.called(one))
    return ", ".join(word for word in words if word is not None)


def _require_no(options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"a loss that is described takes no {', '.join(options)}: state it in the description.")
