"""Models as rows of segments: what every family is made of, and how one's own becomes one.

A model of one's own is a function that returns `Segments`::

    def small_cnn(*, classes: int, width: int = 32) -> Segments:
        return Segments([stem, stage, head], channels=3, image_size=32)

    splitlab run --model my_model.py:small_cnn:width=64

A part runs segments of the whole model in the whole model's order, on a copy of it. What belongs to
other parts is on torch's meta device in that copy: it has no numbers and takes no memory.

Shapes: B samples, N tokens, D width, H x W places of an image.
"""

from __future__ import annotations

import copy
import functools
import itertools
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from splitlab.core.contract.errors import FAULTS, ConfigError, SplitlabError, reason
from splitlab.core.contract.measure import Measurement
from splitlab.core.contract.part import Layout
from splitlab.core.models.compiled import Compiled
from splitlab.core.models.crossing import Leaving, channels_last, from_tokens, seen, to_tokens

__all__ = ["Segment", "Segmented", "SegmentedPart", "Segments", "ran", "tried"]

Segment = Callable[[torch.Tensor], torch.Tensor]


class Segmented(ABC):
    """A whole model (a `splitlab.core.contract.part.Model`) that knows its segments.

    Subclasses say which segments there are and what leaves each.
    """

    module: nn.Module
    channels: int
    image_size: int
    last_cut: int
    default_cut: int
    cut_noun: str = "segments"
    family: str = "segments"
    """What listings call models of this kind."""
    heads: tuple[str, ...] = ()
    """How the names begin of what weights for another number of classes do not fit."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    """Mean and standard deviation by channel, in [0, 1], of the images that published weights were
    trained on; None if nobody says."""
    in_place: bool = True
    """Whether a segment may change the tokens in place that it is given."""

    @abstractmethod
    def segments(self, module: nn.Module) -> Sequence[Segment]:
        """Return all segments of the module, which is a copy of `module`, in order."""

    @abstractmethod
    def segment_of(self, name: str) -> int:
        """Return the segment that a parameter or buffer of this name belongs to."""

    @abstractmethod
    def shape(self, cut: int) -> tuple[int, ...]:
        """Return what leaves a segment for one sample: (N, D), (D, H, W) or (D,)."""

    def leaving(self, cut: int) -> Leaving:
        """Return what leaves a segment, and how it lies in memory in the whole model."""
        return Leaving(self.shape(cut))

    def layout(self, cut: int) -> Layout:
        """Return what plugins see at this cut."""
        return seen(self.shape(cut))

    def check(self, classes: int) -> None:
        """Raise `ConfigError` if the model is not what it says, or is none for so many classes."""
        if not (isinstance(self.default_cut, int) and 0 <= self.default_cut <= self.last_cut):
            raise ConfigError(
                f"default_cut={self.default_cut!r} is outside the model; allowed: 0 to "
                f"{self.last_cut} ({self.cut_noun})"
            )

    def adapted(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return published weights under this model's names and in its shapes."""
        return dict(state)

    def check_cut(self, cut: int) -> None:
        """Raise `ConfigError` for a cut outside of the model."""
        if not 0 <= cut <= self.last_cut:
            raise ConfigError(
                f"--cut {cut} is outside the model; allowed: 0 to {self.last_cut} ({self.cut_noun})"
            )

    def part(self, index: int, cuts: Sequence[int], device: torch.device) -> SegmentedPart:
        """Return one of the parts that one or two cuts make; see the contract."""
        return SegmentedPart(self, index, cuts, device)


