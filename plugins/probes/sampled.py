"""What the probes share that look every few steps: when, what they keep, and how they draw it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from splitlab.core import ConfigError, Cut, hookimpl

__all__ = ["Sampled", "bare", "bars", "curves", "drawable"]

_PIXELS = 96
"""The longer side of an image in a picture, at most."""
_PREFIXES = {"P": 1e15, "T": 1e12, "G": 1e9, "M": 1e6, "k": 1e3, "": 1.0, "m": 1e-3, "µ": 1e-6}
_COLUMNS = 3
"""Words of a legend side by side, at most."""


class Sampled:
    """A probe that looks at the first training step, and at every n-th behind it.

    Args:
        every: n.

    Attributes:
        history: the numbers of every step that it looked at, with ``"step"`` as logs count it.
    """

    def __init__(self, every: int) -> None:
        if every < 1:
            raise ConfigError(f"every={every} is not allowed; 1 or more")
        self._every = every
        self.history: list[dict[str, float]] = []

    def due(self, cut: Cut) -> bool:
        """Return whether this is a step to look at."""
        return cut.training and cut.step % self._every == 0

    def numbers(self) -> Mapping[str, float]:
        """Return what was seen in the step that is over; none at all where nothing was."""
        raise NotImplementedError

    @hookimpl
    def metrics(self, step: int) -> Mapping[str, float]:
        """Return the numbers of a step that was looked at; none at all in between."""
        found = self.numbers() if step % self._every == 0 else {}
        if found:
            self.history.append({"step": step + 1, **found})
        return found

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return what a resumed run needs for its picture."""
        return {"history": self.history, **self.kept()}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the picture."""
        self.history = [dict(each) for each in state["history"]]
        self.keep({name: value for name, value in state.items() if name != "history"})

    def kept(self) -> Mapping[str, torch.Tensor]:
        """Return what else the picture is made of, on the CPU."""
        return {}

    def keep(self, state: Mapping[str, torch.Tensor]) -> None:
        """Take back what `kept` returned."""


def curves(
    axes: Any, history: Sequence[Mapping[str, float]], names: Mapping[str, str], label: str
) -> None:
    """Draw numbers over steps.

    Args:
        axes: of matplotlib.
        history: as of `Sampled`.
        names: what the legend calls each number; empty for no word.
        label: of the vertical axis.
    """
    for name, word in names.items():
        seen = [(each["step"], each[name]) for each in history if name in each]
        axes.plot(*zip(*seen, strict=True), marker=".", markersize=3, label=word or None)
    if any(names.values()):  # above, where no line can be
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        lines = -(-len(names) // _COLUMNS)
        axes.legend(frameon=False, ncols=-(-len(names) // lines), columnspacing=1.2, **place)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("step")
    axes.set_ylabel(label)


def bars(axes: Any, values: Mapping[str, float], unit: str, label: str) -> None:
    """Draw lying bars from the top, each with its number and its share of the first.

    Args:
        axes: of matplotlib.
        values: by what stands beside each bar; not negative.
        unit: of them.
        label: of the horizontal axis.
    """
    places = range(len(values))
    axes.barh(places, [*values.values()], height=0.6)
    whole, most = next(iter(values.values())), max(values.values()) or 1.0
    fitting = (prefix for prefix, size in _PREFIXES.items() if most >= size)
    prefix = next(fitting, "µ")
    size = _PREFIXES[prefix]
    for place, value in zip(places, values.values(), strict=True):
        share = f" ({value / whole:.2%})" if whole and place else ""
        told = f"{value / size:.3g} {prefix}{unit}"
        look = {"ha": "right", "color": "white"} if value > most / 2 else {"ha": "left"}
        axes.text(value, place, f" {told}{share} ", va="center", fontsize=6.5, **look)
    axes.set_yticks(places, [*values])
    axes.set(xlabel=label, xlim=(0, 1.05 * most))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / size:.3g} {prefix}{unit}")
    axes.locator_params(axis="x", nbins=4)
    axes.invert_yaxis()
    axes.grid(False, axis="y")


def drawable(images: torch.Tensor) -> torch.Tensor:
    """Return normalised images as numbers of 0 to 255, uint8, on the CPU.

    They are made smaller where they are large. Every channel is stretched to its whole range over
    all of them, since what they were normalised by is not known here.

    Args:
        images: (B, channels, height, width).

    Returns:
        (B, smaller height, smaller width, channels).
    """
    images = images.detach().float()
    longest = max(images.shape[-2:])
    if longest > _PIXELS:
        size = [max(1, side * _PIXELS // longest) for side in images.shape[-2:]]
        images = F.interpolate(images, size=size, mode="area")
    low, high = images.amin(dim=(0, 2, 3)), images.amax(dim=(0, 2, 3))
    span = (high - low).clamp(min=1e-12)
    shares = (images - low[:, None, None]) / span[:, None, None]
    return (255 * shares).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()


def bare(panels: Any) -> None:
    """Leave of these axes of matplotlib what is drawn in them, and their names."""
    for axes in panels.flat:
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.grid(False)
