"""``splitlab runs``: what is listed, shown, compared, labelled and deleted, and what is refused."""

from __future__ import annotations

import builtins
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.command.main import main
from splitlab.core.runs.config import Config
from splitlab.core.runs.disk import hold
from splitlab.core.runs.records import EvaluationRecord, State, Summary, version_line

SUMMARY = Summary(
    accuracy=0.123456789,
    loss=1.25,
    steps=1234,
    epochs=1.0,
    seconds=3.0,
    client_seconds=1.0,
    server_seconds=1.0,
    link_seconds=1.0,
    ratio_nominal=1.0,
    ratio_measured=1.1,
    bytes_up=1500,
    bytes_down=500,
    stack=("adc",),
    transport="inprocess",
    dataset="d",
    model="vit-mini",
    cut=3,
    seed=0,
    images_per_second=1234.5,
    data_share=0.021,
)


def made(path: str, state: str = "finished", accuracy: float = 0.5, **options: Any) -> Path:
    """Write what a run of these options would have left in this state."""
    folder = Path(path)
    folder.mkdir(parents=True)
    config = Config.from_mapping({"dataset": "d", "cut": 3, **options})
    (folder / "config.toml").write_text(config.to_toml())
    (folder / "run.json").write_text(json.dumps({"id": f"id-{folder.name}"}))
    error = "" if state == "finished" else f"because of {folder.name}"
    (folder / "state.json").write_text(State(state, 7, error).text())
    if state == "finished":
        values = SUMMARY.as_dict() | {"accuracy": accuracy, "stack": ("adc",)}
        (folder / "summary.json").write_text(Summary(**values).text())
    return folder


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def prints(here: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs ``splitlab runs …`` and returns what it prints, uncoloured."""

    def run(*words: str) -> str:
        assert main(["runs", *words]) == 0
        out, error = capsys.readouterr()
        assert error == ""
        return re.sub(r"\x1b\[[0-9;]*m", "", out)

    return run


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Return a function that makes the output a terminal of so many columns."""

    def set_width(columns: int) -> None:
        monkeypatch.setattr("sys.stdout.isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(columns))

    return set_width


def rows(text: str) -> list[list[str]]:
    """Return the words of every line of a table, up to the first empty line."""
    return [line.split() for line in text.split("\n\n")[0].splitlines()]


# The list.


def test_the_list(prints: Callable[..., str]) -> None:
    made("runs/one", plugins=["adc:ratio=0.05", "quantize"], seed=3)
    made("comparisons/c/none/seed-0", "failed", model="cnn")
    made("studies/s/x", "running", tags=["draft", "b"], name="mine")
    made("elsewhere/y")
    text = prints()
    header, *lines = rows(text)
    assert " ".join(header) == "run name stack model seed steps accuracy bytes state tags"
    found = {words[0]: words for words in lines}
    assert found.keys() == {"runs/one", "comparisons/c/none/seed-0", "studies/s/x"}
    one = "runs/one one adc:ratio=0.05 + quantize vit-mini 3 1,234 0.5000 2 kB finished"
    assert found["runs/one"] == one.split()
    assert found["studies/s/x"][1:4] == ["mine", "none", "vit-mini"]
    assert found["studies/s/x"][-3:] == ["interrupted", "draft,", "b"]
    *_, last = text.splitlines()
    states = sorted(last.removeprefix("3 runs: ").split(", "))
    assert states == ["1 failed", "1 finished", "1 interrupted"]
    assert "data d in all of them" in text
    assert "elsewhere/y" in prints("elsewhere")
    assert rows(prints("runs/one"))[1][0] == "runs/one"


def test_what_all_have_in_common_is_told_once(prints: Callable[..., str]) -> None:
    for seed in range(2):
        made(f"runs/{seed}", seed=seed)
    text = prints()
    assert " ".join(rows(text)[0]) == "run stack seed steps accuracy bytes state"
    assert "\nmodel vit-mini, data d in all of them\n2 runs: 2 finished\n" in text


def test_filter_and_sort(prints: Callable[..., str]) -> None:
    for number, accuracy in enumerate((0.5, 0.75, 0.25)):
        made(f"runs/{number}", accuracy=accuracy, tags=["x"] * (number > 0))
    made("runs/3", "diverged")

    def order(*words: str) -> list[str]:
        return [words[0] for words in rows(prints(*words))[1:]]

    assert order("--sort", "accuracy") == ["runs/2", "runs/0", "runs/1", "runs/3"]
    assert order("--sort=-accuracy") == ["runs/1", "runs/0", "runs/2", "runs/3"]
    assert order("--sort=-accuracy", "--filter", "tag=x") == ["runs/1", "runs/2"]
    assert order("--filter", "accuracy>0.3", "--filter", "accuracy<0.6") == ["runs/0"]
    assert order("runs", "--filter", "state=diverged") == ["runs/3"]
    assert prints("--filter", "seed=9") == "0 of 4 runs\n"


def test_json_is_valid_and_whole(prints: Callable[..., str]) -> None:
    made("runs/a", accuracy=0.123456789, plugins=["adc"], tags=["x", "y"])
    made("runs/b", "failed")
    (Path("runs/c")).mkdir()
    (Path("runs/c/config.toml")).write_text("=")
    (Path("runs/c/run.json")).write_text("{}")
    found = json.loads(prints("--json", "--sort", "state"), parse_constant=pytest.fail)
    assert [record["state"] for record in found] == ["damaged", "failed", "finished"]
    assert found[2]["accuracy"] == 0.123456789
    assert found[2]["bytes"] == 2000
    assert (found[2]["stack"], found[2]["tags"], found[2]["batch_size"]) == ("adc", "x,y", 128)
    assert found[1]["accuracy"] is None
    assert "config.toml is not TOML" in found[0]["error"]
    assert {len(record) for record in found} == {len(found[0])}


def test_what_is_damaged_is_listed_with_the_reason(prints: Callable[..., str]) -> None:
    (made("runs/a") / "summary.json").write_text("[]")
    text = prints()
    assert rows(text)[1][-1] == "damaged"
    assert "\nruns/a: " in text
    assert "summary.json is damaged" in text


def test_where_there_are_none(prints: Callable[..., str]) -> None:
    told = "no runs in runs, comparisons and studies here; name a folder of runs, or make one"
    assert told in prints()
    Path("x").mkdir()
    assert "no runs in x; name" in prints("x")
    assert json.loads(prints("--json")) == []


def test_narrow_terminals_get_fewer_columns_and_whole_numbers(
    prints: Callable[..., str], narrow: Callable[[int], None]
) -> None:
    made("runs/first", plugins=["adc:ratio=0.05", "quantize:bits=8"], model="vit-mini", tags=["x"])
    made("runs/second", "failed", model="cnn", name="another name")
    columns = []
    for width in (100, 60, 45, 30):
        narrow(width)
        text = prints()
        columns.append(rows(text)[0])
        assert all(len(line) <= width for line in text.split("\n\n")[0].splitlines())
        assert any("0.5000" in words for words in rows(text))
    assert [len(each) for each in columns] == sorted((len(c) for c in columns), reverse=True)
    assert columns[-1] == ["run", "accuracy", "state"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["nowhere"], "nowhere is no folder; name a run, or a folder of runs"),
        (["--filter", "stat=failed"], "unknown key of --filter 'stat' (did you mean 'state'?)"),
        (["--filter", "failed"], "--filter 'failed' is not allowed; write KEY=VALUE"),
        (["--sort", "acuracy"], "unknown key of --sort 'acuracy' (did you mean 'accuracy'?)"),
        (["show", "nowhere"], "nowhere is no run; name a run's folder, or one that `splitlab runs"),
        (["show", "runs"], "runs is a folder, but no run"),
        (["show", "twice"], "twice may be any of runs/a, runs/b; name the folder"),
        (["diff", "runs/a"], "runs/a alone differs from nothing; name two runs or more"),
        (["label", "runs/a"], "nothing to change; give --name NAME, --add TAG or --drop TAG"),
        (["label", "runs/a", "--add", "a/b"], "--tag 'a/b' is not allowed"),
        (["rm", "runs"], "runs is a folder, but no run"),
    ],
)
def test_bad_input(words: list[str], told: str, here: Path, fails: Callable[..., str]) -> None:
    made("runs/a", name="twice")
    made("runs/b", name="twice")
    assert told in fails("runs", *words)


