"""The command line as a whole: its help, what comes before every command, and how it ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import splitlab
from splitlab.core.command import datasets
from splitlab.core.command import main as main_module
from splitlab.core.command.main import main, parser
from splitlab.core.contract.errors import ConfigError, Diverged, Interrupted, Notice, SplitlabError

COMMANDS = [
    *("certs", "check", "compare", "completion", "datasets", "estimate", "join", "links"),
    "loggers",
    *("models", "new-plugin", "plugins", "probes", "report", "run", "runs", "serve", "studies"),
    *("study", "trace", "transports"),
]
WORDS = ("show", "diff", "label", "rm")


# Help.


@pytest.mark.parametrize(
    "command", [[], *([name] for name in COMMANDS), *(["runs", word] for word in WORDS)]
)
def test_no_line_of_a_help_is_broken_by_a_narrow_terminal(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        parser().parse_known_args([*command, "--help"])
    assert [line for line in capsys.readouterr().out.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches(command: str, help_of: Callable[..., str]) -> None:
    text = help_of(command)
    assert text.startswith(f"usage: splitlab {command} ")
    assert "--registry FILE.toml" in text
    if command != "datasets":
        assert f"examples: splitlab {command} " in text


def test_it_says_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert not ended.value.code
    assert capsys.readouterr().out == f"splitlab {splitlab.__version__}\n"
    assert re.fullmatch(r"\d+\.\d+\.\d+.*", splitlab.__version__)


def test_every_command_has_a_line_in_a_group(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    listed = re.findall(r"^  ([a-z-]+) +[a-z]+ \S", text.partition("\noptions:")[0], re.MULTILINE)
    assert sorted(listed) == COMMANDS
    titles = re.findall(r"^(\w[\w ]*):$", text, re.MULTILINE)
    assert titles == ["train", "look", "write a method", "set up", "options", "examples"]


def test_examples_of_all_helps_are_accepted(help_of: Callable[..., str]) -> None:
    whole = parser()
    tried = 0
    for command in ([], *([name] for name in COMMANDS)):
        examples = help_of(*command).partition("examples: ")[2].partition(" `splitlab")[0]
        for example in re.split(r"(?:^| )splitlab (?=[a-z-]+ )", examples.replace("\\", ""))[1:]:
            words = example.split()
            known = whole.parse_known_args(words)[0]  # what explains an example is left over
            assert known.command is not None
            tried += 1
    assert tried > 20


# What comes before a command.


def test_a_notice_is_one_line_and_a_warning_is_pythons(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tell(arguments: object) -> int:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn("a word", Notice, stacklevel=1)
            warnings.warn("another", UserWarning, stacklevel=1)
        return 0

    monkeypatch.setattr(datasets, "_datasets", tell)
    before = warnings.showwarning
    assert main(["datasets"]) == 0
    assert warnings.showwarning is before
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "splitlab: note: a word"
    assert "UserWarning: another" in lines[1]


@pytest.mark.parametrize("before", [True, False])
def test_a_registry_is_named_before_or_after_the_command(
    before: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SPLITLAB_REGISTRY", "")  # and put back after the test
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "own.toml"
    file.write_text("[stacks.mine-of-all]\nplugins = ['adc', 'zstd']\nsummary = 'both'\n")
    option = ["--registry", "own.toml"]
    assert main([*option, "plugins"] if before else ["plugins", *option]) == 0
    assert "mine-of-all" in capsys.readouterr().out
    assert os.environ["SPLITLAB_REGISTRY"] == str(file)  # a server inherits it, wherever it starts


def test_without_the_option_the_environment_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SPLITLAB_REGISTRY", raising=False)
    assert main(["datasets", "--json"]) == 0
    assert "SPLITLAB_REGISTRY" not in os.environ


def test_a_registry_that_is_not_there(fails: Callable[..., str]) -> None:
    line = fails("plugins", "--registry", "gone.toml")
    assert "--registry gone.toml: no such file" in line


def test_notices_come_first_and_on_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(main_module, "_notices", lambda: ["an old key", "another"])
    assert main(["datasets", "--json"]) == 0
    out, error = capsys.readouterr()
    assert error == "splitlab: note: an old key\nsplitlab: note: another\n"
    assert out.startswith("[")


# How it ends.


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([], "required: COMMAND; see `splitlab --help`"),
        (["rnu"], "unknown command 'rnu' (did you mean 'run'?); known: certs, check, compare,"),
        (
            ["run", "--sede", "1"],
            "--sede (did you mean --seed?); see `splitlab run --help`",
        ),
        (["run", "--seed", "x"], "--seed: invalid int value: 'x'; see `splitlab run --help`"),
        (["join"], "required: ADDRESS; see `splitlab join --help`"),
        (["datasets", "more"], "unexpected argument 'more'; see `splitlab datasets --help`"),
    ],
)
def test_what_is_mistyped_is_one_line(
    words: list[str], told: str, refuses: Callable[..., str]
) -> None:
    assert told in refuses(*words)


@pytest.mark.parametrize(
    ("error", "status", "told"),
    [
        (SplitlabError("it broke"), 1, "splitlab: error: it broke\n"),
        (ConfigError("no such name"), 2, "splitlab: error: no such name\n"),
        (Diverged("the loss is nan"), 3, "splitlab: error: the loss is nan\n"),
        (Interrupted("after step 3"), 130, "splitlab: error: after step 3\n"),
        (KeyboardInterrupt(), 130, "splitlab: interrupted\n"),
    ],
)
def test_errors_are_one_line_and_a_status(
    error: BaseException,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(value: object) -> int:
        raise error

    monkeypatch.setattr(datasets, "print_json", fail)
    assert main(["datasets", "--json"]) == status
    assert capsys.readouterr().err == told


def test_an_error_that_nobody_meant_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(value: object) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(datasets, "print_json", fail)
    with pytest.raises(ZeroDivisionError):
        main(["datasets", "--json"])


def test_a_reader_that_has_seen_enough(tmp_path: Path) -> None:
    program = f"{sys.executable} -u -m splitlab plugins --json | head -c 1"
    ended = subprocess.run(
        ["bash", "-o", "pipefail", "-c", program],
        cwd=tmp_path,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, b"[", b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("words", [["plugins"], ["plugins", "--json"], ["run", "--help"]])
def test_an_output_that_is_full_is_one_line_and_no_success(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "splitlab", *words],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
            check=False,
        )
    assert ended.returncode == SplitlabError.status
    told = "splitlab: error: what is printed cannot be written: No space left on device\n"
    assert ended.stderr == told


def test_a_file_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(value: object) -> int:
        raise PermissionError(13, "Permission denied", "some/file")

    monkeypatch.setattr(datasets, "print_json", fail)
    monkeypatch.setattr(main_module, "_leave_stdout", lambda: None)
    assert main(["datasets", "--json"]) == SplitlabError.status
    assert capsys.readouterr().err == "splitlab: error: some/file: Permission denied\n"


def test_it_is_a_program(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "splitlab", "plugins", "acd"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == ConfigError.status
    assert ended.stderr.startswith("splitlab: error: unknown plugin 'acd' (did you mean 'adc'?)")


def test_the_lines_that_led_to_an_error_are_shown_if_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SPLITLAB_TRACEBACK", "")  # put back afterwards
    (tmp_path / "mine.py").write_text(
        "def helps():\n    raise SystemExit(4)\n\n\nhelps()  # \x1b[2J\n"
    )
    command = ["plugins", f"{tmp_path}/mine.py:Mine"]
    told = "cannot be imported: SystemExit: 4 (mine.py:2)"
    assert main(command) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert main([*command, "--traceback"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("Traceback (most recent call last):")
    assert 'mine.py", line 5, in <module>' in error
    assert r"helps()  # \x1b[2J" in error  # what an error quotes does nothing to the terminal
    last = error.splitlines()[-1]
    assert last.startswith("splitlab: error: ")
    assert last.endswith(told)


def test_a_folder_is_no_registry(tmp_path: Path, fails: Callable[..., str]) -> None:
    told = fails("plugins", "--registry", str(tmp_path))
    assert f"--registry {tmp_path} is a folder; name the TOML file in it" in told
