"""When a run is evaluated, on what, and what follows: the best checkpoint, and an early end."""

from __future__ import annotations

import math
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitlab.core import ConfigError, run
from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.checkpoint import Checkpoints
from splitlab.core.runs.evaluation import Standing, points_reached
from splitlab.core.runs.loop import Loop
from splitlab.core.runs.records import (
    TIMES,
    EvaluationRecord,
    StepRecord,
    read_evaluations,
    read_records,
    read_state,
    read_summary,
    read_times,
)
from splitlab.core.runs.reporter import Reporter

pytestmark = pytest.mark.usefixtures("starts_fast")

TINY = {
    "model": "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2",
    "weights": "none",
    "batch_size": 32,
    "threads": 1,
    "device": "cpu",
}

# When an evaluation is due.


def rises(units: list[Fraction], amount: Fraction, points: int) -> list[int]:
    """Return the steps at which a point is reached that was not reached before."""
    used, before, found = Fraction(0), 0, []
    for step, more in enumerate(units, 1):
        used += more
        # As `Loop.budget_used` computes it.
        reached = points_reached(float(used) / float(amount) + 1e-9, points)
        if reached > before:
            found.append(step)
        before = reached
        if reached >= points:
            break
    return found


def exact(units: list[Fraction], amount: Fraction, points: int) -> list[int]:
    """Return for every point the first step at which so much is used."""
    found = set()
    for k in range(1, points + 1):
        used = Fraction(0)
        for step, more in enumerate(units, 1):
            used += more
            if used * points >= k * amount:
                found.add(step)
                break
    return sorted(found)


POINTS = st.integers(1, 40)


