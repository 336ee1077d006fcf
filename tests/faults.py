"""Make the whole table of faults, and write docs/faults.md from what came of it.

    python tests/faults.py [--page FILE] [--jobs N] [--kind NAME]… [--stack NAME]… [--link NAME]…
        [--state NAME]…

Every cell is a run of both peers through `proxy.FaultProxy`, held against an undisturbed one; see
`faulted`. What is not bit-identical is printed as it is found, and makes the status 1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import re
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

from faulted import IDENTICAL, KINDS, LINKS, STACKS, STATES, TIMEOUT, Cell, Lab, Outcome, cells
from proxy import FAULTS

from splitlab.core.contract.errors import Notice

Outcomes = dict[Cell, Outcome]

PAGE = Path(__file__).parents[1] / "docs" / "faults.md"

_TITLES = {
    "plain": "Plain TCP",
    "secret": "With a secret (`--secret-file`)",
    "tls": "Under TLS (`--tls-cert`, `--tls-ca`)",
}
_DESCRIPTIONS = {
    "adc": "a method without a state",
    "aqsgd": "what was sent of a sample is kept at both peers",
    "powersgd": "error feedback and warm starts",
}


def main() -> int:
    """Make the cells that were asked for, in processes of their own."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--page", type=Path, help="where to write the page")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--kind", action="append", choices=[*KINDS])
    parser.add_argument("--stack", action="append", choices=[*STACKS])
    parser.add_argument("--link", action="append", choices=LINKS)
    parser.add_argument("--state", action="append", choices=[*map(str, STATES)])
    chosen = parser.parse_args()
    wanted = [
        cell
        for cell in cells(chosen.stack or (*STACKS,), chosen.link or LINKS)
        if cell.kind in (chosen.kind or KINDS)
        and str(cell.state) in (chosen.state or map(str, STATES))
    ]
    outcomes: Outcomes = {}
    shares = [wanted[begin : begin + 40] for begin in range(0, len(wanted), 40)]
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(chosen.jobs, context) as pool:
        for share in pool.map(made, shares):
            outcomes |= share
            for cell, outcome in share.items():
                if not good(outcome):
                    print(f"{cell}: {said(outcome)}", flush=True)
    print(summary(outcomes))
    if chosen.page:
        chosen.page.write_text(page(outcomes), encoding="utf-8")
    return not all(map(good, outcomes.values()))


def made(share: list[Cell]) -> Outcomes:
    """Make these cells, in this process."""
    warnings.simplefilter("ignore", Notice)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        return {cell: lab.outcome(cell) for cell in share}


def good(outcome: Outcome) -> bool:
    """Return whether a cell came out as it is to."""
    return outcome.struck and outcome.text == IDENTICAL


def said(outcome: Outcome) -> str:
    """Return what came of a cell in words."""
    return outcome.text if outcome.struck else f"never struck; {outcome.text}"


def summary(outcomes: Outcomes) -> str:
    """Return how many runs came out how."""
    right = sum(map(good, outcomes.values()))
    return f"{right:,} of {len(outcomes):,} runs are bit-identical to an undisturbed one."


def page(outcomes: Outcomes) -> str:
    """Return the page."""
    return "\n".join([*_above(outcomes), *_tables(outcomes), *_below()]) + "\n"


def _above(outcomes: Outcomes) -> Iterator[str]:
    yield "<!-- Written by `make faults` from what its runs came to. -->"
    yield "# Faults of the network"
    yield ""
    yield (
        "A run over TCP outlives its connection. Here is what was done to connections, in which "
        "state, and what came of the run: each cell is a whole run of two peers (three steps, two "
        "evaluations, two checkpoints, the goodbye) through a proxy that strikes one frame of the "
        "conversation. `bit-identical` says that losses, accuracies, bytes of training and "
        "evaluation of every step, and every tensor of the last checkpoint of both peers equal "
        "those of a run to which nothing happened. A cell also counts as failed if its fault "
        f"never struck. Here a silent peer counts as gone after {TIMEOUT:g} s (`--timeout`)."
    )
    yield ""
    yield f"**{summary(outcomes)}**"
    yield ""
    yield "`make faults` makes all of them and writes this page; `make test` makes a share."
    yield ""
    yield "## What happens"
    yield ""
    yield "| fault | what it does to a frame, which is it here, and to its connection |"
    yield "|---|---|"
    for name, words in FAULTS.items():
        yield f"| {name} | {words} |"
    yield ""
    yield (
        "`before`, `amid` and `behind` say how much of the frame has passed by then. `flip in the` "
        "names the part of the frame in which a bit changes; under TLS nobody can see one, and it "
        "is any bit of the record. `thrice` strikes the frame when it is said again, too. `the "
        "return` is what the client says on its next connection, where the second fault strikes."
    )
    yield ""
    yield "The stacks:"
    yield ""
    for stack, plugins in STACKS.items():
        yield f"- {stack} (`--plugin {'+'.join(plugins)}`): {_DESCRIPTIONS[stack]}"
    yield ""
    yield "## What comes of it"
    yield ""
    yield (
        "Arrows say whether the client (↑) or the server (↓) says the frame. A cell stands for one "
        "run of each stack that is named above its table."
    )


def _tables(outcomes: Outcomes) -> Iterator[str]:
    heads = [f"{'↑' if state.direction == 'up' else '↓'} {state}" for state in STATES]
    for link in LINKS:
        mine = {cell: outcome for cell, outcome in outcomes.items() if cell.link == link}
        if not mine:
            continue
        stacks = [stack for stack in STACKS if any(cell.stack == stack for cell in mine)]
        yield from ("", f"### {_TITLES[link]}", "", f"Stacks: {', '.join(stacks)}.", "")
        yield f"| | {' | '.join(heads)} |"
        yield f"|---{'|---' * len(heads)}|"
        for kind in KINDS:
            row = {cell: outcome for cell, outcome in mine.items() if cell.kind == kind}
            if row:
                texts = [_cell(row, state) for state in STATES]
                yield f"| {kind} | {' | '.join(texts)} |"


def _cell(row: Outcomes, state: object) -> str:
    """Return what a cell of the page says."""
    found = {cell.stack: said(o) for cell, o in row.items() if cell.state == state}
    if not found:
        return "—"
    counted = Counter(found.values())
    if len(counted) == 1:
        return _safe(next(iter(counted)))
    return "; ".join(f"{stack}: {_safe(text)}" for stack, text in found.items())


def _safe(text: str) -> str:
    """Return it without what is of one run only, such as ports and folders."""
    text = re.sub(r"; go on from .*", "", re.sub(r"\btcp://\S+?(?=: |,? |$)", "the peer", text))
    return text.replace("|", "\\|")[:200]


def _below() -> Iterable[str]:
    return (
        "",
        "— says that there is no such cell: the frame has no such part, or nobody comes back.",
        "",
        "## What is not here",
        "",
        "- Frames that are wrong and whose checksums are right: who sends them is no network, but "
        "a peer of another kind (`tests/test_hostile.py`, `make fuzz`).",
        "- A fault in the very first handshake of TLS or of the secret, before the client has said "
        "its HELLO: a connection that ends there is tried again twice; anything else ends the "
        "command with an error, and nothing is lost by then.",
        "- Peers that are killed, stopped and resumed (`tests/test_kills.py`).",
        "- gloo and NCCL, whose links end with their connection.",
        "- Packets that are lost, reordered or delayed: TCP mends those by itself; what they look "
        "like from above is `stall` and `throttle`.",
    )


if __name__ == "__main__":
    sys.exit(main())
