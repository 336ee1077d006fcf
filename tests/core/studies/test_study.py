"""A study on disk: what a killed, failed, moved or grown one says of its runs."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.contract.errors import Notice
from splitlab.core.report.naming import plan_key
from splitlab.core.runs.disk import HeldError, hold
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.records import EvaluationRecord, State
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.definition import Definition, axis_of_columns
from splitlab.core.studies.grid import cells
from splitlab.core.studies.job import Outcome, note_failure
from splitlab.core.studies.perform import perform
from splitlab.core.studies.study import RECORD, Study

FAST = {"threads": 1, "budget": "steps=2", "weights": "none", "device": "cpu"}


def planned(
    folder: Path, *stacks: str, budget: str = "steps=2", seeds: int = 1, **more: Any
) -> Study:
    axes = (axis_of_columns({"cut": [1, 2]}),)
    definition = Definition(
        "mine",
        summary="a sentence",
        base=FAST | {"budget": budget} | more,
        stacks=stacks or ("none",),
        axes=axes,
        seeds=tuple(range(seeds)),
    )
    return Study(folder, definition, cells(definition))


@pytest.fixture
def study(runs: Any, tmp_path: Path) -> Study:
    found = planned(tmp_path / "s", "none", "adc", seeds=2)
    found.write()
    return found


def test_what_was_written_is_read_back(study: Study) -> None:
    assert Study.read(study.folder) == study


def test_a_record_without_members_asks_the_plugins(study: Study) -> None:
    path = study.folder / RECORD
    record = json.loads(path.read_text())
    for row in record["rows"]:
        del row["members"]
    del record["output"]
    path.write_text(json.dumps(record))
    assert Study.read(study.folder) == replace(study, given="s")


def test_rows_are_called_as_they_were_when_a_plugin_is_gone(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    'A plugin.'\n    from splitlab.core import hookimpl\n"
        "    run_end = hookimpl(lambda self: None)\n"
        "    def __init__(self, ratio: float = 0.5) -> None: ...\n"
    )
    found = planned(tmp_path / "s", f"{file}:Mine", f"{file}:Mine:ratio=0.1")
    found.write()
    file.unlink()
    read = Study.read(found.folder)
    assert read is not None
    assert [row.title for row in read.results().rows][1:3] == [
        "Mine:ratio=0.5, cut 2",
        "Mine:ratio=0.1, cut 1",
    ]


def test_runs_that_an_older_version_gave_another_key_go_on(runs: Any, tmp_path: Path) -> None:
    more = {"model": "vit:image_size=28,patch=7,channels=1", "lr_schedule": "cosine:least=0"}
    found = planned(tmp_path / "s", **more)
    cells_ = [replace(cell, key=plan_key(cell.config, as_written=True)) for cell in found.cells]
    before = replace(found, cells=tuple(cells_))
    assert before.cells[0].key != found.cells[0].key
    for job in before.jobs():
        perform(job, Reporter())
    found.take_over(before.cells)
    assert found.left_behind(before.cells) == []
    assert not any(found.left(job) for job in found.jobs())


def test_looking_at_a_study_imports_no_torch(study: Study) -> None:
    for job in study.jobs():
        perform(job, Reporter())
    program = (
        "import sys; from splitlab.core.command.main import main\n"
        "assert main(['report', sys.argv[1]]) == 0\n"
        "print({'torch', 'timm', 'matplotlib'} & sys.modules.keys())"
    )
    told = subprocess.run(
        [sys.executable, "-P", "-c", program, str(study.folder)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "adc, cut 2" in told.stdout
    assert told.stdout.endswith("\nset()\n")


def test_runs_lie_under_their_rows(study: Study) -> None:
    jobs = study.jobs()
    assert [(job.number, job.title, job.config.seed) for job in jobs] == [
        (1, "none, cut 1", 0),
        (2, "none, cut 2", 0),
        (3, "adc, cut 1", 0),
        (4, "adc, cut 2", 0),
        (5, "none, cut 1", 1),
        (6, "none, cut 2", 1),
        (7, "adc, cut 1", 1),
        (8, "adc, cut 2", 1),
    ]
    key = study.cells[0].key
    assert jobs[0].folder == study.folder / f"none-cut-1-{key}" / "seed-0"
    jobs[0].folder.parent.rename(study.folder / f"another-name-{key}")
    assert study.jobs()[4].folder == study.folder / f"another-name-{key}" / "seed-1"


def test_how_runs_stand(study: Study) -> None:
    jobs = study.jobs()
    assert {run.state for row in study.results().rows for run in row.runs} == {"missing"}
    assert perform(jobs[0], Reporter()).state == "finished"
    note_failure(jobs[1], Outcome("failed", "no memory"))
    note_failure(jobs[2], Outcome("diverged", "the loss is nan"))
    half = RunFolder.create(str(jobs[3].folder), ())
    half.write_config(jobs[3].config)
    half.write_state(State("running", 1))  # and killed
    half.log(EvaluationRecord(0, 0.1, 2.3, False, 1, 1, 0))
    rows = study.results().rows
    assert [(run.state, run.error) for row in rows for run in row.runs[:1]] == [
        ("finished", ""),
        ("failed", "no memory"),
        ("diverged", "the loss is nan"),
        ("interrupted", "its process is gone"),
    ]
    assert [point.accuracy for point in rows[3].runs[0].points] == [0.1]
    assert rows[0].runs[0].summary is not None
    assert [study.left(job) for job in jobs[:5]] == [False, False, False, True, True]
    assert [study.left(job, retry=True) for job in jobs[:5]] == [False, True, True, True, True]
    with hold(jobs[3].folder, "client"):
        assert study.results().rows[3].runs[0].state == "running"


def test_more_budget_goes_on_with_the_runs_that_are_there(runs: Any, tmp_path: Path) -> None:
    small, large = (planned(tmp_path / "s", budget=f"steps={n}") for n in (2, 5))
    for job in small.jobs():
        perform(job, Reporter())
    large.take_over(small.cells)
    jobs = large.jobs()
    assert all(job.folder.is_dir() and large.left(job) for job in jobs)
    assert {run.state for row in large.results().rows for run in row.runs} == {"interrupted"}
    for job in jobs:
        assert perform(job, Reporter()).state == "finished"
    assert runs.log[2:] == ["resume none 0", "resume none 0"]
    assert not any(large.left(job) for job in jobs)
    assert all(RunFolder.open(job.folder).read_config().budget == "steps=5" for job in jobs)


def test_a_budget_that_is_written_otherwise_is_the_same(runs: Any, tmp_path: Path) -> None:
    one, same = (planned(tmp_path / "s", budget=f"bytes={text}") for text in ("1MB", "1e6"))
    for job in one.jobs():
        perform(job, Reporter())
    jobs = same.jobs()
    assert not any(same.left(job) for job in jobs)
    assert {perform(job, Reporter()).state for job in jobs} == {"finished"}
    assert len(runs.log) == len(jobs)


@pytest.mark.parametrize(
    ("before", "after", "more"),
    [
        ("steps=5", "steps=2", {}),
        ("steps=2", "epochs=9", {}),
        ("steps=2", "steps=5", {"lr_schedule": "cosine"}),
        ("steps=2", "steps=5", {"warmup": 0.5}),
        ("steps=2", "steps=5", {"patience": 3}),
        ("steps=2", "steps=5", {"plugins": ("adc:ratio=0.4..0.2",)}),
    ],
)
def test_another_budget_begins_anew(
    before: str, after: str, more: dict[str, Any], runs: Any, tmp_path: Path
) -> None:
    options = {key: value for key, value in more.items() if key != "plugins"}
    first, second = (
        planned(tmp_path / "s", *more.get("plugins", ()), budget=text, **options)
        for text in (before, after)
    )
    for job in first.jobs():
        perform(job, Reporter())
    second.take_over(first.cells)
    assert not any(job.folder.exists() for job in second.jobs())


@pytest.mark.parametrize("begun", [True, False])
def test_runs_in_hand_are_not_taken_over(begun: bool, runs: Any, tmp_path: Path) -> None:
    small, large = (planned(tmp_path / "s", budget=f"steps={n}") for n in (2, 5))
    small.write()
    job = small.jobs()[1]
    if begun:
        perform(job, Reporter())
    with hold(job.folder.parent, job.folder.name), pytest.raises(HeldError, match="is in use"):
        large.take_over(small.cells)
    assert all(job.folder.parent.is_dir() for job in small.jobs())  # not half of them
    large.take_over(small.cells)
    assert not any(job.folder.parent.exists() for job in small.jobs())
    assert not [*large.folder.rglob("*.lock")]


def test_an_axis_of_the_place_moves_no_run_to_another_of_its_rows(
    runs: Any, tmp_path: Path
) -> None:
    def over(threads: list[int], budget: str) -> Study:
        definition = Definition(
            "mine",
            base={key: value for key, value in FAST.items() if key != "threads"}
            | {"budget": budget},
            axes=(axis_of_columns({"threads": threads}),),
            seeds=(0,),
        )
        return Study(tmp_path / "s", definition, cells(definition))

    both = over([1, 2], "steps=2")
    for job in both.jobs():
        perform(job, Reporter())
    more = over([2, 1], "steps=5")
    more.take_over(both.cells)
    for job in more.jobs():
        assert RunFolder.open(job.folder).read_config().threads == job.config.threads


def test_what_is_there_is_a_row_of_an_axis_of_the_place(runs: Any, tmp_path: Path) -> None:
    before = planned(tmp_path / "s")
    for job in before.jobs():
        perform(job, Reporter())
    definition = before.definition
    axes = (*definition.axes, axis_of_columns({"threads": [2, 1]}))
    definition = replace(definition, axes=axes)
    after = Study(before.folder, definition, cells(definition))
    after.take_over(before.cells)
    assert [after.left(job) for job in after.jobs()] == [True, False, True, False]


def test_a_row_keeps_its_folder_whatever_grows_the_study(tmp_path: Path) -> None:
    first = planned(tmp_path / "s")
    first.write()
    definition = replace(first.definition, axes=(axis_of_columns({"cut": [2, 3]}),))
    grown = Study(first.folder, definition, cells(definition))
    one = replace(first, cells=first.cells[1:])  # cut 2, which alone needs no name
    assert one.jobs()[0].title == "none"
    assert one.jobs()[0].folder == first.jobs()[1].folder == grown.jobs()[0].folder
    new = planned(tmp_path / "t")
    new = replace(new, cells=new.cells[1:])
    new.write()
    later = replace(grown, folder=new.folder)
    assert later.jobs()[0].folder == new.jobs()[0].folder


def test_results_know_what_all_have_in_common(study: Study) -> None:
    found = study.results()
    common = dict(found.common)
    assert common["dataset"] == "fashion-mnist-mini"
    assert common["budget"] == "steps=2"
    assert common["weights"] == "none"
    assert "cut" not in common
    assert [axis.name for axis in found.axes] == ["stack", "cut"]
    assert found.reference == "none"  # a method: every row has its own
    one = replace(study, definition=replace(study.definition, reference="none, cut 2"))
    assert one.results().reference == "none, cut 2"


@pytest.mark.parametrize(
    ("asked", "reference"),
    [
        ("tome+quantize:bits=8", "tome + quantize:bits=8"),
        ("tome + quantize:bits=8", "tome + quantize:bits=8"),
        ("nsc-sl", "nsc-sl-recon"),
        ("nsc-sl-recon", "nsc-sl-recon"),
        ("", None),
    ],
)
def test_a_reference_is_a_stack_as_it_is_written(
    asked: str, reference: str | None, tmp_path: Path
) -> None:
    found = planned(tmp_path, "tome+quantize:bits=8", "nsc-sl")
    named = replace(found, definition=replace(found.definition, reference=asked))
    assert named.results().reference == reference


def test_a_reference_that_is_no_row_is_told(tmp_path: Path) -> None:
    found = planned(tmp_path, "none", "adc")
    named = replace(found, definition=replace(found.definition, reference="noen"))
    told = "no row is called 'noen', the study's reference; rows are tested against none"
    with pytest.warns(Notice, match=told):
        assert named.results().reference == "none"


class TestFolders:
    def test_nothing_yet(self, tmp_path: Path) -> None:
        assert Study.read(tmp_path / "nowhere") is None
        (tmp_path / "study.lock").touch()
        assert Study.read(tmp_path) is None

    def test_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "thesis.tex").touch()
        with pytest.raises(ConfigError, match=r"is no study \(it has no study.json\)"):
            Study.read(tmp_path)
        with pytest.raises(ConfigError, match="is no study"):
            Study.read(tmp_path / "thesis.tex")

    @pytest.mark.parametrize(
        ("text", "told"),
        [
            ("{", "is damaged"),
            ("[]", "is damaged"),
            ('{"splitlab_study": 2}', "is of another version of splitlab"),
            ('{"splitlab_study": 1}', "is damaged"),
            ('{"splitlab_study": 1, "definition": {}, "rows": []}', "it has no rows"),
        ],
    )
    def test_a_damaged_record(self, text: str, told: str, tmp_path: Path) -> None:
        (tmp_path / RECORD).write_text(text)
        with pytest.raises(ConfigError, match=told):
            Study.read(tmp_path)

    @pytest.mark.parametrize(
        ("place", "value"),
        [
            (("rows",), []),
            (("rows", 0, "key"), "a/../../b"),
            (("rows", 0, "remark"), 1),
            (("rows", 0, "members"), 1),
            (("rows", 2, "members", 0, "label"), 1),
            (("rows", 2, "members", 0, "params"), {"ratio": [1]}),
            (("rows", 2, "members", 0, "given"), ["x"]),
            (("output",), 1),
            (("definition", "base"), "x"),
            (("definition", "base"), {"x": 1}),
            (("definition", "seeds"), []),
            (("definition", "seeds", 0), "../../x"),
            (("definition", "reference"), ["none"]),
            (("definition", "draw"), [1]),
            (("definition", "axes"), [[{"x": 1}]]),
            (("definition", "axes"), [[{"cut": 1}, {"lr": 1.0}]]),
        ],
    )
    def test_an_edited_record(self, place: tuple[Any, ...], value: Any, study: Study) -> None:
        study.write()
        record = json.loads((study.folder / RECORD).read_text())
        inner = record
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = value
        (study.folder / RECORD).write_text(json.dumps(record))
        with pytest.raises(ConfigError, match=r"study\.json (cannot be|is dam)[^\n]*folder$"):
            Study.read(study.folder)

    @pytest.mark.parametrize("name", ["metrics.jsonl", "times.jsonl"])
    def test_a_damaged_log_spoils_its_own_run(self, name: str, study: Study) -> None:
        first, second, *_ = study.jobs()
        for job in (first, second):
            perform(job, Reporter())
        (first.folder / name).write_text("xx{\n")
        one, two = (row.runs[0] for row in study.results().rows[:2])
        assert (one.state, one.summary) == ("failed", None)
        assert f"{name} is damaged" in one.error
        assert two.state == "finished"

    def test_a_damaged_failure_is_a_failure(self, study: Study) -> None:
        job = study.jobs()[0]
        note_failure(job, Outcome("failed", "x"))
        job.folder.with_name("seed-0.failed.json").write_text("{")
        assert study.results().rows[0].runs[0].state == "failed"
        assert json.loads((study.folder / RECORD).read_text())["splitlab_study"] == 1


def test_published_curves_that_cannot_be_read_are_told(runs: Any, tmp_path: Path) -> None:
    found = planned(tmp_path / "s")
    found = replace(found, definition=replace(found.definition, published="/nowhere/x.csv"))
    with pytest.warns(Notice, match="no published curve is drawn: cannot read .*nowhere/x.csv"):
        assert not found.results().published.curves


def test_a_record_of_before_there_were_published_curves(study: Study) -> None:
    path = study.folder / RECORD
    record = json.loads(path.read_text())
    del record["definition"]["published"]
    path.write_text(json.dumps(record))
    assert Study.read(study.folder) == study