@given(steps=st.integers(1, 90), points=POINTS)
def test_points_of_a_budget_of_steps(steps: int, points: int) -> None:
    found = rises([Fraction(1)] * steps, Fraction(steps), points)
    assert found == sorted({-(-k * steps // points) for k in range(1, points + 1)})
    assert found[-1] == steps
    assert len(found) == min(steps, points)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 8), POINTS)
def test_points_of_a_budget_of_epochs(samples: int, batch: int, quarters: int, points: int) -> None:
    amount = Fraction(quarters, 4)
    sizes = [min(batch, samples - at) for at in range(0, samples, batch)]
    units = [Fraction(size, samples) for _ in range(2) for size in sizes]
    assert rises(units, amount, points) == exact(units, amount, points)


@given(st.lists(st.integers(1, 10**9), min_size=1, max_size=60), st.integers(1, 10**9), POINTS)
def test_points_of_a_budget_of_bytes(sizes: list[int], amount: int, points: int) -> None:
    units = [Fraction(size) for size in sizes]
    found = rises(units, Fraction(amount), points)
    # What misses a point by less than a billionth of the budget has reached it.
    nearly = exact(units, Fraction(amount), points)
    missed = set(found) ^ set(nearly)
    total, totals = 0, []
    for size in sizes:
        totals.append(total := total + size)
    for step in missed:
        near = [Fraction(used * points, amount) for used in totals[step - 1 : step + 1]]
        assert any(0 < math.ceil(at) - at < 2e-9 * points for at in near)


@given(st.lists(st.sampled_from([0.1, 0.05, 0.3, 1.0]), min_size=1, max_size=60), POINTS)
def test_points_of_a_nominal_budget(ratios: list[float], points: int) -> None:
    units = [Fraction(str(ratio)) for ratio in ratios]
    amount = sum(units, Fraction(0))
    assert rises(units, amount, points) == exact(units, amount, points)


@given(share=st.floats(0, 3), points=st.integers(1, 1_000_000))
def test_more_is_never_reached_than_there_is(share: float, points: int) -> None:
    assert 0 <= points_reached(share, points) <= points
    assert points_reached(1 + 1e-9, points) == points


@pytest.mark.parametrize("budget", ["steps=7", "epochs=1.5", "nominal=0.9", "bytes=300kB"])
def test_a_run_is_evaluated_at_even_shares_of_its_budget(
    budget: str, easy_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**TINY, "plugins": ["cast:dtype=fp16"], "data_dir": easy_data}
    result = run(**options, budget=budget, eval_points=3, output=str(tmp_path / "r"))
    records = read_records(tmp_path / "r")
    samples = [32, 32, 32, 16] * 9
    used, shares = 0.0, []
    for number, record in enumerate(r for r in records if isinstance(r, StepRecord)):
        used += {
            "steps": 1.0,
            "epochs": samples[number] / 112,
            "nominal": samples[number] / 112 / 2,
            "bytes": (record.bytes_up or 0) + (record.bytes_down or 0),
        }[budget.partition("=")[0]]
        shares.append(used / float(budget.partition("=")[2].replace("kB", "000")) + 1e-9)
    wanted = [next(i for i, share in enumerate(shares, 1) if share >= k / 3) for k in (1, 2, 3)]
    found = [record.step for record in records if isinstance(record, EvaluationRecord)]
    assert found == [0, *sorted(set(wanted))]
    assert found[-1] == result.summary.steps
    assert records[0].step == 0  # it comes before the first step


@pytest.mark.parametrize("plugin", ["adc", "aqsgd", "bottlenet", "quantize:bits=8"])
def test_evaluations_change_nothing_that_is_trained(
    plugin: str, easy_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**TINY, "plugins": [plugin], "data_dir": easy_data}

    def steps(name: str, **more: Any) -> list[StepRecord]:
        run(**options, budget="steps=4", output=str(tmp_path / name), **more)
        return [r for r in read_records(tmp_path / name) if isinstance(r, StepRecord)]

    assert steps("a", eval_points=4, eval_samples=8) == steps("b", eval_every=4)


# Killed and resumed.


class Killed(BaseException):
    """Stands in for SIGKILL: nothing that the run does after it reaches its log."""


class Kills(Reporter):
    """Ends a run at its n-th report; counts them."""

    def __init__(self, at: int | None = None) -> None:
        self.left = at
        self.count = 0

    def _report(self, *_: object) -> None:
        self.count += 1
        if self.count == self.left:
            raise Killed

    step = evaluating = evaluated = _report


def logs(folder: Path) -> tuple[str, list[int]]:
    """Return the log of a run, and the steps of its times."""
    return (folder / "metrics.jsonl").read_text(), [record.step for record in read_times(folder)]


def test_killed_anywhere_and_resumed_equals_uninterrupted(easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        **TINY,
        "data_dir": easy_data,
        "budget": "steps=5",
        "eval_points": 2,
        "eval_samples": 8,
        "keep": "best",
        "patience": 1,
        "lr": 0.0,  # nothing gets better, so the second point ends the run, at step 5 of 5
    }
    options |= {"eval_points": 3}  # at 2, 4 and 5: patience ends it at 4
    reporter = Kills()
    whole = run(**options, output=str(tmp_path / "whole"), reporter=reporter).summary
    assert (whole.steps, whole.stopped_early, whole.best_step) == (4, True, 2)
    assert [r.step for r in read_evaluations(tmp_path / "whole")] == [0, 2, 4]
    # The first report is in the evaluation before the first step: there is no run yet.
    for at in range(2, reporter.count + 1):
        folder = tmp_path / str(at)
        with pytest.raises(Killed):
            run(**options, output=str(folder), reporter=Kills(at))
        resumed = run(resume=folder).summary
        assert logs(folder) == logs(tmp_path / "whole")
        for name in ("steps", "accuracy", "best_step", "best_accuracy", "stopped_early"):
            assert getattr(resumed, name) == getattr(whole, name)
        assert Checkpoints(folder, "client").steps() == [2, 4]
        assert Checkpoints(folder, "server").steps() == [2, 4]


def test_killed_over_tcp_and_resumed_equals_uninterrupted(
    real: Any, easy_data: str, tmp_path: Path
) -> None:
    options = real.SMALL | TINY | {"budget": "steps=60", "eval_points": 10, "eval_samples": 8}
    options |= {"keep": "best", "patience": 9}
    whole = run(
        plugins=["adc"], data_dir=easy_data, output=str(tmp_path / "a/r"), **options
    ).summary
    parts = tmp_path / "b" / "r"
    flags = real.flags(easy_data, parts, **options, transport="tcp", plugin="adc")
    victim = subprocess.Popen(real.command("run", "--quiet", *flags))
    real.wait_for_steps(parts, 12, victim)
    victim.send_signal(signal.SIGKILL)
    victim.wait(10)
    resumed = run(resume=parts).summary
    assert logs(parts) == logs(tmp_path / "a/r")
    assert (resumed.best_step, resumed.best_accuracy) == (whole.best_step, whole.best_accuracy)
    for role in ("client", "server"):
        kept = Checkpoints(parts, role).steps()  # type: ignore[arg-type]
        assert kept == Checkpoints(tmp_path / "a/r", role).steps()  # type: ignore[arg-type]
        assert whole.best_step in kept


def test_a_longer_budget_goes_on_with_its_own_points(easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "eval_points": 4, "eval_samples": 8}
    run(**options, budget="steps=4", output=str(tmp_path / "r"))
    assert [r.step for r in read_evaluations(tmp_path / "r")] == [0, 1, 2, 3, 4]
    run(resume=tmp_path / "r", budget="steps=12")
    found = read_evaluations(tmp_path / "r")
    assert [r.step for r in found] == [0, 1, 2, 3, 4, 6, 9, 12]
    assert [r.samples for r in found] == [8, 8, 8, 8, 40, 8, 8, 40]
    run(resume=tmp_path / "r", from_step=9, budget="steps=10")  # a point of neither
    assert [r.step for r in read_evaluations(tmp_path / "r")] == [0, 1, 2, 3, 4, 6, 9, 10]
    run(resume=tmp_path / "r", from_step=0, budget="steps=4")
    assert [r.step for r in read_evaluations(tmp_path / "r")] == [0, 1, 2, 3, 4]


def test_a_budget_that_was_shortened_ends_with_all_samples(easy_data: str, tmp_path: Path) -> None:
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "eval_every": 2, "eval_samples": 8}
    asked = iter([False, False, True])
    with pytest.raises(Interrupted):
        run(
            **options,
            budget="steps=6",
            output=str(tmp_path / "r"),
            should_stop=lambda: next(asked),
        )
    assert [r.samples for r in read_evaluations(tmp_path / "r")] == [8]
    summary = run(resume=tmp_path / "r", budget="steps=2").summary
    last = read_evaluations(tmp_path / "r")[-1]
    assert (summary.steps, summary.accuracy, last.samples) == (2, last.accuracy, 40)


