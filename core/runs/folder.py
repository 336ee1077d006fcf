"""The run folder: what a run leaves behind, and what a resumed run finds.

config.toml        the configuration, with everything decided
run.json           what it began with: see `splitlab.core.runs.origin`
environment.json   versions and hardware
metrics.jsonl      and the other records: see `splitlab.core.runs.records`
checkpoints/       see `splitlab.core.runs.checkpoint`
probes/            what probes wrote
server.log         what the server of a two-process run printed
client.lock        while a client runs, and server.lock: see `splitlab.core.runs.disk`
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.jsonable import json_text
from splitlab.core.runs.config import Config
from splitlab.core.runs.cutting import check_steps, text_until
from splitlab.core.runs.disk import (
    LOCKS,
    DiskError,
    append_whole,
    hold,
    write_whole,
    writing,
)
from splitlab.core.runs.records import (
    LEDGER,
    METRICS,
    STATE,
    SUMMARY,
    TIMES,
    EvaluationRecord,
    State,
    StepRecord,
    Summary,
    TimeRecord,
    ledger_text,
    read_evaluations,
    version_line,
)

if TYPE_CHECKING:
    from splitlab.core.wire.ledger import Ledger

__all__ = ["RunFolder", "append", "cut_after", "failure_note", "relabel", "remove_run", "run_name"]

CONFIG = "config.toml"
_PROPOSAL = "config.next.toml"

_PACKAGES = (
    "splitlab",
    "torch",
    "torchvision",
    "timm",
    "datasets",
    "pluggy",
    "safetensors",
    "numpy",
)


def run_name(plugins: Sequence[str]) -> str:
    """Return a name for a run of this stack, such as ``adc-20261231-235959``."""
    heads = [re.sub(r".*\.py:", "", text).partition(":")[0] for text in plugins]
    return f"{'+'.join(heads) or 'none'}-{time.strftime('%Y%m%d-%H%M%S')}"


class RunFolder:
    """One run's folder; made by `create`, found again by `open`.

    Attributes:
        path: absolute: wherever the process goes, the run stays there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self._metrics = self.path / METRICS
        self._times = self.path / TIMES

    @classmethod
    def create(
        cls, output: str | None, plugins: Sequence[str], name: str | None = None
    ) -> RunFolder:
        """Make a new folder: this one, or below ``runs`` a free one of this name or the stack's.

        What is left of a run that was killed before it had written what it is, is no run.
        """
        path = Path(output) if output else _free(Path("runs") / (name or run_name(plugins)))
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if _is_unbegun(path):
                return cls(path)
            way = f"go on with --resume {path}" if (path / CONFIG).is_file() else "move it away"
            raise ConfigError(
                f"--output {path} exists already; {way}, or name another folder"
            ) from None
        except OSError as error:
            raise ConfigError(f"--output {path} cannot be made: {error.strerror}") from None
        return cls(path)

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Find the folder of an earlier run."""
        if not (Path(path) / CONFIG).is_file():
            raise ConfigError(f"--resume {path}: no run folder (it has no config.toml)")
        return cls(Path(path))

    def read_config(self) -> Config:
        """Return the configuration of the run."""
        return Config.from_toml(self.path / CONFIG)

    def write_config(self, config: Config, name: str = CONFIG) -> None:
        """Write the configuration of the run, but for ``output``: the folder may be moved."""
        write_whole(self.path / name, replace(config, output=None).to_toml())

    def propose(self, config: Config) -> None:
        """Write what a run that goes on would go on with, for the server of a second process."""
        self.write_config(config, _PROPOSAL)

    def drop_halves(self) -> None:
        """Take away what a killed process had written half; nobody else may be writing here."""
        for half in self.path.glob("*.tmp"):
            with suppress(OSError):
                half.unlink()

    def drop_proposal(self) -> None:
        """Take away what `propose` wrote."""
        with suppress(OSError):
            (self.path / _PROPOSAL).unlink()

    def config_for_server(self) -> Path:
        """Return the file that the server of a second process is to read."""
        proposal = self.path / _PROPOSAL
        return proposal if proposal.is_file() else self.path / CONFIG

    def write_environment(self, **facts: Any) -> None:
        """Write versions and hardware, and the facts given."""
        import torch

        versions = {}
        for name in _PACKAGES:
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                versions[name] = "not installed as a package"
        environment = {
            "python": sys.version.split()[0],
            "packages": versions,
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _processor(),
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
            **facts,
        }
        write_whole(self.path / "environment.json", json_text(environment, indent=2) + "\n")

    def log(self, record: StepRecord | EvaluationRecord) -> None:
        """Append one record to ``metrics.jsonl``."""
        append(self._metrics, record)

    def log_time(self, record: TimeRecord) -> None:
        """Append one record to ``times.jsonl``."""
        append(self._times, record)

    def has_records(self) -> bool:
        """Return whether anything was logged."""
        return self._metrics.is_dir() or self.metrics_size() > 0

    def metrics_size(self) -> int:
        """Return how long ``metrics.jsonl`` is, in bytes."""
        if self._metrics.is_dir():
            raise DiskError(f"{self._metrics} is no file; move it away")
        return self._metrics.stat().st_size if self._metrics.exists() else 0

    def times_size(self) -> int:
        """Return how long ``times.jsonl`` is, in bytes."""
        return self._times.stat().st_size if self._times.is_file() else 0

    def check_metrics(self, size: int, step: int) -> None:
        """Check that the log holds what was logged until a checkpoint.

        Args:
            size: bytes of the log at the checkpoint.
            step: of the checkpoint; the log must hold all steps up to it, and each once.

        Raises:
            ConfigError: it does not.
        """
        if self.metrics_size() < size:
            raise ConfigError(f"{self._metrics} is shorter than at its checkpoint; it was edited")
        if size:
            check_steps(self._metrics, size, step)

    def cut_metrics(self, size: int, times: int) -> None:
        """Forget what was logged after the first bytes, which `check_metrics` has checked.

        Args:
            size: bytes of ``metrics.jsonl`` to leave.
            times: bytes of ``times.jsonl`` to leave.
        """
        if self._metrics.exists():
            with writing(self._metrics):
                os.truncate(self._metrics, size)
        if self.times_size() > times:
            with writing(self._times):
                os.truncate(self._times, times)

    def write_ledger(self, ledger: Ledger) -> None:
        """Write the bytes counted so far."""
        write_whole(self.path / LEDGER, ledger_text(ledger))

    def write_summary(self, summary: Summary) -> None:
        """Write the summary."""
        write_whole(self.path / SUMMARY, summary.text())

    def write_state(self, state: State) -> None:
        """Write how the run stands."""
        write_whole(self.path / STATE, state.text())

    def remove_summary(self) -> None:
        """Take the summary away: the run goes on."""
        with writing(self.path / SUMMARY):
            (self.path / SUMMARY).unlink(missing_ok=True)

    def server_log(self) -> Path:
        """Return where the server of a two-process run prints."""
        return self.path / "server.log"

    def probes(self) -> Path:
        """Return where probes write; the folder of each is made when it does."""
        return self.path / "probes"

    def evaluations(self) -> list[EvaluationRecord]:
        """Return the evaluations that were logged, in their order."""
        return read_evaluations(self.path) if self.has_records() else []

    def remove(self) -> None:
        """Delete the folder of a run that never made a step."""
        shutil.rmtree(self.path, ignore_errors=True)


def append(path: Path, record: StepRecord | EvaluationRecord | TimeRecord) -> None:
    """Append a record to a log; a new log begins with the version of its records."""
    append_whole(path, record.line(), first=version_line())


def cut_after(path: Path, step: int) -> None:
    """Forget the records of a log that are of later steps, and a last line that is unfinished.

    Raises:
        ConfigError: anything else of the log is damaged.
    """
    if path.exists():
        write_whole(path, text_until(path, step))


def relabel(
    path: Path, name: str | None = None, add: Sequence[str] = (), drop: Sequence[str] = ()
) -> Config:
    """Change what a run that nobody works on is called; returns its new configuration.

    Args:
        path: of its folder, which keeps its name.
        name: None leaves it as it is.
        add: tags that it is to have.
        drop: tags that it is not to have.

    Raises:
        ConfigError: a name or tag that is not allowed, or a process works on the run.
    """
    with hold(path, "client"):
        folder = RunFolder.open(path)
        config = folder.read_config()
        tags = tuple(tag for tag in dict.fromkeys((*config.tags, *add)) if tag not in drop)
        config = replace(config, name=config.name if name is None else name, tags=tags)
        folder.write_config(config)
    return config


def remove_run(path: Path) -> None:
    """Delete the folder of a run that nobody works on, and what its study noted beside it.

    Raises:
        HeldError: a process does.
        DiskError: something of it cannot be deleted.
    """
    with hold(path.parent, path.name), hold(path, "client"), hold(path, "server"), writing(path):
        shutil.rmtree(path)
        failure_note(path).unlink(missing_ok=True)


def failure_note(path: Path) -> Path:
    """Return where a study keeps why a run failed: beside its folder, which may not be there."""
    return path.with_name(f"{path.name}.failed.json")


def _is_unbegun(path: Path) -> bool:
    names = [each.name for each in path.iterdir()] if path.is_dir() else []
    return bool(names) and all(
        name == "run.json" or name.endswith((LOCKS, ".tmp")) for name in names
    )


def _free(path: Path) -> Path:
    candidates = (path.with_name(f"{path.name}-{i}") for i in range(2, 1000))
    return path if not path.exists() else next(p for p in candidates if not p.exists())


def _processor() -> str:
    try:
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    except OSError:
        found = None
    return f"{found[1] if found else platform.processor()}, {os.cpu_count()} cores"
