"""The checks of a plugin: what every compression method must hold, on a model that is tiny.

Each check builds peers of its own, runs a few steps through real frames, and looks at what passed
the hooks. A reason says which plugin, which hook where that is known, and the way out.

Shapes: B samples, N tokens, D width; rows and tokens as a stack leaves them.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import math
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from typing import Any

import safetensors.torch
import torch
from torch.nn import functional as F

from splitlab.core.catalogue.registry import bind_stack, entries, load
from splitlab.core.contract.batch import Batch
from splitlab.core.contract.cut import Cut
from splitlab.core.contract.errors import ConfigError, PluginError, SplitlabError
from splitlab.core.contract.link import PairTransport
from splitlab.core.contract.message import Kind, Role
from splitlab.core.contract.settings import Bound, parameters
from splitlab.core.models.model import ServerHalf
from splitlab.core.run.plan import limited_threads
from splitlab.core.testing.fresh import FreshPeers, address
from splitlab.core.testing.report import Check, Report, Skipped, Warned, run_checks
from splitlab.core.testing.subject import (
    SAVED,
    TINY,
    TURNS,
    Subject,
    decoding_problem,
    with_ratio,
)
from splitlab.core.testing.tiny import (
    CPU,
    Couple,
    Event,
    Seen,
    Tiny,
    difference,
    joined,
    same,
    thaw,
)
from splitlab.core.wire.ledger import Direction, Ledger

__all__ = ["PLUGIN_CHECKS", "check_plugin"]

_NOTES = 1024
"""Bytes of JSON notes in a message; what grows with the batch belongs into a tensor."""
_FAR = 2.0
"""Measured over nominal, from which on the difference is odd."""
_EXACT = 1e-9
_NUMERIC = 1e-6
"""Of a directional derivative by central differences in float64."""
_PATIENCE = 20.0
"""Seconds that an edge input may take."""


def check_plugin(
    plugin: str | type | Bound,
    *,
    only: Collection[str] | None = None,
    fresh: FreshPeers | None = None,
    tiny: Tiny = TINY,
) -> Report:
    """Check that a plugin holds what every compression method must hold.

    Args:
        plugin: as users type it (``"NAME:key=value"``, ``"FILE.py:Class"``, a stack's name), or a
            class, which is built with its defaults, or a class bound to parameters.
        only: ids of checks; all by default.
        fresh: fresh peers of an earlier check, to save the seconds that starting them takes.
        tiny: the model, for a plugin that refuses the small one.

    Raises:
        ConfigError: an unknown name, parameter or check id.
        PluginError: the plugin cannot be imported.
    """
    text = plugin if isinstance(plugin, str) else None
    if isinstance(plugin, str):
        stack = bind_stack([plugin])
    elif isinstance(plugin, Bound):
        stack = [plugin]
    else:
        given = {name: p.default for name, p in parameters(plugin).items() if not p.required}
        stack = [Bound(plugin.__name__, plugin.__name__, plugin, given, {})]
    with ExitStack() as cleanup:
        cleanup.enter_context(limited_threads(1))
        if fresh is None and (only is None or "G8" in only):
            fresh = cleanup.enter_context(FreshPeers())  # they start while the first checks run
        subject = Subject(stack, text, tiny, fresh)
        return run_checks(text or str(stack[0]), subject, PLUGIN_CHECKS, only)


# G0 to G2: it runs, its bytes are real, its shapes are right.


def _runs(s: Subject) -> str | None:
    s.charged("G0")
    return None


def _bytes(s: Subject) -> str | None:
    client = s.working().client
    ledger, crossed = Ledger(), 0
    found: dict[Direction, list[int]] = {"up": [], "down": []}
    for raw in s.base.frames:
        message = thaw(raw)
        direction: Direction = "up" if message.kind is Kind.ACTIVATION else "down"
        ledger.add(message, direction)
        crossed += len(raw)
        read = sum(t.nbytes for t in safetensors.torch.load(raw[32:]).values())
        held = sum(message[name].nbytes for name in message)
        notes = {k: v for k, v in message.meta.items() if k not in ("loss", "loss_sum")}
        size = len(json.dumps(notes)) if notes else 0
        if read != held or message.frame_bytes != len(raw):
            raise s.failed(
                f"{message!r} holds {held} bytes of tensors, a plain reader finds {read}"
            )
        if size > _NOTES:
            raise s.failed(
                f"the {message.kind.name} message carries {size} bytes of notes "
                f"({', '.join(notes)}) in its header; put numbers into a tensor of Role.SIDE"
            )
        if message.training:
            sent = [message[n].nbytes for n in message if message.role(n) is not Role.TARGETS]
            found[direction].append(sum(sent))
    if ledger.total("up") + ledger.total("down") != crossed:
        raise s.failed(f"the ledger does not count {crossed} bytes as they crossed")
    nominal = client.stack.nominal_ratio()
    if not all(0 < ratio <= 1 for ratio in nominal):
        raise s.failed(f"nominal_ratio returns {nominal}; both must be more than 0, at most 1")
    peer = client.peer
    whole = 4 * peer.batch_size * peer.tokens * peer.width
    measured = [sum(sizes) / len(sizes) / whole for sizes in found.values()]
    remark = ", ".join(
        f"{way} {got:.3f} (nominal {ratio:.3g})"
        for way, got, ratio in zip(found, measured, nominal, strict=True)
    )
    if any(got > _FAR * ratio for got, ratio in zip(measured, nominal, strict=True)):
        return Warned(f"{remark}: far more than nominal, if only on so small a model")
    return remark


def _shapes(s: Subject) -> str | None:
    if s.base.check == "G2" and not isinstance(s.base.error, SplitlabError):
        assert s.base.couple is not None
        raise s.failed(decoding_problem(s.base.couple) or "")
    s.charged("G2")
    if problem := decoding_problem(s.working()):
        raise s.failed(problem)
    if not torch.cuda.is_available():
        return None
    couple = s.couple(device=torch.device("cuda"))
    couple.train(s.tiny.batch(), 0)
    if problem := decoding_problem(couple):
        raise s.failed(f"on a GPU, {problem}")
    return "on CPU and GPU"


# G3, G4: it repeats itself, and does in evaluation what it says.


def _repeats(s: Subject) -> str | None:
    if s.base.disturbed:
        s.charged("G3")
        raise s.failed(
            f"it draws from the global random state of {' and '.join(s.base.disturbed)}, which "
            "changes the runs of others; draw from peer.generator(purpose, step)"
        )
    s.working()
    if s.irregular:
        raise s.failed(
            f"two runs of one seed differ, first in {s.irregular}; draw from peer.generator("
            "purpose, step) only, and let nothing depend on time, order of sets or addresses"
        )
    return None


def _evaluates(s: Subject) -> str | None:
    couple = s.second
    before = [_state(couple.client), _state(couple.server)]
    batch = s.tiny.batch(9)
    start = len(couple.events)
    ids, loss = couple.evaluate(batch, 0)
    stacked, hooks = couple.arrived[-2:], couple.events[start:]
    plain_ids, plain_loss = couple.evaluate(batch, 0, stacked=False)
    plain = couple.arrived[-2:]
    for role, old, new in zip(
        ("client", "server"), before, [_state(couple.client), _state(couple.server)], strict=True
    ):
        if changed := _state_difference(old, new):
            raise s.failed(
                f"evaluating changes the state of the {role} ({changed}), so that training depends "
                "on how often one evaluates; change state only where message.training or "
                "cut.training is True"
            )
    found = difference([_unflagged(m) for m in stacked], [_unflagged(m) for m in plain])
    acts = bool(found) or loss != plain_loss or not torch.equal(ids, plain_ids)
    if acts and not s.traits.evaluation:
        hook = next((e.hook for e in hooks if _acted(e)), "a hook")
        raise s.failed(
            f"traits() says that it leaves evaluation alone, but it acts: {found or 'the loss'} "
            f"differs from an evaluation without the stack (in {hook}); return there unless "
            "message.training or cut.training, or declare evaluation=True"
        )
    trains = any(_acted(event) for event in s.working().events if event.training)
    if s.traits.evaluation and trains and not acts:
        raise s.failed(
            "traits() says evaluation=True, but an evaluation is the same bytes and predictions "
            "as without the stack; declare evaluation=False"
        )
    return "acts in evaluation" if acts else "leaves evaluation alone"


def _acted(event: Event) -> bool:
    """Return whether the stack changed anything in this hook."""
    return bool(difference([event.before], [event.after])) and event.hook != "backward"


def _unflagged(message: Seen) -> Seen:
    facts = {k: v for k, v in message.facts.items() if k != "flags"}
    return dataclasses.replace(message, facts=facts)


def _state(worker: Any) -> dict[str, Any]:
    tensors, values = worker.state()
    return {k: t.detach().clone() for k, t in tensors.items()} | dict(values)


def _state_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    for key in {**old, **new}:
        a, b = old.get(key), new.get(key)
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            equal = same(a, b)
        else:
            equal = repr(a) == repr(b)  # NaN does not equal itself, but reads the same
        if not equal:
            return " / ".join(json.loads(key))
    return None


# G5: the gradient is what the plugin says it is.


def _gradient(s: Subject) -> str | None:
    s.charged("G5")
    s.working()
    declared = s.traits.gradient
    if declared == "corrected":
        raise Skipped("gradient='corrected' is the plugin's own rule: its own tests must hold it")
    return _straight_through(s) if declared == "straight-through" else _natural(s)


def _natural(s: Subject) -> str | None:
    """Compare the gradient of a real step in float64 with autograd and with differences."""
    couple = _double(s)
    couple.train(s.tiny.batch(), 0)
    [forward], [backward] = (
        couple.seen("client", "after_client_forward"),
        couple.seen("client", "backward"),
    )
    X, G = forward.before.tensors["activations"], backward.after.tensors["gradient"]
    if not G.norm() > 0:
        raise s.failed("no gradient reaches the client's half, all of it is 0 or not a number")
    remarks = []
    if not any(map(s.has, ("before_send", "after_receive", "gradient_return"))):
        expected = _composed(s, X)
        error = float((G - expected).abs().max() / expected.abs().max().clamp_min(1e-30))
        if not error <= _EXACT:
            raise s.failed(
                f"the client's gradient is off by {error:.1e} (relative) from autograd through "
                "encoder and decoder in one process; both hooks must be functions of "
                "cut.activations and of what travels, or declare another gradient"
            )
        remarks.append(f"off by {error:.0e} from autograd")
    noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(0), dtype=X.dtype)
    along, held = _derivative(s, X, noise), ""
    if along is None or not _agrees(G, noise, along):
        # Most choices that a method holds fixed (a basis, a partition, the largest values) are the
        # same for c X as for X, so that along X itself the derivative is whole.
        noise, held = X, "what follows from the direction of the activations is held fixed"
        along = _derivative(s, X, X) if along is not None else None
    if along is None:
        if not remarks:
            raise s.failed(
                "gradient='natural', but the loss is no smooth function of the activations; "
                "declare gradient='straight-through', or compute in float64 what comes in float64"
            )
        return Warned(f"{remarks[0]}; not smooth enough to compare with differences")
    if not _agrees(G, noise, along):
        raise s.failed(
            f"the loss changes along a direction by {along:.6g}, the client's gradient says "
            f"{float((G * noise).sum()):.6g}; if the method does not send the exact gradient, "
            "declare gradient='straight-through' or 'corrected' in traits()"
        )
    return "; ".join([*remarks, "agrees with differences", *([held] if held else [])])


def _derivative(s: Subject, X: torch.Tensor, V: torch.Tensor) -> float | None:
    """Return the derivative of the server's loss along V, None if it is not smooth there."""
    at = [X]
    couple = None

    def loss(where: torch.Tensor) -> float:
        nonlocal couple
        at[0] = where
        if couple is None or s.traits.stateful:  # nothing is learned: one step is like the other
            couple = _double(s, lambda cut: _replace(cut, at[0]), lr=0.0)
        return couple.train(s.tiny.batch(), 0)

    steps = (1e-5, 2.5e-6)
    slopes = [(loss(X + h * V) - loss(X - h * V)) / (2 * h) for h in steps]
    return slopes[1] if math.isclose(*slopes, rel_tol=1e-4, abs_tol=1e-9) else None


def _agrees(G: torch.Tensor, V: torch.Tensor, slope: float) -> bool:
    size = float(G.norm() * V.norm()) / math.sqrt(G.numel())
    return abs(slope - float((G * V).sum())) <= _NUMERIC * size


def _double(s: Subject, enter: Callable[[Cut], None] | None = None, **settings: Any) -> Couple:
    couple = s.couple(enter=enter, dtype=torch.float64, **settings)
    for peer in (couple.client.peer, couple.server.peer):
        for module in peer.modules:
            module.double()
    return couple


def _composed(s: Subject, X: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the loss by autograd through encoder, decoder and server half."""
    leaf = X.clone().requires_grad_()
    cuts: list[Cut] = []

    def enter(cut: Cut) -> None:
        cut.activations = leaf
        cuts.append(cut)

    couple = _double(s, enter)
    couple.client.forward(
        dataclasses.replace(s.tiny.batch(), images=s.tiny.batch().images.double()), 0
    )
    [sent] = cuts
    side = {name: tensor.detach() for name, tensor in sent.side.items()}
    cut = Cut(sent.activations, sent.targets, 0, True, side=side)
    couple.server.stack.before_server_forward(cut)
    half = ServerHalf(s.tiny.vit().double(), couple.server.peer.cut, CPU)
    logits = half.forward(cut.activations, cut.token_sizes)
    loss = F.cross_entropy(logits, cut.targets, reduction="none")
    weights = torch.ones_like(loss) if cut.weights is None else cut.weights
    gradient: torch.Tensor = torch.autograd.grad((loss * weights).sum() / weights.sum(), leaf)[0]
    return gradient


def _replace(cut: Cut, value: torch.Tensor) -> None:
    """Give the cut other activations, on the same graph."""
    cut.activations = cut.activations * 0 + value.to(cut.activations)


def _straight_through(s: Subject) -> str | None:
    """Compare what the client gets with what the server had: as much as was sent of it."""
    couple = s.working()
    crossed = zip(
        couple.seen("server", "before_send"),
        couple.seen("client", "after_receive"),
        couple.seen("client", "backward"),
        strict=True,
    )
    exact = True
    for sending, receiving, backward in crossed:
        had, got = sending.before.tensors["gradient"], receiving.after.tensors["gradient"]
        sent = sending.after.tensors.get("gradient")
        untouched = sent is not None and sent.dtype == had.dtype and torch.equal(sent, had)
        if untouched and not torch.equal(got, had):
            raise s.failed(
                f"the gradient crosses the link as it is, but after_receive changes it "
                f"({sending.before.what}); act on a GRADIENT message at both ends or at none"
            )
        exact = exact and untouched
        if not float((got * had).sum()) > 0:
            raise s.failed(
                "the gradient that after_receive gives the client points away from the one that "
                f"the server sent ({sending.before.what}); decode it to its own values"
            )
        graph = s.has("after_client_forward") or s.has("gradient_return")
        if not graph and not torch.equal(backward.after.tensors["gradient"], got):
            raise s.failed("the client's half gets another gradient than after_receive left")
    return "the server's gradient as it is" if exact else "the server's gradient, compressed"


# G6, G7: inputs at the edge, and in half precision.


def _edges(s: Subject) -> str | None:
    s.working()
    now = ("", time.monotonic())
    failure: list[Exception] = []

    def work() -> None:
        nonlocal now
        try:
            for name, case in _cases(s):
                now = (name, time.monotonic())
                case()
        except Exception as error:  # noqa: BLE001 (raised again where the check runs)
            failure.append(error)

    worker = threading.Thread(target=work, daemon=True)
    worker.start()
    while worker.is_alive():
        worker.join(0.1)
        name, since = now
        if worker.is_alive() and time.monotonic() - since > _PATIENCE:
            raise s.failed(f"with {name} it does not end in {_PATIENCE:g} s; bound its loops")
    if failure:
        raise s.failed(f"with {now[0]}: {failure[0]}")
    return f"smallest ratio taken: {s.smallest_ratio:g}" if s.smallest_ratio else None


def _cases(s: Subject) -> Iterator[tuple[str, Callable[[], None]]]:
    """Yield what to say of an edge input, and the run to do with it."""
    tiny, one = s.tiny, s.tiny.batch(0, 1)

    def injected(change: Callable[[torch.Tensor], torch.Tensor], **settings: Any) -> Couple:
        return s.couple(
            enter=lambda cut: _replace(cut, change(cut.activations.detach())), **settings
        )

    def outlier(X: torch.Tensor) -> torch.Tensor:
        X = X.clone()
        X[0, 1, 2] = 1e4  # within float16, which some methods send
        return X

    def not_a_number(X: torch.Tensor) -> torch.Tensor:
        X = X.clone()
        X[0, 1, 2] = math.nan
        return X

    def finite(couple: Couple, *batches: Batch) -> None:
        for step, batch in enumerate(batches):
            couple.train(batch, step)
        couple.evaluate(batches[-1], 0)
        if found := _infinite(couple):
            raise PluginError(f"{found}; guard divisions, logarithms and roots")

    def explained(couple: Couple) -> None:
        try:
            couple.train(tiny.batch(), 0)
        except SplitlabError as error:
            if isinstance(error.__cause__, Exception):
                raise  # a crash that the stack reported, not an error of the plugin's own

    alike = dataclasses.replace(
        tiny.batch(),
        images=one.images.expand(tiny.samples, -1, -1, -1).clone(),
        targets=one.targets.expand(tiny.samples).clone(),
    )
    few = tiny.batch(1, max(1, tiny.samples // 2 - 1))
    yield "zeros everywhere", lambda: finite(injected(torch.zeros_like), tiny.batch())
    yield (
        "one constant everywhere",
        lambda: finite(injected(lambda X: torch.full_like(X, 0.5)), tiny.batch()),
    )
    yield "one huge value (1e4)", lambda: finite(injected(outlier), tiny.batch())
    yield "equal samples", lambda: finite(s.couple(), alike)
    yield "a single sample", lambda: finite(s.couple(), one)
    yield "a smaller last batch", lambda: finite(s.couple(), tiny.batch(), few)
    if smallest := s.smallest_ratio:
        yield (
            f"ratio={smallest:g}",
            lambda: finite(s.couple(with_ratio(s, smallest)), tiny.batch()),
        )
    yield "a value that is not a number", lambda: explained(injected(not_a_number))


def _infinite(couple: Couple) -> str | None:
    for event in couple.events:
        for name, tensor in event.after.tensors.items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                return f"{event.hook} at the {event.role} leaves {name!r} that is not finite"
    return None


def _halves(s: Subject) -> str | None:
    if decoding_problem(s.working()):
        raise Skipped("needs float32 to be decoded, see G2")
    for dtype in (torch.bfloat16, torch.float16):
        name = str(dtype).removeprefix("torch.")

        def enter(cut: Cut, dtype: torch.dtype = dtype) -> None:
            cut.activations = cut.activations.to(dtype)

        def leave(cut: Cut) -> None:
            cut.activations = cut.activations.float()  # for the server's half, in float32

        couple = s.couple(enter=enter, leave=leave)
        try:
            for step in range(2):
                couple.train(s.tiny.batch(step), step)
        except (SplitlabError, RuntimeError) as error:
            raise s.failed(
                f"with {name} activations: {decoding_problem(couple) or error}; take statistics "
                "in float32 and restore the dtype"
            ) from error
        if problem := decoding_problem(couple) or _infinite(couple):
            raise s.failed(f"with {name} activations: {problem}")
    return None


# G8, G9: everything that the other peer needs is in the frames, whatever carries them.


def _alone(s: Subject) -> str | None:
    s.repeating()
    if s.base.shared:
        raise s.failed(
            f"{', '.join(s.base.shared)} is one object for client and server and changed in "
            "training; keep what changes in the instance, made in setup, and send what the other "
            "peer needs"
        )
    where = address(s.stack, s.text)
    assert s.fresh is not None
    if isinstance(where, str):
        raise Skipped(f"no fresh peer in another process: {where}")
    ups, downs = s.base.frames[0::2], s.base.frames[1::2]
    for role, arriving, expected in (("server", ups, downs), ("client", downs, ups)):
        try:
            sent = s.fresh.replay(role, s.tiny, where, TURNS, arriving)  # type: ignore[arg-type]
        except LookupError as error:
            raise Skipped(f"no fresh peer in another process: {error}") from None
        except PluginError as error:
            raise s.failed(
                f"a fresh {role} in another process cannot go by the frames alone: {error}; put "
                "all that it needs into the message"
            ) from None
        found = difference(
            [Seen.of(thaw(raw)) for raw in expected], [Seen.of(thaw(raw)) for raw in sent]
        )
        if found:
            raise s.failed(
                f"a fresh {role} in another process answers the same frames otherwise, first in "
                f"{found}; it must go by the message alone, not by what this process remembers"
            )
    return None


def _links(s: Subject) -> str | None:
    base = s.repeating()
    tried = []
    for paired in (True, False):
        for name in entries("transports"):
            try:
                transport = load("transports", name)()
                if isinstance(transport, PairTransport) != paired or transport.unavailable():
                    continue
                with joined(name) as carry:
                    couple = s.run(s.couple(carry=carry))
            except ConfigError:
                continue  # it does not reach the CPU
            if found := difference(base.arrived, couple.arrived):
                raise s.failed(f"over {name} the run is another, first in {found}")
            tried.append(name)
            break
    if not tried:
        raise Skipped("no transport works here; `splitlab transports` says what is missing")
    return f"over {' and '.join(tried)}"


# G10: state.


def _resumes(s: Subject) -> str | None:
    couple, states = s.repeating(), s.base.states
    if isinstance(states, Exception):
        raise states
    expected = couple.arrived[2 * SAVED :]
    advice = "return it from state_dict and take it back in load_state_dict"
    if not s.traits.stateful:
        advice = f"{advice}, and declare stateful=True in traits()"
    again = s.couple()
    for role, state in states.items():
        _load(getattr(again, role), *state)
    s.run(again, TURNS[SAVED:])
    if found := difference(expected, again.arrived):
        raise s.failed(
            f"a resumed run is another, first in {found}; something that it keeps from earlier "
            f"steps is not saved: {advice}"
        )
    if s.traits.stateful:
        return "stateful"
    forgetful = s.couple()
    for role, state in states.items():
        worker = getattr(forgetful, role)
        tensors, values = (_forget(a, b) for a, b in zip(state, worker.state(), strict=True))
        _load(worker, tensors, values)
    s.run(forgetful, TURNS[SAVED:])
    if found := difference(expected, forgetful.arrived):
        raise s.failed(
            f"traits() says that it keeps no state, but a step depends on earlier ones ({found}): "
            f"{advice}"
        )
    twice = [Seen.of(again.client.forward(s.tiny.batch(), 0)) for _ in range(2)]
    if found := difference(twice[:1], twice[1:]):
        raise s.failed(
            f"traits() says that it keeps no state, but encoding one batch twice differs ({found}):"
            f" {advice}"
        )
    return "stateless"


def _load(worker: Any, tensors: dict[str, torch.Tensor], values: dict[str, Any]) -> None:
    # Clones: an optimizer goes on with the very tensors that it is given.
    worker.load_state({name: tensor.clone() for name, tensor in tensors.items()}, values)


def _forget(trained: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Return the state of the trained model with plugins as they are when new."""

    def own(key: str) -> bool:
        return json.loads(key)[0] in ("plugins", "modules")

    kept = {key: value for key, value in trained.items() if not own(key)}
    return kept | {key: value for key, value in new.items() if own(key)}


# G11: what can be read off the source and the shapes.

_UNPICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib"}
_CALLS = {"torch.load", "torch.save", "numpy.load", "np.load"}


def _declares(s: Subject) -> str | None:
    for cls in {cls for bound in s.stack for cls in inspect.getmro(bound.factory)[:-1]}:
        if found := _pickling(sys.modules.get(cls.__module__)):
            raise s.failed(
                f"its module uses {found}, which runs code from bytes; send tensors and JSON "
                "values, and keep state in state_dict"
            )
    couple = s.working()
    gone = s.traits.takes_away
    seen = [
        (aspect, hook, what)
        for output, sending in zip(
            couple.seen("client", "after_client_forward"),
            couple.seen("client", "before_send"),
            strict=True,
        )
        for aspect, hook, what in _changed(output, sending)
    ]
    for aspect, hook, what in seen:
        # Without the layout, shapes say nothing of samples, tokens and features.
        if aspect not in gone and not {"layout", "plain"} & gone:
            raise s.failed(
                f"{hook} {what}, and traits() does not say so; add {aspect!r} to changes"
            )
    if s.traits.gradient == "corrected" and not s.has("gradient_return"):
        raise s.failed(
            "traits() says gradient='corrected', but no gradient_return adds anything; declare "
            "'natural' or 'straight-through'"
        )
    return None


def _pickling(module: Any) -> str | None:
    try:
        tree = ast.parse(inspect.getsource(module))
    except (TypeError, OSError):
        return None  # no source: a notebook's cell, or compiled
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Attribute) and ast.unparse(node) in _CALLS:
            return ast.unparse(node)
        for name in names:
            if name.partition(".")[0] in _UNPICKLES:
                return name
    return None


def _changed(output: Event, sending: Event) -> Iterator[tuple[str, str, str]]:
    """Yield (aspect, hook, what happened) for what the client's hooks visibly changed."""
    X, Z = (event.tensors["activations"] for event in (output.before, output.after))
    hook = "after_client_forward"
    yield from _reshaped(X, Z, hook)
    if len(Z) == len(X) and not torch.equal(
        output.before.tensors["targets"], output.after.tensors["targets"]
    ):
        yield "targets", hook, "changes the targets"
    hook = "before_send"
    payload = sending.after.payload()
    if any(not tensor.is_floating_point() for tensor in payload.values()):
        yield "numbers", hook, "sends codes that are no floating-point numbers"
    elif [*payload] != ["activations"]:
        yield "layout", hook, f"sends {', '.join(payload) or 'nothing'} instead of 'activations'"
    else:
        yield from _reshaped(Z, payload["activations"], hook)


def _reshaped(a: torch.Tensor, b: torch.Tensor, hook: str) -> Iterator[tuple[str, str, str]]:
    aspects = ("batch", "tokens", "features") if a.ndim == b.ndim == 3 else ("layout",)
    for aspect, old, new in zip(aspects, a.shape, b.shape, strict=False):
        if old != new or a.ndim != b.ndim:
            yield aspect, hook, f"makes {[*b.shape]} of {[*a.shape]}"


PLUGIN_CHECKS: list[Check[Subject]] = [
    Check("G0", "builds and runs, keeping the contract of its hooks", _runs),
    Check("G1", "its bytes are real", _bytes),
    Check("G2", "shape, dtype and device after decoding", _shapes),
    Check("G3", "repeats itself, whatever the global random state", _repeats),
    Check("G4", "evaluation as declared", _evaluates),
    Check("G5", "gradient as declared", _gradient),
    Check("G6", "edge inputs", _edges),
    Check("G7", "bfloat16 and float16", _halves),
    Check("G8", "nothing but the frames joins the peers", _alone),
    Check("G9", "the same over every link", _links),
    Check("G10", "state: resumes bit for bit", _resumes),
    Check("G11", "no pickle, traits as declared", _declares),
]
