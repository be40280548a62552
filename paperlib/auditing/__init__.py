"""The audit: what does a loss really optimise?

``paperlib.audit(anything)``, or the command ``paperlib audit``, says which weighting w(λ) a loss amounts to, how far it
is from monotone, where its draws and its loss lie, and of which noisy data it is the ELBO.  *Anything* is

* a recipe by name (:data:`paperlib.recipes.RECIPES`), a description (prediction, schedule, loss weight), a weighting;
* a scheduler of diffusers, its ``scheduler_config.json``, or the folder of a saved pipeline; a schedule of azula or
  flow_matching (:mod:`paperlib.auditing.schedulers`);
* any function ``loss(model, x, generator)``, which is *measured* (:mod:`paperlib.auditing.probe`);
* with ``data=…``, a trained network or a file of weights: what its errors come to (:mod:`paperlib.auditing.trained`).
"""

from collections.abc import Mapping
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperlib import objectives, recipes, weightings
from paperlib.auditing import probe, result, schedulers
from paperlib.auditing.result import Audit, BelowPeak
from paperlib.objectives import PublishedLoss
from paperlib.recipes import Recipe
from paperlib.weightings import Weighting

if TYPE_CHECKING:  # which needs the engine
    from paperlib.auditing.trained import NetworkAudit

__all__ = ["Audit", "BelowPeak", "audit"]


def audit(what: Any, *, name: str | None = None, expect: Any = None, **options: Any) -> "Audit | NetworkAudit":
    """What ``what`` optimises.

    Args:
        what: a recipe's name, a dictionary as :func:`paperlib.objectives.get` takes it, a loss, recipe or weighting of
            this library; a scheduler of diffusers, its configuration file or folder; a schedule of azula or
            flow_matching; or a function
            ``loss(model, x, generator)``; with ``data=…`` a network, or the path of its weights.
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
    if isinstance(what, Mapping) and "name" in what and name is None:
        name = str(what["name"])
    meant = None if expect is None else _formula(expect)
    found = _audit(what, name, options)
    return found if meant is None else result.compared(found, *meant)


def _audit(what: Any, name: str | None, options: dict[str, Any]) -> Audit:
    if isinstance(what, Weighting) or (
        isinstance(what, str) and what in weightings.WEIGHTINGS.keys() - recipes.RECIPES
    ):
        weighting = weightings.get(what)
        low, high = (options.pop(f"logsnr_{end}", None) for end in ("min", "max"))
        _require_no(options)
        own = weighting.ends or (-15.0, 15.0)
        low, high = own[0] if low is None else low, own[1] if high is None else high
        return result.of_weighting(weighting, low, high, name or str(what), {"weighting": what})
    if (isinstance(what, str) and what in recipes.RECIPES) or isinstance(what, Recipe | PublishedLoss | Mapping):
        _require_no(options)
        return _described(what, name)
    if isinstance(what, str | PathLike) or schedulers.is_scheduler(what):
        loss, said, notes = schedulers.loss(what, **options)
        return result.of_loss(loss, name or said.pop("name"), said, notes)
    if callable(what):
        return probe.measure(what, name=name or str(getattr(what, "__name__", type(what).__name__)), **options)
    raise TypeError(
        f"nothing to audit in {what!r}; give a recipe's name, a dictionary of prediction and schedule, a scheduler, or "
        f"a function loss(model, x, generator)."
    )


def _described(what: str | Recipe | PublishedLoss | Mapping[str, Any], name: str | None) -> Audit:
    if isinstance(what, str | Recipe):
        recipe = recipes.get(what)
        notes: tuple[str, ...] = (f"read in {recipe.source}; w(λ) = {recipe.formula}",)
        notes += (f"not known: {recipe.unknown}",) if recipe.unknown else ()
        said = {"recipe": what} if isinstance(what, str) else {}
        found = result.of_loss(recipe.loss, name or (what if isinstance(what, str) else recipe.source), said, notes)
        return replace(found, learns=recipe.learned_uncertainty or None)
    said = {} if isinstance(what, PublishedLoss) else {key: value for key, value in what.items() if key != "name"}
    loss = objectives.get(said or what)
    return result.of_loss(loss, name or _called(loss), said)


def _called(loss: PublishedLoss) -> str:
    parts = (loss.prediction, loss.schedule, loss.loss_weight)
    return ", ".join(type(part).__name__.removesuffix("Prediction") for part in parts if part is not None)


def _formula(expect: Any) -> tuple[str, Weighting]:
    """Name and weighting of what was meant."""
    said = isinstance(expect, str) and expect in {
        *recipes.RECIPES,
        *weightings.WEIGHTINGS,
    }  # whatever lies in the folder
    file = isinstance(expect, str | PathLike) and not said and Path(expect).exists()
    if file or schedulers.is_scheduler(expect):
        scheduled, described, _ = schedulers.loss(expect)
        return described["name"], scheduled.weighting
    if isinstance(expect, Audit) or (callable(expect) and not isinstance(expect, Weighting | PublishedLoss | Recipe)):
        found = expect if isinstance(expect, Audit) else _audit(expect, None, {})
        return found.name, weightings.Binned(found.edges.tolist(), found.weighting.tolist())
    if isinstance(expect, Weighting):
        return ("the expected w" if isinstance(expect, weightings.Custom) else str(expect)), expect
    if isinstance(expect, str) and expect in recipes.RECIPES:
        return expect, recipes.get(expect).loss.weighting
    if isinstance(expect, Recipe):
        return expect.source, expect.loss.weighting
    loss = expect if isinstance(expect, Mapping | PublishedLoss) else None
    if loss is not None and (isinstance(loss, PublishedLoss) or "prediction" in loss):
        made = objectives.get(loss)
        return _called(made), made.weighting
    return str(expect), weightings.get(expect)


def _require_no(options: Mapping[str, Any]) -> None:
    if options:
        raise ValueError(f"a loss that is described takes no {', '.join(options)}: state it in the description.")
