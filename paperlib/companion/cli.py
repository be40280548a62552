"""The command ``paperlib``."""

import argparse
import io
import json
import math
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paperlib import DISTRIBUTION
from paperlib.companion import paths

if TYPE_CHECKING:
    from paperlib.companion.profiles import Profile
    from paperlib.engine.data import ImageData


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point.  Returns the exit code: 0 well, 1 something failed, 2 used wrongly, 130 or 143 asked to stop.

    141 where nobody reads on, as in ``paperlib claims | head -1``.
    """
    try:
        try:
            return _run_command(_parser().parse_args(arguments))
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python writes what is left, at its end
        return 128 + signal.SIGPIPE


def _run_command(options: argparse.Namespace) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows no λ is no reason to fail
            stream.reconfigure(errors="replace")
    paths.settle()
    try:
        return options.run(options)
    except BrokenPipeError:
        raise
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "paperlib":
            raise
        remedy = f"this command needs the companion's packages: pip install '{DISTRIBUTION}[companion]'"
        print(f"paperlib {options.command}: {error.name} is not installed; {remedy}", file=sys.stderr)
        return 1
    except (ValueError, OSError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not type(error).__module__.startswith("paperlib"):
            raise  # of torch or a bug: somebody wants the traceback
        print(f"paperlib {options.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"paperlib {options.command}: {str(error) or 'interrupted; what was finished is kept.'}", file=sys.stderr)
        return 128 + getattr(error, "signal", signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="paperlib", description="Companion of 'Understanding Diffusion Objectives'.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    reproduce = _command(commands, "reproduce", _reproduce, "run the notebooks of a profile and show what came of them")
    reproduce.add_argument("profile")
    reproduce.add_argument("--cores", type=_positive, help="cores to use (default: all)")
    reproduce.add_argument("--only", metavar="NOTEBOOK", help="this notebook alone, with what it reads from")
    reproduce.add_argument("--strict", action="store_true", help="fail too where a number is outside its interval")

    run = _command(commands, "run", _run, "run one notebook, with other parameters if you like, into a folder")
    run.add_argument("notebook", help="its name, or the number it begins with")
    run.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE")
    run.add_argument("--profile", default="tiny")
    run.add_argument("--output", type=Path, metavar="DIR", help="where the result goes (default: results/interactive)")
    run.add_argument("--threads", type=_positive, help="threads of the notebook (default: the profile's)")
    run.add_argument("--stamp", type=Path, help=argparse.SUPPRESS)  # the workflow's

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
    train.add_argument(
        "--engine", choices=["auto", "single", "ddp", "fsdp"], default="auto", help="how, under torchrun"
    )
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
    evaluate.add_argument("--samples", type=Path, help="a folder of pictures or an .npz, instead of networks")
    evaluate.add_argument("--features", choices=["classifier", "inception"], default="classifier", help="seen through")
    evaluate.add_argument("--inception", type=Path, metavar="FILE", help="weights of Inception (default: download)")
    evaluate.add_argument("--resize", choices=["clean", "legacy_tensorflow"], help="for Inception (default: clean)")
    evaluate.add_argument("--output", type=Path, help="a .csv file")

    ledger = _command(commands, "claims", _claims, "list the claims, how each is tested, and its verdict")
    ledger.add_argument("--profile", default="tiny")
    ledger.add_argument("--json", action="store_true")

    comparing = _command(commands, "compare", _compare, "compare two results: claims, tables, data of figures")
    comparing.add_argument("one", help="a folder of results, or a profile: what is published with what was run here")
    comparing.add_argument("other", nargs="?", help="another folder of results, of one notebook or several")
    comparing.add_argument("--strict", action="store_true", help="fail where anything is outside its interval")
    comparing.add_argument("--json", type=Path, metavar="FILE", help="everything as data")
    comparing.add_argument("--html", type=Path, metavar="FILE", help="a page that needs nothing else")

    verify = _command(commands, "verify", _verify, "check that results are whole and what their manifests say")
    verify.add_argument("profile", nargs="?", help="one profile (default: all)")

    auditing = _command(commands, "audit", _audit, "what a loss really optimises: its weighting, and where it is spent")
    auditing.epilog = "Exit code: 1 where --expect finds another objective, or something failed; 2 where used wrongly."
    auditing.add_argument("--recipe", nargs="+", default=[], metavar="NAME", help="recipes by name, see `recipes`")
    auditing.add_argument("--scheduler", type=Path, help="a scheduler_config.json of diffusers, or a pipeline's folder")
    auditing.add_argument("--weights", type=Path, help="a trained network, on the images of --data")
    auditing.add_argument("--data", metavar="NAME", help="such as digits or cifar10/train; else the test split")
    auditing.add_argument(
        "--expect", metavar="NAME", help="what it was meant to be: a recipe, a weighting, a scheduler's file"
    )
    auditing.add_argument("--json", action="store_true", help="everything as data, instead of a summary")
    auditing.add_argument("--html", type=Path, metavar="FILE", help="a report with pictures, one file")

    part: dict[str, Any] = {"nargs": "+", "metavar": ("NAME", "PARAMETER=VALUE")}
    auditing.add_argument("--prediction", help="what the network predicts, such as F sigma_data=0.5", **part)
    auditing.add_argument("--schedule", help="such as cosine logsnr_min=-12 logsnr_max=12", **part)
    auditing.add_argument("--loss-weight", help="such as min_snr gamma=5 (default: a plain squared error)", **part)
    auditing.add_argument("--gamma", type=float, help="γ of the loss weight, short for gamma=… behind its name")
    _command(commands, "recipes", _recipes, "losses of public training codes: w, monotone or not, its peak")

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
    from paperlib.companion import profiles, provenance, workflow

    cores = options.cores or provenance.cores()
    return workflow.reproduce(profiles.load(options.profile), cores, options.only, options.strict)


def _run(options: argparse.Namespace) -> int:
    from paperlib import files
    from paperlib.companion import notebooks, profiles, runner
    from paperlib.engine import interruption

    profile = profiles.load(options.profile)
    name = next((one for one in notebooks.names() if one.startswith(f"{options.notebook:0>2}_")), options.notebook)
    target = options.output or paths.interactive(profile.name, name)
    job = runner.plan(profile, name, options.threads, options.parameter, target.resolve())
    signal.signal(signal.SIGTERM, interruption.end)  # the kernel is to end too
    if options.stamp:
        sys.stderr = sys.stdout  # what goes wrong is said on the screen: standard error is Snakemake's log
    result = runner.run(job)
    if options.stamp:
        files.write_text(options.stamp, notebooks.fingerprint(result) + "\n")
    return 0


def _train(options: argparse.Namespace) -> int:
    from paperlib.companion import experiments, profiles

    profile = profiles.load(options.profile)
    chosen = experiments.select(profile, options.weighting, options.seed, options.pictures, options.arm)
    experiments.train(chosen, options.engine)
    return 0


def _sample(options: argparse.Namespace) -> int:
    from paperlib.companion import experiments, measuring, profiles
    from paperlib.engine import sampling

    profile = profiles.load(options.profile)
    sampler = options.sampler or profile.sampling.samplers[-1]
    sampling.get(sampler)
    if options.output and options.output.suffix != ".png":
        raise ValueError(f"--output must name a .png file, got {options.output}.")
    _require_alone(options, options.weights, "weighting", "seed", "pictures")
    chosen = experiments.select(profile, options.weighting, options.seed, options.pictures)[:1]
    one = next(measuring.networks(profile, chosen, options.weights))
    path = options.output or paths.interactive(profile.name, "samples") / f"{one.name}-{sampler}.png"
    sheet = measuring.sample(one, profile, sampler, options.count or 100, _guidance(options, profile))
    sheet.save(path)
    print(f"{sheet.caption} → {path}")
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    from paperlib import files
    from paperlib.companion import experiments, measuring, profiles
    from paperlib.engine import features, sampling

    profile = profiles.load(options.profile)
    samplers = [options.sampler] if options.sampler else profile.sampling.samplers
    for sampler in samplers:
        sampling.get(sampler)
    if (given := options.inception or options.resize) and options.features != "inception":
        raise ValueError(f"{given} is for Inception; ask for it with --features inception.")
    judge: features.FeatureNetwork = (
        features.Inception(options.inception, options.resize or "clean", measuring.device())
        if options.features == "inception"
        else features.classifier_of(profile.data.name)
    )
    count = options.count or profile.sampling.count
    _require_alone(options, options.samples, "weights", "sampler", "weighting", "seed", "guidance")
    _require_alone(options, options.weights, "weighting", "seed")
    networks: Iterable[measuring.Checkpoint | ImageData]
    if options.samples:
        networks = [measuring.samples_in(options.samples, profile.data.load("test"), count)]
    else:
        chosen = experiments.select(profile, options.weighting, options.seed)
        networks = measuring.networks(profile, chosen, options.weights)
    path = options.output or paths.interactive(profile.name) / "evaluation.csv"
    evaluated = measuring.evaluate(networks, profile, judge, samplers, count, _guidance(options, profile))
    print(measuring.table(evaluated), flush=True)
    files.write_text(path, evaluated.to_csv(index=False, na_rep="nan"))
    print(f"→ {path}")
    return 0


def _require_alone(options: argparse.Namespace, given: Path | None, *others: str) -> None:
    """ValueError for options that would have no effect beside a file."""
    idle = [f"--{name}" for name in others if getattr(options, name) not in (None, False)]
    if given and idle:
        raise ValueError(f"with {given} there is nothing to choose: leave out {', '.join(idle)}.")


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


def _compare(options: argparse.Namespace) -> int:
    from paperlib import files
    from paperlib.companion import compare, profiles

    if options.other:
        found = compare.results(Path(options.one), Path(options.other))
    else:
        profile = profiles.load(options.one)
        here = paths.local(profile.name)
        if not here.is_dir():
            raise ValueError(f"nothing of {profile.name} was run here; run: paperlib reproduce {profile.name}")
        found = compare.results(paths.published(profile.name), here, compare.folders(here))
    for path, text in ((options.json, found.json), (options.html, found.html)):
        if path:
            files.write_text(path, text())
    print(found.text())
    return 1 if options.strict and found.outside else 0


def said(words: Sequence[str]) -> dict[str, Any]:
    """The plain dictionary that ``NAME PARAMETER=VALUE …`` says, values read as YAML reads them; "-" for "_" will do.

    ValueError for words that are no pairs, and for values that are no YAML.
    """
    from paperlib.companion import documents

    name, *pairs = words
    if unpaired := [pair for pair in pairs if "=" not in pair]:
        raise ValueError(f"expected PARAMETER=VALUE after {name}, got {' '.join(unpaired)}.")
    return {
        "name": name.replace("-", "_"),
        **{key.replace("-", "_"): documents.read(value, key)[1] for key, _, value in (p.partition("=") for p in pairs)},
    }


def _audit(options: argparse.Namespace) -> int:
    from paperlib import files
    from paperlib.auditing import Audit, audit, report

    parts = ("prediction", "schedule", "loss_weight")
    described: dict[str, Any] = {part: said(words) for part in parts if (words := getattr(options, part))}
    if options.gamma is not None:
        if "loss_weight" not in described:
            raise ValueError("--gamma is a parameter of --loss-weight: name one, such as min_snr.")
        described["loss_weight"]["gamma"] = options.gamma
    if described and (options.recipe or options.weights):
        raise ValueError(
            "a recipe and a file of weights say what is predicted, drawn and weighed: leave out "
            f"{', '.join('--' + part.replace('_', '-') for part in described)}, or describe the whole loss instead."
        )
    if (options.weights is None) != (options.data is None):
        raise ValueError("a trained network is audited on data: give both --weights FILE and --data NAME.")
    if options.weights and options.expect:
        raise ValueError("--expect is for a loss; a trained network is judged under every weighting: leave it out.")
    found = [audit(recipe, expect=options.expect) for recipe in options.recipe]
    if options.scheduler:
        found.append(audit(options.scheduler, expect=options.expect, **described))
    elif described:
        found.append(audit(described, expect=options.expect))
    if options.weights:
        found.append(audit(options.weights, data=options.data))
    if not found:
        raise ValueError(
            "nothing to audit; give --recipe NAME, --scheduler FILE, --prediction and --schedule, or --weights and "
            "--data."
        )
    if options.json:
        print(json.dumps([one.json() for one in found], indent=1, ensure_ascii=False, allow_nan=False))
    else:
        print(*found, sep="\n\n")
    if options.html:
        files.write_text(options.html, report.page(found))
        print(f"→ {options.html}", file=sys.stderr)
    return 1 if any(isinstance(one, Audit) and one.agrees is False for one in found) else 0


def _recipes(options: argparse.Namespace) -> int:
    from tabulate import tabulate

    from paperlib import recipes

    rows = [[row["recipe"], row["w"], row["monotone"], row["peak"], row["source"]] for row in recipes.table()]
    print(tabulate(rows, ["recipe", "w(λ)", "monotone", "peak", "read in"], floatfmt=".3f", maxcolwidths=48))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from paperlib.companion import crate, profiles, provenance

    results, chosen = paths.root() / "results", options.profile or "*"
    there = {*results.glob(f"{chosen}/[0-9]*"), *results.glob(f"local/{chosen}/[0-9]*")}
    for name in [options.profile] if options.profile else profiles.names():
        notebooks = profiles.load(name).notebooks
        if paths.published(name).is_dir():
            there |= {paths.published(name, notebook) for notebook in notebooks}
    problems = [problem for folder in sorted(there) for problem in provenance.problems(folder)]
    problems += [problem for home in sorted({folder.parent for folder in there}) for problem in crate.problems(home)]
    if not there:
        problems = [f"there are no results of {options.profile or 'any profile'}"]
    print(*problems, f"{len(there)} results looked at, {len(problems)} problems.", sep="\n")
    return 1 if problems else 0


def _doctor(options: argparse.Namespace) -> int:
    from paperlib.companion import doctor

    findings = doctor.examine()
    for finding in findings:
        remedy = "" if finding.good else f"  → {finding.remedy}"
        print(f"{'ok ' if finding.good else 'NO '} {finding.what:<20} {finding.found}{remedy}")
    return 0 if all(finding.good for finding in findings) else 1


if __name__ == "__main__":
    raise SystemExit(main())
