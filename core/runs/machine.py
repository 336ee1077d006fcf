"""What a run takes of the machine: options that are not meant to decide a number."""

from __future__ import annotations

from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError
from splitlab.core.runs.option import GROUPS, check_ranges, option

__all__ = ["MOST_THREADS", "Machine"]

MOST_THREADS = 4096

_MACHINE = GROUPS[6]


@dataclass(frozen=True)
class Machine:
    """The fields of `Config` about the machine. Each peer may have its own."""

    device: str = option(
        "auto",
        "cpu, cuda, cuda:1, …; auto takes a GPU where there is one",
        metavar="DEVICE",
        group=_MACHINE,
    )
    deterministic: bool = option(
        False,
        "let a GPU repeat itself bit for bit, which takes longer; a CPU does without",
        group=_MACHINE,
    )
    threads: int | None = option(
        None, "CPU threads of each peer", unset="$OMP_NUM_THREADS, or all cores", group=_MACHINE
    )
    compile: str = option(
        "off",
        "let torch compile both parts: default, or reduce-overhead, with CUDA graphs on a GPU; the "
        "first steps take long, numbers differ by their rounding, and each peer may choose for "
        "itself",
        choices=("off", "default", "reduce-overhead"),
        group=_MACHINE,
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
        "takes memory, if a part needs at most 512 MiB, or all a tenth of what is free; no number "
        "depends on it",
        choices=("auto", "none", "memory", "gpu"),
        group=_MACHINE,
    )

    def check_machine(self) -> None:
        """Raise `ConfigError` for what no machine has."""
        check_ranges(self, (("threads", 1, MOST_THREADS), ("workers", 0, 256)))
        if self.worker_kind == "processes" and not self.workers:
            raise ConfigError(
                "--worker-kind processes needs some: give --workers, such as the number of cores"
            )
