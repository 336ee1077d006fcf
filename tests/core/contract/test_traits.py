"""What a plugin declares, and which stacks are refused with which way out."""

from __future__ import annotations

from typing import Any

import pytest

from splitlab.core import ConfigError, PluginError, Traits
from splitlab.core.contract.traits import ASPECTS, Declared, check_order


def plugin(label: str, needs: set[str], changes: set[str], where: str = "graph") -> Declared:
    traits = Traits(needs=needs, changes=changes)
    return Declared(label, traits, on_graph=where == "graph", on_message=where == "message")


MERGE = plugin("merge", {"targets", "places", "attention"}, {"batch"})
SELECT = plugin("select", {"attention"}, {"tokens", "places"})
SUPERPOSE = plugin("superpose", {"numbers"}, {"batch", "layout"})
DELTA = plugin("delta", {"sample ids", "places"}, {"numbers"}, "message")
CODES = plugin("codes", {"numbers"}, {"numbers"}, "message")
HALF = plugin("half", {"numbers"}, set(), "message")
ZIP = plugin("zip", {"plain"}, {"plain"}, "message")
WATCH = plugin("watch", set(), set(), "message")


@pytest.mark.parametrize(
    "stack",
    [
        [],
        [MERGE],
        [MERGE, SELECT, CODES, ZIP],
        [SELECT, SELECT],
        [MERGE, SUPERPOSE, HALF, CODES],
        [DELTA, ZIP],
        [WATCH, MERGE, WATCH],
    ],
)
def test_stacks_that_work(stack: list[Declared]) -> None:
    check_order(stack)


@pytest.mark.parametrize(
    ("stack", "reason", "remedy"),
    [
        ([SELECT, MERGE], "'merge' needs places .* 'select' in front", "works: merge . select$"),
        ([MERGE, DELTA], "'delta' needs sample ids .* 'merge'", r"works: merge \(without delta\)"),
        ([MERGE, MERGE], "'merge' needs targets", r"works: merge$"),
        ([SUPERPOSE, SELECT], "'select' needs attention", "works: select . superpose$"),
        ([CODES, HALF], "'half' needs numbers .* 'codes'", "works: half . codes$"),
        ([ZIP, CODES], "'codes' needs numbers .* 'zip'", "works: codes . zip$"),
        ([ZIP, ZIP], "'zip' needs plain", "works: zip$"),
        ([HALF, SELECT], "'select' works on the autograd graph", "works: select . half$"),
        (
            [ZIP, CODES, SELECT, MERGE],
            "'codes' needs numbers",
            "works: merge . select . codes . zip$",
        ),
        ([ZIP] * 7, "'zip' needs plain", r"works: zip$"),
        ([MERGE, DELTA, CODES, ZIP], "'delta'", r"works: merge . codes . zip \(without delta\)"),
    ],
)
def test_stacks_that_cannot_work_name_reason_and_way_out(
    stack: list[Declared], reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot work: {reason}.*{remedy}") as caught:
        check_order(stack)
    assert str(caught.value).startswith("the stack " + " + ".join(p.label for p in stack))


def test_what_may_stand_once_is_refused_the_second_time() -> None:
    first, second = (
        Declared(label, Traits(once=True), on_graph=True, on_message=False)
        for label in ("bind", "bind#2")
    )
    check_order([first, MERGE])
    with pytest.raises(ConfigError, match=r"'bind' may stand in a stack only once; .* works: bind"):
        check_order([first, second])


def test_a_long_stack_is_refused_at_once() -> None:
    many = [Declared("bind", Traits(once=True), on_graph=True, on_message=False)] * 40
    with pytest.raises(ConfigError, match=r"a stack that works: merge . bind"):
        check_order([MERGE, *many])


def channel(label: str, needs: str) -> Declared:
    return Declared(label, Traits(needs={needs}, last=True), on_graph=False, on_message=True)


NOISE = channel("noise", "analog")
FLIPS = channel("flips", "any bits")


@pytest.mark.parametrize("stack", [[NOISE], [MERGE, HALF, NOISE], [SELECT, CODES, FLIPS]])
def test_channels_that_stand_last(stack: list[Declared]) -> None:
    check_order(stack)


@pytest.mark.parametrize(
    ("stack", "reason", "remedy"),
    [
        ([CODES, NOISE], "'noise' needs analog .* 'codes'", r"works: noise \(without codes\)"),
        ([SELECT, CODES, NOISE], "'noise' needs", r"works: select . noise \(without codes\)"),
        ([ZIP, FLIPS], "'flips' needs any bits .* 'zip'", r"works: flips \(without zip\)"),
        ([NOISE, HALF], "'noise' is a channel, which stands last, and 'half'", "half . noise$"),
        ([NOISE, WATCH], "'noise' is a channel", "works: watch . noise$"),
        ([NOISE, NOISE], "'noise' is a channel", "works: noise"),
        ([NOISE, *[HALF] * 7], "'noise' is a channel", "works: half .* noise$"),
    ],
)
def test_a_channel_elsewhere_is_refused_and_kept_in_what_works(
    stack: list[Declared], reason: str, remedy: str
) -> None:
    with pytest.raises(ConfigError, match=f"cannot work: {reason}.*{remedy}"):
        check_order(stack)


def test_what_goes_with_a_change_is_implied() -> None:
    gone = {"batch", "targets", "sample ids", "keys", "heads"}
    assert Traits(changes={"batch"}).takes_away == gone
    assert Traits().takes_away == set()
    assert Traits(changes={"plain"}).takes_away == set(ASPECTS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"needs": {"tokns"}}, r"unknown aspect 'tokns' \(did you mean 'tokens'\?\)"),
        ({"changes": "batch"}, r"changes='batch' must be a set, as in \{'batch'\}"),
        ({"waits": True}, r"waits=True must say why"),
        ({"gradient": "none"}, "gradient='none' is unknown; one of natural"),
    ],
)
def test_traits_that_mean_nothing_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(PluginError, match=words):
        Traits(**arguments)
