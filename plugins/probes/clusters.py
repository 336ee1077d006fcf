"""Which samples are merged: how pure the clusters are, how large, and what they look like.

    splitlab run --plugin adc --probe clusters:every=50

It looks at the samples of a batch and the rows that they went into, in the first training step and
in every n-th behind it. ``metrics.jsonl`` then holds, under ``clusters``:

- ``purity``: the share of samples whose class is the most frequent of their cluster.
- ``nmi``: the mutual information of clusters and classes over the mean of their entropies, 0 to 1.
- ``purity by chance`` and ``nmi by chance``: the same of the same clusters with the batch's labels
  shuffled once. Small clusters are pure, and tell of classes, whatever is in them: only what is
  above chance was found.
- ``clusters``, ``largest``, ``smallest`` and ``alone``: how many there are, how many samples the
  largest and the smallest have, and how many have one.

``clusters.png`` is a sheet of the last look: one cluster a line, the ten largest, with the mean of
its images and then up to eight of them. ``purity.png`` has numbers over steps, and ``numbers.json``
purity and mutual information, and both by chance, as means over all looks. It sits at the client,
and takes any stack; where no plugin says that it merges samples (`Cut.provenance`; ``adc`` and
``adc-batch-merge`` do), it says that there was nothing to see. Mixed samples count by their largest
share.

Shapes: B samples, C classes, T clusters.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Generator, Mapping
from pathlib import Path

import torch

from splitlab.core import Cut, Fetch, Peer, hookimpl, picture
from splitlab.plugins.probes.sampled import Sampled, bare, curves, drawable

__all__ = ["Clusters", "compare"]

_LINES = 10
_IMAGES = 8
"""Clusters of a sheet, and images of each."""
_TOLD = ("purity", "purity by chance", "nmi", "nmi by chance")
"""What a run has in ``numbers.json``."""


class Clusters(Sampled):
    """Purity, mutual information and sizes of the clusters that samples are merged in.

    Args:
        every: steps between two looks.
    """

    def __init__(self, *, every: int = 50) -> None:
        super().__init__(every)
        self._fetched: tuple[Fetch, Fetch, torch.Tensor] | None = None
        self._untold = False
        self._sheet: dict[str, torch.Tensor] = {}

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, which gives a generator."""
        self._peer = peer

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Look behind the stack's last plugin."""
        targets, B = cut.targets, len(cut.activations)
        yield
        if self.due(cut) and cut.images is not None:
            if not cut.provenance.merged:
                self._untold = self._untold or len(cut.activations) != B
                return
            rows_B = cut.provenance.rows(B)
            classes_B = targets.argmax(dim=-1) if targets.is_floating_point() else targets
            self._fetched = Fetch(rows_B), Fetch(classes_B), cut.images
            self._step = cut.step

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen."""
        if self._fetched is None:
            return {}
        (rows, classes, images), self._fetched = self._fetched, None
        rows_B, classes_B = rows.tensor().long(), classes.tensor().long()
        found = compare(rows_B, classes_B)
        draw = self._peer.generator("probe clusters", self._step)
        shuffled_B = classes_B[torch.randperm(len(classes_B), generator=draw)]
        by_chance = compare(rows_B, shuffled_B)
        sizes_T = rows_B.bincount()
        sizes_T = sizes_T[sizes_T > 0]
        self._keep_sheet(rows_B, classes_B, images)
        return {
            **found,
            **{f"{name} by chance": value for name, value in by_chance.items()},
            "clusters": len(sizes_T),
            "largest": int(sizes_T.max()),
            "smallest": int(sizes_T.min()),
            "alone": int((sizes_T == 1).sum()),
        }

    def _keep_sheet(
        self, rows_B: torch.Tensor, classes_B: torch.Tensor, images: torch.Tensor
    ) -> None:
        """Keep the largest clusters' mean images, and some of their members, small."""
        sizes_T = rows_B.bincount()
        largest = sizes_T.argsort(descending=True, stable=True)[:_LINES].tolist()
        members = [(rows_B == row).nonzero().flatten() for row in largest if sizes_T[row]]
        shown = torch.cat([own[:_IMAGES] for own in members])
        means = [images[own.to(images.device)].float().mean(dim=0) for own in members]
        self._sheet = {
            "images": drawable(torch.cat((torch.stack(means), images[shown.to(images.device)]))),
            "classes": classes_B[shown],
            "counts": torch.tensor([len(own) for own in members]),
        }

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Return the sheet."""
        return self._sheet

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take it back."""
        self._sheet = {name: tensor.cpu() for name, tensor in state.items()}

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """Draw ``clusters.png`` and ``purity.png`` and write ``numbers.json``, or say why not."""
        if not self.history:
            if self._peer.role == "server":
                return None
            return (
                "the stack changes the number of rows, and no plugin says which sample went where"
                if self._untold
                else "no plugin of the stack says that it merges samples; adc and adc-batch-merge "
                "do"
            )
        self._draw_sheet(folder / "clusters.png")
        with picture(folder / "purity.png") as figure:
            left, right = figure.subplots(1, 2)
            names = {"purity": "purity", "nmi": "NMI"}
            names |= {f"{name} by chance": f"{word} by chance" for name, word in names.items()}
            curves(left, self.history, names, "0 to 1")
            left.set_ylim(0, 1.02)
            curves(right, self.history, {"largest": "largest", "smallest": "smallest"}, "samples")
        means = {name: statistics.fmean(each[name] for each in self.history) for name in _TOLD}
        (folder / "numbers.json").write_text(json.dumps(means) + "\n", encoding="utf-8")
        last = self.history[-1]
        return (
            f"purity {last['purity']:.3f} (by chance {last['purity by chance']:.3f}), "
            f"NMI {last['nmi']:.3f} (by chance {last['nmi by chance']:.3f}) "
            f"in {last['clusters']:.0f} clusters"
        )

    def _draw_sheet(self, path: Path) -> None:
        images, counts = self._sheet["images"].numpy(), self._sheet["counts"].tolist()
        T, first = len(counts), len(counts)
        classes = self._sheet["classes"].tolist()
        last = self.history[-1]
        with picture(path, 0.3 + 0.72 * (_IMAGES + 1), 0.5 + 0.8 * T) as figure:
            figure.suptitle(
                f"step {last['step']:.0f}: the {T} largest of {last['clusters']:.0f} clusters"
            )
            panels = figure.subplots(T, _IMAGES + 1, squeeze=False)
            bare(panels)
            for line, count in enumerate(counts):
                mean, *others = panels[line]
                mean.imshow(images[line], cmap="gray", vmin=0, vmax=255)
                mean.set_title(f"mean of {count}")
                for axes in others[: min(count, _IMAGES)]:
                    axes.imshow(images[first], cmap="gray", vmin=0, vmax=255)
                    axes.set_title(f"class {classes[first - T]}")
                    first += 1


