"""The cut layer as a plugin sees it: live activations on one peer's autograd graph."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from splitlab.core.contract.errors import when
from splitlab.core.contract.measure import Measured, Measurement

__all__ = ["Cut"]


@dataclass(slots=True, eq=False, kw_only=True)
class Cut:
    """One batch at the cut layer, on the autograd graph of the peer that holds it.

    Shapes: B samples, N tokens (special tokens first), D width, C classes. A plugin may change all
    of them (ADC turns (B, N, D) into (T, K, D)); its partner on the other peer gets what it left.

    Attributes:
        activations: (B, N, D); on the client attached to the client part's graph, on the server a
            fresh leaf that requires grad (training) or a plain tensor (evaluation).
        targets: class ids (B,) int64, or after a merge class probabilities (T, C) float32.
        step: training step, or batch number within an evaluation; both from 0. Logs and error
            messages count from 1; `when` is what they say.
        training: False in evaluation.
        measured: what plugins asked for with `Peer.request`, by request, detached. Client only. A
            plugin that changes tokens or samples brings what follows along, and drops the rest.
        sample_ids: (B,) int64, stable over epochs. Client only.
        side: extra tensors for the server: sent, counted, never differentiated. The server finds
            the same names here. Prefix a name with the plugin's own: ``"adc.clusters"``.
        weights: (T,) float32 weight of every row in the loss, or None for the plain mean. Server
            only; set it in ``before_server_forward``.
        token_sizes: (rows, tokens) float32, how many tokens each one stands for, or None: the
            server's attention then counts a token so many times (proportional attention), and so
            does a head that pools tokens. Server only; set it in ``before_server_forward``.
        gradient: what came back for ``activations``. Client only, in ``gradient_return``.
    """

    activations: torch.Tensor
    targets: torch.Tensor
    step: int
    training: bool
    measured: dict[Measurement, torch.Tensor] = field(default_factory=Measured)
    sample_ids: torch.Tensor | None = None
    side: dict[str, torch.Tensor] = field(default_factory=dict)
    weights: torch.Tensor | None = None
    token_sizes: torch.Tensor | None = None
    gradient: torch.Tensor | None = None

    @property
    def when(self) -> str:
        """What an error message calls the step: ``"step 1"``, ``"evaluation batch 1"``."""
        return when(self.step, self.training)
