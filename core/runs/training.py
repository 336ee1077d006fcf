"""How the parts are trained: the options of `Config` that a trainer of one model has, too."""

from __future__ import annotations

from dataclasses import dataclass

from splitlab.core.contract.errors import ConfigError
from splitlab.core.engine.rate import Rate
from splitlab.core.runs.option import GROUPS, check_ranges, option

__all__ = ["Training"]

_TRAINING = GROUPS[3]


@dataclass(frozen=True)
class Training:
    """The fields of `Config` about training. A default trains as plainly as it can be done."""

    batch_size: int = option(128, "samples per step", group=_TRAINING)
    optimizer: str = option(
        "adam",
        "optimizer of both parts",
        choices=("adam", "adamw", "sgd"),
        group=_TRAINING,
    )
    lr: float = option(3e-4, "learning rate of both parts", group=_TRAINING)
    lr_schedule: str = option(
        "constant",
        "how the learning rate goes on after its warm-up: constant, cosine (to least=0 of itself "
        "at the end of the budget) or step (rate=0.1 times itself again after every=0.333 of the "
        "steps behind the warm-up, or after every=1 or more steps)",
        metavar="constant|cosine|step[:key=value,…]",
        group=_TRAINING,
    )
    warmup: float = option(
        0.0,
        "share of the run's steps, or steps if 1 or more, in which the learning rate rises from 0 "
        "in a line",
        group=_TRAINING,
    )
    weight_decay: float = option(0.0, "weight decay of both parts", group=_TRAINING)
    clip_norm: float | None = option(
        None,
        "scale gradients down to this norm, of each part alone: that of the whole model would have "
        "to cross the link",
        unset="no clipping",
        group=_TRAINING,
    )
    accumulate: int = option(
        1,
        "batches an optimizer step, whose gradients are averaged; steps, budget and bytes count "
        "batches, and what the budget's end leaves incomplete waits in the checkpoint",
        metavar="N",
        group=_TRAINING,
    )
    label_smoothing: float = option(
        0.0, "share of the targets spread over all classes, in training", group=_TRAINING
    )
    drop_path: float = option(
        0.0,
        "drop residual branches in training, the last one with this probability, earlier ones "
        "with less",
        group=_TRAINING,
    )
    ema: float | None = option(
        None,
        "evaluate a moving average of the weights, of this decay a step, such as 0.999",
        unset="the weights themselves",
        metavar="DECAY",
        group=_TRAINING,
    )
    train: tuple[str, ...] = option(
        (),
        "what to train: all, last (the head), or a parameter, module or pattern such as NAME.1*; "
        "repeat it for several; the rest of the model is frozen, plugins are always trained",
        unset="all",
        metavar="all|last|NAME",
        group=_TRAINING,
    )
    precision: str = option(
        "fp32",
        "what both parts compute in: fp32; tf32, in which a GPU multiplies faster, and a CPU does "
        "as in fp32; or bf16: torch.autocast, weights stay in fp32, and activations and gradients "
        "cross the link in 2 bytes a number instead of 4",
        choices=("fp32", "tf32", "bf16"),
        group=_TRAINING,
    )
    seed: int = option(0, "fixes everything that is random", group=_TRAINING)

    def check_training(self) -> None:
        """Raise `ConfigError` for what cannot be trained with."""
        check_ranges(
            self,
            (
                ("batch_size", 1, 1_000_000),
                ("lr", 0.0, 1e6),
                ("warmup", 0.0, 1e9),
                ("weight_decay", 0.0, 1e6),
                ("clip_norm", 1e-9, 1e9),
                ("accumulate", 1, 1_000_000),
                ("label_smoothing", 0.0, 0.999),
                ("drop_path", 0.0, 0.999),
                ("ema", 0.0, 0.999999999),
                ("seed", 0, 2**63 - 1),
            ),
        )
        if "all" in self.train and len(self.train) > 1:
            raise ConfigError("--train all and --train with other names exclude each other")
        _ = self.rate

    @property
    def rate(self) -> Rate:
        """The learning rate of every step."""
        return Rate.parse(self.lr, self.lr_schedule, self.warmup)

    @property
    def trains(self) -> tuple[str, ...]:
        """What is trained, by names; nothing for all of it."""
        return () if self.train == ("all",) else self.train

    def agreed(self) -> dict[str, str]:
        """Return in what both peers must agree here, by name; what is as always is left out."""
        facts: dict[str, tuple[object, object]] = {
            "lr schedule": (self.rate, Rate.parse(self.lr)),
            "clip norm": (self.clip_norm, None),
            "accumulate": (self.accumulate, 1),
            "label smoothing": (self.label_smoothing, 0.0),
            "drop path": (self.drop_path, 0.0),
            "ema": (self.ema, None),
            "train": (" ".join(sorted({*self.trains})), ""),
            "precision": (self.precision, "fp32"),
        }
        return {name: str(now) for name, (now, usual) in facts.items() if now != usual}