def test_options_belong_to_their_command(here: Path, refuses: Callable[..., str]) -> None:
    assert "unknown option --yes; see `splitlab runs --help`" in refuses("runs", "--yes")
    assert "see `splitlab runs show --help`" in refuses("runs", "show", "a", "--sort", "x")
    assert "required: RUN; see `splitlab runs rm --help`" in refuses("runs", "rm")


def test_help(help_of: Callable[..., str]) -> None:
    assert "splitlab runs rm RUN… delete run folders; asks first" in help_of("runs")
    for word in ("show", "diff", "label", "rm"):
        text = help_of("runs", word)
        assert f"usage: splitlab runs {word} RUN" in text
        assert "examples:" in text


def test_a_folder_called_show(prints: Callable[..., str]) -> None:
    made("show/a")
    assert rows(prints("./show"))[1][0] == "show/a"


# One run.


def test_one_run(prints: Callable[..., str]) -> None:
    folder = made("runs/a b", plugins=["adc", "cast"], lr=0.5, budget="steps=7", tags=["x"])
    records = [EvaluationRecord(i, i / 40, 2.0, True, 3, 4, 1000 * i) for i in range(1, 41)]
    lines = [version_line(), *(record.line() for record in records)]
    (folder / "metrics.jsonl").write_text("".join(lines))
    text = prints("show", "runs/a b")
    assert text.startswith("a b: finished\n")
    for told in ("--plugin  adc+cast", "--lr  0.5", "--budget  steps=7", "tags  x", "0.5000"):
        assert told in text
    for default in ("--optimizer", "--batch-size", "--tag"):
        assert default not in text
    assert "2 kB (1.5 kB up, 500 B down)" in text
    assert "1,234 images/s, 2.1% waiting for data" in text
    assert "12 of 40 evaluations; --json has them all" in text
    assert re.search(r"accuracy ▁+▂.*▇█+ between 0.0250 and 1.0000", text)
    assert "go on: splitlab run --resume 'runs/a b' --budget steps=MORE\n" in text
    found = json.loads(prints("show", "--json", "runs/a b"))
    assert len(found["evaluations"]) == 40
    assert found["evaluations"][39]["accuracy"] == 1.0
    assert found["given"]["--plugin"] == "adc+cast"
    assert found["go_on"].startswith("splitlab run --resume")


