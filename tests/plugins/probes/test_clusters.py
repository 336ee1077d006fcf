"""Clusters are compared with classes as the definitions say, and drawn; others say why not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from splitlab.plugins.probes.clusters import compare


def test_purity_and_mutual_information() -> None:
    same = torch.tensor([0, 0, 1, 1])
    assert compare(same, same) == pytest.approx({"purity": 1, "nmi": 1})
    assert compare(1 - same, same) == pytest.approx({"purity": 1, "nmi": 1})
    crossed = compare(torch.tensor([0, 1, 0, 1]), same)
    assert crossed == pytest.approx({"purity": 0.5, "nmi": 0}, abs=1e-9)
    one = torch.zeros(3, dtype=torch.int64)
    assert compare(one, one) == {"purity": 1, "nmi": 1}
    # By hand: joint entropy 1.5 bits, of clusters 1, of classes 0.8113.
    found = compare(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    classes = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert found["purity"] == 0.75
    assert found["nmi"] == pytest.approx((1 + classes - 1.5) / ((1 + classes) / 2))


def test_clusters_by_label_are_as_pure_as_can_be(seen: Any, tmp_path: Any) -> None:
    # 8 samples of 2 classes in 4 clusters.
    stack = "adc-batch-merge:ratio=0.5,criterion=class_label"
    found = seen(stack, probe="clusters:every=1", steps=2)
    assert [*found] == [1, 2]
    for numbers in found.values():
        assert numbers["purity"] == 1
        assert 0.5 <= numbers["purity by chance"] <= 1
        assert 0 <= numbers["nmi by chance"] <= numbers["nmi"]
        assert numbers["clusters"] == 4
        assert 1 <= numbers["smallest"] <= 2 <= numbers["largest"]
    folder = tmp_path / "run" / "probes" / "clusters"
    files = {"clusters.png", "numbers.json", "purity.png", "said.txt"}
    assert {each.name for each in folder.iterdir()} == files
    means = json.loads((folder / "numbers.json").read_text())
    assert means.keys() == {"purity", "purity by chance", "nmi", "nmi by chance"}
    for name, mean in means.items():
        assert mean == pytest.approx((found[1][name] + found[2][name]) / 2)
    assert (folder / "said.txt").read_text().startswith("purity 1.000 (by chance ")


def test_the_sheet_shows_the_mean_of_the_members(probed: Any) -> None:
    from splitlab.plugins.probes.clusters import Clusters

    probe = Clusters(every=1)
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    images[0, 0, 0, 0], images[0, 0, 0, 1] = 0, 1  # so that the range is 0 to 1
    # Nobody went into row 1.
    probe._keep_sheet(torch.tensor([2, 0, 2, 2]), torch.tensor([3, 2, 1, 0]), images)
    sheet = probe.kept()
    assert sheet["counts"].tolist() == [3, 1]
    assert sheet["classes"].tolist() == [3, 1, 0, 2]
    means, members = sheet["images"][:2, ..., 0] / 255, sheet["images"][2:, ..., 0] / 255
    rounding = {"rtol": 0, "atol": 0.51 / 255}
    torch.testing.assert_close(means[0], images[[0, 2, 3], 0].mean(dim=0), **rounding)
    torch.testing.assert_close(members, images[[0, 2, 3, 1], 0], **rounding)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("quantize", "no plugin of the stack says that it merges samples; adc and"),
        ("c3sl:group=2", "the stack changes the number of rows, and no plugin says which"),
    ],
)
def test_where_nothing_is_merged_it_says_so(
    stack: str, words: str, probed: Any, tmp_path: Any
) -> None:
    probed(stack, probe="clusters", steps=1)
    folder = tmp_path / "run" / "probes" / "clusters"
    assert [each.name for each in folder.iterdir()] == ["said.txt"]
    assert (folder / "said.txt").read_text().startswith(words)
