"""Members of stacks: what each is called, its parameters, and how a study keeps them."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from splitlab.core.report.members import Member, differing, members_of


def read(member: Member) -> Member:
    return Member.of_record(json.loads(json.dumps(dataclasses.asdict(member))))


def test_a_member_has_every_parameter_and_knows_those_that_were_given() -> None:
    [adc, quantize] = members_of(["adc:ratio=0.10+quantize"])
    assert (adc.label, adc.given, adc.params["ratio"]) == ("adc", ("ratio",), 0.1)
    assert adc.identity.startswith("adc:ratio=0.1,alloc=")
    assert quantize.given == ()
    assert adc.title(["alloc"]) == "adc:ratio=0.1,alloc=sqrt"
    assert adc.title((), without=["ratio"]) == "adc"


def test_a_named_stack_is_one_member_with_what_reaches_its_plugins() -> None:
    [member] = members_of(["tsflora:ratio=0.3"])
    assert member.label == "tsflora-recon"
    assert (member.params["ratio"], member.params["bits"]) == (0.3, 8)
    assert member.identity.count(" + ") == 1


@pytest.mark.parametrize("text", ["none", "adc:ratio=0.2,tau=none", "tsflora", "gone.py:X:a=1"])
def test_what_was_written_is_read_back(text: str) -> None:
    [member] = members_of([text])
    assert read(member) == member


def test_what_json_cannot_keep_is_a_text(tmp_path: Path) -> None:
    file = tmp_path / "odd.py"
    file.write_text(
        "class Odd:\n    'Odd.'\n"
        "    from splitlab.core import hookimpl\n"
        "    run_end = hookimpl(lambda self: None)\n"
        "    def __init__(self, most: float = float('inf'), pair: str = (1, 2)) -> None: ...\n"
    )
    [member] = members_of([f"{file}:Odd"])
    assert member.params == {"most": str(math.inf), "pair": "(1, 2)"}
    assert read(member) == member


@pytest.mark.parametrize(
    "change",
    [{"label": 1}, {"identity": None}, {"params": {"a": [1]}}, {"params": []}, {"given": ["b"]}],
)
def test_a_record_that_was_edited(change: dict[str, Any]) -> None:
    record = {"label": "x", "identity": "x:a=1", "params": {"a": 1}, "given": ["a"]}
    assert Member.of_record(record).title(()) == "x:a=1"
    with pytest.raises((TypeError, ValueError, LookupError)):
        Member.of_record(record | change)


def test_in_what_stacks_differ() -> None:
    stacks = [members_of([f"adc:ratio={r}+quantize:bits={b}"]) for r, b in ((0.1, 8), (0.2, 8))]
    assert differing(stacks) == [("ratio",), ()]
