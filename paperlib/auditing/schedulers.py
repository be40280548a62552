"""Schedules of other libraries, those of diffusers, azula and flow_matching: their levels as a loss of this library.

A scheduler says which levels there are and what the network predicts, not how a training script draws and weighs them.
So the steps are taken to be drawn uniformly and the error to be unweighted; whoever trains otherwise says ``schedule``
and ``loss_weight``.  Configurations are read as JSON and nothing else: no file is unpickled, no class outside diffusers
is looked up.  diffusers is needed, since its own schedulers make the levels from a configuration.

A schedule of azula, ``α, σ = schedule(t)``, or of flow_matching, an object with ``alpha_t`` and ``sigma_t``, is asked
for its levels itself, at :data:`TIMES` times, of which training is taken to draw one uniformly.  (For flow_matching
this is tested on an object that is made as its schedules are, not on the package.)
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from paperlib import objectives, predictions
from paperlib.objectives import PublishedLoss
from paperlib.process import logsnr_from_flow_time

CONFIGURATION = "scheduler_config.json"
PREDICTIONS = {"epsilon": "eps", "v_prediction": "v", "sample": "x"}
"""This library's names of diffusers' ``prediction_type``."""


TIMES = 2000
"""At which a schedule that is a function of time is looked at."""


def is_scheduler(what: object) -> bool:
    """Whether it is a schedule of one of these libraries."""
    return _is_function(what) or (isinstance(getattr(what, "config", None), Mapping) and hasattr(what, "set_timesteps"))


def loss(
    what: Any,
    *,
    prediction: str | Mapping[str, Any] | None = None,
    schedule: Mapping[str, Any] | None = None,
    loss_weight: str | Mapping[str, Any] | None = None,
    mu: float | None = None,
) -> tuple[PublishedLoss, dict[str, Any], tuple[str, ...]]:
    """The loss of training uniformly on a scheduler's levels, its description with a ``name``, and notes.

    Args:
        what: a scheduler or schedule, the path of its JSON configuration, or the folder of a saved pipeline.
        prediction: what the network predicts; by default what the configuration says, and the velocity for those of
            flow_matching.  It takes the place of what diffusers supposes, not of what a configuration states.
        schedule: how training draws levels, where that is not uniformly over the steps.
        loss_weight: as in :func:`paperlib.objectives.get`.
        mu: of a dynamic shift, log of the shift; by default the configuration's ``max_shift``.

    Raises:
        ModuleNotFoundError: for a configuration, without diffusers.
        ValueError: for a file that is no configuration of a scheduler, for a scheduler without levels of training, and
            for what contradicts it: another prediction, a dynamic shift where there is none.
    """
    scheduler = what if is_scheduler(what) else _read(Path(what))
    name, config = type(scheduler).__name__, getattr(scheduler, "config", {})
    if mu is not None and (schedule is not None or not config.get("use_dynamic_shifting")):
        raise ValueError(f"mu={mu:g} is of a dynamic shift, which {name} here has not: leave it out.")
    given = {"prediction": prediction, "schedule": schedule, "loss_weight": loss_weight, "mu": mu}
    flow = name.startswith("FlowMatch") or config.get("use_flow_sigmas") is True
    notes: tuple[str, ...] = ()
    if _is_function(scheduler):
        drawn, flow = _of_function(scheduler)
    elif schedule is None:
        levels, notes = _flow_levels(scheduler, mu) if flow else (_table_levels(scheduler), ())
        drawn = {"name": "discrete", "alphas_cumprod": torch.sigmoid(levels).tolist()}
    if schedule is not None:
        notes += ("of the scheduler only the prediction is taken: levels are drawn as you say.",)
    else:
        unweighted = "" if loss_weight else " and errors to be unweighted"
        notes += (f"steps are taken to be drawn uniformly{unweighted}: the training script says.",)
    predicted, more = _prediction(name, config, "flow" if flow else None, prediction)
    said: dict[str, Any] = {"prediction": predicted, "schedule": schedule or drawn, "loss_weight": loss_weight}
    made = objectives.get(said)
    if scheduler is not what:
        said = {"what": str(what), **{key: value for key, value in given.items() if value is not None}}
    return made, {"name": name, **said}, notes + more


def _prediction(
    kind: str, config: Mapping[str, Any], usual: Any, given: str | Mapping[str, Any] | None
) -> tuple[Any, tuple[str, ...]]:
    """What the network predicts, and a note where ``given`` is not what such a scheduler is usually for."""
    if kind.startswith("EDM"):
        usual = {"name": "F", "sigma_data": config["sigma_data"]}
    elif config and usual is None:
        usual = PREDICTIONS.get(config.get("prediction_type", "epsilon"))
    if given is None:
        if usual is None:
            stated = config.get("prediction_type", "nothing")
            raise ValueError(f"{kind} says {stated} of what the network predicts; say prediction=…, such as 'eps'.")
        return usual, ()
    if usual is None or predictions.get(given) == predictions.get(usual):
        return given, ()
    named, own = (predictions.PREDICTIONS.called(predictions.get(one)) for one in (given, usual))
    if usual != "flow" and "prediction_type" in set(config).difference(config.get("_use_default_values", ())):
        raise ValueError(
            f"{kind} states prediction_type {config['prediction_type']!r}, which contradicts prediction {named}: leave "
            f"that out, or correct the configuration by scheduler.register_to_config(prediction_type=…)."
        )
    return given, (f"the network predicts {named}, as you say; the scheduler states nothing, and {own} is usual.",)


def _is_function(what: object) -> bool:
    """Whether it is a schedule of azula or flow_matching, told by where its class or a base of it is from."""
    homes = {kind.__module__.split(".")[0] for kind in type(what).__mro__}
    return callable(what) and not homes.isdisjoint({"azula", "flow_matching"})


def _of_function(schedule: Any) -> tuple[dict[str, Any], bool]:
    """How levels are drawn where time is, uniformly, and whether it is of flow_matching."""
    name, t = type(schedule).__name__, torch.linspace(0, 1, TIMES + 2, dtype=torch.float64)[1:-1]
    found = schedule(t)
    flow = hasattr(found, "alpha_t")
    if not flow and not (isinstance(found, tuple) and len(found) == 2):
        raise ValueError(f"{name} is no schedule: expected α and σ of t, got {type(found).__name__}.")
    alpha, sigma = (part.double().flatten() for part in ((found.alpha_t, found.sigma_t) if flow else found))
    levels = 2 * (alpha / sigma).log()
    if (bad := ~levels.isfinite()).any():
        raise ValueError(f"{name} has λ = {levels[bad][0].item()} at t = {t[bad][0].item():.3g}, where it is finite.")
    levels = levels if levels[0] > levels[-1] else levels.flip(0)
    quantiles = [*torch.sigmoid(levels).tolist(), 0.0]  # λ at t = 1, as the tables count it
    ends = {"logsnr_min": levels[-1].item(), "logsnr_max": levels[0].item()}
    return {"name": "discrete", **ends, "alphas_cumprod": quantiles}, flow


def _read(path: Path) -> Any:
    """The scheduler of a configuration file, or of the folder that it lies in."""
    if path.is_dir():
        inside = [path / CONFIGURATION, path / "scheduler" / CONFIGURATION]
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise ValueError(f"no such file: {path}; give a {CONFIGURATION}, or a pipeline's folder, which has one.")
    if path.suffix != ".json":
        raise ValueError(f"{path} is not JSON, and a file of another kind may run code when it is opened: not read.")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}.") from error
    named = config.get("_class_name") if isinstance(config, dict) else None
    if not isinstance(named, str):
        raise ValueError(f"{path} names no _class_name: it is no configuration of a scheduler of diffusers.")
    try:
        import diffusers
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} is a configuration of diffusers, which makes its levels: pip install diffusers.", name="diffusers"
        ) from error
    kind = getattr(diffusers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.SchedulerMixin)):
        raise ValueError(f"{path} is the configuration of {named}, which is no scheduler of diffusers.")
    try:
        return kind.from_config(config)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} does not make a {named}: {error}") from error


def _table_levels(scheduler: Any) -> Tensor:
    """λ of the steps of a scheduler of the DDPM family, from the least noisy on."""
    table = getattr(scheduler, "alphas_cumprod", None)
    if not isinstance(table, Tensor):
        raise ValueError(
            f"{type(scheduler).__name__} says how to sample, not which levels training draws; say schedule=…, such as "
            f'{{"name": "edm_training", "logsnr_min": -20, "logsnr_max": 20}}.'
        )
    table = table.double()
    if scheduler.config.get("rescale_betas_zero_snr") and table[-1] == 2**-24:  # some write that for 0, to sample
        table = torch.cat([table[:-1], table.new_zeros(1)])
    return torch.logit(table)


def _flow_levels(scheduler: Any, mu: float | None) -> tuple[Tensor, tuple[str, ...]]:
    """λ of the steps i/T of a flow-matching scheduler, from the least noisy on, and what is to be said of them.

    By its configuration: its own ``sigmas`` are those that it has sampled by, and of VE in some classes until then.
    """
    config = scheduler.config
    notes: tuple[str, ...] = ()
    shift = config.get("flow_shift", config.get("shift", 1.0))
    if config.get("use_dynamic_shifting"):
        mu = config.get("max_shift") if mu is None else mu
        if mu is None:
            raise ValueError(f"{type(scheduler).__name__} has a dynamic shift and states no max_shift: say mu=….")
        shift = math.exp(mu) if config.get("time_shift_type", "exponential") == "exponential" else mu
        notes = (f"dynamic shift: shown with mu = {mu:g}, a shift by {shift:.3g}; it moves with the image size.",)
    elif shift != 1.0:
        notes = (f"a shift by {shift:g} is in these levels: drawing shifted times again shifts twice.",)
    steps = config["num_train_timesteps"]
    sigmas = torch.arange(1, steps + 1, dtype=torch.float64) / steps
    return logsnr_from_flow_time(shift * sigmas / (1 + (shift - 1) * sigmas)), notes
