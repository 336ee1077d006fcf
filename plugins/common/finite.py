"""What is not finite is never made finite: methods that could hide it pass it on, or say so.

NaN and infinities pass through most arithmetic by themselves, to the receiver and into its loss.
Two kinds of methods would stop them. One leaves numbers out: it marks its rows with `marked`. The
other names a level that is always finite: it refuses its input with `check_finite`.
"""

from __future__ import annotations

import torch

from splitlab.core import Cut, Diverged, Message

__all__ = ["check_finite", "faults", "marked"]


def faults(rows: torch.Tensor) -> torch.Tensor:
    """Return NaN for every row (R, …) that holds a NaN or an infinity, else 0: (R,), detached.

    No finite number makes it anything else, however large, and no device is waited for.
    """
    return (rows.detach() * 0).flatten(1).sum(dim=1)


def marked(kept: torch.Tensor, fault_R: torch.Tensor) -> torch.Tensor:
    """Return what is kept of rows (R, …), unchanged, but NaN where the row's fault is.

    Differentiable in what is kept; a row that is all NaN has no gradient.
    """
    broken = fault_R.isnan().view(-1, *[1] * (kept.ndim - 1))
    return kept.masked_fill(broken, torch.nan)


def check_finite(values: torch.Tensor, subject: Message | Cut, plugin: str, what: str) -> None:
    """Raise if a number is NaN or infinite. It waits for the device.

    Args:
        values: floating point, not empty. The ends of a range do for the numbers between them.
        subject: says in which step.
        plugin: who refuses.
        what: what the values are, in words: ``"the activations"``.

    Raises:
        Diverged: not all are finite.
    """
    low, high = values.detach().aminmax()
    if not bool(low.isfinite() & high.isfinite()):
        raise Diverged(
            f"{subject.when}: plugin {plugin!r}: {what} hold a value that is not finite (NaN or "
            "infinity), which its codes cannot say; lower --lr, or check the model and the stack"
        )
