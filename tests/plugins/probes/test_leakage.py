"""What leaks is told: all of the raw image, nothing of noise; and rows find their samples."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from splitlab.core import ConfigError, Cut, Layout, Peer
from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.peer import Schedule
from splitlab.core.contract.provenance import Provenance
from splitlab.core.report.collect import results_of
from splitlab.core.report.figures import frontier, wanted
from splitlab.plugins.probes.leakage import Leakage, Pairs, _Seen

SIDE, BATCH = 8, 16


def peer(role: Any) -> Peer:
    return Peer(
        role=role,
        seed=0,
        classes=2,
        layout=Layout(tokens=SIDE**2, width=1, grid=(SIDE, SIDE)),
        cut=0,
        batch_size=BATCH,
        device=torch.device("cpu"),
        schedule=Schedule(16 * BATCH, "epochs", 1.0),
    )


def attacked(
    folder: Path, sends: Callable[[torch.Tensor, torch.Generator], torch.Tensor]
) -> dict[str, float]:
    """Return what is found where this is sent of images, through both peers' hooks."""
    client, server = (Leakage(epochs=20, width=16) for _ in range(2))
    client.setup(peer("client"))
    server.setup(peer("server"))
    draws = torch.Generator().manual_seed(0)
    for step in range(16):
        coarse = torch.rand(BATCH, 1, 3, 3, generator=draws)
        targets = torch.arange(BATCH) % 2
        coarse[:, :, 1, 1] = targets[:, None] * 0.7 + 0.3 * coarse[:, :, 1, 1]
        images = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear")
        pixels = images.flatten(2).transpose(1, 2)
        shared: dict[str, Any] = {"targets": targets, "step": step, "training": True}
        ids = torch.arange(BATCH) + step * BATCH
        ours = Cut(activations=pixels, images=images, sample_ids=ids, **shared)
        theirs = Cut(activations=sends(pixels, draws), **shared)
        for hook in (client.after_client_forward(ours), server.before_server_forward(theirs)):
            assert [*hook] == [None]
    for name in ("leakage-server", "leakage"):
        (folder / name).mkdir(parents=True)
    assert server.report(folder / "leakage-server") is None
    said = client.report(folder / "leakage")
    assert str(said).startswith("SSIM ")
    numbers: dict[str, float] = json.loads((folder / "leakage" / "numbers.json").read_text())
    return numbers


def test_the_raw_image_leaks_whole_and_noise_nothing(tmp_path: Path) -> None:
    whole = attacked(tmp_path / "raw", lambda pixels, draws: pixels)
    assert whole["distance correlation"] == pytest.approx(1)
    assert whole["ssim"] > 0.95
    assert whole["psnr"] > whole["psnr by chance"] + 10
    assert whole["labels"] > 0.95
    noise = attacked(tmp_path / "noise", lambda p, draws: torch.randn(p.shape, generator=draws))
    assert noise["distance correlation"] == pytest.approx(
        noise["distance correlation by chance"], abs=0.1
    )
    assert noise["ssim"] < noise["ssim by chance"] + 0.05
    assert noise["psnr"] < noise["psnr by chance"] + 0.5
    assert noise["labels"] == pytest.approx(noise["labels by chance"], abs=0.2)


def seen(provenance: Provenance, tokens: int, samples: int = 3) -> _Seen:
    images = torch.arange(samples).float().view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    return _Seen(0, tokens, images, torch.tensor([0, 1, 1]), torch.arange(samples), provenance)