# A part of the test images.


def test_a_subset_saves_traffic_and_the_last_evaluation_is_on_all(
    easy_data: str, tmp_path: Path
) -> None:
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=4"}
    options |= {"eval_points": 4}
    every = run(**options, output=str(tmp_path / "all")).ledger
    some = run(**options, output=str(tmp_path / "some"), eval_samples=8).ledger
    one_image = 17 * 32 * 4
    sent = [ledger.counts["evaluation"]["up"]["activation"] for ledger in (every, some)]
    # Five evaluations on 40 images; or five on 8, and one more on all at the end.
    assert sent == [5 * 40 * one_image, (5 * 8 + 40) * one_image]
    assert every.counts["training"] == some.counts["training"]
    found = read_evaluations(tmp_path / "some")
    assert [record.samples for record in found] == [8, 8, 8, 8, 40]
    assert [record.accuracy_subset is None for record in found] == [True] * 4 + [False]
    whole = read_evaluations(tmp_path / "all")
    assert [record.samples for record in whole] == [40] * 5
    assert (found[-1].accuracy, found[-1].loss) == (whole[-1].accuracy, whole[-1].loss)
    assert sum(record.bytes_up for record in found) == some.total("up", "evaluation")


def test_the_subset_is_the_same_for_every_seed_and_may_be_all(
    easy_data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    score = Loop._score

    def noting(self: Loop, rows: Any, *, stacked: bool) -> tuple[float, float]:
        asked.append(None if rows is None else rows.tolist())
        return score(self, rows, stacked=stacked)

    monkeypatch.setattr(Loop, "_score", noting)
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=2", "eval_every": 1}
    for seed in (0, 1):
        run(**options, seed=seed, eval_samples=8, output=str(tmp_path / str(seed)))
    assert asked[:3] == asked[3:]
    assert asked[0] == asked[1] != asked[2]
    assert [sum(row % 4 == label for row in asked[0]) for label in range(4)] == [2] * 4
    asked.clear()
    for samples in (40, 41):
        run(**options, eval_samples=samples, output=str(tmp_path / f"{samples}"))
    assert asked == [None] * 4
    with pytest.raises(ConfigError, match=r"--eval-samples 3 are not .* at least 4, one a class$"):
        run(**options, eval_samples=3, output=str(tmp_path / "few"))


# The best checkpoint, and an early end.


def record(step: int, accuracy: float) -> EvaluationRecord:
    return EvaluationRecord(step, accuracy, 1.0, False, 1, 1, 1)


def test_the_first_best_counts_and_the_untrained_model_does_not() -> None:
    standing = Standing([record(0, 0.9)])
    assert (standing.best(), standing.stale) == (None, 0)
    for step, accuracy, best, stale in (
        (2, 0.5, 2, 0),
        (4, 0.5, 2, 1),
        (6, 0.4, 2, 2),
        (8, 0.6, 8, 0),
        (8, 0.7, 8, 0),  # the same evaluation on other samples
        (9, 0.6, 8, 1),
    ):
        standing.add(step, accuracy)
        assert (standing.best() or (0,))[0] == best
        assert standing.stale == stale
    assert [standing.best(until=n) for n in (1, 7, 8)] == [None, (2, 0.5), (8, 0.6)]


def test_what_is_best_goes_by_the_subset() -> None:
    last = replace(record(4, 0.2), samples=40, accuracy_subset=0.6)
    assert Standing([record(2, 0.5), last]).best() == (4, 0.6)


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[int, float]], None]:
    """Return what makes the accuracies of runs those of a table, by step."""

    def script(accuracies: dict[int, float]) -> None:
        monkeypatch.setattr(
            Loop, "_score", lambda self, rows, stacked: (accuracies[self.progress.step], 1.0)
        )

    return script


