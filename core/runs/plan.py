"""The plan of a run: everything that is decided before the first step, in one frozen object.

Making a plan reads names, data and weights. It starts no process and makes no folder.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch

from splitlab.core.catalogue.binding import bind, bind_stack
from splitlab.core.catalogue.links import bind_wrappers
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.errors import ConfigError
from splitlab.core.contract.peer import Peer, Schedule
from splitlab.core.contract.settings import Bound
from splitlab.core.contract.traits import Traits
from splitlab.core.data.load import Data, load_data
from splitlab.core.data.mixing import mixup
from splitlab.core.data.split import Loading
from splitlab.core.engine.stack import Stack
from splitlab.core.models.build import ModelFacts, build_model, describe, fingerprint
from splitlab.core.models.segments import Segmented
from splitlab.core.models.weights import weights_file
from splitlab.core.runs.agreement import agreement
from splitlab.core.runs.budget import Budget
from splitlab.core.runs.config import DEFAULT_DATASET, Config
from splitlab.core.runs.device import choose_device, default_threads
from splitlab.core.runs.precision import autocast

__all__ = [
    "DataFacts",
    "Decided",
    "PeerPlan",
    "Plan",
    "load_configured_data",
    "make",
    "make_for_server",
]

_COMPILING = 1800.0  # seconds that a part may take, on a machine with other things to do
_MOST = 2.0**62  # steps or samples that are foreseen: nobody sees the end of more


@dataclass(frozen=True)
class Decided:
    """What can be decided of a run without its data. A plan is made of it, once.

    Attributes:
        config: with data set, cut, image size and threads decided.
        stack: the plugins, with all their parameters.
        probes: what watches, with all parameters.
        links: the wrappers around the link, with all parameters.
        model: what the model looks like where it is cut.
        threads: CPU threads of each peer.
        tried: plugins and probes, built; the plan sets them up and hears what they say.
    """

    config: Config
    stack: tuple[Bound, ...]
    probes: tuple[Bound, ...]
    links: tuple[Bound, ...]
    model: ModelFacts
    threads: int
    tried: Stack

    @classmethod
    def of(cls, config: Config, describe: Callable[..., ModelFacts] = describe) -> Decided:
        """Decide, and check everything that has a name.

        Args:
            config: as it was asked for.
            describe: says what a model looks like; one that remembers, where many runs are decided.

        Raises:
            ConfigError: an unknown name, a wrong setting, a stack that cannot work on this model.
            PluginError: a plugin, probe or link wrapper that cannot be built.
        """
        stack = tuple(bind_stack(config.plugins))
        probes = tuple(bind("probes", text) for text in config.probes)
        tried = Stack(stack, probes)
        links = tuple(bind_wrappers(config.links))
        for link in links:
            link.build()  # judges its settings; every end of a link has one of its own
        model = describe(
            config.model, image_size=config.image_size, cut=config.cut, weights=config.weights
        )
        tried.check(model.ground)
        threads = config.threads or default_threads()
        config = replace(
            config,
            dataset=config.dataset or (None if config.data_dir else DEFAULT_DATASET),
            cut=model.cut,
            image_size=model.image_size,
            threads=threads,
        )
        return cls(config, stack, probes, links, model, threads, tried)


@dataclass(frozen=True)
class PeerPlan:
    """What the plans of both peers hold; it is all of the server's.

    Attributes:
        config: every option, decided but for those that only the client decides.
        stack: the plugins, with all their parameters.
        probes: what watches, with all parameters.
        links: the wrappers around the link, with all parameters.
        traits: what every plugin declares, by label.
        nominal: the stack's nominal ratios (up, down), as a mean over the run.
        model: what the model looks like where it is cut.
        classes: C.
        agreement: what both peers must have in common, by the name that the user knows it by.
        device: where this peer computes.
        threads: its CPU threads.
        schedule: how long the run is to last; None at a server, which hears it from its client.
    """

    config: Config
    stack: tuple[Bound, ...]
    probes: tuple[Bound, ...]
    links: tuple[Bound, ...]
    traits: Mapping[str, Traits]
    nominal: tuple[float, float]
    model: ModelFacts
    classes: int
    agreement: Mapping[str, str]
    device: torch.device
    threads: int
    schedule: Schedule | None

    @property
    def titles(self) -> list[str]:
        """The plugins as tables call them, with what the user set."""
        return [str(plugin) for plugin in self.stack]

    @property
    def timeout(self) -> float:
        """Seconds of silence after which the other peer counts as gone; compiling is silent."""
        least = 0.0 if self.config.compile == "off" else _COMPILING
        return max(self.config.timeout, least)

    @property
    def batch_bytes(self) -> int:
        """Size of one uncompressed full batch at the cut, in float32 whatever the precision."""
        return 4 * self.config.batch_size * self.model.layout.tokens * self.model.layout.width

    @property
    def step_bytes(self) -> tuple[int, int] | None:
        """What a full batch is expected to send up and down, as activations and gradients alone.

        By the nominal ratios; None where a plugin sends what nobody can foresee, a compressed
        string of bytes. With ``--precision bf16`` half of that, but for codes: they are as wide.
        """
        gone = frozenset[str]().union(*(traits.takes_away for traits in self.traits.values()))
        if "plain" in gone:
            return None
        up, down = self.nominal
        halves = 2 if self.config.precision == "bf16" and "numbers" not in gone else 1
        return round(up * self.batch_bytes / halves), round(down * self.batch_bytes / halves)

    def foresee(self, schedule: Schedule) -> int | None:
        """Return how many steps a budget is expected to allow; None where nobody can foresee it."""
        amount, samples, size = schedule.amount, schedule.training_samples, self.config.batch_size
        if schedule.unit == "steps":
            return int(min(amount, _MOST))
        if schedule.unit == "nominal":
            amount /= sum(self.nominal) / 2
        elif schedule.unit == "bytes":
            if self.step_bytes is None:
                return None
            amount *= size / (sum(self.step_bytes) * samples)
        # By now of epochs, whose last batch is smaller: so many samples are at least due.
        epochs, due = divmod(math.ceil(round(min(amount * samples, _MOST), 6)), samples)
        return epochs * -(-samples // size) + -(-due // size)

    def peer(self, role: Literal["client", "server"]) -> Peer:
        """Return the facts of this peer."""
        peer = _peer(self.config, self.model, self.classes, role, self.device)
        peer.schedule = self.schedule
        return peer


@dataclass(frozen=True)
class DataFacts:
    """What is known of the data.

    Attributes:
        name: of the data set, or of its folder.
        train: how many images there are to train on.
        test: how many to evaluate on.
        fingerprint: of what they are, wherever they lie; see `Data`.
        notices: what of the data is not read, one line each.
        mean: what images are normalised by, by channel, in [0, 1].
        std: the same.
    """

    name: str
    train: int
    test: int
    fingerprint: str
    notices: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass(frozen=True)
class Plan(PeerPlan):
    """A run, decided in everything; this is the client's plan.

    Attributes:
        data: what the data look like.
        budget: when the run ends.
        eval_every: steps between evaluations; None if they are at shares of the budget.
        eval_samples: how many test images an evaluation before the last one is on.
        checkpoint_every: steps between checkpoints; None for one at every evaluation.
    """

    data: DataFacts
    budget: Budget
    eval_every: int | None
    eval_samples: int
    checkpoint_every: int | None

    @classmethod
    def of(cls, config: Config, *, loading: Loading | None = None) -> Plan:
        """Return the plan of a configuration; what was loaded for it is let go.

        Raises:
            ConfigError: a name, setting or file that cannot be used.
            PluginError: a plugin or probe that cannot be built or set up.
        """
        return make(Decided.of(config), loading=loading)[0]

    @property
    def steps_per_epoch(self) -> int:
        """Training steps of one epoch."""
        return -(-self.data.train // self.config.batch_size)

    def mixed(self, batch: Batch, step: int) -> Batch:
        """Return a training batch as this step trains on it."""
        config, classes = self.config, self.classes
        return mixup(batch, config.mixup, classes=classes, seed=config.seed, step=step)

    @property
    def expected_steps(self) -> int | None:
        """How many steps the budget is expected to allow; None where nobody can foresee it."""
        return self.foresee(Schedule(self.data.train, self.budget.unit, self.budget.amount))


def make(
    decided: Decided, *, loading: Loading | None = None, peers_here: int = 1
) -> tuple[Plan, Segmented, Data]:
    """Make the client's plan; returns the whole model and the data that it took, too.

    Args:
        decided: of the run's configuration.
        loading: is told how the data are loaded.
        peers_here: 2 if the server is another process on this machine; see `choose_device`.
    """
    device = choose_device(decided.config.device, "client", peers_here=peers_here)
    data = load_configured_data(decided, loading, device)
    config = decided.config
    schedule = _schedule(decided, len(data.train))
    shared, model = _plan(decided, len(data.train.classes), device, "client", schedule)
    every = config.eval_every
    if config.eval_points is None:
        every = every or -(-len(data.train) // config.batch_size)
    checkpoints = config.checkpoint_every or every
    mine = {"config": replace(config, eval_every=every, checkpoint_every=checkpoints)}
    plan = Plan(
        **vars(shared) | mine,
        data=DataFacts(
            name=data.name,
            train=len(data.train),
            test=len(data.test),
            fingerprint=data.fingerprint,
            notices=data.notices,
            mean=tuple(data.mean),
            std=tuple(data.std),
        ),
        budget=Budget.parse(config.budget),
        eval_every=every,
        eval_samples=_eval_samples(config, data),
        checkpoint_every=checkpoints,
    )
    return plan, model, data


def make_for_server(
    decided: Decided, classes: int, *, peers_here: int, samples: int | None = None
) -> tuple[PeerPlan, Segmented]:
    """Make the server's plan, which knows of the data how many classes they have, and no more.

    Args:
        decided: of a configuration that is the client's in everything that both must agree on.
        classes: C.
        samples: of the client's training data, if the configuration's budget is the client's, too.
        peers_here: 2 if the client is another process on this machine.
    """
    device = choose_device(decided.config.device, "server", peers_here=peers_here)
    return _plan(decided, classes, device, "server", _schedule(decided, samples))


def load_configured_data(
    decided: Decided,
    loading: Loading | None = None,
    device: torch.device = torch.device("cpu"),  # noqa: B008
) -> Data:
    """Load the data of a configuration, in the form that its model takes.

    Local data that no name describes are normalised as those were on which weights from elsewhere
    were trained.
    """
    config = decided.config
    trained = config.pretrained or weights_file(config.model, config.weights)
    return load_data(
        config.dataset,
        config.data_dir,
        image_size=decided.model.image_size,
        channels=decided.model.channels,
        seed=config.seed,
        augment=config.augment,
        workers=config.workers,
        worker_kind=config.worker_kind,
        cache=config.cache,
        device=device,
        loading=loading,
        label_column=config.label_column,
        test_split=config.test_split,
        test_share=config.test_share,
        normalisation=decided.model.normalisation if trained else None,
    )


def _eval_samples(config: Config, data: Data) -> int:
    wanted, there, classes = config.eval_samples, len(data.test), len(data.test.classes)
    if wanted is not None and wanted < min(classes, there):
        raise ConfigError(
            f"--eval-samples {wanted} are not of every class alike; take at least {classes}, one a "
            "class"
        )
    return there if wanted is None else min(wanted, there)


def _schedule(decided: Decided, samples: int | None) -> Schedule | None:
    budget = Budget.parse(decided.config.budget)
    return Schedule(samples, budget.unit, budget.amount) if samples is not None else None


def _plan(
    decided: Decided,
    classes: int,
    device: torch.device,
    role: Literal["client", "server"],
    schedule: Schedule | None,
) -> tuple[PeerPlan, Segmented]:
    config, facts, tried = decided.config, decided.model, decided.tried
    model = build_model(
        config.model,
        classes=classes,
        seed=config.seed,
        image_size=facts.image_size,
        pretrained=config.pretrained,
        weights=config.weights,
        drop_path=config.drop_path,
        train=config.trains,
    )
    if (seen := model.layout(facts.cut)) != (other := facts.layout):
        raise ConfigError(
            f"model {config.model!r} makes {seen.tokens} tokens × {seen.width} at cut {facts.cut} "
            f"with {classes} classes, and {other.tokens} × {other.width} with others; "
            "let the last segment alone depend on classes, or cut elsewhere"
        )
    peer = _peer(config, facts, classes, role, torch.device("cpu"))
    peer.schedule = schedule
    peer.unable = model.part(0, (facts.cut,), torch.device("meta")).unable
    tried.setup(peer)
    plan = PeerPlan(
        config=config,
        stack=decided.stack,
        probes=decided.probes,
        links=decided.links,
        traits=tried.traits(),
        nominal=tried.nominal_ratio(),
        model=facts,
        classes=classes,
        agreement=agreement(config, decided.stack, facts, classes, fingerprint(model.module)),
        device=device,
        threads=decided.threads,
        schedule=schedule,
    )
    tried.run_end()
    return _with_steps(plan, tried), model


def _with_steps(plan: PeerPlan, tried: Stack) -> PeerPlan:
    """Return the plan with the run's steps in its schedule, if anything follows from them."""
    rate, changing = plan.config.rate, [bound for bound in plan.stack if bound.pieces > 1]
    follows = {str(bound): "one value for each setting" for bound in changing}
    if rate.needs_steps:
        follows[f"the learning rate ({rate})"] = "a constant rate and --warmup in steps"
    if plan.schedule is None or not follows:
        return plan
    steps, unit = plan.foresee(plan.schedule), plan.schedule.unit
    charged = not tried.foreseen  # then what a step costs is known when it is done
    # Of bytes they are estimated without headers and the like: a last value might never come.
    roughly = unit == "bytes" and (charged or bool(changing))
    if steps is None or roughly or (charged and unit == "nominal"):
        others = "steps=… or epochs=…" if charged else "steps=…, epochs=… or nominal=…"
        raise ConfigError(
            f"what follows from how many steps the run is to last ({', '.join(follows)}) needs "
            f"--budget {others} with this stack: nobody can foresee it of --budget "
            f"{plan.config.budget}; or give {' and '.join(dict.fromkeys(follows.values()))}"
        )
    for bound in changing:
        if steps < bound.pieces:
            raise ConfigError(
                f"{bound} has {bound.pieces} values, one after another, and --budget "
                f"{plan.config.budget} {steps} step{'s' * (steps > 1)}; give more steps or fewer "
                "values"
            )
    return replace(plan, schedule=replace(plan.schedule, steps=steps))


def _peer(
    config: Config,
    model: ModelFacts,
    classes: int,
    role: Literal["client", "server"],
    device: torch.device,
) -> Peer:
    return Peer(
        role=role,
        seed=config.seed,
        classes=classes,
        layout=model.layout,
        cut=model.cut,
        batch_size=config.batch_size,
        autocast=autocast(config.precision, device),
        device=device,
        augmented=config.augment != "none" or config.mixup > 0,
    )
