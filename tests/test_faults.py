"""Whatever happens to a connection, the run ends as if nothing had (tests/helpers/faulted.py).

Here a share of all cells is made, in which every fault meets every third state, with another stack
and another link each time; marked long, all of them. `make faults` makes them all, too, and writes
docs/faults.md.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest
from faulted import IDENTICAL, KINDS, LINKS, STACKS, STATES, Cell, Lab, cells
from proxy import FAULTS, Direction, Fault

from splitlab.core import SplitlabError

pytestmark = pytest.mark.filterwarnings("ignore::splitlab.core.contract.errors.Notice")

POSSIBLE = {*cells()}


def share() -> Iterator[Cell]:
    """Yield every third state of every fault, with all pairs of a stack and a link in turn."""
    turns = [*product(STACKS, LINKS)]
    number = 0
    for row, kind in enumerate(KINDS):
        for column, state in enumerate(STATES):
            if (2 * row + column) % 3 or (kind, state.name) in IDLE:
                continue
            number += 1
            for turn in range(len(turns)):
                cell = Cell(kind, state, *turns[(number + turn) % len(turns)])
                if cell in POSSIBLE:
                    yield cell
                    break


IDLE = {(kind, "CONTROL bye") for kind in ("silence", "drop", "stall beyond the timeout")}
"""A server waits ten seconds for a goodbye that it does not hear."""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    pytest.importorskip("cryptography")
    return Lab(tmp_path_factory.mktemp("faults"))


def wrong(lab: Lab, cell: Cell) -> str:
    """Return what is wrong with the run of a cell, or an empty text."""
    outcome = lab.outcome(cell)
    if not outcome.struck:
        return f"{cell}: never struck; {outcome.text}"
    return "" if outcome.text == IDENTICAL else f"{cell}: {outcome.text}"


@pytest.mark.parametrize("cell", [*share()], ids=str)
def test_a_run_outlives_a_fault(cell: Cell, lab: Lab) -> None:
    assert not wrong(lab, cell)


@pytest.mark.long
@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_run_outlives_a_fault_in_every_state(kind: str, link: str, lab: Lab) -> None:
    found = [wrong(lab, cell) for cell in cells(links=[link]) if cell.kind == kind]
    assert [*filter(None, found)] == []


@pytest.mark.long
@pytest.mark.parametrize("state", [STATES[0], STATES[3]], ids=str)
def test_a_run_outlives_every_bit_of_an_opening_and_a_checksum(
    state: tuple[str, str, int], lab: Lab
) -> None:
    whole = lab.undisturbed("adc", "plain")
    for part, bits in (("opening", 8 * 64), ("checksum", 64)):
        for bit in range(0, bits, 5):  # 5 and 8 have no divisor in common: every byte, other bits
            fault = Fault("flip", *state, part=part, bit=bit)
            assert not lab.made("adc", "plain", [fault]).differs(whole), f"bit {bit} of {part}"
            assert fault.over


def test_a_storm_of_faults(lab: Lab) -> None:
    """Every frame of training and evaluation is struck, one way or another."""
    whole = lab.undisturbed("aqsgd", "plain")
    storm = [
        Fault("reset", "up", "ACTIVATION of training", times=2),
        Fault("truncate", "down", "GRADIENT"),
        Fault("duplicate", "up", "ACTIVATION of training"),
        Fault("flip", "down", "GRADIENT", part="tensors"),
        Fault("refuse", "up", "ACTIVATION of evaluation"),
        Fault("cut", "down", "PREDICTION", times=2),
        Fault("half-close", "up", "CONTROL save"),
        Fault("reset", "down", "CONTROL saved"),
        Fault("forget", "up", "ACTIVATION of training"),
        Fault("flip", "down", "GRADIENT", part="header"),
        Fault("duplicate", "down", "PREDICTION"),
        Fault("reset", "up", "CONTROL finish"),
        Fault("cut", "down", "CONTROL finished"),
    ]
    came = lab.made("aqsgd", "plain", storm)
    assert [fault for fault in storm if not fault.over] == []
    assert not came.differs(whole)
    assert came.connections > len(storm)


SLOW = """
import time

from splitlab.core import hookimpl


class Slow:
    def __init__(self, *, role: str) -> None:
        self.slow = role

    @hookimpl
    def setup(self, peer):
        self.role = peer.role

    @hookimpl(wrapper=True)
    def after_receive(self, message):
        if self.role == self.slow and message.training and message.step == 1:
            time.sleep(0.9)
        yield
"""


@pytest.mark.parametrize(
    ("kind", "role"),
    [
        (None, "server"),
        ("reset", "server"),
        *(pytest.param(kind, "server", marks=pytest.mark.long) for kind in FAULTS),
        *(pytest.param(kind, "client", marks=pytest.mark.long) for kind in FAULTS),
    ],
)
def test_a_peer_that_computes_for_longer_than_the_timeout_is_not_taken_for_dead(
    kind: str | None, role: str, lab: Lab, tmp_path: Path
) -> None:
    """It gives signs of life, one of which may be struck."""
    way: Direction = "down" if role == "server" else "up"
    if kind == "late" and way == "down":
        pytest.skip("what the server says late, nobody hears")
    (tmp_path / "slow.py").write_text(SLOW)
    faults = [Fault(kind, way, "CONTROL beat")] if kind else []
    probe = f"{tmp_path}/slow.py:Slow:role={role}"
    came = lab.made("aqsgd", "plain", faults, timeout=0.5, probes=[probe])
    assert not came.differs(lab.undisturbed("aqsgd", "plain"))
    assert (way, "CONTROL beat") in came.seen
    assert all(fault.over for fault in faults)
    assert kind or came.connections == 1


def test_a_run_to_which_too_much_happens_ends_with_the_way_back(lab: Lab) -> None:
    """The proxy ends in the middle of the run, and with it the only way to the server."""
    with pytest.raises(SplitlabError, match="go on from the checkpoint of step 2 with: splitlab"):
        lab.made(
            "adc", "plain", [Fault("silence", "down", "GRADIENT", 2, times=100)], reconnect=2.0
        )


PAGE = Path(__file__).parents[1] / "docs" / "faults.md"


def test_the_page_names_every_fault_and_every_state() -> None:
    text = PAGE.read_text(encoding="utf-8")
    rows = {line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| ")}
    again = "run: make faults"
    assert {*FAULTS, *KINDS} - rows == set(), again
    heads = [line for line in text.splitlines() if line.startswith("| | ")]
    assert len(heads) == len(LINKS), again
    for state in STATES:
        assert all(f" {state} |" in head for head in heads), again
    assert all(f"- {stack} (" in text for stack in STACKS), again


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_long_run_with_a_fault_now_and_then_leaks_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-P", str(Path(__file__).parent / "soak.py"), "--steps", "1500"],
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "bit-identical after 1,500 steps" in done.stdout


def test_every_fault_meets_every_link_and_every_stack() -> None:
    chosen = [*share()]
    assert len({*chosen}) == len(chosen) > 90
    assert {cell.kind for cell in chosen} == {*KINDS}
    assert {cell.state for cell in chosen} == {*STATES}
    assert {(cell.stack, cell.link) for cell in chosen} == {*product(STACKS, LINKS)}