def test_rows_find_their_samples_and_tokens_their_places() -> None:
    told = Provenance()
    told.merge(torch.tensor([1, 0, 1]))
    told.select(torch.tensor([[0, 3], [2, 1]]))
    arrived = torch.tensor([[[10.0], [11]], [[20], [21]]])
    pairs = seen(told, 4).with_rows(arrived, placed=True)
    assert pairs is not None
    assert pairs.placed[..., 0].tolist() == [[10, 0, 0, 11], [0, 21, 20, 0]]
    assert pairs.there.tolist() == [[True, False, False, True], [False, True, True, False]]
    assert pairs.of_rows(pairs.images)[:, 0, 0, 0].tolist() == [1, 1]  # of 1, and of 0 and 2
    assert pairs.of_rows(pairs.classes.float()).tolist() == [1, 0.5]
    more = seen(told, 4).with_rows(arrived[:, :1], placed=False)
    assert more is not None
    both = Pairs.joined([pairs, more])
    assert both.rows.tolist() == [1, 0, 1, 3, 2, 3]
    assert both.arrived[..., 0].tolist() == [[10, 11], [20, 21], [10, 0], [20, 0]]
    assert both.there[2].tolist() == [True, False, False, False]
    fused = Provenance()
    fused.fuse(torch.tensor([[0, 1, 1]] * 3), 2)
    pairs = seen(fused, 3).with_rows(torch.tensor([[[5.0], [6]]] * 3), placed=True)
    assert pairs is not None
    assert pairs.placed[0, :, 0].tolist() == [5, 6, 6]
    nobody_knows = seen(Provenance(), 4)
    assert nobody_knows.slots(2) is None
    assert nobody_knows.with_rows(arrived, placed=False) is None


def test_a_run_ends_with_it_and_tables_have_it(probed: Any, tmp_path: Path) -> None:
    settings = "epochs=1,width=8,samples=16"
    # 2 batches of 8 in an epoch: one is public.
    found = probed("adc:ratio=0.5", probe=f"leakage:{settings}", steps=4)
    plain = probed("adc:ratio=0.5", probe=[], steps=4, output=str(tmp_path / "plain"))
    assert (found.summary.loss, found.summary.bytes_up) == (
        plain.summary.loss,
        plain.summary.bytes_up,
    )
    [folder] = (found.folder / "probes").iterdir()  # what the server left is read, and gone
    names = {each.name for each in folder.iterdir()}
    assert names == {"leakage.png", "numbers.json", "said.txt"}
    numbers = json.loads((folder / "numbers.json").read_text())
    assert {name.removesuffix(" by chance") for name in numbers} == {
        *("distance correlation", "labels", "ssim", "psnr")
    }
    said = (folder / "said.txt").read_text()
    assert "of 8 samples; 8 others in 5 rows were public" in said
    results = results_of([found.folder])
    assert results.rows[0].found["leakage ssim"].mean == numbers["ssim"]
    [mark] = frontier(results, "frontier:leakage psnr")
    assert (mark.x, mark.y) == (numbers["psnr"], found.summary.accuracy)
    with pytest.raises(ConfigError, match=r"no run has 'speed'; probes found: leakage distance"):
        wanted(results.__class__(**{**vars(results), "draw": ("frontier:speed",)}))


def test_why_there_is_nothing_is_told(tmp_path: Path) -> None:
    probe = Leakage()
    probe.setup(peer("client"))
    (tmp_path / "leakage-server").mkdir()
    assert "is not on this machine" in str(probe.report(tmp_path / "leakage"))
    save_file({}, tmp_path / "leakage-server" / "received.safetensors")
    assert str(probe.report(tmp_path / "leakage")).startswith("0 steps were seen")
    assert not (tmp_path / "leakage-server").exists()
    cuts = {step: seen(Provenance(), 4) for step in range(2)}
    probe._seen.extend(_Seen(step, *list(vars(each).values())[1:]) for step, each in cuts.items())
    fewer = {0: torch.ones(2, 4, 1), 1: torch.ones(2, 4, 1)}
    assert str(probe._parts(fewer)).startswith("the stack changes the number")
    bad = torch.full((3, 4, 1), torch.nan)
    assert probe._parts({0: bad, 1: bad}) == "what arrived in step 1 is not finite"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("public=1.0", "public=1.0 is not allowed; more than 0, less than 1"),
        ("epochs=0", "epochs=0 is not allowed; 1 or more"),
    ],
)
def test_bad_settings(settings: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^probe 'leakage': {told}"):
        bind("probes", f"leakage:{settings}").build()
