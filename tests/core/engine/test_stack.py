"""A stack of plugins: labels, order, states, ratios and blame."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from splitlab.core import (
    ConfigError,
    Cut,
    Kind,
    Message,
    PluginError,
    Traits,
    hookimpl,
)
from splitlab.core.contract.hooks import DATA_HOOKS, HookSpecs
from splitlab.core.engine.conversation import hold
from splitlab.core.engine.stack import Stack

HOOKS = [name for name in vars(HookSpecs) if not name.startswith("_")]


class Scales:
    """Multiplies on the way there and divides on the way back."""

    def __init__(self, *, by: float = 2.0, log: list[float] | None = None) -> None:
        self.by = by
        self.log = [] if log is None else log

    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        self.log.append(self.by)
        cut.activations = cut.activations + self.by

    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        self.log.append(self.by)
        cut.activations = cut.activations * self.by

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 1 / self.by, 0.5

    @hookimpl
    def traits(self) -> Traits:
        return Traits(evaluation=self.by > 3)

    @hookimpl
    def state_dict(self) -> dict[str, Any]:
        return {"by": self.by}

    @hookimpl
    def load_state_dict(self, state: Any) -> None:
        self.by = state["by"]


def cut() -> Cut:
    targets = torch.zeros(2, dtype=torch.int64)
    return Cut(activations=torch.ones(2, 3, 4), targets=targets, step=0, training=True)


def test_an_empty_stack_does_nothing_and_says_so(tiny: Any) -> None:
    stack = Stack([])
    before = cut()
    stack.setup(tiny.peer())
    stack.after_client_forward(before)
    stack.step_end(0)
    stack.run_end()
    assert torch.equal(before.activations, cut().activations)
    assert stack.nominal_ratio() == (1, 1)
    assert stack.acts_in_evaluation() is False
    assert stack.state_dict() == {}


def test_encoding_is_in_stack_order_and_decoding_in_reverse(tiny: Any) -> None:
    log: list[float] = []
    stack = Stack([tiny.bound(Scales, by=by, log=log) for by in (2.0, 3.0, 5.0)])
    stack.after_client_forward(cut())
    assert log == [2.0, 3.0, 5.0]
    log.clear()
    stack.before_server_forward(cut())
    assert log == [5.0, 3.0, 2.0]


def test_nominal_ratios_multiply_and_one_that_acts_in_evaluation_is_enough(tiny: Any) -> None:
    class Silent:
        @hookimpl
        def run_end(self) -> None: ...

    stack = Stack([tiny.bound(Scales, by=2.0), tiny.bound(Silent), tiny.bound(Scales, by=4.0)])
    assert stack.nominal_ratio() == (1 / 8, 1 / 4)
    assert stack.acts_in_evaluation() is True
    assert Stack([tiny.bound(Scales, by=2.0)]).acts_in_evaluation() is False


@pytest.mark.parametrize("answer", [(0.0, 0.5), (0.5, 1.01), (float("nan"), 1.0), (-0.1, 0.2)])
def test_a_nominal_ratio_is_a_share(tiny: Any, answer: Any) -> None:
    class Boasts:
        @hookimpl
        def nominal_ratio(self) -> Any:
            return answer

    with pytest.raises(PluginError, match=r"'boasts' failed in nominal_ratio: .* at most 1"):
        Stack([tiny.bound(Boasts)]).nominal_ratio()


class Counts:
    """Has a number for every step: how many times it was asked."""

    def __init__(self) -> None:
        self.asked = 0

    @hookimpl
    def metrics(self) -> dict[str, float]:
        self.asked += 1
        return {"asked": self.asked}


def test_a_probe_called_like_a_plugin_does_not_hide_its_numbers(tiny: Any) -> None:
    stack = Stack([tiny.bound(Counts)], probes=[tiny.bound(Counts), tiny.bound(Counts)])
    stack.metrics(0)
    assert stack.metrics(1) == {
        "counts": {"asked": 2.0},
        "counts#2": {"asked": 2.0},
        "counts#3": {"asked": 2.0},
    }


@pytest.mark.parametrize("answer", ["high", {"a": "1"}, {1: 1.0}, {"a": True}])
def test_metrics_are_numbers_by_name(tiny: Any, answer: Any) -> None:
    class Says:
        @hookimpl
        def metrics(self) -> Any:
            return answer

    with pytest.raises(PluginError, match=r"probe 'says' failed in metrics: .*by name"):
        Stack([], probes=[tiny.bound(Says)]).metrics(0)


@pytest.mark.parametrize("answer", [0.5, (0.5,), ("a", "b"), None])
def test_a_nominal_ratio_is_two_numbers(tiny: Any, answer: Any) -> None:
    class Odd:
        @hookimpl
        def nominal_ratio(self) -> Any:
            return answer

    stack = Stack([tiny.bound(Odd)])
    if answer is None:  # pluggy leaves it out, as if the plugin had none
        assert stack.nominal_ratio() == (1, 1)
        return
    with pytest.raises(
        PluginError, match="'odd' failed in nominal_ratio: it must return two numbers"
    ):
        stack.nominal_ratio()


def test_properties_are_not_read_before_setup(tiny: Any) -> None:
    class Late:
        @hookimpl
        def setup(self, peer: Any) -> None:
            self._peer = peer

        @property
        def batch(self) -> int:
            return self._peer.batch_size  # type: ignore[no-any-return]

        @functools.cached_property
        def width(self) -> int:
            return self._peer.width  # type: ignore[no-any-return]

        @hookimpl
        def nominal_ratio(self) -> tuple[float, float]:
            return 1 / self.batch, 1 / self.width

    stack = Stack([tiny.bound(Late)], observers=[Late()])
    stack.setup(tiny.peer(batch_size=4, width=16))
    assert stack.nominal_ratio() == (1 / 4, 1 / 16)


def test_states_are_kept_by_label_and_given_back_to_their_owner(tiny: Any) -> None:
    class Stateless:
        @hookimpl
        def setup(self, peer: Any) -> None: ...

    def stack(*by: float) -> Stack:
        first, second = (tiny.bound(Scales, by=value) for value in by)
        return Stack([first, tiny.bound(Stateless), second])

    states = stack(2.0, 3.0).state_dict()
    assert states == {"scales": {"by": 2.0}, "scales#2": {"by": 3.0}}
    other = stack(7.0, 9.0)
    other.load_state_dict(states)
    assert other.state_dict() == states


def test_equal_labels_are_numbered(tiny: Any) -> None:
    class Twin:
        @hookimpl
        def run_end(self) -> None: ...

    stack = Stack([tiny.bound(Twin, "a"), tiny.bound(Twin, "b")] + [tiny.bound(Twin, "a")] * 2)
    assert list(stack.traits()) == ["a", "b", "a#2", "a#3"]


@pytest.mark.parametrize("hook", ["after_client_forwrd", "send", "before_send_"])
def test_an_unknown_hook_is_refused(tiny: Any, hook: str) -> None:
    plugin = type("Mine", (), {hook: hookimpl(lambda self: None)})
    with pytest.raises(
        PluginError, match=f"plugin 'mine': unknown hook {hook!r}.*known: .*; see docs/hooks.md"
    ) as caught:
        Stack([tiny.bound(plugin)])
    assert "\n" not in str(caught.value)


def test_an_unknown_argument_is_refused(tiny: Any) -> None:
    class Mine:
        @hookimpl
        def after_client_forward(self, cut: Cut, batch: Any) -> None: ...

    said = "plugin 'mine': hook 'after_client_forward': unknown argument 'batch'; known: cut; see"
    with pytest.raises(PluginError, match=said):
        Stack([tiny.bound(Mine)])


@pytest.mark.parametrize("hook", DATA_HOOKS)
def test_a_data_hook_of_a_probe_is_a_wrapper(tiny: Any, hook: str) -> None:
    plain = type("Plain", (), {hook: hookimpl(lambda self: None)})
    said = f"^probe 'plain': data hook '{hook}' of a probe must be a wrapper; .*wrapper=True"
    with pytest.raises(PluginError, match=said):
        Stack([], probes=[tiny.bound(plain)])
    Stack([tiny.bound(plain)])


def test_a_wrapper_yields_and_nothing_else_does(tiny: Any) -> None:
    class Forgets:
        @hookimpl(wrapper=True)
        def step_end(self) -> None: ...

    class Yields:
        @hookimpl
        def setup(self) -> Any:
            yield

    with pytest.raises(PluginError, match=r"^probe 'forgets': hook 'step_end' is .* has no yield"):
        Stack([], probes=[tiny.bound(Forgets)])
    with pytest.raises(PluginError, match=r"^plugin 'yields': hook 'setup' has a yield and is no "):
        Stack([tiny.bound(Yields)])


def test_errors_that_blame_already_keep_their_kind(tiny: Any) -> None:
    class Refuses:
        @hookimpl
        def setup(self, peer: Any) -> None:
            raise ConfigError("ratio=9 is refused")

    with pytest.raises(ConfigError, match=r"^ratio=9 is refused$"):
        Stack([tiny.bound(Refuses)]).setup(tiny.peer())


def test_blame_finds_the_plugin_behind_decorators_helpers_and_observers(tiny: Any) -> None:
    class Watches:
        @hookimpl(wrapper=True)
        def before_send(self, message: Any) -> Any:
            return (yield)

    class Innocent:
        @hookimpl
        @torch.no_grad()
        def before_send(self, message: Any) -> None: ...

    class Guilty(Innocent):
        @hookimpl
        @torch.no_grad()
        def before_send(self, message: Any) -> None:
            _helper()

    def _helper() -> None:
        raise KeyError("x")

    stack = Stack(
        [tiny.bound(Innocent), tiny.bound(Guilty), tiny.bound(Innocent)], observers=[Watches()]
    )
    with pytest.raises(
        PluginError,
        match=r"^plugin 'guilty' failed in before_send: KeyError: 'x' \(test_stack.py:\d+\)$",
    ):
        stack.before_send(None)  # type: ignore[arg-type]


def test_an_observer_that_raises_is_blamed_itself(tiny: Any) -> None:
    class Broken:
        @hookimpl(wrapper=True)
        def before_send(self, message: Any) -> Any:
            yield
            raise OSError("disk full")

    with pytest.raises(
        PluginError,
        match=r"observer Broken@0 failed in before_send: OSError: disk full \(test_stack.py:\d+\)$",
    ):
        Stack([tiny.bound(Scales)], observers=[Broken()]).before_send(None)  # type: ignore[arg-type]


def test_every_hook_of_the_menu_says_where_it_runs() -> None:
    for name in HOOKS:
        text = getattr(HookSpecs, name).__doc__
        assert text, name
        assert any(
            w in text
            for w in (
                "Client",
                "Server",
                "Sender",
                "Receiver",
                "Both",
                "Return",
                "Probes only",
                "Plugins and probes",
            )
        )


# What a plugin's author gets wrong.


def lone(tiny: Any, hook: str, function: Any) -> Stack:
    plugin = type("Mine", (), {hook: hookimpl(function)})
    stack = Stack([tiny.bound(Scales), tiny.bound(plugin)])
    stack.setup(tiny.peer())
    return stack


def returns(self: Any, cut: Cut) -> torch.Tensor:
    return cut.activations / 2


def detaches(self: Any, cut: Cut) -> None:
    cut.activations = cut.activations.detach()


def rounds(self: Any, cut: Cut) -> None:
    cut.activations = cut.activations.detach().to(torch.int8)


def shortens(self: Any, cut: Cut) -> None:
    cut.gradient = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("hook", "function", "words"),
    [
        ("after_client_forward", returns, r"it returned a Tensor; .* cut.activations = …"),
        ("after_client_forward", detaches, "cuts cut.activations off the autograd graph"),
        ("after_client_forward", rounds, "torch.int8, which has no gradient; .* in before_send"),
        ("gradient_return", shortens, r"shape from \[2, 3, 4\] to \[2, 3\]; it must stay"),
    ],
)
def test_a_cut_hook_that_does_wrong_is_named(
    tiny: Any, hook: str, function: Any, words: str
) -> None:
    stack = lone(tiny, hook, function)
    batch = cut()
    batch.activations.requires_grad_()
    batch.gradient = torch.ones(2, 3, 4)
    with pytest.raises(
        PluginError, match=rf"^plugin 'mine' failed in {hook} \(step 1\): .*{words}"
    ):
        getattr(stack, hook)(batch)


@pytest.mark.parametrize("draw", [random.random, np.random.rand, lambda: torch.rand(1)])
def test_draws_from_global_random_state_are_refused_in_message_hooks(tiny: Any, draw: Any) -> None:
    def before_send(self: Any, message: Message) -> None:
        draw()

    state = torch.get_rng_state(), random.getstate(), np.random.get_state()
    stack = lone(tiny, "before_send", before_send)
    with pytest.raises(PluginError, match=r"'mine' failed in before_send .*peer.generator"):
        stack.before_send(Message(Kind.ACTIVATION))
    torch.set_rng_state(state[0])
    random.setstate(state[1])
    np.random.set_state(state[2])


def test_torch_is_seeded_for_every_plugin_alone_in_hooks_that_take_a_cut(tiny: Any) -> None:
    drawn: list[float] = []

    def draws(self: Any, cut: Cut) -> None:
        drawn.append(torch.rand(1).item())

    before = torch.get_rng_state()
    for _ in range(2):
        lone(tiny, "after_client_forward", draws).after_client_forward(cut())
    assert torch.equal(before, torch.get_rng_state())
    twins = [tiny.bound(type("A", (), {"after_client_forward": hookimpl(draws)}), n) for n in "ab"]
    stack = Stack(twins)
    stack.setup(tiny.peer())
    stack.after_client_forward(cut())
    same, again, a, b = drawn
    assert same == again
    assert len({same, a, b}) == 3


def test_a_hook_without_its_mark_is_refused(tiny: Any) -> None:
    class Mine:
        def before_send(self, message: Any) -> None: ...

    with pytest.raises(PluginError, match=r"plugin 'mine': its method 'before_send' .*@hookimpl"):
        Stack([tiny.bound(Mine)])


def test_a_hook_argument_with_a_default_is_refused(tiny: Any) -> None:
    class Mine:
        @hookimpl
        def before_send(self, message: Any = None) -> None: ...

    with pytest.raises(
        PluginError, match=r"'mine': argument 'message' of hook 'before_send' has a"
    ):
        Stack([tiny.bound(Mine)])


@pytest.mark.parametrize("answer", [1, {"needs": []}])
def test_traits_are_traits(tiny: Any, answer: Any) -> None:
    class Mine:
        @hookimpl
        def traits(self) -> Any:
            return answer

    with pytest.raises(PluginError, match="'mine' failed in traits: it must return Traits"):
        Stack([tiny.bound(Mine)])


def test_a_stack_that_cannot_work_is_refused_when_it_is_made(tiny: Any) -> None:
    class Codes:
        @hookimpl
        def traits(self) -> Traits:
            return Traits(needs={"numbers"}, changes={"numbers"})

    with pytest.raises(ConfigError, match=r"the stack codes \+ codes#2 cannot work"):
        Stack([tiny.bound(Codes)] * 2)


def test_observers_hear_of_every_plugin(tiny: Any) -> None:
    heard: list[tuple[str, str, float]] = []

    class Listens:
        @hookimpl
        def plugin_ran(self, label: str, hook: str, subject: Any, nanoseconds: int) -> None:
            assert nanoseconds > 0
            heard.append((label, hook, subject.activations.mean().item()))

    stack = Stack([tiny.bound(Scales, by=2.0), tiny.bound(Scales, by=3.0)], observers=[Listens()])
    batch = cut()
    stack.after_client_forward(batch)
    stack.before_server_forward(batch)
    there, back = "after_client_forward", "before_server_forward"
    assert heard == [
        ("scales", there, 3.0),
        ("scales#2", there, 6.0),
        ("scales#2", back, 18.0),
        ("scales", back, 36.0),
    ]


def test_who_encodes_and_never_decodes_is_suspect(tiny: Any) -> None:
    class Half:
        @hookimpl
        def before_send(self, message: Any) -> None: ...

    assert Stack([tiny.bound(Scales), tiny.bound(Half)]).one_sided() == ["half"]


# The order of a whole step, at both peers.


class Observer:
    """Notes when the data hooks of a stack begin and end."""

    def __init__(self, log: list[str]) -> None:
        self.log = log

    @hookimpl(wrapper=True)
    def after_client_forward(self, cut: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")

    @hookimpl(wrapper=True)
    def before_send(self, message: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")

    @hookimpl(wrapper=True)
    def after_receive(self, message: Any) -> Any:
        self.log.append("[")
        yield
        self.log.append("]")


def expand(*stages: str) -> list[str]:
    """Turn ``"client hook abc"`` into an entry for each of a, b, c."""
    return [f"{at} {hook} {name}" for at, hook, names in map(str.split, stages) for name in names]


def test_encoding_hooks_run_in_stack_order_and_decoding_hooks_in_reverse(
    tiny: Any, peers: Any
) -> None:
    log: list[str] = []
    client, server = tiny.pair(peers.recorders(log))
    assert log == expand("client setup abc", "server setup abc")
    log.clear()
    tiny.train(client, server, [0])
    assert log == expand(
        "client after_client_forward abc",
        "client before_send:ACTIVATION abc",
        "server after_receive:ACTIVATION cba",
        "server before_server_forward cba",
        "server step_end abc",
        "server before_send:GRADIENT abc",
        "client after_receive:GRADIENT cba",
        "client gradient_return cba",
        "client step_end abc",
    )


class Begins:
    """A plugin that notes when a step begins, and the first thing behind that."""

    def __init__(self, *, log: list[str]) -> None:
        self.log = log

    @hookimpl
    def setup(self, peer: Any) -> None:
        self.role = peer.role

    @hookimpl
    def step_begin(self, step: int) -> None:
        self.log.append(f"{self.role} begins {step}")

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        self.log.append("client part")

    @hookimpl
    def after_receive(self, message: Any) -> None:
        self.log.append(f"{self.role} has {message.kind.name}")


def test_a_step_begins_before_the_clients_part_and_before_the_server_decodes(
    tiny: Any, peers: Any
) -> None:
    log: list[str] = []
    client, server = tiny.pair([tiny.bound(Begins, log=log)])
    hold(client.query(tiny.batch(), 0, stacked=True), peers.ask(server))
    assert not [line for line in log if "begins" in line]
    log.clear()
    tiny.train(client, server, [0, 1])
    step = ["client part", "server has ACTIVATION", "client has GRADIENT"]
    assert log == [
        *("client begins 0", step[0], "server begins 0", *step[1:]),
        *("client begins 1", step[0], "server begins 1", *step[1:]),
    ]


def test_an_evaluation_passes_the_data_hooks_only(tiny: Any, peers: Any) -> None:
    log: list[str] = []
    client, server = tiny.pair(peers.recorders(log))
    log.clear()
    hold(client.query(tiny.batch(), 0, stacked=True), peers.ask(server))
    assert log == expand(
        "client after_client_forward abc",
        "client before_send:ACTIVATION abc",
        "server after_receive:ACTIVATION cba",
        "server before_server_forward cba",
        "server before_send:PREDICTION abc",
        "client after_receive:PREDICTION cba",
    )


@pytest.mark.parametrize("plugin", ["Recorder", "Nesting"])
def test_observers_are_outermost(tiny: Any, peers: Any, plugin: str) -> None:
    log: list[str] = []
    stack = [peers.recorder(plugin, name=name, log=log) for name in "ab"]
    client = tiny.client(stack, observers=[Observer(log)])
    server = tiny.server(stack)
    log.clear()
    arrived = tiny.travel(next(client.train(tiny.batch(), 0)))
    assert log[0] == log[4] == "["
    assert log[3] == log[-1] == "]"
    answer = tiny.travel(server.handle(arrived))
    log.clear()
    client.stack.after_receive(answer)
    assert (log[0], log[-1]) == ("[", "]")
    assert len(log) > 2


# What probes say in the end.


class Says:
    def __init__(self, *, line: str | None = None, writes: bool = False) -> None:
        self._line, self._writes = line, writes

    @hookimpl
    def report(self, folder: Path) -> str | None:
        if self._writes:
            (folder / "numbers.csv").write_text("1\n")
        return self._line


def test_what_a_probe_says_is_returned_and_kept_and_no_empty_folder_is_left(
    tiny: Any, tmp_path: Path
) -> None:
    probes = [
        tiny.bound(Says, "told", line="nothing to see"),
        tiny.bound(Says, "mute"),
        tiny.bound(Says, "wrote", writes=True),
    ]
    assert Stack([], probes).report(tmp_path) == {"told": "nothing to see"}
    assert (tmp_path / "told" / "said.txt").read_text() == "nothing to see\n"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["told", "wrote"]
