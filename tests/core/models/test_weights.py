"""Weights from files: what a model takes, what is taken off names, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from splitlab.core.contract.errors import ConfigError, Notice
from splitlab.core.models.build import build_model, describe, fingerprint

SMALL = "vit:image_size=16,patch=8,width=16,depth=2,heads=2"


def build(name: str = "vit-mini", **arguments: Any) -> Any:
    return build_model(name, **{"classes": 10, "seed": 0} | arguments).module


def test_weights_of_another_number_of_classes_load_without_their_head(tmp_path: Path) -> None:
    old = build(classes=7, seed=5, weights="none")
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    same = build(classes=7, seed=6, weights=str(tmp_path / "old.safetensors"))
    assert fingerprint(same) == fingerprint(old)
    told = r"old.safetensors: its head \(head.bias, head.weight\) is left out; .* begins random"
    with pytest.warns(Notice, match=told):
        new = build(classes=3, seed=6, weights=str(tmp_path / "old.safetensors"))
    assert torch.equal(new.blocks[0].mlp.fc1.weight, old.blocks[0].mlp.fc1.weight)
    assert torch.equal(new.head.weight, build(classes=3, seed=6, weights="none").head.weight)


def test_weights_of_a_distilled_model_load_without_both_heads(tmp_path: Path) -> None:
    name = "deit_tiny_distilled_patch16_224"
    old = build(name, classes=7, image_size=32)
    save_file(old.state_dict(), tmp_path / "old.safetensors")
    with pytest.warns(Notice, match=r"head_dist.bias, head_dist.weight\) is left out"):
        new = build(name, seed=1, image_size=32, weights=str(tmp_path / "old.safetensors"))
    assert torch.equal(new.dist_token, old.dist_token)
    assert new.head_dist.weight.shape[0] == 10


def test_weights_without_a_head_load_and_without_anything_else_do_not(tmp_path: Path) -> None:
    old = build(seed=5, weights="none").state_dict()
    trunk = {name: t for name, t in old.items() if not name.startswith("head.")}
    save_file(trunk, tmp_path / "trunk.safetensors")
    assert torch.equal(
        build(weights=str(tmp_path / "trunk.safetensors")).norm.bias, old["norm.bias"]
    )
    for change, told in (
        ({"norm.bias": torch.zeros(3)}, r"shape \(norm.bias is \[3\], the model's \[64\]\)"),
        ({"norm.bias": None}, r"missing \(norm.bias\)"),
        ({"blocks.99.norm1.bias": torch.zeros(64)}, r"unexpected \(blocks.99.norm1.bias\)"),
        (
            {"norm.bias": torch.zeros(64, dtype=torch.int8)},
            r"kind of number \(norm.bias is torch.int8, the model's floating point\)",
        ),
    ):
        bad = {n: t for n, t in (trunk | change).items() if t is not None}
        save_file(bad, tmp_path / "bad.safetensors")
        with pytest.raises(
            ConfigError, match=f"does not fit the model: 1 tensors (of )?(another )?{told}"
        ):
            build(weights=str(tmp_path / "bad.safetensors"))


def test_weights_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("no tensors here")
    whole = tmp_path / "whole.safetensors"
    save_file(build(weights="none").state_dict(), whole)
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(whole.read_bytes()[:-100])
    for path, reason in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path, "no such file"),
        (text, "not a safetensors file"),
        (torn, "not a safetensors file"),
    ):
        with pytest.raises(ConfigError, match=rf"--weights {path}: {reason}"):
            build(weights=str(path))


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    deit = build("deit_tiny_patch16_224", image_size=32)
    save_file(deit.state_dict(), tmp_path / "deit.safetensors")
    with pytest.raises(ConfigError, match=r"does not fit the model: .* give weights of the same"):
        build(weights=str(tmp_path / "deit.safetensors"))


@pytest.mark.parametrize(
    "prefixes",
    [["module."], ["_orig_mod."], ["model."], ["module.", "_orig_mod."], ["model.", "_orig_mod."]],
)
def test_what_wrappers_put_in_front_is_taken_off_with_a_word(
    prefixes: list[str], tmp_path: Path
) -> None:
    old = build(SMALL, seed=5)
    front, file = "".join(prefixes), tmp_path / "w.safetensors"
    save_file({front + key: value for key, value in old.state_dict().items()}, file)
    with pytest.warns(Notice, match=" and ".join(map(repr, prefixes))):
        new = build(SMALL, weights=str(file))
    assert fingerprint(new) == fingerprint(old)


@pytest.mark.parametrize("wrapper", [(), ("state_dict",), ("model",), ("model", "state_dict")])
@pytest.mark.parametrize("legacy", [False, True])
def test_files_of_torch_are_tensors_alone_in_whatever_dict(
    wrapper: tuple[str, ...], legacy: bool, tmp_path: Path
) -> None:
    old, file = build(SMALL, seed=5), tmp_path / "w.pth"
    saved: Any = old.state_dict()
    for key in wrapper:
        saved = {key: saved, "epoch": 3}
    torch.save(saved, file, _use_new_zipfile_serialization=not legacy)
    assert fingerprint(build(SMALL, weights=str(file))) == fingerprint(old)


def test_a_file_that_needs_more_than_tensors_is_not_opened(tmp_path: Path) -> None:
    torch.save(build(SMALL), tmp_path / "whole.pth")
    with pytest.raises(ConfigError, match=r"more than tensors.*save the state_dict") as caught:
        build(SMALL, weights=str(tmp_path / "whole.pth"))
    assert "\n" not in str(caught.value)
    for saved, told in (
        ({"epoch": 3}, "holds 'epoch', a int"),
        ([1], "'list', a list"),
        ({}, "hing"),
    ):
        torch.save(saved, tmp_path / "odd.pth")
        with pytest.raises(ConfigError, match=told):
            build(SMALL, weights=str(tmp_path / "odd.pth"))


def test_half_precision_is_floating_point_and_the_first_few_are_named(tmp_path: Path) -> None:
    old, file = build(SMALL, seed=5), tmp_path / "w.safetensors"
    save_file({key: value.half() for key, value in old.state_dict().items()}, file)
    assert torch.equal(build(SMALL, weights=str(file)).norm.weight, old.norm.weight)
    save_file({key: value.to(torch.int8) for key, value in old.state_dict().items()}, file)
    with pytest.raises(ConfigError, match=r"\d\d tensors of another kind of number \(.*, …\)"):
        build(SMALL, weights=str(file))


def test_a_file_that_is_not_there_is_told_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "registry.toml").write_text(
        f'[models.mine]\npreset = "{SMALL}"\nweights = "nofile"\n'
    )
    monkeypatch.chdir(tmp_path)
    for use in (build, describe):
        with pytest.raises(
            ConfigError, match=r"weights of \[models.mine\] .*registry.toml\): .*nofile is no"
        ):
            use("mine")
        with pytest.raises(ConfigError, match="--weights other: no such file"):
            use("mine", weights="other")
        use("mine", weights="none")