class SegmentedPart:
    """Some segments of a model (a `splitlab.core.contract.part.Part`).

    Attributes:
        module: a copy of the whole model, of which other parts' numbers are left out.
        plain: see the contract.
    """

    def __init__(
        self, model: Segmented, index: int, cuts: Sequence[int], device: torch.device
    ) -> None:
        for cut in cuts:
            model.check_cut(cut)
        if not 1 <= len(cuts) <= 2 or sorted(set(cuts)) != [*cuts] or not 0 <= index <= len(cuts):
            raise ConfigError(f"part {index} of cuts {[*cuts]}: one cut, or two in rising order")
        bounds = [0, *(cut + 1 for cut in cuts), None]
        first, end = bounds[index], bounds[index + 1]
        self.module = _copied(model, first or 0, end, device)
        self._segments = list(model.segments(self.module))[first:end]
        self._first = first or 0
        # Whichever tokens arrive, an image segment is given its image back.
        self._arriving = model.leaving(first - 1) if first else Leaving()
        self._leaving = model.leaving(end - 1) if end else Leaving()
        # What arrives is a leaf of the graph, which must not change.
        self._copies = bool(first) and model.in_place
        self._compiled: Compiled | None = None
        self.plain = False

    def forward(
        self, inputs: torch.Tensor, token_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the segments; see the contract."""
        if token_sizes is not None:
            raise ConfigError(
                "this model does not weigh tokens by their size; choose a Vision Transformer, or a "
                "method that sends no token sizes"
            )
        return self._run(inputs, None)

    def compile(self, mode: str, *, begins: bool) -> None:
        """Let torch compile what `forward` runs; see the contract."""
        self._compiled = Compiled(self._through, mode, begins=begins)

    def _run(self, inputs: torch.Tensor, token_sizes: torch.Tensor | None) -> torch.Tensor:
        compiled = None if self.plain else self._compiled
        return (compiled or self._through)(inputs, token_sizes)

    def _through(self, inputs: torch.Tensor, token_sizes: torch.Tensor | None) -> torch.Tensor:
        """Return what the segments make of some samples; what is compiled is this."""
        x = inputs
        if len(self._arriving.shape) in (1, 3):
            x = from_tokens(inputs, self._arriving)
        elif self._copies:
            x = inputs.clone()
        for number, segment in enumerate(self._segments, self._first):
            x = ran(number, segment, x)
        return to_tokens(x, self._leaving) if len(self._leaving.shape) in (1, 3) else x

    def unable(self, request: Measurement) -> str | None:
        """Return why the client's part cannot measure that; None if it can."""
        return (
            f"{request.words}, which this model does not have; choose a model with one (for "
            "example vit-mini or deit_tiny_patch16_224)"
        )

    def watch(self, request: Measurement) -> None:
        """Measure this in every `forward` from now on."""
        reason = self.unable(request)
        if reason:
            raise ConfigError(f"the client's part is asked for {reason}")

    def measured(self) -> dict[Measurement, torch.Tensor]:
        """Return what was measured in the `forward` that just ran."""
        return {}

    def train(self, mode: bool) -> None:
        """Switch dropout, batch statistics and the like on or off."""
        self.module.train(mode)

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield this part's own parameters, under the whole model's names."""
        return ((name, p) for name, p in self.module.named_parameters() if not p.is_meta)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return this part's own parameters and buffers, under the whole model's names."""
        return {name: t for name, t in self.module.state_dict().items() if not t.is_meta}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Load what `state_dict` returned; `ConfigError` if it is of another model or cut."""
        own = {name: tensor.shape for name, tensor in self.state_dict().items()}
        given = {name: tensor.shape for name, tensor in state.items()}
        odd = sorted(n for n in own.keys() | given.keys() if own.get(n) != given.get(n))
        if odd:
            raise ConfigError(
                f"the checkpoint is of another model or cut: {len(odd)} tensors are missing, "
                f"unexpected or of another shape, first {odd[0]!r}"
            )
        with torch.no_grad():
            # Not by the module: batch norms that belong to other parts would warn that they are.
            for name, tensor in self.state_dict().items():
                tensor.copy_(state[name])


class Segments(Segmented):
    """A model of one's own: modules that run one after another.

    Args:
        segments: at least two; each takes what the one before makes: images or (B, D, H, W),
            tokens (B, N, D), or vectors (B, D). The last one makes logits (B, C).
        channels: of the images.
        image_size: their height and width in pixels.
        default_cut: where it is cut if the user names no cut.
        any_tokens: whether the segments take tokens (B, N, D) in any number, as transformers do.
        class_token: whether the first token is a class token.
        prefix_tokens: how many special tokens stand in front, the class token included.
        cut_noun: what a cut counts, in the plural.
        pools: whether what makes logits reads the other tokens, pooled; it does where there is no
            class token.
    """

    def __init__(
        self,
        segments: Sequence[nn.Module],
        *,
        channels: int,
        image_size: int,
        default_cut: int = 0,
        any_tokens: bool = False,
        class_token: bool = False,
        prefix_tokens: int = 0,
        cut_noun: str = "segments",
        pools: bool = False,
    ) -> None:
        if len(segments) < 2:
            raise ConfigError(f"a model of {len(segments)} segments cannot be cut; 2 or more")
        for name, value in (("channels", channels), ("image_size", image_size)):
            if value < 1:
                raise ConfigError(f"{name}={value} is not allowed; 1 or more")
        self.module = nn.Sequential(*segments)
        self.channels = channels
        self.image_size = image_size
        self.last_cut = len(segments) - 2
        self.default_cut = default_cut
        self.cut_noun = cut_noun
        self._any_tokens = any_tokens
        self._class_token = class_token
        self._prefix_tokens = prefix_tokens or int(class_token)
        self._pools = pools
        self._left: list[Leaving] = []

    def segments(self, module: nn.Module) -> Sequence[Segment]:
        """Return the modules."""
        assert isinstance(module, nn.Sequential)
        return [*module]  # not its children, of which a module that stands there twice is one

    def segment_of(self, name: str) -> int:
        """Return the number in front of the name."""
        return int(name.partition(".")[0])

    def shape(self, cut: int) -> tuple[int, ...]:
        """Return what leaves a segment for one sample; two images are tried."""
        return self.leaving(cut).shape

    def leaving(self, cut: int) -> Leaving:
        """Return what leaves a segment, and how it lies in memory in the whole model."""
        self._left = self._left or tried(self)
        return self._left[cut]

    def check(self, classes: int) -> None:
        """Try two images, too; `ConfigError` unless the last segment makes (B, classes) of it."""
        super().check(classes)
        made = self.leaving(self.last_cut + 1).shape
        if made != (classes,):
            raise ConfigError(
                f"segment {self.last_cut + 1}, the last one, makes {[*made]} of one sample, and "
                f"must make one number for each of {classes} classes; give its last layer the "
                "width `classes`, as the function is given it"
            )
        for cut in range(self.last_cut + 1):
            shape = self.shape(cut)
            if len(shape) == 2 and not 0 <= self._prefix_tokens <= shape[0]:
                raise ConfigError(
                    f"prefix_tokens={self._prefix_tokens} is not allowed: segment {cut} makes "
                    f"{shape[0]} tokens; give 0 to {shape[0]}, or make vectors (B, D) where no "
                    "tokens are left"
                )

    def layout(self, cut: int) -> Layout:
        """Return what plugins see at this cut."""
        one = seen(self.shape(cut))
        if len(self.shape(cut)) != 2:
            return one
        return Layout(
            one.tokens,
            one.width,
            self._prefix_tokens,
            self._class_token,
            any_tokens=self._any_tokens,
            pools=self._pools,
        )


def tried(model: Segmented) -> list[Leaving]:
    """Run two images of zeros through all segments, and back; returns what leaves each.

    Raises:
        ConfigError: a segment fails, or makes what no segment may make.
    """
    module = model.module
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    was = {part: part.training for part in module.modules()}
    module.eval()
    made: list[Leaving] = []
    back: dict[int, bool] = {}
    try:
        size = (2, model.channels, model.image_size, model.image_size)
        with torch.set_grad_enabled(device.type != "meta"):
            image = torch.zeros(size, device=device, requires_grad=True)
            x = image.clone()
            for number, segment in enumerate(model.segments(module)):
                x = ran(number, segment, x, _OTHER_IMAGES)
                if not x.numel():
                    raise ConfigError(
                        f"segment {number} of the model makes {[*x.shape]}, which is nothing; make "
                        "it wider"
                    )
                made.append(Leaving(tuple(x.shape[1:]), channels_last(x)))
                if x.requires_grad:
                    # At once: the next segment may change it in place.
                    x.register_hook(functools.partial(_note, back, number))  # type: ignore[no-untyped-call]
        if x.requires_grad:
            torch.autograd.grad(x, image, torch.zeros_like(x), allow_unused=True)
    except (SplitlabError, torch.OutOfMemoryError):
        raise
    except FAULTS as error:
        raise ConfigError(
            f"segment {min(back, default=len(made) - 1)} of the model cannot go back: "
            f"{reason(error)}; mend its backward pass, or what changes its output in place"
        ) from error
    finally:
        for part, mode in was.items():
            part.training = mode
    return [
        left._replace(gradient_last=back.get(number, False)) for number, left in enumerate(made)
    ]


_OTHER_IMAGES = "mend the segment, or say other channels= or image_size= of the images"


def ran(
    number: int, segment: Segment, x: torch.Tensor, way_out: str = "mend the segment", **more: Any
) -> torch.Tensor:
    """Return what a segment makes of some samples.

    Raises:
        ConfigError: it fails, or makes what no segment may make; names it.
    """
    before = [*x.shape]
    try:
        made: Any = segment(x, **more)
    except (SplitlabError, torch.OutOfMemoryError):
        raise
    except FAULTS as error:
        if "more than 1 value per channel" in str(error):
            raise ConfigError(
                f"batch norm cannot train on a batch of {len(x)} of this image size ({error}); "
                "choose a --batch-size whose last batch is larger, or larger images"
            ) from None
        raise ConfigError(
            f"segment {number} of the model failed on {x.dtype} {before}: "
            f"{reason(error)}; {way_out}"
        ) from error
    if not isinstance(made, torch.Tensor):
        raise ConfigError(
            f"segment {number} of the model makes a {type(made).__name__}; it must return one "
            "tensor, and what else the next one needs must be in it"
        )
    if not made.is_floating_point():
        raise ConfigError(
            f"segment {number} of the model makes {made.dtype}, through which no gradient goes back"
        )
    if [*made.shape[:1]] != before[:1]:
        raise ConfigError(
            f"segment {number} of the model makes {[*made.shape]} of {before}; the samples must "
            f"stay in front, here {before[0]}: (B, D, H, W), (B, N, D) or (B, D)"
        )
    return made


def _note(back: dict[int, bool], number: int, gradient: torch.Tensor) -> None:
    back[number] = channels_last(gradient)


def _copied(model: Segmented, first: int, end: int | None, device: torch.device) -> nn.Module:
    """Return a copy of the model, with the numbers of some segments only."""
    new: dict[int, Any] = {}
    owners: dict[int, bool] = {}
    module = model.module
    named = itertools.chain(
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for name, tensor in named:
        segment = model.segment_of(name)
        owned = first <= segment and (end is None or segment < end)
        if owners.setdefault(id(tensor), owned) is not owned:
            raise ConfigError(
                f"the tensor {name!r} is used on both sides of a cut, where it could not stay the "
                "same; cut elsewhere"
            )
        if id(tensor) in new:
            continue
        moved = tensor.detach().to(device, copy=True) if owned else tensor.detach().to("meta")
        if isinstance(tensor, nn.Parameter):
            moved = nn.Parameter(moved, requires_grad=tensor.requires_grad)
        new[id(tensor)] = moved
    for part in module.modules():  # most of a module are registries of hooks that it has not
        for value in vars(part).values():
            if type(value) in (dict, set, OrderedDict) and not value:
                new[id(value)] = type(value)()
    return copy.deepcopy(module, new)