@pytest.mark.parametrize(
    ("state", "way"),
    [
        ("failed", "splitlab run --resume runs/a\n"),
        ("running", "splitlab run --resume runs/a\n"),  # it was killed
        ("diverged", "splitlab run --config runs/a/config.toml --lr LESS\n"),
    ],
)
def test_a_run_that_did_not_finish_says_why_and_how_to_go_on(
    state: str, way: str, prints: Callable[..., str]
) -> None:
    made("runs/a", state)
    text = prints("show", "a")
    why = "its process is gone" if state == "running" else "because of a"
    assert f"why  {why}" in text
    assert f"go on: {way}" in text


def test_a_run_that_runs_or_is_damaged_goes_on_by_no_command(prints: Callable[..., str]) -> None:
    folder = made("runs/a", "running")
    with hold(folder, "client"):
        text = prints("show", "id-a")
    assert text.startswith("a: running\n")
    assert "go on" not in text
    (folder / "config.toml").write_text("=")
    text = prints("show", "runs/a")
    assert "is not TOML" in text
    assert "settings" not in text


def test_a_damaged_log_is_told_beside_what_is_whole(prints: Callable[..., str]) -> None:
    folder = made("runs/a")
    (folder / "metrics.jsonl").write_text('{"kind": "eval"}\n')
    text = prints("show", "a")
    assert text.startswith("a: finished\n")
    assert "metrics.jsonl is damaged" in text
    found = json.loads(prints("show", "a", "--json"))
    assert "metrics.jsonl is damaged" in found["error"]
    assert found["evaluations"] == []


# Several.


def test_the_difference(prints: Callable[..., str]) -> None:
    made("runs/a", plugins=["adc"], accuracy=0.5, tags=["x"], name="n")
    made("runs/b", accuracy=0.75, seed=4)
    made("runs/c", "failed", seed=4)
    text = prints("diff", "runs/a", "runs/b")
    lines = [line.split() for line in text.splitlines()]
    assert ["--plugin", "adc", "none"] in lines
    assert ["--seed", "0", "4"] in lines
    assert {words[0] for words in lines if words and "--" in words[0]} == {"--plugin", "--seed"}
    assert ["accuracy", "0.5000", "0.7500", "+0.2500"] in lines
    assert ["steps", "1,234", "1,234"] in lines
    text = prints("diff", "b", "c", "runs/a")
    states = ["state", "finished", "failed", "finished"]
    assert states in [line.split() for line in text.splitlines()]
    assert "change" not in text
    found = json.loads(prints("diff", "runs/a", "runs/c", "--json"))
    assert found["settings"] == {"--plugin": ["adc", ""], "--seed": [0, 4]}
    assert found["figures"]["accuracy"] == [0.5, None]
    assert "no setting differs" in prints("diff", "runs/b", "runs/c")


