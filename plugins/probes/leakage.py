"""What the server can read from what it receives: images and labels, by three attacks.

    splitlab run --plugin adc --probe leakage
    splitlab run --plugin adc --probe leakage:samples=4096,public=0.25,epochs=40,width=64

It keeps what passes in the last training steps: at the server the activations that its part of the
model is given, behind all decoding; at the client the images that they were made of. When the run
has ended, the attacker is given both of a share of these batches, the public ones, and nothing but
the activations of the others. ``probes/leakage/numbers.json`` then holds

- ``distance correlation`` of images and what was sent (Székely et al., 2007; NoPeek, Vepakomma et
  al., 2020), of at most 512 samples of the other batches.
- ``labels``: the share of samples of the other batches whose class ridge regression tells.
- ``ssim`` and ``psnr`` of the images that a convolutional decoder makes of what was sent, mean over
  these samples.
- the same ``by chance``: of shuffled pairs, of the most frequent class of the public batches, and
  of their mean image.

``leakage.png`` has images above and what the decoder made of them below: some at random, and those
that it did best. `splitlab.plugins.probes.attacks` has the attacks.

Choices: a merged row is inverted to the mean of its images, since it holds no more, and scored
with every one of them; its label is their mean, and every member's class is asked for. The attacker
is told which samples a row is of and the places of its tokens, as `Cut.provenance` has them, also
where they are not sent: tokens know their place, and one who has known pairs can learn to read it.
A sample that is public in one epoch is not asked about in the next, and never more than an epoch
is looked at. Images are compared as the client's part was given them, augmented, stretched to 0 to
1 by channel, and averaged down to 64 pixels where they are larger.

It needs both peers on one machine, as all transports have them but for ``serve`` and ``join``; the
numbers of a run are the same over all of them. It keeps no state: a run that goes on begins to
look anew. docs/privacy.md says what it does not prove.

Shapes: B samples, R rows that arrived, M tokens that arrived, N places of tokens, D width.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Generator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from splitlab.core import ConfigError, Cut, Peer, hookimpl, picture
from splitlab.plugins.probes.attacks import distance_correlation, invert, psnr, ridge, ssim
from splitlab.plugins.probes.sampled import bare

__all__ = ["Leakage", "Pairs"]

_RECEIVED = "received.safetensors"
_PIXELS = 64
_DISTANT = 512
"""Samples whose distances are compared, at most."""
_SHOWN, _BEST = 8, 4
"""Images of the sheet: at random, and of those that came out best."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Samples, the rows that they are in, and these rows as attacks take them.

    Attributes:
        images: (B, channels, height, width).
        classes: (B,) class ids.
        ids: (B,) names of the samples, on the CPU; -1 where they have none.
        rows: (B,) the row of every sample.
        arrived: (R, M, D), what the server's part was given; where rows had different numbers of
            tokens, with zeros behind.
        placed: (R, N, D), the same with every token at its places, and zeros elsewhere; as it
            arrived where nobody knows the places.
        there: (R, N) bool, which places something arrived of.
    """

    images: torch.Tensor
    classes: torch.Tensor
    ids: torch.Tensor
    rows: torch.Tensor
    arrived: torch.Tensor
    placed: torch.Tensor
    there: torch.Tensor

    @classmethod
    def joined(cls, parts: Sequence[Pairs]) -> Pairs:
        """Return all in one."""
        starts = torch.tensor([0, *(len(each.arrived) for each in parts)]).cumsum(0).tolist()
        fields = {name: [getattr(each, name) for each in parts] for name in cls.__annotations__}
        fields["rows"] = [each.rows + start for each, start in zip(parts, starts[:-1], strict=True)]
        for name in ("arrived", "placed", "there"):
            most = max(each.shape[1] for each in fields[name])
            fields[name] = [_padded(each, most) for each in fields[name]]
        return cls(**{name: torch.cat(tensors) for name, tensors in fields.items()})

    def of_rows(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over the samples of every row, (R, …), of numbers (B, …)."""
        sums = values.new_zeros(len(self.arrived), *values.shape[1:])
        counts = self.rows.bincount(minlength=len(sums)).clamp(min=1)
        return sums.index_add(0, self.rows, values) / counts.view(-1, *[1] * (values.ndim - 1))


