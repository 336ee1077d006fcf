"""Comparisons: what is run, how it goes on, and what is refused before anything runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core import Config, ConfigError, SplitlabError, run
from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.compare import ComparisonReporter, compare, redraw
from splitlab.core.studies.comparison import Comparison, Contender, Outcome

FAST = {"threads": 1, "budget": "steps=2", "weights": "none", "device": "cpu"}

# What is run.

HOOK = "    from splitlab.core import hookimpl\n    run_end = hookimpl(lambda self: None)\n"
"""What makes a plugin of a class that does nothing."""


def test_every_stack_runs_with_every_seed(runs: Any, tmp_path: Path) -> None:
    stacks = ["adc-batch-merge + adc-token-select:ratio=0.3", "adc"]
    comparison = compare(stacks, seeds=2, seed=5, output="c", **FAST)
    assert runs.log == [
        "run adc-batch-merge+adc-token-select:ratio=0.3 5",
        "run adc 5",
        "run adc-batch-merge+adc-token-select:ratio=0.3 6",
        "run adc 6",
    ]
    assert comparison.seeds == (5, 6)
    assert [row.title for row in comparison.rows()] == [
        "adc-batch-merge + adc-token-select:ratio=0.3",
        "adc",
    ]
    assert {path.name for path in Path("c").iterdir()} == {
        *("adc", "adc-batch-merge+adc-token-select-ratio=0.3"),
        *("results.json", "table.md", "table.csv"),
    }
    config = RunFolder.open("c/adc/seed-6").read_config()
    assert (config.seed, config.budget, config.plugins) == (6, "steps=2", ("adc",))
    assert comparison.failures() == []


def test_default_folder_and_seeds(runs: Any, tmp_path: Path) -> None:
    first, second = (compare(["adc"], config=Config(**FAST)) for _ in range(2))  # type: ignore[arg-type]
    assert first.seeds == (0, 1, 2)
    assert first.folder != second.folder
    assert first.folder.parent == second.folder.parent == Path("comparisons").absolute()


@pytest.mark.parametrize(("seeds", "chosen"), [("2", (0, 1)), ("0,1,5", (0, 1, 5)), ([7], (7,))])
def test_seeds(seeds: Any, chosen: tuple[int, ...], runs: Any) -> None:
    assert compare(["adc"], seeds=seeds, **FAST).seeds == chosen


@pytest.mark.parametrize("seeds", ["0,9999999999999999999,1", "99999999999", 1001])
def test_seeds_that_no_run_can_take(seeds: Any, runs: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        compare(["adc"], seeds=seeds, **FAST)


def test_ratio_goes_to_the_first_that_takes_one(runs: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    'A plugin.'\n    def __init__(self, rate: float = 1.0): ...\n" + HOOK
    )
    stacks = [
        "adc",
        "mine.py:Mine",
        "mine.py:Mine+adc-batch-merge+adc-token-select",
        "adc:alloc=fifth+mine.py:Mine",
        "adc-batch-merge",
    ]
    comparison = compare(stacks, ratio=0.25, seeds=1, **FAST)
    assert [contender.plugins for contender in comparison.contenders] == [
        ("adc:ratio=0.25",),
        (f"{file}:Mine",),  # wherever the next one is started
        (f"{file}:Mine", "adc-batch-merge:ratio=0.25", "adc-token-select"),
        ("adc:alloc=fifth", f"{file}:Mine"),
        ("adc-batch-merge:ratio=0.25",),
    ]
    unchanged = "without --ratio 0.25"
    assert [row.note for row in comparison.rows()] == ["", unchanged, "", unchanged, ""]
    titles = [contender.title for contender in comparison.contenders]
    assert titles[:2] == ["adc", "Mine"]
    assert titles[3] == "adc:alloc=fifth + Mine"


def test_ratio_joins_the_settings_of_a_named_stack(runs: Any) -> None:
    comparison = compare(["tsflora:bits=4", "adc-q8", "adc"], ratio=0.25, seeds=1, **FAST)
    plugins = [contender.plugins for contender in comparison.contenders]
    # The ratios of the two stacks are set.
    assert plugins == [("tsflora:bits=4",), ("adc-q8",), ("adc:ratio=0.25",)]
    Path("registry.toml").write_text("[stacks.mine]\nplugins = ['adc', 'quantize:bits=8']")
    comparison = compare(["mine:alloc=sqrt", "mine:bits=4"], ratio=0.25, seeds=1, **FAST)
    plugins = [contender.plugins for contender in comparison.contenders]
    assert plugins == [("mine:alloc=sqrt",), ("mine:bits=4,ratio=0.25",)]


def test_titles(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "registry.toml").write_text(
        """
