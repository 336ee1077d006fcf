"""What is printed where nobody looks."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from splitlab.core.studies.printed import keep_log, log_file

PROGRAM = """
import os, sys
from pathlib import Path
from splitlab.core.studies.printed import log_file, printing_into

print("before")
with printing_into(log_file(Path(sys.argv[1]))):
    print("a print")
    os.system("echo a library")
print("between")
with printing_into(log_file(Path(sys.argv[1]))):
    raise ValueError("3 is not 4")
"""


def test_prints_go_into_the_folder_of_the_run(tmp_path: Path) -> None:
    folder = tmp_path / "study" / "run"
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM, folder], capture_output=True, text=True, check=False
    )
    assert ended.stdout == "before\nbetween\n"
    keep_log(folder)  # which is not there
    text = log_file(folder).read_text()
    assert text.startswith("a print\na library\nTraceback")
    assert text.endswith("ValueError: 3 is not 4\n")
    folder.mkdir()
    (folder / "worker.log").write_text("of an earlier time\n")
    keep_log(folder)
    assert (folder / "worker.log").read_text() == "of an earlier time\n" + text
    assert [path.name for path in folder.parent.iterdir()] == ["run"]


def test_no_empty_log_stays(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    keep_log(folder)
    log_file(folder).touch()
    folder.mkdir()
    keep_log(folder)
    assert [*folder.iterdir()] == []
    assert not log_file(folder).exists()
