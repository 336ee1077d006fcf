"""What a study is, as data: tables, texts of the command line, growth."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.command.main import parser
from splitlab.core.studies.definition import (
    Definition,
    axis_of_columns,
    axis_of_text,
    axis_of_texts,
    seeds_of,
)


def test_a_table_with_everything() -> None:
    found = Definition.of_table(
        "mine",
        {
            "summary": "one sentence",
            "paper": "arXiv 1, figure 2",
            "base": {"budget": "steps=3", "batch-size": 64, "seed": 4},
            "stacks": ["none", "adc+quantize:bits=8"],
            "over": {"ratio": [0.05, 1], "plugin.quantize.bits": [4, "8"]},
            "zip": [{"cut": [1, 2], "lr": [1e-3, 2]}],
            "seeds": 2,
            "draw": ["heatmap"],
            "reference": "none",
        },
        "here",
    )
    assert found.base == {"budget": "steps=3", "batch_size": 64}
    assert found.seeds == (4, 5)
    assert found.stacks == ("none", "adc+quantize:bits=8")
    assert found.axes == (
        ({"ratio": 0.05}, {"ratio": 1.0}),
        ({"plugin.quantize.bits": "4"}, {"plugin.quantize.bits": "8"}),
        ({"cut": 1, "lr": 1e-3}, {"cut": 2, "lr": 2.0}),
    )
    assert Definition.of_record(found.as_table()) == found


def test_a_table_with_nothing_is_one_run_of_every_seed() -> None:
    found = Definition.of_table("mine", {}, "here")
    assert (found.stacks, found.axes, found.seeds) == (("none",), (), (0, 1, 2))


def test_plugins_among_the_base_options_are_the_stack() -> None:
    found = Definition.of_table("mine", {"base": {"plugins": ["adc", "quantize"]}}, "here")
    assert found.stacks == ("adc+quantize",)
    assert "plugins" not in found.base


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ({"stack": []}, r"here: unknown key 'stack' \(did you mean 'stacks'\?\)"),
        ({"stacks": "adc"}, r"here: stacks = 'adc' is not allowed; it takes a list of stacks"),
        ({"stacks": [1]}, r"stacks has 1; it takes texts"),
        ({"stacks": []}, r"nothing to run; name every stack"),
        ({"stacks": ["adc", "adc"]}, r"the stack adc is given twice; drop one"),
        ({"seeds": True}, r"seeds = True is not allowed; it takes how many, or a list"),
        ({"seeds": 0}, r"--seeds 0 is not allowed"),
        ({"seeds": [1, 1]}, r"not allowed; write how many"),
        ({"seeds": ["1"]}, r"is not allowed"),
        ({"base": {"batchsize": 3}}, r"unknown option 'batchsize' \(did you mean 'batch-size'"),
        ({"base": {"lr": "high"}}, r"lr = 'high' is not allowed; it takes float"),
        ({"base": {"lr": -1.0}}, r"--lr -1.0 is not allowed"),
        ({"over": {"cut": 3}}, r"cut = 3 is not allowed; an axis is a list of values"),
        ({"over": {"cut": []}}, r"cut = \[\] is not allowed"),
        ({"over": {"cut": [1, 1]}}, r"cut: a value is given twice"),
        ({"over": {"cut": ["a"]}}, r"cut = 'a' is not allowed; it takes int"),
        ({"over": {"cuts": [1]}}, r"unknown axis 'cuts' \(did you mean 'cut'\?\).*or ratio, or"),
        ({"over": {"seed": [1]}}, r"seeds are no axis; say how many or which with --seeds"),
        ({"over": {"stack": ["adc"]}}, r"stacks are no axis"),
        ({"over": {"ratio": [0]}}, r"ratio 0 is not allowed; more than 0, at most 1"),
        ({"over": {"ratio": ["x"]}}, r"ratio x is not allowed"),
        ({"over": {"plugin.adc.ratio": [0.1]}}, r"unknown plugin of the stacks 'adc'; known: none"),
        ({"over": {"cut": [1]}, "zip": [{"cut": [2]}]}, r"cut is on two axes; keep one"),
        ({"draw": ["heatmpa"]}, r"here: unknown figure 'heatmpa' \(did you mean 'heatmap'"),
        ({"zip": [3]}, r"zip has 3; write tables of lists"),
        ({"zip": [{"cut": [1], "lr": [0.1, 0.2]}]}, r"as many \(cut 1, lr 2\)"),
        (
            {"over": {"cut": [*range(1000)], "lr": [i / 1000 for i in range(1000)]}},
            r"the study has 3,000,000 runs; at most 100,000",
        ),
    ],
)
def test_a_table_that_cannot_be_used(table: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Definition.of_table("mine", table, "here")


@pytest.mark.parametrize(
    ("text", "key", "values"),
    [
        ("cut=1,2,3", "cut", [1, 2, 3]),
        ("--batch-size=64, 128", "batch_size", [64, 128]),
        ("lr=1e-3", "lr", [1e-3]),
        ("cut=none,2", "cut", [None, 2]),
        ("pretrained=true,false", "pretrained", [True, False]),
        ("plugin.adc.ratio=0.05,0.1", "plugin.adc.ratio", ["0.05", "0.1"]),
        ("ratio=0.05", "ratio", [0.05]),
        ("budget=steps=3,steps=5", "budget", ["steps=3", "steps=5"]),
        ("link=slow:ms=1,x=2;", "links", [["slow:ms=1,x=2"]]),
        ("link=slow:ms=1,x=2;none", "links", [["slow:ms=1,x=2"], []]),
    ],
)
def test_an_axis_as_it_is_typed(text: str, key: str, values: list[Any]) -> None:
    assert axis_of_text(text) == (key, values)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("cut", "write KEY=VALUE,VALUE"),
        ("cut=", "write KEY=VALUE,VALUE"),
        ("cut=;", "write KEY=VALUE,VALUE"),
        ("cut=1,,2", "write KEY=VALUE,VALUE"),
        ("cut=x", "cut=x is not allowed; cut takes"),
        ("batch-size=0", "--batch-size 0 is not allowed; from 1"),
        ("ratio=2", "ratio 2.0 is not allowed"),
        ("output=x", "unknown axis 'output'"),
    ],
)
def test_an_axis_that_cannot_be(text: str, told: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(told)):
        axis_of_text(text)


@pytest.mark.parametrize(
    "seeds", ["0,9999999999999999999,1", "99999999999", 1001, "", "two", -1, [], [[1]], 1.5]
)
def test_seeds_that_no_run_can_take(seeds: Any) -> None:
    with pytest.raises(ConfigError, match="is not allowed"):
        seeds_of(seeds)


def test_a_study_grows_by_what_is_said() -> None:
    first = Definition("mine", stacks=("none", "adc"), axes=(({"cut": 1}, {"cut": 2}),))
    more = (axis_of_columns({"cut": [2, 3]}), axis_of_columns({"plugin.adc.ratio": [0.2]}))
    grown = first.grown(["adc", "topk"], more, [2, 7], {"budget": "steps=9"})
    assert grown.stacks == ("none", "adc", "topk")
    assert grown.axes == (({"cut": 1}, {"cut": 2}, {"cut": 3}), ({"plugin.adc.ratio": "0.2"},))
    assert grown.seeds == (0, 1, 2, 7)
    assert grown.base == {"budget": "steps=9"}
    assert grown.grown([], [], [], {}) == grown


def test_a_study_says_what_makes_it_again() -> None:
    found = Definition(
        "mine",
        base={"budget": "steps=3", "probes": ["time"], "pretrained": True, "eval_every": None}
        | {"workers": 0},
        stacks=("none", "adc+quantize:bits=8"),
        axes=(
            axis_of_columns({"cut": [1, None], "lr": [0.1, 0.2]}),
            axis_of_columns({"links": [["slow:ms=1,x=2"], []]}),
            axis_of_columns({"plugin.adc.ratio": [0.1]}),
            axis_of_columns({"augment": ["timm:none,hflip=0"]}),
        ),
        seeds=(3, 5),
    )
    words = shlex.split(found.command("a folder"))
    assert words == [
        *("splitlab", "study", "--plugin", "none", "--plugin", "adc+quantize:bits=8"),
        *("--over", "cut=1,none", "--zip", "lr=0.1,0.2", "--over", "links=slow:ms=1,x=2;none"),
        *("--over", "plugin.adc.ratio=0.1", "--over", "augment=timm:none,hflip=0;"),
        *("--budget", "steps=3", "--probe", "time", "--pretrained", "--workers", "0"),
        *("--seeds", "3,5", "--output", "a folder"),
    ]
    arguments = parser().parse_args(words[1:])
    assert tuple(map(axis_of_texts, arguments.axes)) == found.axes
    assert Definition("x", seeds=(4,)).command("s").endswith("--seeds 1 --seed 4 --output s")


def test_what_cannot_be_typed_is_not_said() -> None:
    links = [["slow:ms=1", "slow:ms=2"], []]
    assert not Definition("x", axes=(axis_of_columns({"links": links}),)).command("s")


def test_values_of_one_axis_are_given_once() -> None:
    with pytest.raises(ConfigError, match="cut is twice on one axis; keep one of them"):
        axis_of_texts(["cut=1,2", "lr=0.1,0.2", "cut=3,4"])
