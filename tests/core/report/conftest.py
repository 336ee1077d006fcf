"""Results that no run made: many methods, settings, seeds and points, the same ones every time."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core.report.over_links import Means, OverLinks
from splitlab.core.report.results import Axis, Point, Results, Row, RunResult
from splitlab.core.runs.records import Summary

FULL = 40_000_000
"""Training bytes of a run without compression."""


def summary(**changes: Any) -> Summary:
    known: dict[str, Any] = {
        "accuracy": 0.5,
        "loss": 1.0,
        "steps": 2000,
        "epochs": 1.5,
        "seconds": 9.0,
        "client_seconds": 1.0,
        "server_seconds": 2.0,
        "link_seconds": 3.0,
        "bytes_up": 2_000_000,
        "bytes_down": 1_000_000,
        "ratio_nominal": 0.1,
        "ratio_measured": 0.11,
        "stack": ("a",),
        "transport": "t",
        "model": "m",
        "dataset": "d",
        "cut": 3,
        "seed": 0,
    }
    return Summary(**known | changes)


def finished(
    seed: int,
    accuracy: float,
    ratio: float = 0.1,
    points: int = 20,
    joules: bool = False,
    noise: random.Random | None = None,
    **changes: Any,
) -> RunResult:
    """Return a run that learns as runs do: fast, then slowly, and not quite smoothly."""
    noise = noise or random.Random(seed)
    total = int(FULL * ratio * noise.uniform(0.99, 1.01))
    curve = []
    for i in range(points + 1):
        share = i / points
        reached = 0.1 + (accuracy - 0.1) * (1 - math.exp(-4 * share)) / (1 - math.exp(-4))
        wobble = noise.gauss(0, 0.006) if 0 < i < points else 0.0
        curve.append(
            Point(
                step=100 * i,
                accuracy=accuracy if i == points else reached + wobble,
                loss=2.3 - 2 * reached,
                training_bytes=int(total * share),
                seconds=share * (20 + 60 * ratio),
                joules=share * (300 + 500 * ratio) if joules else None,
                samples=1000,
            )
        )
    whole = summary(
        accuracy=accuracy,
        loss=curve[-1].loss,
        seed=seed,
        bytes_up=total // 2,
        bytes_down=total - total // 2,
        ratio_nominal=ratio,
        ratio_measured=ratio * 1.02,
        **changes,
    )
    return RunResult(Path(f"runs/seed-{seed}"), seed, "finished", "", whole, tuple(curve))


def results_of_rows(
    rows: Sequence[Row], axes: Sequence[Axis] = (), reference: str | None = None, **changes: Any
) -> Results:
    known: dict[str, Any] = {
        "name": "made-up",
        "summary": "Methods that nobody has.",
        "paper": "",
        "common": (("data", "fashion-mnist-mini"), ("model", "vit-mini")),
        "command": "splitlab study made-up",
        "axes": tuple(axes),
        "rows": tuple(rows),
        "seeds": (0, 1, 2),
        "reference": reference,
    }
    return Results(**known | changes)


def row_of(title: str, accuracies: Mapping[int, float] | Sequence[float], **changes: Any) -> Row:
    """Return a row of finished runs with these accuracies, by seed."""
    by_seed = accuracies if isinstance(accuracies, Mapping) else dict(enumerate(accuracies))
    runs = tuple(finished(seed, accuracy, points=4) for seed, accuracy in by_seed.items())
    known: dict[str, Any] = {"title": title, "method": title, "settings": {}, "runs": runs}
    return Row(**known | changes)


def lost(seed: int, state: str, error: str = "") -> RunResult:
    return RunResult(Path(f"runs/seed-{seed}"), seed, state, error)


NAMES = (
    *("adc", "topk", "randtopk", "quantize", "fourier", "tome-recon", "dct_low", "bottleneck"),
    *("splitfc", "svd", "powerquant"),
)


def many_methods(seeds: int = 5, points: int = 20, joules: bool = False) -> Results:
    """Return eleven methods at three ratios, and what is uncompressed; some runs did not finish."""
    noise = random.Random(7)
    ratios = (0.05, 0.1, 0.2)
    none = tuple(
        finished(s, 0.88 + noise.gauss(0, 0.004), 1.0, points, joules, noise) for s in range(seeds)
    )
    rows = [Row("none", "none", {"stack": "none", "ratio": None}, none)]
    for i, name in enumerate(NAMES):
        for ratio in ratios:
            accuracy = 0.87 - 0.012 * i - 0.01 * i / (20 * ratio)
            runs = [
                finished(s, accuracy + noise.gauss(0, 0.006), ratio, points, joules, noise)
                for s in range(seeds)
            ]
            if (name, ratio) == ("quantize", 0.05):
                runs[1] = lost(1, "diverged", "step 41: the loss is nan")
            if (name, ratio) == ("svd", 0.05):
                runs = [lost(s, "failed", "the server raised ValueError") for s in range(seeds)]
            title = f"{name}:ratio={ratio}"
            rows.append(Row(title, name, {"stack": name, "ratio": ratio}, tuple(runs)))
    axes = (Axis("stack", ("none", *NAMES)), Axis("ratio", (None, *ratios)))
    return results_of_rows(rows, axes, "none", seeds=tuple(range(seeds)))


def grid(cuts: Sequence[int] = (1, 2, 3), stacks: Sequence[str] = ("adc",)) -> Results:
    """Return a study of the cut and the ratio, with a hole, and what is uncompressed beside it."""
    noise = random.Random(3)
    ratios = (0.05, 0.1, 0.2)
    rows = []
    for stack, cut, ratio in itertools.product(stacks, cuts, ratios):
        accuracy = 0.55 + 0.04 * cut + 0.7 * ratio
        runs = tuple(finished(s, accuracy + noise.gauss(0, 0.01), ratio, 6) for s in range(3))
        if (cut, ratio) == (cuts[-1], 0.05):
            runs = tuple(lost(s, "diverged", "the loss is nan") for s in range(3))
        settings = {"stack": stack, "ratio": ratio, "cut": cut}
        rows.append(Row(f"{stack}:ratio={ratio}, cut {cut}", stack, settings, runs))
    for cut in cuts:
        runs = tuple(finished(s, 0.8 + noise.gauss(0, 0.005), 1.0, 6) for s in range(3))
        settings = {"stack": "none", "ratio": None, "cut": cut}
        rows.append(Row(f"none, cut {cut}", "none", settings, runs))
    axes = (
        *(Axis("stack", (*stacks, "none")), Axis("ratio", (*ratios, None))),
        Axis("cut", tuple(cuts)),
    )
    return results_of_rows(rows, axes, "none")


def over_links() -> OverLinks:
    """Return three rows over two links; the last does not get where the others do."""
    links = ("lte", "rate=1<2")
    seconds = {"a": (3.0, 40.0), "b": (5.0, 30.0), "c <d>": (None, None)}
    means = tuple(
        Means(title, link, 2, 0.1, 50.0, 0.3, 0.5, 0 if until is None else 2, until)
        for title, own in seconds.items()
        for link, until in zip(links, own, strict=True)
    )
    return OverLinks(links, 0.5, False, 0.1, (), means)


@pytest.fixture(scope="session")
def methods() -> Results:
    return many_methods()


@pytest.fixture(scope="session")
def cut_by_ratio() -> Results:
    return grid()


@pytest.fixture(scope="session")
def make() -> SimpleNamespace:
    """The builders, for tests that want other results: a conftest cannot be imported."""
    return SimpleNamespace(
        summary=summary,
        finished=finished,
        lost=lost,
        row=row_of,
        axis=Axis,
        results=results_of_rows,
        methods=many_methods,
        grid=grid,
        over_links=over_links,
    )