def test_long_names_are_numbered_where_there_is_no_room(
    prints: Callable[..., str], narrow: Callable[[int], None]
) -> None:
    for name in ("a", "b"):
        made(f"runs/{name * 40}", seed=ord(name))
    narrow(60)
    text = prints("diff", "a" * 40, "b" * 40)
    assert f"[1] runs/{'a' * 40}\n[2] runs/{'b' * 40}\n" in text
    assert ["--seed", "97", "98"] in [line.split() for line in text.splitlines()]


def test_labels(prints: Callable[..., str], fails: Callable[..., str]) -> None:
    folder = made("runs/a", tags=["x", "y"])
    assert prints("label", "a", "--name", "The Best", "--add", "z", "--drop", "x") == (
        "runs/a: name The Best, tags y, z\n"
    )
    assert Config.from_toml(folder / "config.toml").tags == ("y", "z")
    assert prints("label", "The Best", "--drop", "y", "--drop", "z").endswith("tags none\n")
    assert Config.from_toml(folder / "config.toml").name == "The Best"
    with hold(folder, "client"):
        assert "is in use by process" in fails("runs", "label", "a", "--add", "x")


# Deleting.


def _answers(monkeypatch: pytest.MonkeyPatch, answer: str | type[BaseException]) -> list[str]:
    """Answer the next questions; returns them as they come."""
    asked: list[str] = []

    def answered(question: str) -> str:
        asked.append(question)
        if isinstance(answer, str):
            return answer
        raise answer

    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr(builtins, "input", answered)
    return asked


@pytest.mark.parametrize(
    ("answer", "gone"),
    [("y", True), ("Yes", True), ("", False), ("n", False), ("x", False), (EOFError, False)],
)
def test_deleting_asks(
    answer: Any, gone: bool, prints: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [made("runs/a"), made("runs/b"), made("runs/c")]
    asked = _answers(monkeypatch, answer)
    text = prints("rm", "a", "runs/b", "runs/a")
    assert asked == ["delete these 2 runs with all that is in the folder? [y/N] "]
    assert [folder.exists() for folder in folders] == [not gone, not gone, True]
    assert ("deleted runs/a\ndeleted runs/b\n" in text) == gone
    assert ("nothing was deleted" in text) != gone
    assert sorted(path.name for path in Path("runs").iterdir()) == ["a", "b", "c"][2 * gone :]


def test_scripts_say_yes(prints: Callable[..., str], fails: Callable[..., str]) -> None:
    folder = made("runs/a")
    note = Path("runs/a.failed.json")  # of a study, which makes the run again without it
    note.write_text("{}")
    assert "nobody is here to ask; delete runs without a terminal with --yes" in fails(
        "runs", "rm", "a"
    )
    assert folder.exists()
    assert prints("rm", "--yes", "a") == "deleted runs/a\n"
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize("who", ["client", "server"])
def test_what_a_process_works_on_is_not_deleted(
    who: str, here: Path, fails: Callable[..., str]
) -> None:
    made("runs/a", "running")
    other = made("runs/b")
    with hold(Path("runs/a"), who):
        told = fails("runs", "rm", "runs/b", "runs/a", "--yes")
        assert "runs/a is running; stop it first. Nothing was deleted" in told
    assert other.exists()
    with hold(Path("runs"), "b"):  # of a study
        assert "runs/b is running; stop it" in fails("runs", "rm", "runs/b", "--yes")
    assert other.exists()


def test_what_is_not_the_runs_own_is_not_deleted(here: Path, fails: Callable[..., str]) -> None:
    outer, inner = made("runs/a"), made("runs/a/more/inner")
    assert (
        "runs/a holds another run, runs/a/more/inner; delete that first, or move it away. "
        "Nothing was deleted"
    ) in fails("runs", "rm", "runs/a", "--yes")
    assert outer.exists()
    Path("link").symlink_to(inner)
    assert "link is a link; name the run itself: runs/a/more/inner" in fails(
        "runs", "rm", "link", "--yes"
    )
    assert inner.exists()


def test_the_folder_where_one_is(here: Path, prints: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(made("runs/a"))
    assert prints("rm", ".", "--yes") == "deleted .\n"
    assert not (here / "runs/a").exists()


def test_what_is_no_run_is_not_deleted(here: Path, fails: Callable[..., str]) -> None:
    Path("mine").mkdir()
    Path("mine/config.toml").write_text("seed = 1")  # somebody's options
    assert "mine is a folder, but no run" in fails("runs", "rm", "mine", "--yes")
    assert Path("mine/config.toml").exists()