@pytest.mark.parametrize("transport", ["inprocess", "tcp"])
def test_the_best_checkpoint_is_kept_at_both_peers(
    transport: str, easy_data: str, tmp_path: Path, scripted: Callable[[dict[int, float]], None]
) -> None:
    scripted({1: 0.1, 2: 0.6, 3: 0.6, 4: 0.2, 5: 0.3, 6: 0.4})
    folder = tmp_path / "r"
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=6", "eval_every": 1}
    summary = run(**options, keep="best", transport=transport, output=str(folder)).summary
    assert (summary.best_step, summary.best_accuracy, summary.accuracy) == (2, 0.6, 0.4)
    assert read_summary(folder) == summary
    state = read_state(folder)
    assert state is not None
    assert state.best_step == 2
    for role in ("client", "server"):
        assert Checkpoints(folder, role).steps() == [2, 5, 6]  # type: ignore[arg-type]
    # It goes on from there, and what is best is found anew.
    scripted({3: 0.7, 4: 0.1, 5: 0.1, 6: 0.1})
    assert run(resume=folder, from_step=2).summary.best_step == 3
    for role in ("client", "server"):
        assert Checkpoints(folder, role).steps() == [3, 5, 6]  # type: ignore[arg-type]


def test_a_best_one_is_saved_between_the_regular_checkpoints(
    easy_data: str, tmp_path: Path, scripted: Callable[[dict[int, float]], None]
) -> None:
    scripted({2: 0.3, 4: 0.5, 6: 0.2, 8: 0.2, 10: 0.2})
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=10"}
    options |= {"eval_every": 2, "checkpoint_every": 3}
    kept = run(**options, keep="best", output=str(tmp_path / "best")).summary
    assert kept.best_step == 4
    assert Checkpoints(tmp_path / "best", "client").steps() == [4, 9, 10]
    plain = run(**options, output=str(tmp_path / "newest")).summary
    assert "best_step" not in plain
    assert Checkpoints(tmp_path / "newest", "client").steps() == [9, 10]


def test_a_finished_run_that_goes_on_is_not_evaluated_again(
    easy_data: str, tmp_path: Path, scripted: Callable[[dict[int, float]], None]
) -> None:
    scripted({2: 0.3, 3: 0.5})
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=3"}
    options |= {"eval_every": 2, "checkpoint_every": 3, "keep": "best"}
    first = run(**options, output=str(tmp_path / "r")).summary
    scripted({})
    again = run(resume=tmp_path / "r").summary
    assert (again.best_step, again.best_accuracy, again.accuracy) == (3, 0.5, 0.5)
    assert again == first


