from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from splitlab.core.command.main import main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_every_shell_has_a_script(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert "splitlab" in script
    assert "_ARGCOMPLETE" in script


def _completed(line: str, folder: Path, **more: str) -> set[str]:
    """Return what the command line answers when a shell asks how a line may go on."""
    answer = folder / "answer"
    environment = os.environ | more
    environment |= {"_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_STDOUT_FILENAME": str(answer), "_ARGCOMPLETE_IFS": "\n"}
    environment["_ARGCOMPLETE_SUPPRESS_SPACE"] = "1"
    program = "import sys; from splitlab.core.command.main import main; main()"
    subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, cwd=folder, timeout=60, check=False
    )
    return set(answer.read_text(encoding="utf-8").split("\n"))


def test_commands_options_and_names_are_completed(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[plugins.mymethod]\ntarget = "nowhere:Nothing"\nsummary = "x"\n', encoding="utf-8"
    )
    registry = {"SPLITLAB_REGISTRY": str(tmp_path / "mine.toml")}
    assert {"run", "runs", "trace"} & _completed("splitlab ru", tmp_path) == {"run", "runs"}
    assert "--batch-size" in _completed("splitlab run --ba", tmp_path)
    assert {"adam", "adamw"} <= _completed("splitlab run --optimizer ad", tmp_path)
    assert {"adc", "adc-token-select"} <= _completed("splitlab run --plugin ad", tmp_path)
    assert {"adc+quantize"} <= _completed("splitlab run --plugin adc+qu", tmp_path)
    assert {"mymethod"} <= _completed("splitlab compare --plugin my", tmp_path, **registry)
    assert {"tcp"} <= _completed("splitlab transports tc", tmp_path)
    assert {"accuracy", "accuracy_uncompressed"} <= _completed("splitlab runs --sort ac", tmp_path)
    assert "bytes_up" in _completed("splitlab runs --json --filter by", tmp_path)
    (tmp_path / "shelf").mkdir()
    assert {"show", "shelf/"} <= _completed("splitlab runs sh", tmp_path)


@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_the_script_is_bash(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out
    ended = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p splitlab"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert "_python_argcomplete" in ended.stdout
