"""Recipes in use: what widely used training codes draw and weigh, and the weighting w(λ) that follows.

Each is a :class:`~paperlib.objectives.PublishedLoss` beside the file it was read in, as it was when read.

Schedules without ends of their own are cut at ±20 nats, far enough for every peak.  In flow time logit-normal(μ, s) is
N(λ; −2μ, (2s)²), and a shift s moves λ by −2 log s.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from paperlib import objectives
from paperlib.objectives import PublishedLoss
from paperlib.registry import Registry

ENDS = {"logsnr_min": -20.0, "logsnr_max": 20.0}
"""Where schedules without native ends are cut, in nats."""


@dataclass(frozen=True)
class Recipe:
    """A training recipe.

    Attributes:
        loss: as published, up to a constant factor.
        formula: w(λ) up to a constant.
        source: the repository and file that it was read in, or the paper.
        unknown: what is not known, or not said by the loss alone.
        learned_uncertainty: whether the error is divided by e^u as well, u learned (:mod:`paperlib.loss_weights`).
    """

    loss: PublishedLoss
    formula: str
    source: str
    unknown: str = ""
    learned_uncertainty: bool = False


def peak(loss: PublishedLoss) -> float | None:
    """The last λ to which w rises, in nats: a peak above which it is monotone.  None where w never rises with λ."""
    dips = loss.weighting.dips(*loss.schedule.ends)
    return dips[-1][1] if dips else None


def _recipe(
    prediction: str | Mapping[str, Any],
    schedule: Mapping[str, Any],
    formula: str,
    source: str,
    *,
    loss_weight: str | Mapping[str, Any] | None = None,
    unknown: str = "",
    learned_uncertainty: bool = False,
) -> Recipe:
    said = {"prediction": prediction, "schedule": schedule, "loss_weight": loss_weight}
    return Recipe(objectives.get(said), formula, source, unknown, learned_uncertainty)


def _logit_normal(mean: float, shift: float = 1.0) -> dict[str, Any]:
    return {"name": "logit_normal", **ENDS, "mean": mean, "flow_shift": shift}


_UNIFORM = {"name": "flow_matching_ot", **ENDS}
_NORMAL_FLOW = "N(λ; {}, 2²)(1 + e^(−λ/2))²"
_TABLE = "p(λ) of the table"
_KOHYA = 'kohya-ss/sd-scripts and kohya-ss/musubi-tuner, flux_shift with weighting "raw"'
_LTX = "Lightricks/LTX-Video-Trainer timestep_samplers.py"
_MOVES = "the mean moves with the number of tokens, linearly between the two that are listed"

RECIPES: Registry[Recipe] = Registry(
    "recipe",
    Recipe,
    {
        "stable_diffusion": _recipe(
            "eps",
            {"name": "scaled_linear"},
            _TABLE,
            "CompVis/stable-diffusion v1-inference.yaml and ddpm.py; Stability-AI/generative-models sd_xl_base.yaml",
            unknown="training of the released SDXL weights beyond the example configuration",
        ),
        "ddpm": _recipe(
            "eps",
            {"name": "ddpm"},
            _TABLE,
            "facebookresearch/DiT create_diffusion; DDPM, ADM and PixArt use the same table",
            unknown="the vlb term of a learned variance is no part of this loss",
        ),
        **{
            f"min_snr_{prediction}": _recipe(
                prediction,
                {"name": "scaled_linear"},
                "p(λ) min(1, 5 e^−λ)",
                "huggingface/diffusers text_to_image scripts, --snr_gamma 5; compute_snr = α²/σ²",
                loss_weight="min_snr",
                unknown="the table is that of the model which is trained; here Stable Diffusion's",
            )
            for prediction in ("eps", "v")
        },
        "rectified_flow": _recipe(
            "flow",
            _UNIFORM,
            "e^(−λ/2)",
            'willisma/SiT transport.py; huggingface/diffusers, weighting scheme "none" of a scheduler without shift',
            unknown="some products' configurations bake a shift into the scheduler",
        ),
        **{
            f"rectified_flow_shift_{shift}": _recipe(
                "flow",
                {**_UNIFORM, "flow_shift": shift},
                f"sech²((λ + 2 log {shift})/4)(1 + e^(−λ/2))²",
                "derived; monotone exactly for shifts of 1/9 and more",
            )
            for shift in (3, 5, 7, 12)
        },
        "sd3": _recipe("flow", _logit_normal(0), _NORMAL_FLOW.format(0), "Esser et al. 2024, Stable Diffusion 3"),
        "sd3_dreambooth": _recipe(
            "x",
            _logit_normal(0, 3),
            "N(λ; −2 log 3, 2²) e^−λ",
            "huggingface/diffusers train_dreambooth_sd3, its defaults: precondition_outputs 1, scheduler shift 3",
        ),
        "flux_256": _recipe("flow", _logit_normal(0.5), _NORMAL_FLOW.format(-1), _KOHYA, unknown=_MOVES),
        "flux_4096": _recipe("flow", _logit_normal(1.15), _NORMAL_FLOW.format(-2.3), _KOHYA, unknown=_MOVES),
        "ltx_1024": _recipe("flow", _logit_normal(0.95), _NORMAL_FLOW.format(-1.9), _LTX, unknown=_MOVES),
        "ltx_4096": _recipe("flow", _logit_normal(2.05), _NORMAL_FLOW.format(-4.1), _LTX, unknown=_MOVES),
        "wan_diffsynth": _recipe(
            "flow",
            {**_UNIFORM, "flow_shift": 5},
            "sech²((λ + 2 log 5)/4)(1 + e^(−λ/2))² bell(t)",
            "modelscope/DiffSynth-Studio flow_match.py",
            loss_weight="bell",
            unknown="its minimum is taken over a table of steps, here over [0, 1]",
        ),
        "wan_musubi": _recipe(
            "flow", _logit_normal(0, 3), _NORMAL_FLOW.format("−2 log 3"), "kohya-ss/musubi-tuner, Wan, shift 3"
        ),
        "hunyuan_video": _recipe(
            "flow", _logit_normal(0, 7), _NORMAL_FLOW.format("−2 log 7"), "kohya-ss/musubi-tuner docs, shift 7"
        ),
        "edm": _recipe("F", {"name": "edm_training", **ENDS}, "N(λ; 2.4, 2.4²)(e^−λ + ¼)", "NVlabs/edm"),
        **{
            f"edm2_{kind}": _recipe(
                "F",
                {"name": f"edm2_{kind}", **ENDS},
                f"N(λ; {normal})(e^−λ + ¼), before the learned u(σ)",
                f"NVlabs/edm2 train_edm2.py and training_loop.py, {images}",
                unknown="the effective weighting p/E needs the error E(λ): loss_weights.LearnedUncertainty",
                learned_uncertainty=True,
            )
            for kind, normal, images in (
                ("latent", "0.8, 2²", "ImageNet-512 latents"),
                ("pixel", "1.6, 3.2²", "ImageNet-64 pixels"),
            )
        },
        "flow_matching_cifar10": _recipe(
            "flow",
            {"name": "edm_training", **ENDS},
            "N(λ; 2.4, 2.4²)(1 + e^(−λ/2))²",
            "facebookresearch/flow_matching, CIFAR-10 example with skewed t",
        ),
        "stable_audio": _recipe("v", {"name": "cosine", **ENDS}, "e^(−λ/2)", "Stability-AI/stable-audio-tools"),
        "sid2": _recipe(
            "v",
            {"name": "cosine", **ENDS},
            "sigmoid(2 − λ)",
            "google/hackable_diffusion kdiff/configs, 64×64 pixels",
            loss_weight={"name": "divided_out", "weighting": {"name": "sigmoid", "bias": 2.0}},
            unknown="the biases of higher resolutions; prediction and schedule are divided out",
        ),
        "laplace": _recipe(
            "eps",
            {"name": "laplace", **ENDS},
            "e^(−2|λ|) k(λ)",
            "Hang et al. 2024, Improved Noise Schedule for Diffusion Training",
            unknown="the prediction is the user's; here ε",
        ),
    },
)
"""Every recipe by name."""


get = RECIPES.make
"""A recipe by its name in :data:`RECIPES`; see :class:`paperlib.registry.Registry`."""


def table() -> list[dict[str, Any]]:
    """Every recipe: its name, w, whether that is monotone, else its peak (nats), its source and what is unknown."""
    rows = []
    for name, recipe in RECIPES.items():
        highest = peak(recipe.loss)
        said = {"recipe": name, "w": recipe.formula, "monotone": highest is None, "peak": highest}
        rows.append(said | {"source": recipe.source, "unknown": recipe.unknown})
    return rows