def test_a_peer_that_is_killed_before_it_has_the_new_best_finds_the_old_one(
    easy_data: str,
    tmp_path: Path,
    scripted: Callable[[dict[int, float]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted({1: 0.5, 2: 0.1, 3: 0.1, 4: 0.1, 5: 0.9})
    folder = tmp_path / "r"
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "budget": "steps=5", "eval_every": 1}
    save = Checkpoints.save

    def killed(self: Checkpoints, step: int, *rest: Any) -> None:
        if self._role == "client" and step == 5:
            raise Killed
        save(self, step, *rest)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(Killed):
        run(**options, keep="best", output=str(folder))
    assert Checkpoints(folder, "server").steps() == [1, 4, 5]
    assert Checkpoints(folder, "client").steps() == [1, 3, 4]
    monkeypatch.setattr(Checkpoints, "save", save)
    scripted({5: 0.2})  # this time it is not better
    assert run(resume=folder).summary.best_step == 1
    for role in ("client", "server"):
        assert Checkpoints(folder, role).steps() == [1, 4, 5]  # type: ignore[arg-type]


def test_patience_ends_a_run_with_all_samples(easy_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    # At a learning rate of 0 no accuracy is better than the first.
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "lr": 0.0, "budget": "steps=9"}
    summary = run(**options, eval_every=2, eval_samples=8, patience=2, output=str(folder)).summary
    assert (summary.steps, summary.budget_used, summary.stopped_early) == (6, 6, True)
    assert "best_step" not in summary  # no checkpoint of it is kept
    found = read_evaluations(folder)
    assert [(r.step, r.samples) for r in found] == [(2, 8), (4, 8), (6, 40)]
    assert found[-1].accuracy_subset == found[0].accuracy
    assert summary.accuracy == found[-1].accuracy
    state = read_state(folder)
    assert state is not None
    assert state.state == "finished"
    before = (folder / "metrics.jsonl").read_bytes()
    again = run(resume=folder).summary
    assert (again.steps, again.stopped_early) == (6, True)
    assert run(resume=folder, budget="steps=20").summary.steps == 6  # a budget is not patience
    assert (folder / "metrics.jsonl").read_bytes() == before
    longer = run(resume=folder, patience=3, budget="steps=20").summary
    assert (longer.steps, longer.stopped_early) == (8, True)
    whole = run(resume=folder, patience=9, budget="steps=9").summary
    assert whole.steps == 9
    assert "stopped_early" not in whole
    assert not whole.stopped_early


# When it was.


def test_times_are_kept_beside_the_log(easy_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "eval_every": 2}
    summary = run(**options, budget="steps=4", output=str(folder)).summary
    times = read_times(folder)
    assert [time.step for time in times] == [r.step for r in read_evaluations(folder)] == [2, 4]
    assert 0 < times[0].training_seconds < times[0].seconds < times[1].seconds
    assert times[1].seconds == summary.seconds
    spent = summary.client_seconds + summary.server_seconds + summary.link_seconds
    assert times[1].training_seconds == spent
    assert summary.images_per_second == pytest.approx(summary.epochs * 112 / spent)
    assert summary.data_share is not None
    assert 0 < summary.data_share <= summary.client_seconds / spent
    before = (folder / TIMES).read_bytes()
    run(resume=folder, budget="steps=8")
    assert (folder / TIMES).read_bytes().startswith(before)
    assert [time.step for time in read_times(folder)] == [2, 4, 6, 8]


def test_a_run_without_times_goes_on(easy_data: str, tmp_path: Path) -> None:
    folder = tmp_path / "r"
    options: dict[str, Any] = {**TINY, "data_dir": easy_data, "eval_every": 2}
    run(**options, budget="steps=2", output=str(folder))
    (folder / TIMES).unlink()
    assert read_times(folder) == []
    run(resume=folder, budget="steps=4")
    assert [time.step for time in read_times(folder)] == [4]
