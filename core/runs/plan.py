"""The plan of a run: everything that is decided before the first step, in one frozen object.

Making a plan reads names, data and weights. It starts no process and makes no folder.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from splitlab.core.catalogue.binding import bind, bind_stack
from splitlab.core.catalogue.links import bind_wrappers
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.part import Layout
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.settings import Bound
from splitlab.core.contract.traits import Traits
from splitlab.core.data.load import Data, load_data
from splitlab.core.data.split import Loading
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import ModelFacts, build_model, describe, fingerprint
from splitlab.core.models.segments import Segmented
from splitlab.core.runs.config import DEFAULT_DATASET, Budget, Config

__all__ = ["DataFacts", "Plan", "choose_device", "make", "make_for_server", "settled"]


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data.

    Attributes:
        name: of the data set or folder; empty where only the client knows.
        classes: C.
        train: training images; 0 where only the client knows.
        test: test images; 0 where only the client knows.
    """

    name: str
    classes: int
    train: int = 0
    test: int = 0


@dataclass(frozen=True)
class Plan:
    """A run, decided in everything.

    Attributes:
        config: every option, decided.
        stack: the plugins, with all their parameters.
        probes: what watches, with all parameters.
        links: the wrappers around the link, with all parameters.
        traits: what every plugin declares, by label.
        model: what the model looks like where it is cut.
        data: what the data look like.
        agreement: what both peers must have in common, by the name that the user knows it by.
        device: where this peer computes.
        cut: behind which segment of the model.
        threads: CPU threads of each peer.
        budget: when the run ends.
        eval_every: steps between evaluations.
        checkpoint_every: steps between checkpoints.
        nominal: the stack's nominal ratios (up, down).
    """

    config: Config
    stack: tuple[Bound, ...]
    probes: tuple[Bound, ...]
    links: tuple[Bound, ...]
    traits: Mapping[str, Traits]
    model: ModelFacts
    data: DataFacts
    agreement: Mapping[str, str]
    device: torch.device
    cut: int
    threads: int
    budget: Budget
    eval_every: int
    checkpoint_every: int
    nominal: tuple[float, float]

    @classmethod
    def of(cls, config: Config, *, loading: Loading | None = None) -> Plan:
        """Return the plan of a configuration; what was loaded for it is let go.

        Raises:
            ConfigError: a name, setting or file that cannot be used.
            PluginError: a plugin that cannot be built or set up.
        """
        return make(config, loading=loading)[0]

    @property
    def titles(self) -> list[str]:
        """The plugins as tables call them, with what the user set."""
        return [str(plugin) for plugin in self.stack]

    @property
    def batch_bytes(self) -> int:
        """Size of one uncompressed full batch at the cut, float32."""
        return 4 * self.config.batch_size * self.model.layout.tokens * self.model.layout.width

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of one epoch."""
        return -(-self.data.train // self.config.batch_size)

    @property
    def step_bytes(self) -> tuple[int, int] | None:
        """What a full batch is expected to send up and down, without labels and headers.

        By the nominal ratios; None where a plugin sends what nobody can foresee, a compressed
        string of bytes.
        """
        if any("plain" in traits.takes_away for traits in self.traits.values()):
            return None
        up, down = self.nominal
        return round(up * self.batch_bytes), round(down * self.batch_bytes)

    @property
    def expected_steps(self) -> int | None:
        """How many steps the budget is expected to allow; None where nobody can foresee it."""
        amount, samples = self.budget.amount, self.data.train
        if self.budget.unit == "steps":
            return int(amount)
        if self.budget.unit == "epochs":
            return math.ceil(amount * self.steps_per_epoch)
        if self.budget.unit == "nominal":
            per_step = sum(self.nominal) / 2 * self.config.batch_size
            return math.ceil(amount * samples / per_step)
        return math.ceil(amount / sum(self.step_bytes)) if self.step_bytes else None

    def peer(self, role: Literal["client", "server"], device: torch.device) -> Peer:
        """Return the facts of one of the two peers."""
        return _peer(self.config, self.model.layout, self.data.classes, self.cut, role, device)


def settled(config: Config) -> tuple[Config, ModelFacts]:
    """Decide what can be decided without data, and check everything that has a name.

    Returns:
        The configuration with data set, cut, image size and threads; and what the model looks like.

    Raises:
        ConfigError: an unknown name, a wrong setting, a stack that cannot work on this model.
    """
    stack = Stack(bind_stack(config.plugins), bind_probes(config))
    bind_wrappers(config.links)
    facts = describe(config.model, image_size=config.image_size, cut=config.cut)
    stack.check(facts.ground)
    return (
        replace(
            config,
            dataset=config.dataset or (None if config.data_dir else DEFAULT_DATASET),
            cut=facts.cut,
            image_size=facts.image_size,
            threads=config.threads or _cores(),
        ),
        facts,
    )


def make(
    config: Config, *, loading: Loading | None = None, peers_here: int = 1
) -> tuple[Plan, Segmented, Data]:
    """Make the client's plan; returns the whole model and the data that it took, too.

    Args:
        config: the run.
        loading: is told how the data are loaded.
        peers_here: 2 if the server is another process on this machine; see `choose_device`.
    """
    config, facts = settled(config)
    device = choose_device(config.device, "client", peers_here=peers_here)
    data = load_configured_data(config, facts, loading)
    known = DataFacts(data.name, len(data.train.classes), len(data.train), len(data.test))
    plan, model = _plan(config, facts, known, device)
    return plan, model, data


def make_for_server(config: Config, classes: int, *, peers_here: int) -> tuple[Plan, Segmented]:
    """Make the server's plan, which knows of the data how many classes they have, and no more.

    Args:
        config: the same as the client's in everything that both must agree on.
        classes: C.
        peers_here: 2 if the client is another process on this machine.
    """
    config, facts = settled(config)
    device = choose_device(config.device, "server", peers_here=peers_here)
    return _plan(config, facts, DataFacts("", classes), device)


def load_configured_data(config: Config, facts: ModelFacts, loading: Loading | None = None) -> Data:
    """Load the data of a configuration of `settled`, in the form that its model takes."""
    return load_data(
        config.dataset,
        config.data_dir,
        image_size=facts.image_size,
        channels=facts.channels,
        seed=config.seed,
        augment=config.augment,
        workers=config.workers,
        loading=loading,
    )


def bind_probes(config: Config) -> list[Bound]:
    """Return the probes of a configuration."""
    return [bind("probes", text) for text in config.probes]


def _plan(
    config: Config, facts: ModelFacts, data: DataFacts, device: torch.device
) -> tuple[Plan, Segmented]:
    bound = bind_stack(config.plugins)
    model = build_model(
        config.model,
        classes=data.classes,
        seed=config.seed,
        image_size=facts.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
    )
    peer = _peer(config, facts.layout, data.classes, facts.cut, "client", torch.device("cpu"))
    peer.unable = model.part(0, (facts.cut,), torch.device("meta")).unable
    tried = Stack(bound)
    tried.setup(peer)
    every = config.eval_every or max(1, -(-data.train // config.batch_size))
    checkpoints = config.checkpoint_every or every
    plan = Plan(
        config=replace(config, eval_every=every, checkpoint_every=checkpoints),
        stack=tuple(bound),
        probes=tuple(bind_probes(config)),
        links=tuple(bind_wrappers(config.links)),
        traits=tried.traits(),
        model=facts,
        data=data,
        agreement=_agreement(config, facts, bound, data.classes, fingerprint(model.module)),
        device=device,
        cut=facts.cut,
        threads=config.threads or _cores(),
        budget=Budget.parse(config.budget),
        eval_every=every,
        checkpoint_every=checkpoints,
        nominal=tried.nominal_ratio(),
    )
    tried.run_end()
    return plan, model


def _agreement(
    config: Config, facts: ModelFacts, bound: list[Bound], classes: int, mark: str
) -> dict[str, str]:
    return {
        "stack": " + ".join(plugin.agreement() for plugin in bound) or "none",
        "model": facts.identity,
        "image size": str(facts.image_size),
        "cut": str(facts.cut),
        "classes": str(classes),
        "weights": mark,
        "batch size": str(config.batch_size),
        "optimizer": f"{config.optimizer} lr={config.lr!r} weight_decay={config.weight_decay!r}",
        "seed": str(config.seed),
    }


def _peer(
    config: Config,
    layout: Layout,
    classes: int,
    cut: int,
    role: Literal["client", "server"],
    device: torch.device,
) -> Peer:
    return Peer(
        role=role,
        seed=config.seed,
        classes=classes,
        layout=layout,
        cut=cut,
        batch_size=config.batch_size,
        device=device,
        augmented=config.augment != "none",
    )


def _cores() -> int:
    """Return how many cores this process may use."""
    allowed = getattr(os, "sched_getaffinity", None)  # Linux only
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def choose_device(name: str, role: Literal["client", "server"], *, peers_here: int) -> torch.device:
    """Return the device of a peer.

    ``auto``: a GPU if there is one; of several, the one that a launcher chose (``LOCAL_RANK``), or
    the second for the server if both peers run on this machine.
    """
    if name == "auto":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not gpus:
            return torch.device("cpu")
        second = role == "server" and peers_here == 2
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", int(second))) % gpus)
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # also refuses meta, which computes nothing
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().split("\n")[0]
        raise ConfigError(f"--device {name} cannot be used here: {reason}") from error
    return device
