"""The command ``paperlib``."""

import argparse
import json
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperlib.companion import provenance

if TYPE_CHECKING:
    from paperlib.companion.profiles import Profile


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.  Returns the exit code: 0 well, 1 something failed, 2 used wrongly, 130 or 143 asked to stop."""
    options = _parser().parse_args(arguments)
    try:
        return options.run(options)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"paperlib {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"paperlib {options.command}: {error or 'interrupted; what was finished is kept.'}", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paperlib", description="Companion of 'Understanding Diffusion Objectives'.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    reproduce = _command(commands, "reproduce", _reproduce, "run the notebooks of a profile and show what came of them")
    reproduce.add_argument("profile")
    reproduce.add_argument("--cores", type=_positive, default=provenance.cores(), help="cores to use (default: all)")
    reproduce.add_argument("--only", metavar="NOTEBOOK", help="this notebook alone, with what it reads from")

    run = _command(commands, "run", _run, "run one notebook with other parameters, into results/interactive")
    run.add_argument("notebook")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--profile", default="tiny")

    train = _command(commands, "train", _train, "train the networks of a profile, or one of them")
    sample = _command(commands, "sample", _sample, "draw samples of a trained network")
    evaluate = _command(commands, "evaluate", _evaluate, "compare samples of trained networks with real images")
    for command in (train, sample, evaluate):
        command.add_argument("profile")
        command.add_argument("--weighting", help="a weighting of the profile, by its label there")
        command.add_argument("--seed", type=int, help="a training seed of the profile")
    for command in (train, sample):
        command.add_argument("--pictures", action="store_true", help="the larger network for pictures")
    train.add_argument("--arm", help="one arm of the grid or the ablation, all its seeds")
    train.add_argument("--engine", choices=["auto", "ddp", "fsdp"], default="auto", help="under torchrun: how")
    for command in (sample, evaluate):
        command.add_argument(
            "--sampler", help="ddpm, ddim, heun, dpmpp_2m (default: the profile's; its last to sample)"
        )
        command.add_argument(
            "--count", type=_positive, help="number of samples (default: 100; the profile's to evaluate)"
        )
        command.add_argument("--guidance", type=_strength, help="strength of classifier-free guidance (1: none)")
        command.add_argument("--weights", type=Path, help="a file of weights, instead of a network of the profile")
    sample.add_argument("--output", type=Path, help="a .png file; the samples as data go beside it")
    evaluate.add_argument("--features", choices=["classifier", "inception"], default="classifier", help="seen through")
    evaluate.add_argument("--inception", type=Path, metavar="FILE", help="weights of Inception (default: download)")
    evaluate.add_argument("--resize", choices=["clean", "legacy_tensorflow"], default="clean", help="for Inception")
    evaluate.add_argument("--output", type=Path, help="a .csv file")

    ledger = _command(commands, "claims", _claims, "list the claims, how each is tested, and its verdict")
    ledger.add_argument("--profile", default="tiny")
    ledger.add_argument("--json", action="store_true")

    prices = _command(commands, "costs", _costs, "what each profile costs: parameters, FLOPs, memory, GPU-days")
    prices.add_argument("--write", action="store_true", help="also to results/costs.csv and docs/costs.md")

    verify = _command(commands, "verify", _verify, "check that finished results are what their manifests say")
    verify.add_argument("profile", nargs="?", help="one profile (default: all)")

    _command(commands, "doctor", _doctor, "look whether this machine and environment will do")
    return parser


def _command(commands: Any, name: str, run: Any, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    parser.set_defaults(run=run)
    return parser


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1, got {text!r}")
    return int(text)


def _strength(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number from 0, 1 for none; got {text!r}")
    return value


def _reproduce(options: argparse.Namespace) -> int:
    from paperlib.companion import profiles, workflow

    return workflow.reproduce(profiles.load(options.profile), options.cores, options.only)


def _run(options: argparse.Namespace) -> int:
    from paperlib.companion import profiles, runner

    profile = profiles.load(options.profile)
    given = runner.plan(profile, options.notebook)
    runner.run(runner.with_parameters(given, options.parameter))
    return 0


def _train(options: argparse.Namespace) -> int:
    from paperlib.companion import practice, profiles

    profile = profiles.load(options.profile)
    chosen = practice.select(profile, options.weighting, options.seed, options.pictures, options.arm)
    practice.train(chosen, options.engine)
    return 0


def _sample(options: argparse.Namespace) -> int:
    from paperlib.companion import assessment, files, practice, profiles
    from paperlib.engine import sampling

    profile = profiles.load(options.profile)
    sampler = options.sampler or profile.sampling.samplers[-1]
    sampling.get(sampler)
    if options.output and options.output.suffix != ".png":
        raise ValueError(f"--output must name a .png file, got {options.output}.")
    chosen = practice.select(profile, options.weighting, options.seed, options.pictures)[:1]
    one = next(assessment.networks(profile, chosen, practice.trained(profile), options.weights))
    path = options.output or files.root() / "results/interactive" / profile.name / f"samples/{one.name}-{sampler}.png"
    sheet = assessment.sample(one, profile, sampler, options.count or 100, _guidance(options, profile))
    assessment.save(sheet, path)
    print(f"{sheet.caption} → {path}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from paperlib.companion import assessment, files, practice, profiles
    from paperlib.engine import sampling

    profile = profiles.load(options.profile)
    samplers = [options.sampler] if options.sampler else profile.sampling.samplers
    for sampler in samplers:
        sampling.get(sampler)
    judge = assessment.judge(profile.data.name, options.features == "inception", options.inception, options.resize)
    chosen = practice.select(profile, options.weighting, options.seed)
    networks = assessment.networks(profile, chosen, practice.trained(profile), options.weights)
    count = options.count or profile.sampling.count
    path = options.output or files.root() / "results/interactive" / profile.name / "evaluation.csv"
    judged = assessment.evaluate(networks, profile, judge, samplers, count, _guidance(options, profile))
    assessment.write(judged, path)
    print(assessment.table(judged), f"→ {path}", sep="\n")
    return 0


def _guidance(options: argparse.Namespace, profile: "Profile") -> float:
    return profile.sampling.guidance if options.guidance is None else options.guidance


def _claims(options: argparse.Namespace) -> int:
    from tabulate import tabulate

    from paperlib.companion import profiles, workflow
    from paperlib.companion.claims import factor

    ledger = workflow.ledger(profiles.load(options.profile))
    if options.json:
        print(json.dumps(ledger, indent=1, ensure_ascii=False))
        return 0
    columns = ["claim", "verdict", "margin", "falsifier\nmisses by", "what is claimed", "tested in"]
    rows = [
        [one["id"], one["verdict"], factor(one["margin"]), factor(one["missed"]), one["statement"], one["notebook"]]
        for one in ledger
    ]
    print(tabulate(rows, columns, maxcolwidths=[None, 11, None, None, 46, None]))
    return 0


def _costs(options: argparse.Namespace) -> int:
    from paperlib.companion import costs

    found = costs.table()
    if options.write:
        costs.write(found)
    print(found.to_string(index=False, float_format="{:.3g}".format), costs.ASSUMPTIONS, sep="\n\n")
    return 0


def _verify(options: argparse.Namespace) -> int:
    from paperlib.companion import files, profiles

    if options.profile:
        profiles.path(options.profile)
    found = sorted((files.root() / "results").glob(f"{options.profile or '*'}/[0-9]*/{provenance.MANIFEST}"))
    problems = [problem for manifest in found for problem in provenance.verify(manifest.parent)]
    print(*problems, f"{len(found)} results looked at, {len(problems)} files differ.", sep="\n")
    return 1 if problems else 0


def _doctor(options: argparse.Namespace) -> int:
    from paperlib.companion import doctor

    findings = doctor.examine()
    for finding in findings:
        remedy = "" if finding.good else f"  → {finding.remedy}"
        print(f"{'ok ' if finding.good else 'NO '} {finding.what:<18} {finding.found}{remedy}")
    return 0 if all(finding.good for finding in findings) else 1
