"""What ``make gpu`` looks at: every goal, and the sections that see how it is met.

A section is a function of a `Bench`, and tells it what it sees as soon as it sees it.
"""

from __future__ import annotations

import functools
import gc
import itertools
import json
import os
import re
import subprocess
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from race import race

ROOT = Path(__file__).resolve().parent.parent
SMALL = "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2"
"""What a dry run takes for every model."""
DEIT, BASE = "deit_tiny_patch16_224", "vit_base_patch16_224"
PRECISIONS = ("fp32", "tf32", "bf16")
LINK_SIZES = (64, 1_000_000, 19_400_000)
COMPILED = (("vit-mini", 128, "reduce-overhead"), (DEIT, 128, "default"))
RUNS_AT_ONCE = 8


class Missing(Exception):
    """This checkout or machine lacks what a goal is about; says what."""


@dataclass
class Bench:
    """Where a section computes, and where it tells what it sees.

    Attributes:
        device: where to compute.
        until: when its time is up, by the monotonic clock.
        file: takes lines of JSON, and outlives the section.
        folder: for what it makes; empty.
    """

    device: torch.device
    until: float
    file: Path
    folder: Path
    dry: bool = field(init=False)

    def __post_init__(self) -> None:
        self.dry = self.device.type == "cpu"

    def see(self, goal: str, seen: str, met: bool | None = None) -> None:
        """Tell what was seen of a goal; ``met`` is None where nothing is asked for."""
        self._write(goal=goal, seen=seen, met=None if self.dry else met)

    def miss(self, goal: str, why: str) -> None:
        """Tell why a goal was not seen."""
        self._write(goal=goal, seen=f"not seen: {why}", met=None)

    def table(self, title: str, text: str) -> None:
        """Tell more than fits beside a goal, in Markdown; what is told last of a title counts."""
        self._write(title=title, text=text)

    def _write(self, **values: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def share(self, part: float) -> float:
        """Return this share of the seconds that are left."""
        return max(0.0, part * (self.until - time.monotonic()))

    def options(self, model: str, size: int, **more: Any) -> dict[str, Any]:
        """Return options of a run: those of a dry run are small, whatever is asked for."""
        if self.dry:
            model, size = SMALL, 8
        known = {"model": model, "batch_size": size, "weights": "none", "device": str(self.device)}
        return known | more


@contextmanager
def seeing(bench: Bench, *goals: str) -> Iterator[None]:
    """Turn what goes wrong into a word beside these goals, and let the section go on."""
    try:
        yield
    except Missing as missing:
        for goal in goals:
            bench.miss(goal, str(missing))
    except Exception as error:  # noqa: BLE001 (one figure must not take the others with it)
        traceback.print_exc()
        text = " ".join(str(error).split())
        for goal in goals:
            bench.see(goal, f"failed: {type(error).__name__}: {text[:200]}", False)
    finally:
        gc.collect()
        if bench.device.type == "cuda":
            torch.cuda.empty_cache()


def milliseconds(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {1e3 * seconds:.3g} ms" for name, seconds in found.items())


# Steps.


def step(bench: Bench) -> None:
    """A step of an empty stack beside an unsplit one."""
    import bench_step

    cases = bench_step.ON_A_GPU
    turns = [(case, precision) for case in cases for precision in PRECISIONS]
    for i, ((model, size, rounds), precision) in enumerate(turns):
        goal = f"step {model} {precision}"
        with seeing(bench, goal):
            sides = step_sides(bench, model, size, "halves", precision=precision)
            rounds = 1 if bench.dry else rounds
            seconds = bench.share(1 / (len(turns) - i))
            found = race(sides, bench.device, rounds=rounds, seconds=0.5 * seconds)
            ratio = found["split"] / found["unsplit"]
            most = bench_step.most(model, bench.device)
            bench.see(goal, f"{ratio:.3f} ({milliseconds(found)})", ratio <= most)


def step_sides(
    bench: Bench, model: str, size: int, *more: str, **chosen: Any
) -> dict[str, Callable[[], Any]]:
    """Return both steps of a model, and more of `bench_step` by name."""
    import bench_step

    from splitlab.core import Config

    config = Config(**bench.options(model, size, **chosen))
    bench_step.let_round(config.precision)
    batch = bench_step.noise(config, bench.device)
    names = ("unsplit", *more, "split")
    return {name: getattr(bench_step, f"{name}_step")(config, batch) for name in names}


def compiled(bench: Bench) -> None:
    """Compiled parts beside parts as they are."""
    for model, size, how in COMPILED:
        goals = [f"compile {model}", f"compile {model} losses"]
        with seeing(bench, *goals):
            if bench.dry:
                raise Missing("a dry run compiles nothing")
            plain = step_sides(bench, model, size)
            made = step_sides(bench, model, size, compile=how)
            pairs = [(float(plain["split"]().loss), float(made["split"]().loss)) for _ in range(3)]
            apart = max(abs(a - b) / abs(a) for a, b in pairs)
            bench.see(goals[1], f"{apart:.1e} apart at most, of 3 steps", apart <= 1e-3)
            sides = {
                "unsplit": plain["unsplit"],
                "split": plain["split"],
                "unsplit, compiled": made["unsplit"],
                "split, compiled": made["split"],
            }
            found = race(sides, bench.device, rounds=15, seconds=bench.share(0.25))
            ratio = found["split, compiled"] / found["split"]
            bench.see(goals[0], f"{ratio:.3f} ({milliseconds(found)})")


# Methods.


def adc(bench: Bench) -> None:
    """ADC's clustering and merging beside the official code's way, and one read of the input."""
    import bench_adc

    with seeing(bench, "adc"):
        sides = bench_adc.contestants(8 if bench.dry else 128, bench.device)
        rounds, calls = (1, 1) if bench.dry else (15, 3)
        seconds = bench.share(0.6)
        found = race(sides, bench.device, rounds=rounds, calls=calls, seconds=seconds)
        ratio = found["loops"] / found["ours"]
        text = f"{ratio:.1f} times as fast as loops of small kernels ({milliseconds(found)})"
        bench.see("adc", text, ratio >= bench_adc.LEAST_SPEEDUP)


def methods(bench: Bench) -> None:
    """Every plugin's encoding and decoding beside a step of the client's part."""
    import bench_methods

    from splitlab.core.catalogue.tables import catalogue

    names = sorted(catalogue()["plugins"])
    rows: list[tuple[str, float, float, float]] = []
    slow: list[str] = []
    with seeing(bench, "methods"):
        model, size = (SMALL, 8) if bench.dry else (bench_methods.MODEL, bench_methods.B)
        client = bench_methods.Client(bench.device, model, size)
        names = ["adc", "none"] if bench.dry else names
        for i, name in enumerate(names):
            try:
                work = bench_methods.compression(name, client)
                sent = [work() for _ in range(3)][-1]
            except Exception as error:  # noqa: BLE001 (the next one may do)
                traceback.print_exc()
                slow.append(f"{name} failed ({type(error).__name__}: {str(error)[:80]})")
                continue
            sides = {"own": work, "step": client.step}
            rounds, seconds = (1 if bench.dry else 7), bench.share(1 / (len(names) - i))
            found = race(sides, bench.device, rounds=rounds, warm_up=1, seconds=seconds)
            share = found["own"] / found["step"]
            rows.append((name, found["own"], share, sent))
            if name in bench_methods.HELD_TO_IT and share > bench_methods.LARGEST_SHARE:
                slow.append(f"{name} {share:.1%}")
            # After each: what was seen when the time is up is kept.
            bench.table("Methods beside the client's step", bench_methods.as_table(rows))
            text = f"{len(rows)} of {len(names)}, see below"
            bench.see("methods", "; ".join([text, *slow]), not slow)


# Links.


def links(bench: Bench) -> None:
    """Round trips within the process and over TCP, beside sockets between pinned buffers."""
    import bench_links

    device, goals = bench.device, [f"tcp {size}" for size in LINK_SIZES]
    with seeing(bench, *goals, "inprocess"), ExitStack() as stack:
        sizes = LINK_SIZES[:1] if bench.dry else LINK_SIZES
        opening: list[Any] = [bench_links.round_trips_over("tcp", device)]
        opening.append(bench_links.round_trips_inside(device))
        opening += [bench_links.bare_round_trip(size, device) for size in sizes]
        opening += [bench_links.round_trip_to_a_mirror(size, device) for size in sizes]
        # The processes at their other ends start at the same time.
        with ThreadPoolExecutor(len(opening)) as pool:
            tcp, inside, *ends = pool.map(stack.enter_context, opening)
        for size, rival, mirror in zip(sizes, ends[: len(sizes)], ends[len(sizes) :], strict=True):
            sides = {
                "bare sockets": rival,
                "to a mirror": mirror,
                "two processes on one GPU": functools.partial(tcp, size),
                "inprocess": functools.partial(inside, size),
            }
            found = link_race(bench, sides, size)
            # Both ends cost what one does, and no time slices.
            ratio = 2 * found["to a mirror"] / found["bare sockets"] - 1
            most = {64: 4.0, 19_400_000: 1.15}.get(size)
            met = None if most is None else ratio <= most
            bench.see(f"tcp {size}", f"{ratio:.2f} ({milliseconds(found)})", met)
        bench.see(
            "inprocess", f"{milliseconds({'round trip': found['inprocess']})}, {size:,} bytes"
        )
        if bench.dry:
            for size in LINK_SIZES[1:]:
                bench.miss(f"tcp {size}", "a dry run takes the smallest")


def nccl(bench: Bench) -> None:
    """Round trips over NCCL, two peers on one GPU."""
    import bench_links

    from splitlab.core.catalogue.loading import load

    with seeing(bench, "nccl"):
        if lacking := load("transports", "nccl")().unavailable():
            raise Missing(lacking)
        with bench_links.round_trips_over("nccl", bench.device) as trip:
            rows = []
            for size in LINK_SIZES:
                sides = {"nccl": functools.partial(trip, size)}
                rows.append(f"{size:,} bytes: {milliseconds(link_race(bench, sides, size))}")
        bench.see("nccl", "; ".join(rows) + "; closed in good order", True)


def link_race(bench: Bench, sides: dict[str, Callable[[], Any]], size: int) -> dict[str, float]:
    rounds, calls = (1, 1) if bench.dry else (40, 50 if size < 1000 else 1)
    seconds = bench.share(0.25)
    return race(sides, bench.device, rounds=rounds, calls=calls, seconds=seconds)


# Whole runs.


def images(folder: Path, size: int, training: int, test: int) -> str:
    """Write JPEG files of two classes, which are as hard to decode as photographs; return where."""
    import numpy as np
    from PIL import Image

    def write(number: int) -> None:
        part = "train" if number < training else "test"
        place = folder / part / f"class {number % 2}" / f"{number}.jpg"
        draws = np.random.default_rng(number)
        coarse = Image.fromarray(draws.integers(0, 255, (size // 8, size // 8, 3), dtype=np.uint8))
        coarse.resize((size, size), Image.Resampling.BICUBIC).save(place, quality=90)

    for part, name in itertools.product(("train", "test"), ("class 0", "class 1")):
        (folder / part / name).mkdir(parents=True)
    with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
        list(pool.map(write, range(training + test)))
    return str(folder)


def data(bench: Bench) -> None:
    """How many images a second a run of DeiT-T trains on, and how long it waits for them."""
    from splitlab.core import run

    training, test = (16, 4) if bench.dry else (2048, 64)
    goals = ["data gpu", "data memory", "data none"]
    with seeing(bench, *goals):
        folder = images(bench.folder / "images", 32 if bench.dry else 256, training, test)
        for cache in ("gpu", "memory", "none"):
            with seeing(bench, f"data {cache}"):
                options = bench.options(DEIT, 128, cache=cache, precision="bf16")
                if cache == "gpu" and bench.dry:
                    raise Missing("there is no GPU")
                result = run(
                    **{**options, "data_dir": folder, "budget": f"steps={2 if bench.dry else 80}"},
                    **{"eval_every": 10_000, "output": str(bench.folder / cache)},
                    workers=0 if bench.dry else 8,
                )
                speed, waited = result.summary.images_per_second, result.summary.data_share
                assert speed is not None
                assert waited is not None
                met = waited < 0.05 if cache == "gpu" else None
                bench.see(f"data {cache}", f"{waited:.1%}, {speed:,.0f} images/s", met)


def eight(bench: Bench) -> None:
    """Eight runs of DeiT-T on one GPU at once, beside one alone."""
    from splitlab.core import study

    with seeing(bench, "eight"):
        number = 1 if bench.dry else RUNS_AT_ONCE
        training, test = (16, 4) if bench.dry else (512, 16)
        folder = images(bench.folder / "images", 32 if bench.dry else 224, training, test)
        cache = "memory" if bench.dry else "gpu"
        options = bench.options(DEIT, 128, data_dir=folder, eval_every=10_000, cache=cache)
        speeds = {}
        for runs in dict.fromkeys((1, number)):
            output = bench.folder / str(runs)
            steps = 2 if bench.dry else 30
            study(
                stacks=["none"],
                seeds=runs,
                executor=f"processes:{runs}",
                output=output,
                budget=f"steps={steps}",
                **options,
            )
            ended = [json.loads(path.read_text()) for path in output.rglob("summary.json")]
            if len(ended) < runs:
                raise RuntimeError(f"{len(ended)} of {runs} runs at once came to their end")
            images_a_run = steps * options["batch_size"]
            speeds[runs] = sum(images_a_run / training_seconds(summary) for summary in ended)
        ratio = speeds[number] / speeds[1]
        text = f"{ratio:.2f} of one alone ({speeds[1]:,.0f} and {speeds[number]:,.0f} images/s)"
        bench.see("eight", text)


def training_seconds(summary: dict[str, Any]) -> float:
    return float(sum(summary[f"{who}_seconds"] for who in ("client", "server", "link")))


# Tests.

TESTS = {
    "tests sync": re.compile(r"sync|wait"),
    "tests conformance": re.compile(r"conform|test_conformance|holds_it_on_a_gpu"),
    "tests parity": re.compile(r"test_gpu\.py.*(cpu_and_gpu|losses)"),
    "tests repeat": re.compile(r"test_gpu\.py.*(repeat|deterministic)"),
    "tests nccl": re.compile(r"nccl"),
    "tests frames": re.compile(r"test_inprocess|test_tcp|frame"),
    "tests precision": re.compile(r"precision|bf16|tf32|autocast|compile"),
    "tests others": re.compile(""),
}
"""Which goal a test belongs to, by its name: the first that fits."""


ENDED = re.compile(
    r"(?:\[gw\d+\].*?)?\b(PASSED|FAILED|ERROR|SKIPPED|XFAIL) (tests/.+)|"
    r"(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL)\b"
)
"""A line of ``pytest -v`` that tells how a test ended: with several workers, and with one."""

PLAINLY = [*("-o", "addopts=--import-mode=importlib"), *("-p", "no:cacheprovider")]
PLAINLY += ["-p", "no:benchmark"]
WITHOUT_TIMEOUT = ["-W", "ignore::pytest.PytestUnknownMarkWarning"]
WITHOUT_TIMEOUT += ["-W", "ignore::pytest.PytestConfigWarning"]
"""What lets pytest run these tests where pytest-timeout is not: warnings are errors here."""


def about_a_gpu() -> list[str]:
    """Return the files with tests that need a GPU: each worker imports all that it is given."""
    files = sorted((ROOT / "tests").rglob("test_*.py"))
    return [str(f.relative_to(ROOT)) for f in files if "mark.gpu" in f.read_text(encoding="utf-8")]


def tests(bench: Bench) -> None:
    """The tests that need a GPU, several at a time."""
    what = ["tests/test_gpu.py"] if bench.dry else about_a_gpu()
    what += ["--gpu", "-v", "--tb=short", *PLAINLY, "--continue-on-collection-errors"]
    if not _is_here("pytest_timeout"):
        what += WITHOUT_TIMEOUT
    if _is_here("xdist") and not bench.dry:
        what += ["-n", str(min(12, os.cpu_count() or 1)), "--dist", "worksteal"]
    command = [sys.executable, "-u", "-m", "pytest", *what]
    ended: dict[str, str] = {}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:  # as they end: what was seen when the time is up is kept
            print(line, end="", flush=True)
            if found := ENDED.match(line):
                outcome, name = found[1] or found[4], found[2] or found[3]
                worse = outcome in ("FAILED", "ERROR") or name not in ended
                ended |= {name.strip(): outcome} if worse else {}
                _tell_tests(bench, ended)
    if process.returncode not in (0, 1, 5):
        raise RuntimeError(f"pytest ended with status {process.returncode}")


def _tell_tests(bench: Bench, ended: dict[str, str]) -> None:
    for goal, group in itertools.groupby(sorted(ended, key=_goal_of), key=_goal_of):
        names = [*group]
        counts = Counter(ended[name].lower() for name in names)
        failed = [name for name in names if ended[name] in ("FAILED", "ERROR")]
        text = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        if failed:
            shown = ", ".join(f"`{name.rpartition('::')[2]}`" for name in failed[:8])
            text += f": {shown}{' …' if len(failed) > 8 else ''}"
        bench.see(goal, text, False if failed else counts["passed"] > 0 or None)


def _goal_of(name: str) -> str:
    return next(goal for goal, pattern in TESTS.items() if pattern.search(name))


def _is_here(module: str) -> bool:
    from importlib.util import find_spec

    return find_spec(module) is not None


@dataclass(frozen=True)
class Section:
    """What is looked at by one process.

    Attributes:
        look: the function; its name is the section's, its docstring says what it looks at.
        seconds: most that it may take, of all of `SECONDS`.
    """

    look: Callable[[Bench], None]
    seconds: float

    @property
    def name(self) -> str:
        return self.look.__name__


SECTIONS = [
    Section(step, 80),
    Section(links, 40),
    Section(adc, 15),
    Section(methods, 35),
    Section(tests, 110),
    Section(nccl, 40),
    Section(data, 45),
    Section(eight, 70),
    Section(compiled, 300),
]
"""The most important ones first: what remains of the time is the last one's, which takes any."""
SECONDS = 460.0
"""Of the whole, which the sections' own limits are more than: one that ends early leaves its time
to the last one."""


def _steps() -> dict[str, str]:
    found = {}
    for model, size, most in (("vit-mini", 128, 1.10), (DEIT, 128, 1.03), (BASE, 64, 1.03)):
        for precision in PRECISIONS:
            text = f"an empty stack, in process, beside the unsplit step: {model}, batch {size}, "
            found[f"step {model} {precision}"] = f"{text}{precision}: at most {most:.2f}"
    return found


GOALS = {
    **_steps(),
    "compile vit-mini": "`--compile reduce-overhead`, vit-mini: a split step of the one without",
    "compile vit-mini losses": "the same losses, within 1e-3",
    f"compile {DEIT}": f"`--compile default`, {DEIT}: a split step of the one without",
    f"compile {DEIT} losses": "the same losses, within 1e-3",
    "inprocess": "a round trip within the process",
    "tcp 64": "TCP from GPU to GPU, 64 bytes: at most 4 of bare sockets between pinned buffers; "
    "twice what one end costs beside them, since two processes on one GPU wait for its time slices",
    "tcp 1000000": "the same, 1 MB",
    "tcp 19400000": "the same, 19.4 MB: at most 1.15",
    "nccl": "NCCL, two peers on one GPU: round trips, and a clean end",
    "adc": "ADC's clustering and merging: ten times as fast as the official code's way",
    "methods": "every plugin beside a step of the client's part; those that promise it, at most 5%",
    "data gpu": "DeiT-T in bf16 from JPEG files, `--cache gpu`: waiting for data less than 5%",
    "data memory": "the same, `--cache memory`",
    "data none": "the same, `--cache none`",
    "eight": f"{RUNS_AT_ONCE} runs of DeiT-T at once, throughput",
    "tests sync": "no plugin's step waits for the GPU",
    "tests conformance": "every plugin holds on the GPU what it holds on the CPU",
    "tests parity": "losses of CPU and GPU within their tolerance",
    "tests repeat": "`--deterministic` repeats a run bit for bit",
    "tests nccl": "the contract of a link over NCCL",
    "tests frames": "tensors that stay on the GPU cross as real frames do",
    "tests precision": "`--precision` and `--compile` compute what they say",
    "tests others": "all other tests that need a GPU",
}
"""What is asked for, by the name that sections use."""
