"""What registry.toml says of the data sets, and that asking costs little."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from splitlab.core.catalogue.registry import ROOT, catalogue
from splitlab.core.data.entry import class_count, dataset_entry


def test_entries_are_complete() -> None:
    names = set(catalogue()["datasets"])
    assert names >= {"fashion-mnist-mini", "fashion-mnist", "cifar10", "cifar100", "food101"}
    assert names >= {"imagenette", "flowers102"}
    for name in names:
        entry = dataset_entry(name)
        assert bool(entry.hub) != bool(entry.files)
        assert len(entry.mean) == len(entry.std) in (1, 3)
        assert all(0 < value < 1 for value in (*entry.mean, *entry.std))
        assert entry.summary
        assert entry.licence
        assert all((ROOT / file).is_file() for file in entry.files.values())


def test_a_known_name() -> None:
    entry = dataset_entry("cifar10")
    assert entry.name == "cifar10"
    assert (entry.hub, entry.image, entry.label) == ("uoft-cs/cifar10", "img", "label")
    assert entry.classes == class_count("cifar10") == 10


def test_unknown_names_are_answered_with_the_nearest_and_the_way_out(refusal: Any) -> None:
    for look_up in (dataset_entry, class_count):
        message = refusal(lambda look_up=look_up: look_up("cifar1000"))
        assert "unknown data set 'cifar1000' (did you mean 'cifar100'?)" in message
        assert "flowers102" in message
        assert "--data-dir" in message
    assert "unknown data set" in refusal(lambda: class_count("mnist"))


def test_class_counts_need_neither_torch_nor_datasets() -> None:
    program = (
        "import sys; from splitlab.core.data.entry import class_count\n"
        "assert class_count('cifar100') == 100\n"
        "assert not {'torch', 'datasets', 'torchvision', 'PIL'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    assert class_count("fashion-mnist-mini") == 10
