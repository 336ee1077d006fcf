"""What tests of several rooms need: a run that takes no time, small data, and signals put back."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from splitlab.core import Config
from splitlab.core.runs.folder import RunFolder
from splitlab.core.runs.records import EvaluationRecord, Summary
from splitlab.core.runs.reporter import Reporter, Result
from splitlab.core.wire.ledger import Ledger

Fake = Callable[[Config], None]


class Runs:
    """Stands in for `run`: writes the folder of a finished run at once, unless told otherwise."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.before: Fake = lambda config: None

    def __call__(self, config: Config | None = None, **arguments: Any) -> Result:
        resume = arguments.get("resume")
        folder = RunFolder.open(resume) if resume else None
        if folder is not None:
            config = folder.read_config()
            said = {key: arguments[key] for key in ("budget", "loggers") if key in arguments}
            config = replace(config, **said)
            folder.write_config(config)
        assert config is not None
        kind = "resume" if folder else "run"
        self.log.append(f"{kind} {'+'.join(config.plugins)} {config.seed}")
        if folder is None:
            folder = RunFolder.create(config.output, config.plugins)
            folder.write_config(replace(config, checkpoint_every=1))
        reporter = arguments.get("reporter") or Reporter()
        data = SimpleNamespace(notices=(), test=8)
        plan: Any = SimpleNamespace(config=config, titles=("the stack",), data=data)
        reporter.begin(plan, folder.path, lambda: 0.5)
        self.before(config)
        scored: dict[str, Any] = {"accuracy": 0.5 + 0.1 * config.seed, "loss": 1.0}
        traffic = {"bytes_up": 1, "bytes_down": 1}
        folder.log(
            EvaluationRecord(step=1, compressed=False, training_bytes=1000, **scored, **traffic)
        )
        seconds = dict.fromkeys(
            ("seconds", "client_seconds", "server_seconds", "link_seconds"), 1.0
        )
        what = {"stack": config.plugins, "transport": config.transport, "model": config.model}
        summary = Summary(
            **(scored | traffic | seconds | what),
            **{"steps": 1, "epochs": 1.0, "ratio_nominal": 1.0, "ratio_measured": 1.0},
            **{"dataset": "data", "cut": 3, "seed": config.seed, "budget": config.budget},
        )
        folder.write_summary(summary)
        return Result(folder.path, summary, Ledger())


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    fake = Runs()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("splitlab.core.studies.perform.run", fake)
    monkeypatch.setattr("splitlab.core.studies.conduct._check_what_all_share", lambda job: None)
    monkeypatch.setattr("splitlab.core.studies.perform.gc", SimpleNamespace(collect=lambda: 0))
    return fake


@pytest.fixture
def unlistened() -> Iterator[None]:
    """Give the signals back that a command took; SIGHUP counts, also where nohup runs the tests."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.getsignal(number) for number in signals}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the Hugging Face hub fail with these words, or with none of them answer."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)

    def set_to(failure: str) -> None:
        class Session:
            def head(self, url: str, *, timeout: float) -> None:
                if failure:
                    raise ConnectionError(failure)

        monkeypatch.setattr("huggingface_hub.get_session", Session)

    return set_to