def compare(rows_B: torch.Tensor, classes_B: torch.Tensor) -> dict[str, float]:
    """Return purity and normalised mutual information of clusters and classes.

    Args:
        rows_B: (B,) int64, cluster of every sample, 0 or more.
        classes_B: (B,) int64, its class, 0 or more.

    Returns:
        ``purity``, and ``nmi``: mutual information over the arithmetic mean of both entropies
        (Strehl and Ghosh, JMLR 2002, have the geometric one); 1 where both are one group.
    """
    B, C = len(rows_B), int(classes_B.max()) + 1
    T = int(rows_B.max()) + 1
    joint_TC = (rows_B * C + classes_B).bincount(minlength=T * C).view(T, C).double() / B
    rows_T, classes_C = joint_TC.sum(dim=1), joint_TC.sum(dim=0)

    def entropy(shares: torch.Tensor) -> float:
        return float(-shares.xlogy(shares).sum())

    own, theirs = entropy(rows_T), entropy(classes_C)
    shared = own + theirs - entropy(joint_TC)
    mean = (own + theirs) / 2
    nmi = shared / mean if not math.isclose(mean, 0, abs_tol=1e-12) else 1.0
    return {"purity": float(joint_TC.amax(dim=1).sum()), "nmi": min(1.0, max(0.0, nmi))}
