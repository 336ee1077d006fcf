"""The cut layer as a plugin sees it: live activations on one peer's autograd graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from splitlab.core.contract.errors import PluginError, when
from splitlab.core.contract.measure import Measured, Measurement
from splitlab.core.contract.provenance import Provenance
from splitlab.core.contract.transfer import Verdicts

__all__ = ["Cut", "Reference"]


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The gradient that a batch would have had without the stack, see `Peer.compare`.

    Attributes:
        loss: of the batch.
        gradient: (B, N, D), of what the client's part made.
        parameters: of the client's parameters, by name; those that are trained and take part.
    """

    loss: float
    gradient: torch.Tensor
    parameters: Mapping[str, torch.Tensor]


@dataclass(slots=True, eq=False, kw_only=True)
class Cut:
    """One batch at the cut layer, on the autograd graph of the peer that holds it.

    Shapes: B samples, N tokens (special tokens first), D width, C classes. A plugin may change all
    of them (ADC turns (B, N, D) into (T, K, D)); its partner on the other peer gets what it left.

    Attributes:
        activations: (B, N, D); on the client attached to the client part's graph, on the server a
            fresh leaf that requires grad (training) or a plain tensor (evaluation). Of the model's
            dtype, or of `Peer.autocast`; a plugin that changes it puts it back.
        targets: class ids (B,) int64, or class probabilities float32 of mixed samples (B, C) or,
            after a merge, of rows (T, C).
        step: training step, or batch number within an evaluation; both from 0. Logs and error
            messages count from 1; `when` is what they say.
        training: False in evaluation.
        measured: what plugins asked for with `Peer.request`, by request, detached. Client only. A
            plugin that changes tokens or samples brings what follows along, and drops the rest.
        sample_ids: (B,) int64, stable over epochs. Client only.
        images: (B, channels, height, width), normalised: what the client's part was given. Client
            only, for probes: no plugin changes it, and none of it is sent.
        provenance: where samples and tokens went. Client only; a plugin that merges samples, or
            chooses or merges tokens, tells it in ``after_client_forward``.
        reference: the gradient without the stack, in the steps that a probe asked for with
            `Peer.compare`, otherwise None. Client only.
        side: extra tensors for the server: sent, counted, never differentiated. The server finds
            the same names here. Prefix a name with the plugin's own: ``"adc.clusters"``.
        weights: (T,) float32 weight of every row in the loss, or None for the plain mean. Server
            only; set it in ``before_server_forward``.
        token_sizes: (rows, tokens) float32, how many tokens each one stands for, or None: the
            server's attention then counts a token so many times (proportional attention), and so
            does a head that pools tokens. Server only; set it in ``before_server_forward``.
        gradient: what came back for ``activations``. Client only, in ``gradient_return``.
        losses: what plugins added with `add_loss`, by their labels and its names.
        owner: label of the plugin whose hook runs; the engine sets it.
        verdicts: what is expected of the step at this peer, see `expect`.
    """

    activations: torch.Tensor
    targets: torch.Tensor
    step: int
    training: bool
    measured: dict[Measurement, torch.Tensor] = field(default_factory=Measured)
    sample_ids: torch.Tensor | None = None
    images: torch.Tensor | None = None
    provenance: Provenance = field(default_factory=Provenance)
    reference: Reference | None = None
    side: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: torch.Tensor | None = None
    token_sizes: torch.Tensor | None = None
    gradient: torch.Tensor | None = None
    losses: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)
    owner: str = ""
    verdicts: Verdicts = field(default_factory=Verdicts)

    def add_loss(self, name: str, loss: torch.Tensor) -> None:
        """Add a loss of the plugin's own to what this peer's backward pass differentiates.

        A commitment to a codebook, a penalty on what is sent: at the server the gradient of the
        task's loss and of it are one backward pass, and what goes back to the client holds both; at
        the client the pass waits until the gradient has returned. It is logged with the plugin's
        metrics, and the loss that is reported stays the task's. An evaluation ignores it. Call it
        in ``after_client_forward`` or ``gradient_return`` at the client, in
        ``before_server_forward`` at the server.

        Args:
            name: what the log calls it; once a step for each plugin.
            loss: a floating-point scalar () on the autograd graph, on this peer's device, with its
                weight in it.

        Raises:
            PluginError: it is none such, or it has that name already.
        """
        if not self.training:
            return
        if not isinstance(loss, torch.Tensor):
            raise PluginError(f"the loss {name!r} is a {type(loss).__name__}, not a tensor")
        if loss.ndim or not loss.is_floating_point():
            raise PluginError(
                f"the loss {name!r} is {loss.dtype} {[*loss.shape]}; it must be a floating-point "
                "scalar, so take its mean() or sum()"
            )
        if not loss.requires_grad:
            raise PluginError(
                f"the loss {name!r} is detached, so that it has no gradient; compute it from "
                "cut.activations or from the parameters of a registered module"
            )
        if loss.device != self.activations.device:
            raise PluginError(
                f"the loss {name!r} is on {loss.device}, the activations are on "
                f"{self.activations.device}; compute it there"
            )
        if not self.owner:
            raise PluginError(f"the loss {name!r} is added by no plugin; a probe changes nothing")
        if (self.owner, name) in self.losses:
            raise PluginError(f"the loss {name!r} is there already; add every loss once a step")
        self.losses[self.owner, name] = loss

    def expect(self, ok: torch.Tensor, error: Callable[[], Exception]) -> None:
        """Raise an error unless this is true, without waiting for the device to say so.

        As `Message.expect <splitlab.core.contract.message.Message.expect>`.
        """
        self.verdicts.expect(ok, lambda _: error())

    @property
    def when(self) -> str:
        """What an error message calls the step: ``"step 1"``, ``"evaluation batch 1"``."""
        return when(self.step, self.training)