def _padded(tensor: torch.Tensor, most: int) -> torch.Tensor:
    """Return rows of so many tokens, with zeros behind."""
    return F.pad(tensor, (0, 0) * (tensor.ndim - 2) + (0, most - tensor.shape[1]))


@dataclass(frozen=True, eq=False)
class _Seen:
    """What the client keeps of a step; `tokens` is N."""

    step: int
    tokens: int
    images: torch.Tensor
    targets: torch.Tensor
    ids: torch.Tensor | None
    provenance: Any

    def slots(self, M: int) -> torch.Tensor | None:
        """Return the token of its row that every place of a sample is in, or None: unknown."""
        B = len(self.images)
        if not self.provenance.moved:
            return torch.arange(M).expand(B, M) if self.tokens == M else None
        slots_BN: torch.Tensor = self.provenance.slots(B, self.tokens)
        return slots_BN if int(slots_BN.max()) < M else None

    def with_rows(self, arrived_RMD: torch.Tensor, *, placed: bool) -> Pairs | None:
        """Return the pairs of the step; None if nobody knows which sample is in which row."""
        (R, M), B = arrived_RMD.shape[:2], len(self.images)
        device = self.images.device
        if R != B and not self.provenance.merged:
            return None
        arrived_RMD = arrived_RMD.to(device).float()
        rows_B = self.provenance.rows(B).to(device)
        slots_RN = torch.arange(M, device=device).expand(R, M)
        if placed and (slots_BN := self.slots(M)) is not None:
            # Of a row's first sample: plugins that choose tokens by sample stand behind a merge.
            first_R = torch.full((R,), B - 1, device=device)
            order_B = torch.arange(B, device=device)
            first_R = first_R.scatter_reduce(0, rows_B, order_B, "amin")
            slots_RN = slots_BN.to(device)[first_R]
        there_RN = slots_RN >= 0
        at = slots_RN.clamp(min=0)[..., None].expand(-1, -1, arrived_RMD.shape[2])
        targets, ids = self.targets.to(device), self.ids
        return Pairs(
            images=self.images.float(),
            classes=targets.argmax(dim=-1) if targets.is_floating_point() else targets,
            ids=torch.full((B,), -1) if ids is None else ids.cpu(),
            rows=rows_B,
            arrived=arrived_RMD,
            placed=arrived_RMD.gather(1, at) * there_RN[..., None],
            there=there_RN,
        )


