"""The extension points of splitlab: this file is the menu, and nothing else.

A plugin is a class whose methods, marked with ``@hookimpl``, carry the names below. One instance
lives at the client and one at the server; they share nothing but the link. A hook changes the
object that it is given; a data hook that returns something is an error. Arguments are passed by
name: take those you need, in any order, without defaults.

The path of one training step::

    CLIENT                                              SERVER
    step_begin(step)
    client part
    after_client_forward(cut)    stack order
    before_send(message)         stack order
        ─────────── ACTIVATION ───────────►  step_begin(step)
                                             after_receive(message)        reverse order
                                             before_server_forward(cut)    reverse order
                                             server part, loss, backward, optimizer step
                                             before_send(message)          stack order
        ◄─────────── GRADIENT ────────────
    after_receive(message)       reverse order
    gradient_return(cut)         reverse order
    client part's backward, optimizer step
    step_end(step)                           step_end(step)

An evaluation batch takes the same way with ``training`` False; a PREDICTION comes back, which
passes ``before_send`` and ``after_receive`` too.

A method whose decoder is differentiable encodes in ``after_client_forward`` and decodes in
``before_server_forward``: autograd then yields a gradient of the size that was sent. Any other
method encodes in ``before_send`` and decodes in ``after_receive``, in both directions.

A step that a hook is given, as ``step``, ``cut.step`` or ``message.step``, counts from 0, and so do
the draws that are seeded with it; logs and error messages count from 1: step 0 is logged as step 1.

``message.meta`` may be read: a GRADIENT has ``"loss"``, the mean task loss of a batch, a PREDICTION
``"loss_sum"``. ``cut.add_loss`` adds a loss to a peer's backward pass. `Peer` tells how long
the run is to last; a server of ``splitlab serve`` knows it behind ``setup``, at the first step.

No hook should make its peer wait for a GPU: tell what must hold with ``cut.expect`` and
``message.expect``, and see `splitlab.core.contract.transfer`.

torch's global random generator is seeded for every plugin in ``setup`` and in the three hooks that
take a cut, so that modules and dropout repeat themselves; anywhere else, and for draws that both
peers must share, take ``peer.generator``.

A probe is such a class, too, but it watches and changes nothing. A data hook of a probe with
``@hookimpl(wrapper=True)`` and one ``yield`` stands around the whole stack; ``plugin_ran`` hears of
every single call; ``metrics`` returns numbers for the log, ``report`` may draw into the run folder.
``cut.images``, ``cut.provenance`` and `Peer.compare` are there for it. Users name it with
``--probe``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pluggy

if TYPE_CHECKING:
    from splitlab.core.contract.cut import Cut
    from splitlab.core.contract.message import Message
    from splitlab.core.contract.peer import Peer
    from splitlab.core.contract.traits import Traits

__all__ = ["DATA_HOOKS", "HookSpecs", "hookimpl"]

hookspec = pluggy.HookspecMarker("splitlab")
hookimpl = pluggy.HookimplMarker("splitlab")
"""Marks a method of a plugin as the implementation of the hook of the same name."""


class HookSpecs:
    """All hooks. Every implementation is optional."""

    # Data hooks, in the order of one step.

    @hookspec
    def after_client_forward(self, cut: Cut) -> None:
        """Client, after its part ran, on the autograd graph, in stack order.

        May replace ``cut.activations`` by any differentiable function of it, and set
        ``cut.targets``, ``cut.measured`` and ``cut.side``; may add losses (`Cut.add_loss`). Not
        called in an uncompressed evaluation.
        """

    @hookspec
    def before_send(self, message: Message) -> None:
        """Sender, in both directions, on detached tensors, in stack order.

        May replace, add and remove tensors, and leave notes. ``message.kind`` tells the direction:
        ACTIVATION goes up, GRADIENT and PREDICTION come down. HELLO, CONTROL and ERROR do not pass.
        """

    @hookspec
    def after_receive(self, message: Message) -> None:
        """Receiver, in both directions, on detached tensors, in reverse stack order.

        Undoes what ``before_send`` of the same plugin did at the other peer. All that it needs is
        in the message.
        """

    @hookspec
    def before_server_forward(self, cut: Cut) -> None:
        """Server, before its part runs, on the autograd graph, in reverse stack order.

        ``cut.activations`` is the leaf whose gradient will be sent back. May replace it by any
        differentiable function of it, and set ``cut.targets``, ``cut.weights`` and
        ``cut.token_sizes``; may add losses (`Cut.add_loss`).
        """

    @hookspec
    def gradient_return(self, cut: Cut) -> None:
        """Client, in training, just before its backward pass, in reverse stack order.

        May replace ``cut.gradient``; its shape must stay that of ``cut.activations``. May add
        losses (`Cut.add_loss`).
        """

    # Lifecycle hooks, in stack order.

    @hookspec
    def setup(self, peer: Peer) -> None:
        """Both peers, once, before the first step and before state is loaded.

        The place to check the parameters against model and batch size (raise ``ConfigError``), to
        ask for measurements (`Peer.request`), to register modules whose parameters are trained,
        and to keep ``peer``, which gives random generators from the agreed seed.
        """

    @hookspec
    def step_begin(self, step: int) -> None:
        """Both peers, at the beginning of every training step; the first one is 0.

        At the client before its part runs, at the server when the step's message has arrived. Where
        a setting changes in mid-run, as in ``ratio=0.4..0.1``, each value has an instance of its
        own, which hears of its own steps alone: prepare in ``setup``, not in step 0.
        """

    @hookspec
    def step_end(self, step: int) -> None:
        """Both peers, after every training step; the first one is 0."""

    @hookspec
    def run_end(self) -> None:
        """Both peers, once, when the run has ended or failed."""

    @hookspec
    def state_dict(self) -> Mapping[str, Any]:  # type: ignore[empty-body]
        """Both peers, at a checkpoint: tensors and JSON values that a resumed run needs."""

    @hookspec
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Both peers, on resume, after ``setup``: what ``state_dict`` returned."""

    # What a plugin says of itself.

    @hookspec
    def nominal_ratio(self, step: int | None) -> tuple[float, float]:  # type: ignore[empty-body]
        """Return the ratios (up, down) in (0, 1] that a paper would report; stacks multiply them.

        Shown beside the measured ratio, and charged by the budget ``nominal=``. Without it: (1, 1).

        Asked after ``setup``, with ``step`` None: what most steps are charged. A method whose ratio
        changes takes ``step``; it is then asked at the client behind every training step, with the
        number of that step, and what it answers is charged for it. Others leave the argument out.
        """

    @hookspec
    def traits(self) -> Traits:  # type: ignore[empty-body]
        """Return what the plugin needs and changes; asked before ``setup``, must not need it.

        A stack whose plugins cannot work together is refused by it. Without it: needs and changes
        nothing, keeps no state, leaves evaluation alone.
        """

    @hookspec
    def metrics(self, step: int) -> Mapping[str, float]:  # type: ignore[empty-body]
        """Plugins and probes, after every training step: return numbers by name, or none at all.

        They are logged as those of ``step + 1``, since logs count from 1, under the plugin's or the
        probe's name: the client's in ``metrics.jsonl``, the server's in ``server-metrics.jsonl``.
        """

    # What only a probe implements.

    @hookspec
    def plugin_ran(self, label: str, hook: str, subject: Cut | Message, nanoseconds: int) -> None:
        """Probes only: a plugin's data hook has just run, on this cut or message."""

    @hookspec
    def report(self, folder: Path) -> str | None:
        """Probes only, when a run has come to its end: write files into this folder of its own.

        It is ``RUN/probes/NAME`` at the client and ``RUN/probes/NAME-server`` at the server; it
        exists already. `splitlab.core.picture` draws into it, in the style of reports.

        Numbers by name that it writes there as JSON, into ``numbers.json``, are columns in tables
        of reports and studies; one called ``"NAME by chance"`` stands in brackets behind NAME.

        May return a line for the user, such as why there was nothing to see. It is shown when the
        run has ended, and kept in ``said.txt`` there.
        """


DATA_HOOKS = (
    "after_client_forward",
    "before_send",
    "after_receive",
    "before_server_forward",
    "gradient_return",
)
"""The hooks that change what crosses the link, in the order of one step."""
