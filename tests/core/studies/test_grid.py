"""From a definition to its rows: every combination, each once, under its own name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.naming import name_all
from splitlab.core.studies.definition import Definition, axis_of_columns
from splitlab.core.studies.grid import cells

FAST = {"threads": 1, "budget": "steps=2", "weights": "none", "device": "cpu"}
HOOK = "    from splitlab.core import hookimpl\n    run_end = hookimpl(lambda self: None)\n"
"""What makes a plugin of a class that does nothing."""


def grid(stacks: Sequence[str], over: dict[str, list[Any]] | None = None, **base: Any) -> Any:
    axes = tuple(axis_of_columns({key: values}) for key, values in (over or {}).items())
    definition = Definition("mine", base=FAST | base, stacks=tuple(stacks), axes=axes)
    return cells(definition)


def titles(found: Any) -> list[str]:
    return [named.title for named in name_all([cell.config for cell in found])[1]]


def test_every_combination_in_the_order_of_stacks_and_axes() -> None:
    found = grid(["none", "adc"], {"cut": [1, 2], "batch_size": [16, 32]})
    assert titles(found) == [
        *("none, cut 1, batch-size 16", "none, cut 1, batch-size 32"),
        *("none, cut 2, batch-size 16", "none, cut 2, batch-size 32"),
        *("adc, cut 1, batch-size 16", "adc, cut 1, batch-size 32"),
        *("adc, cut 2, batch-size 16", "adc, cut 2, batch-size 32"),
    ]
    assert [cell.config.cut for cell in found] == [1, 1, 2, 2] * 2
    assert found[0].config.image_size == 28  # decided
    assert len({cell.key for cell in found}) == 8


def test_what_goes_together() -> None:
    axis = axis_of_columns({"cut": [1, 2], "lr": [1e-3, 2e-3]})
    found = cells(Definition("mine", base=FAST, stacks=("none",), axes=(axis,)))
    assert [(cell.config.cut, cell.config.lr) for cell in found] == [(1, 1e-3), (2, 2e-3)]


def test_a_setting_reaches_its_plugin_alone_and_beats_what_the_stack_says() -> None:
    found = grid(
        ["none", "adc:alloc=fifth,ratio=0.3+quantize"],
        {"plugin.adc.ratio": [0.1, 0.2], "plugin.quantize.bits": [4]},
    )
    assert [cell.config.plugins for cell in found] == [
        ("none",),
        ("adc:alloc=fifth,ratio=0.1", "quantize:bits=4"),
        ("adc:alloc=fifth,ratio=0.2", "quantize:bits=4"),
    ]
    assert titles(found) == [
        "none",
        "adc:alloc=fifth,ratio=0.1 + quantize:bits=4",
        "adc:alloc=fifth,ratio=0.2 + quantize:bits=4",
    ]


def test_a_stack_without_the_setting_is_one_row() -> None:
    found = grid(["none", "adc", "zstd"], {"ratio": [0.05, 0.1, 0.2]})
    assert titles(found) == ["none", "adc:ratio=0.05", "adc:ratio=0.1", "adc:ratio=0.2", "zstd"]
    assert [cell.remark for cell in found] == ["takes no ratio", "", "", "", "takes no ratio"]


def test_the_ratio_goes_to_the_first_that_takes_one(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    'A plugin.'\n    def __init__(self, rate: float = 1.0): ...\n" + HOOK
    )
    stacks = [
        "adc",
        f"{file}:Mine+adc-batch-merge+adc-token-select",
        f"adc:alloc=fifth+{file}:Mine",  # the user has set something of it
        "tsflora:bits=4",  # and so has the registry
    ]
    found = grid(stacks, {"ratio": [0.25]})
    assert [cell.config.plugins for cell in found] == [
        ("adc:ratio=0.25",),
        (f"{file}:Mine", "adc-batch-merge:ratio=0.25", "adc-token-select"),
        ("adc:alloc=fifth", f"{file}:Mine"),
        ("tsflora:bits=4",),
    ]
    assert [bool(cell.remark) for cell in found] == [False, False, True, True]


def test_the_ratio_joins_the_settings_of_a_named_stack(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("registry.toml").write_text("[stacks.mine]\nplugins = ['adc', 'quantize:bits=8']")
    (found,) = grid(["mine:bits=4"], {"ratio": [0.25]})
    assert found.config.plugins == ("mine:bits=4,ratio=0.25",)
    assert titles([found]) == ["mine:bits=4,ratio=0.25"]


def test_an_axis_is_told_by_the_class_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    'A plugin.'\n    def __init__(self, rate: float = 1.0): ...\n" + HOOK
    )
    found = grid([f"{file}:Mine"], {"plugin.Mine.rate": [0.5, 0.7]})
    assert titles(found) == ["Mine:rate=0.5", "Mine:rate=0.7"]


@pytest.mark.parametrize(
    ("stacks", "over", "told"),
    [
        (["adc", "adc:ratio=0.1"], {}, "the stacks adc and adc:ratio=0.1 are the same; drop one"),
        (["none", "zstd"], {"ratio": [0.1]}, "ratio 0.1 is not allowed here: in no stack"),
        (["adc"], {"cut": [1, 99]}, "adc with cut 99: .*cut"),
        (["adc"], {"plugin.adc.rate": [1]}, "adc with plugin.adc.rate 1: .*unknown parameter"),
        (["acd"], {}, r"acd: unknown plugin 'acd' \(did you mean 'adc'"),
        (["adc-token-select+adc"], {}, "cannot work"),
        (["adc"], {"model": ["vit-mini", "vit-maxi"]}, "with model vit-maxi: .*unknown model"),
    ],
)
def test_what_cannot_be_run_is_named(
    stacks: list[str], over: dict[str, list[Any]], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        grid(stacks, over)


def test_a_key_is_that_of_the_settings_however_they_are_written() -> None:
    (one,) = grid(["adc:ratio=0.10,alloc=sqrt"])
    (two,) = grid(["adc"], {"cut": [3]}, timeout=5.0, workers=2)
    (other,) = grid(["adc"], budget="steps=3")
    assert one.key == two.key != other.key
