"""Rows and their names: what is a row, and what tells two of them apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from splitlab.core import Config
from splitlab.core.report.naming import name_all, plan_key, rows_of
from splitlab.core.report.results import RunResult

HOOK = "    from splitlab.core import hookimpl\n    run_end = hookimpl(lambda self: None)\n"


def config(*plugins: str, **options: object) -> Config:
    return Config(plugins=plugins, **options)  # type: ignore[arg-type]


def titles(*configs: Config) -> list[str]:
    return [named.title for named in name_all(configs)[1]]


def test_rows_are_named_by_what_they_differ_in() -> None:
    assert titles(config()) == ["none"]
    assert titles(config("adc"), config("none")) == ["adc", "none"]
    assert titles(config("adc"), config("adc:ratio=0.2")) == ["adc:ratio=0.1", "adc:ratio=0.2"]
    assert titles(config("adc:alloc=fifth"), config("topk+zstd")) == [
        "adc:alloc=fifth",
        "topk + zstd",
    ]
    assert titles(config(cut=1, lr=0.1), config(cut=2, lr=0.1)) == ["none, cut 1", "none, cut 2"]
    assert titles(config(batch_size=8, cut=1), config(batch_size=9, cut=2)) == [
        "none, cut 1, batch-size 8",
        "none, cut 2, batch-size 9",
    ]
    assert titles(config(train=("last",)), config()) == ["none, train last", "none, train all"]
    assert titles(config(ema=0.9), config()) == ["none, ema 0.9", "none, ema none"]
    assert titles(config(device="cpu"), config(device="cuda")) == [
        "none, device cpu",
        "none, device cuda",
    ]


def test_reconstructions_and_named_stacks_keep_their_names() -> None:
    assert titles(config("tsflora"), config("tsflora:bits=4"), config("nsc-sl")) == [
        "tsflora-recon:bits=8",
        "tsflora-recon:bits=4",
        "nsc-sl-recon",
    ]


def test_a_plugin_that_comes_twice() -> None:
    axes, (one, two) = name_all(
        [config("quantize:bits=4+quantize:bits=8"), config("quantize:bits=8+quantize:bits=4")]
    )
    assert one.title == "quantize:bits=4 + quantize:bits=8"
    assert [axis.name for axis in axes] == ["quantize#1.bits", "quantize#2.bits"]
    assert two.settings == {"quantize#1.bits": 8, "quantize#2.bits": 4}
    assert one.method == two.method == "quantize + quantize"


def test_axes_share_the_name_of_a_setting() -> None:
    axes, names = name_all(
        [config(f"{name}:ratio={ratio}") for name in ("adc", "topk") for ratio in (0.1, 0.2)]
    )
    assert [(axis.name, axis.values) for axis in axes] == [
        ("stack", ("adc", "topk")),
        ("ratio", (0.1, 0.2)),
    ]
    assert names[3].settings == {"stack": "topk", "ratio": 0.2}
    assert [named.method for named in names] == ["adc", "adc", "topk", "topk"]


def test_classes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.py").write_text(f"class Mine:\n    'Plugin {folder}.'\n{HOOK}")
    one, two = titles(*(config(f"{tmp_path}/{folder}/m.py:Mine") for folder in "ab"))
    assert one == "Mine"
    assert two.startswith("Mine [")


def test_a_plugin_that_is_gone_is_named_by_its_text() -> None:
    assert titles(config("gone.py:Mine:x=1"), config("gone.py:Mine:x=2")) == [
        "gone.py:Mine:x=1",
        "gone.py:Mine:x=2",
    ]


def test_a_setting_that_is_called_like_a_column_is_told_with_its_plugin(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "class Mine:\n    'A.'\n    def __init__(self, seed: int = 0, accuracy: float = 1.0,\n"
        "        mine: int = 1) -> None:\n        ...\n" + HOOK
    )
    axes, names = name_all(
        [config(f"{file}:Mine:seed={i},accuracy=0.{i},mine={i}") for i in (1, 2)]
    )
    assert [axis.name for axis in axes] == ["Mine.seed", "Mine.accuracy", "mine"]
    assert names[0].settings == {"Mine.seed": 1, "Mine.accuracy": 0.1, "mine": 1}


@pytest.mark.parametrize(
    ("other", "same"),
    [
        ({"seed": 5}, True),
        ({"output": "x", "name": "n", "tags": ("t",), "timeout": 9.0, "threads": 7}, True),
        ({"compile": "default"}, True),
        ({"precision": "bf16"}, False),
        ({"deterministic": True, "device": "cpu"}, True),
        ({"plugins": ("adc:ratio=0.10",)}, True),
        ({"plugins": ("adc:ratio=0.2",)}, False),
        ({"budget": "nominal=1"}, True),
        ({"train": ("all",)}, True),
        ({"train": ("last",)}, False),
        ({"budget": "steps=9"}, False),
        ({"budget": "nominal=0.00001"}, False),
        ({"transport": "tcp"}, False),
        ({"lr_schedule": "constant"}, True),
        ({"lr_schedule": "step:rate=0.10,every=0.333"}, False),
    ],
)
def test_a_key_is_that_of_what_decides_numbers(other: dict[str, object], same: bool) -> None:
    one = config("adc")
    two = Config(**{"plugins": ("adc",), **other})  # type: ignore[arg-type]
    assert (plan_key(one) == plan_key(two)) is same


@pytest.mark.parametrize(
    ("one", "two"),
    [
        ({"lr_schedule": "cosine"}, {"lr_schedule": "cosine:least=0"}),
        ({"lr_schedule": "step:rate=0.2,every=5"}, {"lr_schedule": "step:every=5.0,rate=0.20"}),
        (
            {"model": "vit:image_size=28,patch=7,channels=1,width=32"},
            {"model": "vit:width=32,channels=1,patch=7,image_size=028"},
        ),
        ({"model": "vit-mini"}, {"model": "vit-mini:image_size=28"}),
        ({"model": "gone.py:f:a=1,b=2"}, {"model": "gone.py:f:b=2,a=1"}),
    ],
)
def test_a_key_is_that_of_the_settings_that_take_effect(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    assert plan_key(config(**one)) == plan_key(config(**two))


def test_keys_stay_as_they_are() -> None:
    """Study folders are found by them; those that older versions wrote, too."""
    decided = {"dataset": "fashion-mnist-mini", "image_size": 28, "cut": 3, "budget": "epochs=2"}
    decided |= {"eval_points": 20, "eval_samples": 200}
    assert plan_key(config("none", **decided)) == "614b05720d"
    assert plan_key(config("none", lr_schedule="cosine", **decided)) == plan_key(
        config("none", lr_schedule="cosine", **decided), as_written=True
    )


def test_a_field_of_the_place_counts_where_it_is_an_axis() -> None:
    one, two = config(threads=1), config(threads=2)
    assert plan_key(one) == plan_key(two)
    assert plan_key(one, ["threads"]) != plan_key(two, ["threads"])


def test_a_changed_file_is_another_method(tmp_path: Path) -> None:
    file = tmp_path / "m.py"
    file.write_text(f"class Mine:\n    'One.'\n{HOOK}")
    before = plan_key(config(f"{file}:Mine"))
    file.write_text(f"class Mine:\n    'Two.'\n{HOOK}")
    assert plan_key(config(f"{file}:Mine")) != before


def test_runs_that_differ_by_seed_are_a_row() -> None:
    runs = [
        (config("adc", seed=seed, cut=cut), RunResult(Path(f"{cut}-{seed}"), seed, "missing"))
        for seed in (2, 1)
        for cut in (1, 2)
    ]
    axes, rows = rows_of(runs)
    assert [axis.name for axis in axes] == ["cut"]
    assert [row.title for row in rows] == ["adc, cut 1", "adc, cut 2"]
    assert [[run.seed for run in row.runs] for row in rows] == [[1, 2], [1, 2]]
