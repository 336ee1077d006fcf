"""What a run has of the machine: the options of `Config` that are not meant to decide a number."""

from __future__ import annotations

from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.option import GROUPS, check_ranges, option

__all__ = ["MOST_THREADS", "Machine"]

MOST_THREADS = 4096

_MACHINE = GROUPS[6]


@dataclass(frozen=True)
class Machine:
    """The fields of `Config` about where and with what it computes."""

    device: str = option(
        "auto",
        "cpu, cuda, cuda:1, …; auto takes a GPU where there is one",
        metavar="DEVICE",
        group=_MACHINE,
    )
    threads: int | None = option(
        None, "CPU threads of each peer", unset="$OMP_NUM_THREADS, or all cores", group=_MACHINE
    )
    workers: int = option(
        0, "how many decode images ahead; 0 decodes in the client's own thread", group=_MACHINE
    )
    worker_kind: str = option(
        "threads",
        "what decodes: threads, or processes where threads wait for each other, as with many cores "
        "and --augment paper or timm:…",
        choices=("threads", "processes"),
        group=_MACHINE,
    )
    cache: str = option(
        "auto",
        "where decoded images are kept: nowhere (none), in memory, or on the client's GPU; auto "
        "takes memory, if they need at most a tenth of what is free; no number depends on it",
        choices=("auto", "none", "memory", "gpu"),
        group=_MACHINE,
    )

    def check_machine(self) -> None:
        """Raise `ConfigError` for a value that is not allowed."""
        check_ranges(self, (("threads", 1, MOST_THREADS), ("workers", 0, 256)))
        if self.worker_kind == "processes" and not self.workers:
            raise ConfigError(
                "--worker-kind processes needs some: give --workers, such as the number of cores"
            )
