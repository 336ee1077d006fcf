"""In what both peers of a run must agree."""

from __future__ import annotations

from collections.abc import Sequence

from splitlab.core.contract.settings import Bound, shown
from splitlab.core.models.build import ModelFacts
from splitlab.core.runs.config import Config

__all__ = ["agreement"]


def agreement(
    config: Config, stack: Sequence[Bound], facts: ModelFacts, classes: int, mark: str
) -> dict[str, str]:
    """Return what must be equal, one setting a value: peers that differ are told which do.

    Args:
        config: decided.
        stack: the plugins, with all their parameters.
        facts: what the model looks like where it is cut.
        classes: C.
        mark: the fingerprint of the model's numbers.
    """
    model, _, settings = facts.identity.partition(":")
    found = {"stack": " + ".join(plugin.identity for plugin in stack) or "none"}
    for number, plugin in enumerate(stack, 1):
        which = plugin.label if len(stack) == 1 else f"plugin {number} ({plugin.label})"
        found |= {f"{which}'s {key}": shown(value) for key, value in plugin.params.items()}
    found["model"] = model
    for setting in filter(None, settings.split(",")):
        key, _, text = setting.partition("=")
        found[f"model's {key}"] = text
    return found | {
        "image size": str(facts.image_size),
        "cut": str(facts.cut),
        "classes": str(classes),
        "batch size": str(config.batch_size),
        "optimizer": config.optimizer,
        "lr": repr(config.lr),
        "weight decay": repr(config.weight_decay),
        "seed": str(config.seed),
        "weights": mark,  # what is said above decides them, but for a file
        **config.agreed(),
    }
