"""Jobs in this process."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core.contract.errors import Interrupted
from splitlab.core.runs.reporter import Reporter
from splitlab.core.studies.inside import Inside
from splitlab.core.studies.job import Outcome, failure
from splitlab.core.studies.printed import log_file


def test_one_after_the_other_with_a_reporter_for_each(
    make_jobs: Any, heard: Any, tmp_path: Any
) -> None:
    asked: list[int] = []
    heard.run = lambda job: asked.append(job.number) or Reporter()
    jobs = make_jobs(tmp_path, stacks=("none", "topk:ratio=2"))
    Inside().perform(jobs, heard, lambda: False)
    assert asked == [1, 2, 3, 4]
    assert heard.states == ["finished", "finished", "failed", "failed"]
    assert heard.outcomes[1].summary.steps == 6
    assert failure(jobs[0].folder) is None
    assert failure(jobs[2].folder) == Outcome("failed", heard.outcomes[3].error)


def test_what_is_interrupted_goes_on(
    make_jobs: Any, heard: Any, numbers: Any, tmp_path: Any
) -> None:
    undisturbed = make_jobs(tmp_path / "a", stacks=["topk"])
    Inside().perform(undisturbed, type(heard)(), lambda: False)
    jobs, asked = make_jobs(tmp_path / "b", stacks=["topk"]), iter([False] * 4 + [True] * 9)
    with pytest.raises(Interrupted):
        Inside().perform(jobs, heard, lambda: next(asked))
    assert heard.outcomes[1].error == "interrupted after step 3"
    assert heard.states == ["interrupted"]
    again = type(heard)()
    Inside().perform(jobs, again, lambda: False)
    assert again.states == ["finished", "finished"]
    assert [*map(numbers, jobs)] == [*map(numbers, undisturbed)]


def test_what_another_process_printed_is_kept(make_jobs: Any, heard: Any, tmp_path: Any) -> None:
    said, silent = make_jobs(tmp_path, stacks=["none"])
    for job, text in ((said, "a warning\n"), (silent, "")):
        job.folder.parent.mkdir(parents=True, exist_ok=True)
        log_file(job.folder).write_text(text)
    Inside().perform([said, silent], heard, lambda: False)
    assert (said.folder / "worker.log").read_text() == "a warning\n"
    assert not any(log_file(job.folder).exists() for job in (said, silent))
