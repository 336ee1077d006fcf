"""A plugin of a stack whose settings change while the run goes on, as in ``ratio=0.4..0.1``.

Each piece of the run has an instance of its own: what one of them learned or remembers is not the
next one's. All of them are set up before the first step, so that every value is checked, and the
optimizer knows all modules, whose first weights are the same draws in every piece.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from splitlab.core.contract.cut import Cut
from splitlab.core.contract.message import Message
from splitlab.core.contract.peer import Peer
from splitlab.core.contract.settings import Bound
from splitlab.core.contract.traits import Declared, Traits
from splitlab.core.engine.member import Member

__all__ = ["PiecewiseMember", "built", "nominal_ratio"]


def built(label: str, bound: Bound) -> Member:
    """Build a plugin of a stack, in as many instances as its settings have values."""
    members = [Member(label, bound.piece(i).build()) for i in range(bound.pieces)]
    return PiecewiseMember(members) if len(members) > 1 else members[0]


def nominal_ratio(members: Sequence[Member], step: int | None) -> tuple[float, float]:
    """Return a stack's nominal ratios (up, down): of a step, or as the mean over the run."""
    if step is not None:
        return _product([member.nominal_ratio(step) for member in members])
    parts = math.lcm(*(member.pieces for member in members))
    ratios = [_product([m.usual_ratio(i, parts) for m in members]) for i in range(parts)]
    return sum(up for up, _ in ratios) / parts, sum(down for _, down in ratios) / parts


def _product(ratios: Sequence[tuple[float, float]]) -> tuple[float, float]:
    return math.prod(up for up, _ in ratios), math.prod(down for _, down in ratios)


class PiecewiseMember(Member):
    """One plugin of a stack, as another instance in every piece of the run.

    The pieces are equal shares of the steps that the run is expected to last; what comes behind
    them belongs to the last one. Evaluations belong to the piece of the last step that began.

    Args:
        members: the plugin in every piece, two or more, all of one label.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.pieces = len(members)
        self._members = members
        self._now = 0
        super().__init__(members[0].label, members[0].plugin)
        self.declared = _together([member.declared for member in members])

    def setup(self, peer: Peer) -> None:
        """Tell every instance where it lives."""
        self._peer = peer
        peer.pieces.add(self.pieces)
        for member in self._members:
            member.setup(peer)

    def work(self, hook: str, subject: Cut | Message) -> None:
        """Call a data hook of the piece that is."""
        self._members[self._now].work(hook, subject)

    def ask(self, hook: str, **arguments: Any) -> Any:
        """Call a hook of the piece that is, or of all pieces where it is about the whole run."""
        if hook == "step_begin":
            self._now = self._piece(arguments["step"])
        if hook == "run_end":
            for member in self._members:
                member.ask(hook)
            return None
        if hook == "state_dict":
            states = {str(i): member.ask(hook) for i, member in enumerate(self._members)}
            return {"now": self._now} | {i: own for i, own in states.items() if own is not None}
        if hook == "load_state_dict":
            return self._load(arguments["state"])
        return self._members[self._now].ask(hook, **arguments)

    @property
    def charges_by_step(self) -> bool:
        """True: its pieces may be charged otherwise."""
        return True

    @property
    def foreseen(self) -> bool:
        """Whether the nominal ratio of every step is known beforehand."""
        return all(member.foreseen for member in self._members)

    def usual_ratio(self, part: int, parts: int) -> tuple[float, float]:
        """Return the nominal ratios of most steps of this part of a run, the first one being 0."""
        return self._members[part * self.pieces // parts].nominal_ratio()

    def nominal_ratio(self, step: int | None = None) -> tuple[float, float]:
        """Return the nominal ratios (up, down) of a step that is done."""
        piece = self._now if step is None else self._piece(step)
        return self._members[piece].nominal_ratio(step)

    def _piece(self, step: int) -> int:
        assert self._peer is not None
        return self._peer.piece(step, self.pieces)

    def _load(self, state: Mapping[str, Any]) -> None:
        self._now = int(state["now"])
        for i, member in enumerate(self._members):
            if str(i) in state:
                member.ask("load_state_dict", state=state[str(i)])


def _together(pieces: Sequence[Declared]) -> Declared:
    """Return what holds of a stack's member in at least one of its pieces."""
    first, traits = pieces[0], [piece.traits for piece in pieces]
    return Declared(
        first.label,
        Traits(
            needs=frozenset().union(*(each.needs for each in traits)),
            changes=frozenset().union(*(each.changes for each in traits)),
            evaluation=any(each.evaluation for each in traits),
            stateful=any(each.stateful for each in traits),
            once=any(each.once for each in traits),
            last=any(each.last for each in traits),
            gradient=max((each.gradient for each in traits), key=_FARTHEST.index),
            waits=next((each.waits for each in traits if each.waits), ""),
        ),
        on_graph=first.on_graph,
        on_message=first.on_message,
    )


_FARTHEST = ("natural", "straight-through", "corrected")
"""How gradients are treated, farthest from the exact one last."""
