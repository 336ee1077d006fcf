"""A plugin whose steps wait for a GPU is told where, or says why."""

from __future__ import annotations

import dataclasses
import re
import warnings
from typing import Any

import pytest
import torch

from splitlab.core import Traits, hookimpl
from splitlab.core.catalogue.binding import bind_stack
from splitlab.core.catalogue.tables import entries
from splitlab.core.contract.transfer import at_hand
from splitlab.core.runs.config import Config
from splitlab.core.runs.repeating import repeating
from splitlab.core.testing import check_plugin
from splitlab.core.testing.subject import TINY, Subject
from splitlab.core.testing.waiting_checks import waits_of_steps, wants_no_wait

ONLY = ["steps-do-not-wait"]


class Scales:
    """Divides by the largest number, which the host looks up."""

    waits = ""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        peak = cut.activations.detach().abs().max()
        cut.activations = cut.activations / peak.item()
        cut.side["peak"] = peak.view(1)

    @hookimpl
    def before_server_forward(self, cut: Any) -> None:
        cut.activations = cut.activations * cut.side["peak"]

    @hookimpl
    def traits(self) -> Traits:
        return Traits(needs={"numbers"}, changes={"layout"}, waits=self.waits)


class Says(Scales):
    """Says so."""

    waits = "the largest number decides"


class Guesses(Scales):
    """Does something else where it cannot look."""

    @hookimpl
    def after_client_forward(self, cut: Any) -> None:
        peak = cut.activations.detach().abs().max()
        if at_hand(peak):
            peak = peak * 2
        cut.activations = cut.activations / peak
        cut.side["peak"] = peak.view(1)


def test_a_plugin_that_waits_is_told_where_and_what_to_do() -> None:
    line = Scales.after_client_forward.__code__.co_firstlineno + 3
    [row] = check_plugin(Scales, only=ONLY).rows
    assert row.outcome == "failed"
    assert row.reason.startswith(
        f"plugin 'Scales': test_waiting_checks.py:{line} calls local_scalar_dense, which waits"
    )
    assert "waits='…'" in row.reason


def test_every_place_that_waits_is_told_at_once() -> None:
    class Twice(Scales):
        @hookimpl
        def after_client_forward(self, cut: Any) -> None:
            peak = cut.activations.detach().abs().max()
            if peak > 0:
                peak.item()
            cut.activations = cut.activations / peak
            cut.side["peak"] = peak.view(1)

    line = Twice.after_client_forward.__code__.co_firstlineno + 3
    [row] = check_plugin(Twice, only=ONLY).rows
    assert f"test_waiting_checks.py:{line} calls local_scalar_dense, which waits" in row.reason
    assert f"; so do test_waiting_checks.py:{line + 1} (local_scalar_dense)" in row.reason


def test_one_that_says_why_passes_and_is_quoted() -> None:
    [row] = check_plugin(Says, only=ONLY).rows
    assert (row.outcome, row.reason) == (
        "passed",
        "it waits, as it says: the largest number decides",
    )


def test_what_is_left_out_where_nothing_is_at_hand_must_not_matter() -> None:
    [row] = check_plugin(Guesses, only=ONLY).rows
    assert row.outcome == "failed"
    assert "ACTIVATION of step 1: tensor 'activations'" in row.reason


def test_a_plugin_that_says_so_in_vain_is_odd() -> None:
    class Idle:
        @hookimpl
        def traits(self) -> Traits:
            return Traits(waits="it might")

    [row] = check_plugin(Idle, only=ONLY).rows
    assert (row.outcome, row.reason) == (
        "warning",
        "it says that it waits (it might), and did not here",
    )


# Settings whose steps go other ways than the defaults, which the conformance of all plugins covers.
WAYS = [
    "adc-batch-merge:criterion=class_label",
    "adc-batch-merge:criterion=random",
    "adc:criterion=avg_token,tol_mode=relative,loss_weight=size",
    "adc:score_layer=rollout,heads=max",
    "c3sl:standardize=true",
    "cast:dtype=fp8_e4m3",
    "evit:fuse=none",
    "fft-lowpass:ratio=0.2,block=mirrored",
    "powersgd:error_feedback=true",
    "powersgd:center=true",
    "powersgd:gradient=natural",
    "quantize:per=group",
    "randtopk:mode=binomial,scope=token",
    "topk:rate=0.6,keep_cls=true",
    "adc + quantize",
]


@pytest.mark.parametrize("text", WAYS)
def test_other_settings_do_not_wait_either(text: str) -> None:
    s = Subject(bind_stack(text.split(" + ")), text, TINY, None)
    assert [str(wait) for wait in waits_of_steps(s)] == []


def test_what_torch_says_of_its_way_to_refuse_leaves_nothing_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    modes: list[str] = []
    repeats: list[bool] = []

    def set_mode(mode: str) -> None:
        modes.append(mode)  # as torch: first the mode, then the warning
        if mode == "error":
            warnings.warn("Synchronization debug mode is …", UserWarning, stacklevel=1)

    def trains(*step: object) -> None:
        repeats.append(torch.are_deterministic_algorithms_enabled())
        if modes == ["error"]:
            raise RuntimeError("it waits")

    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", set_mode)
    monkeypatch.setattr("splitlab.core.testing.waiting_checks._train", trains)
    with repeating(Config(device="cuda", deterministic=True)):
        with pytest.raises(RuntimeError, match="it waits"):
            wants_no_wait(Subject([], "none", TINY, None), torch.device("cpu"))
        assert torch.are_deterministic_algorithms_enabled()
    assert modes == ["error", "default"]
    assert repeats == [True, False]  # torch's own way to repeat itself waits


def test_who_waits_is_looked_for_on_the_cpu_wherever_the_plugin_is_checked() -> None:
    elsewhere = dataclasses.replace(TINY, device="meta")
    s = Subject([TINY.bound(Scales)], "scales", elsewhere, None)
    assert [wait.call for wait in waits_of_steps(s)] == ["local_scalar_dense"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("text", [*entries("plugins"), *entries("stacks"), *WAYS])
def test_a_gpu_does_not_see_anybody_wait(text: str) -> None:
    s = Subject(bind_stack(text.split(" + ")), text, TINY, None)
    if s.waits:
        pytest.skip(f"it waits, as it says: {s.waits}")
    wants_no_wait(s)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_sees_who_waits() -> None:
    s = Subject([TINY.bound(Scales)], "scales", TINY, None)
    with pytest.raises(Exception, match=re.compile("synchroniz", re.IGNORECASE)):
        wants_no_wait(s)
