"""Studies: what is run, how one goes on and grows, and what is refused before anything runs."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from splitlab.core import Config, ConfigError, SplitlabError
from splitlab.core.contract.errors import Diverged, Interrupted, Notice
from splitlab.core.runs.disk import hold
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.conduct import StudyReporter, prepare, study
from splitlab.core.studies.definition import Definition
from splitlab.core.studies.job import Job, Outcome, note_failure
from splitlab.core.studies.study import Study

FAST: dict[str, Any] = {"threads": 1, "budget": "steps=2", "weights": "none", "device": "cpu"}
TABLE = '[studies.mine]\nstacks = ["adc"]\nseeds = 2\nbase = { budget = "steps=2" }\n'


def states(found: Study) -> list[list[str]]:
    return [[run.state for run in row.runs] for row in found.results().rows]


def test_every_combination_runs_with_every_seed(runs: Any) -> None:
    what = Definition("mine", stacks=("none", "adc"))
    found = study(what, over={"cut": [1, 2]}, seeds=2, seed=5, output="s", **FAST)
    assert runs.log == [f"run {stack} {seed}" for seed in (5, 6) for stack in SEEN]
    assert states(found) == [["finished"] * 2] * 4
    assert found.folder == Path("s").absolute()
    config = RunFolder.open(found.jobs()[-1].folder).read_config()
    assert (config.seed, config.budget, config.plugins, config.cut) == (6, "steps=2", ("adc",), 2)
    assert (config.eval_points, config.threads) == (20, 1)


SEEN = ("none", "none", "adc", "adc")


def test_finished_runs_are_skipped(runs: Any) -> None:
    for _ in range(2):
        study(Definition("mine", stacks=("adc",)), seeds=2, **FAST)
    assert runs.log == ["run adc 0", "run adc 1"]
    assert Path("studies/mine/study.json").is_file()


def test_only_what_differs_needs_to_be_said(runs: Any) -> None:
    study(Definition("mine", stacks=("adc",)), seeds=1, output="s", lr=0.01, **FAST)
    study(output="s", stacks=["none"])
    study(output="s", seeds=2)
    told = r"^2 rows are not of the study any more; their runs stay in \S+/s, unused: adc-"
    with pytest.warns(Notice, match=f"{told}.*; see them with: splitlab runs s/adc-.* s/none-"):
        study(output="s", over={"cut": [2]})
    found = study(output="s", over={"cut": [3]}, seeds=[7])
    assert runs.log[:4] == ["run adc 0", "run none 0", "run adc 1", "run none 1"]
    # The cut of the first runs was the model's own, 3: they are rows of the axis.
    assert runs.log[4:] == ["run adc 0", "run none 0", "run adc 1", "run none 1"] + [
        f"run {stack} 7" for stack in ("adc", "adc", "none", "none")
    ]
    assert {run.state for row in found.results().rows for run in row.runs} == {"finished"}
    assert all(job.config.lr == 0.01 for job in found.jobs())


def test_rows_that_are_left_behind_are_told_once(
    runs: Any, recwarn: pytest.WarningsRecorder
) -> None:
    study(Definition("mine", stacks=("adc",)), seeds=1, output="s", **FAST)
    with pytest.warns(Notice, match=r"^1 row is not of the study .*: adc-\w+; see them"):
        prepare(None, output="s", over={"cut": [2]}, dry=True)
    with pytest.warns(Notice, match="^1 row is not of the study"):
        study(output="s", over={"cut": [2]})
    study(output="s", over={"ratio": [0.1]})
    with pytest.warns(Notice, match="^1 row is not of the study"):
        study(output="s", over={"lr": [0.1]})


def test_the_command_names_the_folder_as_it_was_given(runs: Any, monkeypatch: Any) -> None:
    what = Definition("mine", stacks=("adc",))
    found = study(what, seeds=1, output="sub/s", **FAST)
    assert found.results().command.endswith(" --seeds 1 --output sub/s")
    assert study(what, seeds=1, **FAST).results().command.endswith(" --output studies/mine")
    monkeypatch.chdir("sub")
    read = Study.read(found.folder)
    assert read is not None
    assert read.results().command.endswith(" --output sub/s")


def test_whoever_looks_at_the_first_run_leaves_a_gpu_as_it_wants_it(
    tmp_path: Path, monkeypatch: Any
) -> None:
    workspace, seen = "CUBLAS_WORKSPACE_CONFIG", list[str | None]()

    def make(decided: Any) -> Any:
        seen.append(os.environ.get(workspace))
        return None, None, SimpleNamespace(close=lambda: seen.append("closed"))

    monkeypatch.setenv(workspace, "")  # so that it is put back
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("released"))
    monkeypatch.setattr("splitlab.core.studies.conduct.make", make)
    options = {**FAST, "device": "cuda", "deterministic": True}
    prepare(Definition("mine", stacks=("adc",)), seeds=1, output=tmp_path / "s", options=options)
    assert seen == [":4096:8", "closed", "released"]


def test_a_row_without_runs_leaves_nothing_behind(runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise Interrupted("interrupted before the first step")

    runs.before = interrupt
    with pytest.raises(Interrupted):
        study(Definition("mine", stacks=("adc", "none")), seeds=1, output="s", **FAST)
    prepare(None, output="s", over={"cut": [2]}, dry=True)


def test_what_another_process_saw_fail_is_not_run_again(runs: Any) -> None:
    what = Definition("mine", stacks=("none", "adc"))

    def fail(config: Config) -> None:
        if config.plugins == ("none",):  # meanwhile, the other job of the list fails elsewhere
            other = prepare(None, output="s", dry=True).jobs()[1]
            note_failure(other, Outcome("failed", "no memory"))

    runs.before = fail
    found = study(what, seeds=1, output="s", **FAST)
    assert states(found) == [["finished"], ["failed"]]
    assert runs.log == ["run none 0"]


def test_a_retry_that_is_interrupted_goes_on_as_one(runs: Any) -> None:
    def fail(config: Config) -> None:
        raise SplitlabError("bad")

    def interrupt(config: Config) -> None:
        raise Interrupted("x")

    runs.before = fail
    study(Definition("mine", stacks=("none", "adc")), seeds=1, output="s", **FAST)
    runs.before = interrupt
    with pytest.raises(Interrupted, match=r"go on with: splitlab study --output .* --retry$"):
        study(output="s", retry=True)
    runs.before = lambda config: None
    assert states(study(output="s", retry=True)) == [["finished"], ["finished"]]


def test_settings_that_are_defaults_or_written_in_another_order_make_no_other_run(
    runs: Any,
) -> None:
    what = Definition("mine", stacks=("none",))
    found = study(what, over={"lr_schedule": ["cosine", "cosine:least=0"]}, output="s", **FAST)
    assert len(found.cells) == 1
    models = ["vit:image_size=28,patch=7,channels=1", "vit:channels=1,patch=07,image_size=28"]
    for model in models:
        study(what, seeds=1, output="t", model=model, **FAST)
    assert runs.log == ["run none 0", "run none 1", "run none 2", "run none 0"]
    assert len(prepare(what, over={"model": models}, options=FAST, dry=True).cells) == 1


def test_loggers_may_be_given_later(runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise Interrupted("x")

    runs.before = interrupt
    with pytest.raises(Interrupted):
        study(Definition("mine", stacks=("none",)), seeds=2, output="s", **FAST)
    runs.before = lambda config: None
    found = study(output="s", loggers=["tensorboard"])
    assert states(found) == [["finished", "finished"]]
    assert len(found.cells) == 1
    configs = [RunFolder.open(job.folder).read_config() for job in found.jobs()]
    assert [config.loggers for config in configs] == [("tensorboard",)] * 2
    assert study(output="s").definition.base["loggers"] == ["tensorboard"]


def test_a_study_takes_more_budget(runs: Any) -> None:
    study(Definition("mine", stacks=("adc",)), seeds=1, output="s", **FAST)
    found = study(output="s", budget="steps=4")
    assert runs.log == ["run adc 0", "resume adc 0"]
    assert states(found) == [["finished"]]
    (row,) = found.results().rows
    assert row.runs[0].summary is not None
    assert row.runs[0].summary.budget == "steps=4"


def test_an_interrupted_run_is_resumed(runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise Interrupted("interrupted after step 1")

    runs.before = interrupt
    what = Definition("mine", stacks=("none", "adc"))
    with pytest.raises(Interrupted, match=r"0 of 2 runs are finished; go on with: splitlab study"):
        study(what, seeds=1, output="s", **FAST)
    runs.before = lambda config: None
    assert states(study(output="s")) == [["finished"], ["finished"]]
    assert runs.log == ["run none 0", "resume none 0", "run adc 0"]


def test_a_study_takes_no_longer_than_it_may(runs: Any, monkeypatch: Any) -> None:
    now = 0.0

    def take_a_minute(config: Config) -> None:
        nonlocal now
        now += 60.0

    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("splitlab.core.studies.conduct.time", clock)
    runs.before = take_a_minute
    what = Definition("mine", stacks=("none", "adc", "topk"))
    part = study(what, seeds=1, seconds=90.0, output="s", **FAST)  # ends as asked: no error
    assert states(part) == [["finished"], ["finished"], ["missing"]]
    assert states(study(output="s", seconds=60.0)) == [["finished"]] * 3
    with pytest.raises(Interrupted, match="0 of 3 runs"):  # somebody's wish is told as such
        study(what, seeds=1, seconds=0.1, output="t", should_stop=lambda: True, **FAST)


def test_ctrl_c_in_a_run_that_has_not_begun(runs: Any) -> None:
    def interrupt(config: Config) -> None:
        raise KeyboardInterrupt

    runs.before = interrupt
    with pytest.raises(Interrupted, match="0 of 1 runs are finished"):
        study(Definition("mine", stacks=("adc",)), seeds=1, **FAST)


@pytest.mark.parametrize(
    ("error", "state", "told"),
    [
        (SplitlabError("bad; go on from step 3 with: x"), "failed", "bad"),
        (Diverged("the loss is nan"), "diverged", "the loss is nan"),
        (RuntimeError("out of\nmemory"), "failed", "RuntimeError: out of memory"),
        (OSError(28, "No space left"), "failed", "OSError: [Errno 28] No space left"),
    ],
)
def test_a_run_that_fails_does_not_end_the_others(
    error: Exception, state: str, told: str, runs: Any
) -> None:
    def fail(config: Config) -> None:
        if config.plugins == ("none",):
            raise error

    runs.before = fail
    found = study(Definition("mine", stacks=("none", "adc")), seeds=1, output="s", **FAST)
    assert states(found) == [[state], ["finished"]]
    assert found.results().rows[0].runs[0].error == told
    study(output="s")
    assert runs.log == ["run none 0", "run adc 0"]  # it would only fail again
    runs.before = lambda config: None
    assert states(study(output="s", retry=True)) == [["finished"], ["finished"]]
    assert runs.log[2:] == ["resume none 0"]


def test_what_is_no_failure_of_a_run_is_raised(runs: Any) -> None:
    def fail(config: Config) -> None:
        raise ZeroDivisionError

    runs.before = fail
    with pytest.raises(ZeroDivisionError):
        study(Definition("mine", stacks=("adc",)), seeds=1, **FAST)


def test_the_reporter_is_told(runs: Any) -> None:
    told: list[Any] = []

    class Telling(StudyReporter):
        def begin(self, study: Study, runs: int, finished: int) -> None:
            told.append((study.definition.name, runs, finished))

        def run(self, job: Job) -> Reporter:
            told.append((job.number, job.title, job.config.seed))
            return Reporter()

        def ended(self, job: Job, outcome: Outcome) -> None:
            told.append(outcome.state)

        def end(self) -> None:
            told.append("end")

    for _ in range(2):
        study(Definition("mine", stacks=("adc",)), seeds=1, reporter=Telling(), **FAST)
    assert told == [("mine", 1, 0), (1, "adc", 0), "finished", "end", ("mine", 1, 1), "end"]


class TestDefinitions:
    def test_of_the_users_own_registry(self, runs: Any, tmp_path: Path) -> None:
        Path("registry.toml").write_text(TABLE)
        found = study("mine", **{key: FAST[key] for key in ("weights", "device")})
        assert found.folder == tmp_path / "studies" / "mine"
        assert runs.log == ["run adc 0", "run adc 1"]

    def test_all_that_ship_can_be_planned(self, tmp_path: Path) -> None:
        from splitlab.core.catalogue.tables import entries

        for name in entries("studies"):
            found = prepare(name, output=tmp_path / "s", dry=True)
            assert found.cells
            assert found.definition.summary
        assert not (tmp_path / "s").exists()


class TestWhatIsSaid:
    def test_replaces_what_a_new_study_says(self, runs: Any) -> None:
        Path("mine.toml").write_text(
            'stacks = ["adc"]\nover = { cut = [1, 2] }\nzip = [{ lr = [1.0], weight-decay = [0] }]'
        )
        found = prepare(
            "mine.toml", stacks=["none"], over={"cut": [3]}, seeds="4,5", options=FAST, dry=True
        )
        assert found.definition.stacks == ("none",)
        assert found.definition.axes == (
            ({"lr": 1.0, "weight_decay": 0.0},),
            ({"cut": 3},),
        )
        assert found.definition.seeds == (4, 5)

    @pytest.mark.parametrize(
        ("more", "told"),
        [
            ({"lr": 0.1}, "holds a study with other options: --lr was 0.0003 and is now 0.1"),
            ({"threads": 2}, "--threads was 1 and is now 2"),
            ({"train": ["last"]}, r"--train was nothing and is now last; give the same"),
            ({"name": "x"}, "name is no option of a study; its definition has one"),
            ({"tags": ["x"]}, "tags is no option of a study; .*: splitlab runs label --add TAG"),
            (
                {"cut": 1},
                "--cut is an axis of the study in .*; give it more values with --over",
            ),
            ({"plugins": ["adc"]}, "plugins is no option of a study"),
            ({"output": "x"}, "output is no option of a study"),
            ({"lrr": 1}, "unknown key 'lrr'"),
        ],
    )
    def test_other_options_are_refused(self, more: dict[str, Any], told: str, runs: Any) -> None:
        what = Definition("mine", stacks=("adc",))
        prepare(what, over={"cut": [2]}, seeds=1, output="s", options=FAST)
        with pytest.raises(ConfigError, match=told):
            prepare(None, output="s", options=more)
        prepare(None, output="s", options={**FAST, "seed": 0, "timeout": 9.0})
        prepare(
            None, output="s", options={"cache": "none", "workers": 2, "worker_kind": "processes"}
        )

    def test_another_study_is_refused(self, runs: Any) -> None:
        prepare(Definition("mine"), output="s")
        with pytest.raises(ConfigError, match="holds the study 'mine', not 'yours'"):
            prepare(Definition("yours"), output="s")

    def test_seed_and_a_list_exclude_each_other(self, runs: Any) -> None:
        with pytest.raises(ConfigError, match="exclude each other"):
            prepare(Definition("mine"), seeds="1,2", options={"seed": 3})
        found = prepare(Definition("mine", seeds=(0, 1)), options={"seed": 3}, dry=True)
        assert found.definition.seeds == (3, 4)

    def test_of_python_may_be_no_list(self, runs: Any) -> None:
        with pytest.raises(ConfigError, match="cut = 1 is not allowed; an axis is a list"):
            prepare(Definition("mine"), over={"cut": 1})
        with pytest.raises(ConfigError, match=r"cut = '1,2' is not allowed; an axis is a list"):
            prepare(Definition("mine"), over={"cut": "1,2"})
        assert prepare(Definition("mine"), stacks="adc", dry=True).definition.stacks == ("adc",)

    @pytest.mark.parametrize(
        ("name", "place"), [("../../x", "x"), ("/tmp/x", "tmp/x"), ("a/../ü b", "a/ü-b")]
    )
    def test_no_name_leads_elsewhere(self, name: str, place: str, runs: Any) -> None:
        found = prepare(Definition(name), dry=True)
        assert found.folder == Path("studies", place).absolute()

    def test_nothing_at_all(self, runs: Any) -> None:
        with pytest.raises(ConfigError, match="which study"):
            study()
        with pytest.raises(ConfigError, match="nothing to run; name every stack"):
            study(output="s")


def test_files_are_where_they_were(runs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    Path("mine.py").write_text(
        "class Mine:\n    'A plugin.'\n    from splitlab.core import hookimpl\n"
        "    run_end = hookimpl(lambda self: None)\n"
    )
    study(Definition("x"), stacks=["mine.py:Mine"], seeds=1, output="s", **FAST)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    found = study(output=tmp_path / "s", seeds=2)
    assert states(found) == [["finished", "finished"]]
    Path("../mine.py").write_text(Path("../mine.py").read_text() + "# changed\n")
    with pytest.warns(Notice, match="1 row is not of the study any more"):
        assert states(study(output=tmp_path / "s")) == [["finished", "finished"]]
    assert len(runs.log) == 4  # what it does now is another method
    Path("../mine.py").write_text(Path("../mine.py").read_text() + "# again\n")
    with pytest.warns(Notice, match="1 row is not of the study any more"):
        study(output=tmp_path / "s", budget="steps=4")
    assert not any(line.startswith("resume") for line in runs.log)


def test_a_folder_in_which_another_plans(runs: Any, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("splitlab.core.studies.conduct._PLANNING_SECONDS", 0.1)
    with (
        hold(tmp_path / "s", "study"),
        pytest.raises(ConfigError, match="is in use by process"),
    ):
        study(Definition("mine"), output="s", **FAST)


def test_not_under_a_launcher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    place = SimpleNamespace(place="beside", launched=lambda: ("client", "x"))
    monkeypatch.setattr("splitlab.core.studies.conduct.load_transport", lambda *given: place)
    with pytest.raises(ConfigError, match="start it without a launcher"):
        study(Definition("mine"), transport="tcp", **FAST)


def test_what_every_run_would_stumble_over_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nowhere"):
        study(Definition("mine"), output=tmp_path / "s", data_dir="nowhere", **FAST)


def test_runs_are_real_and_can_be_stopped(small_data: str, tmp_path: Path) -> None:
    options = FAST | {"data_dir": small_data, "batch_size": 8}
    options |= {"model": "vit:image_size=28,patch=7,channels=1,width=16,depth=3,heads=2"}
    what = Definition("mine", stacks=("none", "adc"))
    asked = iter([False, False, False, True])
    with pytest.raises(Interrupted, match="0 of 4 runs"):
        study(
            what,
            over={"cut": [1, 2]},
            seeds=1,
            output=tmp_path / "s",
            should_stop=lambda: next(asked, True),
            **options,
        )
    found = study(output=tmp_path / "s")
    assert states(found) == [["finished"]] * 4
    straight = study(what, over={"cut": [1, 2]}, seeds=1, output=tmp_path / "t", **options)
    assert figures(found) == figures(straight)


def figures(found: Study) -> list[Any]:
    return [
        (row.title, run.seed, run.summary.accuracy, run.summary.loss, run.summary.bytes_up)
        for row in found.results().rows
        for run in row.runs
        if run.summary is not None
    ]