class Leakage:
    """Distance correlation, a linear probe for labels, and an inversion of what the server got.

    Args:
        samples: how many of the last are looked at, at most an epoch; whole batches.
        public: the share of these batches that the attacker knows the images of, in (0, 1).
        epochs: of the decoder's training.
        width: channels of the decoder.
    """

    def __init__(
        self, *, samples: int = 2048, public: float = 0.5, epochs: int = 20, width: int = 32
    ) -> None:
        if not 0 < public < 1:
            raise ConfigError(f"public={public} is not allowed; more than 0, less than 1")
        for name, value in (("samples", samples), ("epochs", epochs), ("width", width)):
            if value < 1:
                raise ConfigError(f"{name}={value} is not allowed; 1 or more")
        self._samples, self._public = samples, public
        self._epochs, self._width = epochs, width
        self._seen: deque[_Seen] = deque()
        self._received: deque[tuple[int, torch.Tensor]] = deque()

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Keep the peer, and make room for as many batches as were asked for."""
        self._peer = peer
        most = max(2, self._samples // peer.batch_size)
        self._seen, self._received = deque(maxlen=most), deque(maxlen=most)

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Keep the images, and where they went."""
        tokens, targets, ids = cut.activations.shape[1], cut.targets, cut.sample_ids
        yield
        if cut.training and cut.images is not None:
            images = cut.images
            if max(images.shape[-2:]) > _PIXELS:
                size = [min(side, _PIXELS) for side in images.shape[-2:]]
                images = F.interpolate(images.float(), size=size, mode="area")
            self._seen.append(_Seen(cut.step, tokens, images, targets, ids, cut.provenance))

    @hookimpl(wrapper=True)
    def before_server_forward(self, cut: Cut) -> Generator[None, None, None]:
        """Keep what the server's part of the model is given."""
        yield
        if cut.training:
            # A copy: a part may compute in place, and a compiled one overwrites what it was given.
            self._received.append((cut.step, cut.activations.detach().clone()))

    @hookimpl
    def report(self, folder: Path) -> str | None:
        """At the server, leave what was received; at the client, attack it."""
        if self._peer.role == "server":
            kept = {str(step): tensor.cpu().contiguous() for step, tensor in self._received}
            save_file(kept, folder / _RECEIVED)
            return None
        theirs = folder.with_name(f"{folder.name}-server")
        if not (theirs / _RECEIVED).is_file():
            return (
                "what the server received is not on this machine, and the attack needs it; make "
                "the run here with `splitlab run`, which gives the same numbers"
            )
        read = load_file(theirs / _RECEIVED)
        received = {int(step): tensor for step, tensor in read.items()}
        (theirs / _RECEIVED).unlink()  # large, and read
        with suppress(OSError):
            theirs.rmdir()
        parts = self._parts(received)
        return parts if isinstance(parts, str) else self._attack(parts, folder)

    def _parts(self, received: Mapping[int, torch.Tensor]) -> list[Pairs] | str:
        """Return the pairs of every step, or why there are none."""
        seen = [each for each in self._seen if each.step in received]
        seen = seen[-max(2, self._peer.steps_per_epoch) :]
        if len(seen) < 2:
            return f"{len(seen)} steps were seen, and the attack takes 2: one known, one not"
        placed = all(each.slots(received[each.step].shape[1]) is not None for each in seen)
        parts = []
        for each in seen:
            pairs = each.with_rows(received[each.step], placed=placed)
            if pairs is None:
                return "the stack changes the number of rows, and no plugin says who is in which"
            if not bool(pairs.arrived.isfinite().all()):
                return f"what arrived in step {each.step + 1} is not finite"
            parts.append(pairs)
        return parts

    def _attack(self, parts: Sequence[Pairs], folder: Path) -> str:
        count = min(max(round(len(parts) * self._public), 1), len(parts) - 1)
        chosen = {i * len(parts) // count for i in range(count)}  # spread evenly over time
        public = Pairs.joined([each for i, each in enumerate(parts) if i in chosen])
        others = Pairs.joined([each for i, each in enumerate(parts) if i not in chosen])
        unknown = ~torch.isin(others.ids, public.ids[public.ids >= 0])
        asked_B = unknown.nonzero().flatten().to(others.images.device)
        if not len(asked_B):
            return "every sample that was seen was public once; give fewer samples"
        low = torch.stack([each.images.amin(dim=(0, 2, 3)) for each in (public, others)]).amin(0)
        high = torch.stack([each.images.amax(dim=(0, 2, 3)) for each in (public, others)]).amax(0)
        span = (high - low).clamp(min=1e-12)
        theirs, ours = (
            (each.images - low[:, None, None]) / span[:, None, None] for each in (public, others)
        )
        numbers = {
            **self._distances(others, asked_B),
            **self._labels(public, others, asked_B),
        }
        made = self._images(public, theirs, others)[others.rows]
        mean = public.of_rows(theirs).mean(dim=0).expand_as(ours)
        likeness_B = ssim(made, ours)
        for name, values_B, chance_B in (
            ("ssim", likeness_B, ssim(mean, ours)),
            ("psnr", psnr(made, ours), psnr(mean, ours)),
        ):
            numbers[name] = float(values_B[asked_B].mean())
            numbers[f"{name} by chance"] = float(chance_B[asked_B].mean())
        with (folder / "numbers.json").open("w", encoding="utf-8") as file:
            json.dump(numbers, file, indent=2)
        sheet = self._chosen(likeness_B[asked_B])
        at = asked_B[sheet.to(asked_B.device)]
        _draw(folder / "leakage.png", ours[at], made[at], likeness_B[at], others.classes[at])
        words = {"SSIM": "ssim", "labels": "labels", "distance correlation": "distance correlation"}
        told = ", ".join(
            f"{word} {numbers[name]:.3f} (by chance {numbers[f'{name} by chance']:.3f})"
            for word, name in words.items()
        )
        return (
            f"{told}, of {len(asked_B):,} samples; {len(public.images):,} others in "
            f"{len(public.arrived):,} rows were public"
        )

    def _distances(self, others: Pairs, asked_B: torch.Tensor) -> dict[str, float]:
        draws = self._peer.generator("probe leakage", "distances")
        some = torch.randperm(len(asked_B), generator=draws)[:_DISTANT]
        turned = some[torch.randperm(len(some), generator=draws)]
        at, elsewhere = asked_B[some.to(asked_B.device)], asked_B[turned.to(asked_B.device)]
        images, sent = others.images[at], others.arrived[others.rows[at]]
        name = "distance correlation"
        return {
            name: distance_correlation(images, sent),
            f"{name} by chance": distance_correlation(others.images[elsewhere], sent),
        }

    def _labels(self, public: Pairs, others: Pairs, asked_B: torch.Tensor) -> dict[str, float]:
        shares_RC = public.of_rows(F.one_hot(public.classes, self._peer.classes).float())
        features = [each.placed.flatten(1) for each in (public, others)]
        guessed_R = ridge(features[0], shares_RC, features[1]).argmax(dim=1).to(asked_B.device)
        classes_B = others.classes[asked_B]
        frequent = public.classes.bincount(minlength=self._peer.classes).argmax()
        return {
            "labels": float((guessed_R[others.rows[asked_B]] == classes_B).float().mean()),
            "labels by chance": float((classes_B == frequent).float().mean()),
        }

    def _images(self, public: Pairs, images: torch.Tensor, others: Pairs) -> torch.Tensor:
        N = public.placed.shape[1]
        return invert(
            (public.placed, public.there),
            public.of_rows(images),
            (others.placed, others.there),
            grid=self._peer.grid if self._peer.tokens == N else None,
            width=self._width,
            epochs=self._epochs,
            draws=self._peer.generator("probe leakage", "decoder"),
        )

    def _chosen(self, likeness_S: torch.Tensor) -> torch.Tensor:
        """Return which of the samples to draw."""
        draws = self._peer.generator("probe leakage", "sheet")
        random = torch.randperm(len(likeness_S), generator=draws)[:_SHOWN]
        order = likeness_S.cpu().argsort(descending=True, stable=True)
        best = order[~torch.isin(order, random)][:_BEST]
        return torch.cat((random, best))


def _draw(
    path: Path,
    originals: torch.Tensor,
    made: torch.Tensor,
    likeness: torch.Tensor,
    classes: torch.Tensor,
) -> None:
    """Draw originals above and reconstructions below, those at random first."""
    lines = [each.permute(0, 2, 3, 1).cpu().numpy() for each in (originals, made)]
    with picture(path, 0.3 + 0.72 * len(originals), 2.0) as figure:
        panels = figure.subplots(2, len(originals), squeeze=False)
        bare(panels)
        for line, images in zip(panels, lines, strict=True):
            for axes, image in zip(line, images, strict=True):
                axes.imshow(image, cmap="gray", vmin=0, vmax=1)
        named = zip(*panels, classes.tolist(), likeness.tolist(), strict=True)
        for i, (above, below, kind, value) in enumerate(named):
            above.set_title(f"{'best: ' * (i >= _SHOWN)}class {kind}")
            below.set_xlabel(f"SSIM {value:.2f}")