[plugins.guess]
target = "mine.py:Mine"
reconstruction = true
[stacks.both]
plugins = ["guess", "adc"]
[stacks.plain]
plugins = ["mine.py:Mine:x=2"]
[stacks.retold]
plugins = ["mine.py:Mine:x=3"]
reconstruction = true
"""
    )
    source = "class Mine:\n    'A plugin.'\n    def __init__(self, x: int = 1): ...\n" + HOOK
    (tmp_path / "mine.py").write_text(source)
    stacks = ["guess:x=5", "both:ratio=0.5", "plain+adc", "plain", "retold", "mine.py:Mine:x=4"]
    comparison = compare(stacks, seeds=1, **FAST)
    assert [contender.title for contender in comparison.contenders] == [
        "guess-recon:x=5",
        "both-recon:ratio=0.5",
        "plain + adc",
        "plain",
        "retold-recon",
        "Mine:x=4",
    ]


def test_folder_names(runs: Any, tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        source = (
            f"class Mine:\n    'Plugin {folder}.'\n    def __init__(self, x: str = ''): ...\n"
            + HOOK
        )
        (tmp_path / folder / "mine.py").write_text(source)
    stacks = ["adc+a/mine.py:Mine", "adc+b/mine.py:Mine", f"a/mine.py:Mine:x={'y' * 300}"]
    comparison = compare(stacks, seeds=1, **FAST)
    names = [contender.folder for contender in comparison.contenders]
    assert names[:2] == ["adc+mine.py-Mine", "adc+mine.py-Mine-2"]
    assert len(names[2]) == 100


# How it goes on.


def test_finished_runs_are_skipped(runs: Any) -> None:
    options: dict[str, Any] = {"seeds": 2, "output": "c", **FAST}
    first = compare(["adc", "adc-token-select"], **options)
    runs.log.clear()
    assert compare(["adc", "adc-token-select"], **options) == first
    assert runs.log == []


def test_a_comparison_grows(runs: Any) -> None:
    options: dict[str, Any] = {"output": "c", **FAST}
    compare(["adc"], seeds=1, **options)
    runs.log.clear()
    comparison = compare(["adc-token-select", "adc"], seeds=2, **options)
    assert runs.log == ["run adc-token-select 0", "run adc-token-select 1", "run adc 1"]
    assert [contender.name for contender in comparison.contenders] == ["adc", "adc-token-select"]
    runs.log.clear()
    comparison = compare(["adc-batch-merge"], seeds=[1], **options)
    assert runs.log == ["run adc-batch-merge 1"]
    assert [row.finished for row in comparison.rows()] == [2, 2, 1]
    assert comparison.rows()[2].note == "seed 0 not finished"
    assert redraw("c") == comparison


def test_an_interrupted_run_is_resumed(runs: Any) -> None:
    def stop(config: Config) -> None:
        if config.seed == 1:
            raise Interrupted("interrupted after step 7; go on with: splitlab run --resume x")

    runs.before = stop
    options: dict[str, Any] = {"seeds": 2, "output": "c", **FAST}
    with pytest.raises(Interrupted, match=r"1 of 2 runs are finished; go on .* --output .*c$"):
        compare(["adc"], **options)
    assert redraw("c").rows()[0].note == "seed 1 not finished"
    runs.before = lambda config: None
    runs.log.clear()
    comparison = compare(["adc"], **options)
    assert runs.log == ["resume adc 1"]
    assert [outcome.state for outcome in comparison.outcomes.values()] == ["finished"] * 2


def test_a_stop_between_two_runs(runs: Any) -> None:
    with pytest.raises(Interrupted, match="1 of 3 runs are finished"):
        compare(["adc"], should_stop=lambda: True, **FAST)
    assert runs.log == ["run adc 0"]
    compare(["adc"], seeds=1, should_stop=lambda: True, **FAST)  # nothing was left to stop


def test_ctrl_c_in_a_run_that_has_not_begun(runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise KeyboardInterrupt

    runs.before = interrupt
    with pytest.raises(Interrupted, match="0 of 1 runs are finished"):
        compare(["adc"], seeds=1, output="c", **FAST)
    assert Comparison.read(Path("c")) is not None


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (
            SplitlabError("step 3: the loss is nan; go on from the beginning with: x"),
            "the loss is nan",
        ),
        (RuntimeError("CUDA out of\nmemory"), "RuntimeError: CUDA out of memory"),
    ],
)
def test_a_run_that_fails_does_not_end_the_others(error: Exception, told: str, runs: Any) -> None:
    def fail(config: Config) -> None:
        if config.plugins == ("adc",):
            raise error

    runs.before = fail
    comparison = compare(["adc", "adc-token-select"], seeds=2, output="c", **FAST)
    assert len(runs.log) == 4
    first, second = comparison.rows()
    assert re.fullmatch(rf"seeds 0, 1 failed: .*{told}", first.note)
    assert (first.finished, second.finished) == (0, 2)
    assert first.accuracy is None
    assert len(comparison.failures()) == 2
    assert redraw("c") == comparison
    runs.before = lambda config: None
    assert compare(["adc"], seeds=2, output="c", **FAST).failures() == []


def test_what_is_no_failure_of_a_run_is_raised(runs: Any) -> None:
    def fail(config: Config) -> None:
        raise ZeroDivisionError

    runs.before = fail
    with pytest.raises(ZeroDivisionError):
        compare(["adc"], seeds=1, **FAST)


def test_the_reporter_is_told(runs: Any) -> None:
    class Log(ComparisonReporter):
        def __init__(self) -> None:
            self.lines: list[str] = []

        def begin(self, folder: Path, runs: int, finished: int) -> None:
            self.lines.append(f"begin {folder} {runs} {finished}")

        def run(self, number: int, contender: Contender, seed: int) -> Reporter:
            self.lines.append(f"run {number} {contender.title} {seed}")
            return Reporter()

        def ended(self, contender: Contender, outcome: Outcome) -> None:
            self.lines.append(f"ended {contender.title} {outcome.state}")

        def end(self) -> None:
            self.lines.append("end")

    compare(["adc"], seeds=1, output="c", **FAST)
    log = Log()
    compare(["adc"], seeds=2, output="c", reporter=log, **FAST)
    assert log.lines == [
        f"begin {Path('c').absolute()} 2 1",
        "run 2 adc 1",
        "ended adc finished",
        "end",
    ]
    log = Log()
    with pytest.raises(ConfigError):
        compare(["adc:ratio=2"], reporter=log, **FAST)
    assert log.lines == ["end"]


# What is refused before anything runs.


def test_folders_of_something_else(runs: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    nothing = r"thesis is no comparison \(it has no results\.json\); name another folder"
    with pytest.raises(ConfigError, match=nothing):
        compare(["adc"], output="thesis")
    compare(["adc"], seeds=1, output="c", **FAST)
    runs.log.clear()
    options: dict[str, Any] = {"output": "c", "seeds": 1, **FAST}
    other = r"other options: --budget was steps=2 and is now steps=3; give the same"
    with pytest.raises(ConfigError, match=other):
        compare(["adc"], **{**options, "budget": "steps=3"})
    other = r"the stack adc was adc:ratio=0\.1 and is now adc:ratio=0\.2; give the same"
    with pytest.raises(ConfigError, match=other):
        compare(["adc"], ratio=0.2, **options)
    same = r"the stacks adc and adc:ratio=0\.1 are the same"
    with pytest.raises(ConfigError, match=same):
        compare(["adc", "adc:ratio=0.1"], **options)
    with pytest.raises(ConfigError, match=same):
        compare(["adc:ratio=0.1"], **options)
    (tmp_path / "c" / "results.json").unlink()
    with pytest.raises(ConfigError, match="is no comparison"):
        compare(["adc"], **options)
    assert runs.log == []


def test_a_folder_in_which_another_compares(runs: Any, tmp_path: Path) -> None:
    told = []

    def twice(config: Config) -> None:
        with pytest.raises(ConfigError, match=r"c is in use by process \d+ on .* since ") as caught:
            compare(["topk"], seeds=1, output="c", **FAST)
        told.append(caught.value)
        assert redraw("c").seeds == (0,)  # looking is allowed

    runs.before = twice
    compare(["adc"], seeds=1, output="c", **FAST)
    assert len(told) == 1
    assert not list((tmp_path / "c").glob("*.lock"))


def test_a_plugin_file_that_was_changed(runs: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("class Mine:\n    'A plugin.'\n" + HOOK)
    compare(["mine.py:Mine"], seeds=1, output="c", **FAST)
    file.write_text("class Mine:\n    'Another plugin.'\n" + HOOK)
    with pytest.raises(ConfigError, match=r"mine.py:Mine was Mine@\w+ and is now Mine@\w+; give"):
        compare(["mine.py:Mine"], seeds=1, output="c", **FAST)


def test_not_under_a_launcher(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    launched = SimpleNamespace(place="beside", launched=lambda: ("client", "gloo://127.0.0.1:1"))
    monkeypatch.setattr("splitlab.core.studies.compare.load_transport", lambda name: launched)
    with pytest.raises(ConfigError, match="start it without a launcher"):
        compare(["adc"], transport="gloo", **FAST)


def test_options_that_are_not_a_comparisons(runs: Any) -> None:
    with pytest.raises(ConfigError, match="plugins is no option of a comparison"):
        compare(["adc"], plugins=["adc"])
    with pytest.raises(ConfigError, match="unknown key 'budgte'"):
        compare(["adc"], budgte="steps=1")
    with pytest.raises(ConfigError, match="nothing to compare"):
        compare([])


# With real runs.


def metrics(folder: Path) -> str:
    return (folder / "metrics.jsonl").read_text()


def test_runs_are_ordinary_runs_and_can_be_stopped(small_data: str, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        **FAST,
        "data_dir": small_data,
        "batch_size": 8,
        "eval_every": 1,
    }
    alone = run(plugins=["adc:ratio=0.5"], seed=1, output=str(tmp_path / "r"), **common)
    options: dict[str, Any] = {"ratio": 0.5, "seeds": [1, 2], "output": tmp_path / "c", **common}
    asked = iter([False, True])
    with pytest.raises(Interrupted, match="0 of 2 runs are finished"):
        compare(["adc"], should_stop=lambda: next(asked), **options)
    assert not (tmp_path / "c" / "adc" / "seed-1" / "summary.json").exists()
    comparison = compare(["adc"], **options)
    assert metrics(tmp_path / "c" / "adc" / "seed-1") == metrics(alone.folder)
    outcome = comparison.outcomes["adc", 1]
    assert outcome.summary is not None
    for key in ("accuracy", "loss", "bytes_up", "bytes_down", "steps"):
        assert outcome.summary[key] == alone.summary[key]
    assert [(row.finished, row.steps) for row in comparison.rows()] == [(2, 2)]
    curve = comparison.curves()[0]
    assert curve.x[-1] == alone.summary["bytes_up"] + alone.summary["bytes_down"]
    assert all(path.stat().st_size for path in comparison.files())
    assert json.loads((tmp_path / "c" / "results.json").read_text())["seeds"] == [1, 2]
