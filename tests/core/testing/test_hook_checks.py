"""Plugins whose hooks do what they must not: each fails one check, and no other."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from right import SMALL, Cast, Shift

from splitlab.core import Cut, Kind, Message, PluginError, Role, Traits, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, check_plugin, hook_checks


class Unmarked(Cast):
    def after_receive(self, message: Message) -> None:
        Cast.after_receive(self, message)


class Returns:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> torch.Tensor:
        return 2 * cut.activations


class Fails:
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        raise KeyError("residual")


class ForgetsToDecode(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        message.pop("cast")


class ForgetsTheTokens:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        cut.activations = cut.activations.flatten(1)

    @hookimpl
    def traits(self) -> Traits:
        return Traits(changes={"layout", "tokens"})


class ForgetsTheGradient(Cast):
    @hookimpl
    def after_receive(self, message: Message) -> None:
        if message.kind is Kind.ACTIVATION:
            Cast.after_receive(self, message)
        elif message.kind is Kind.GRADIENT:
            message.put("gradient", message["gradient"][:, 1:].float(), Role.PAYLOAD)


class LosesTheGradient:
    @hookimpl
    def gradient_return(self, cut: Cut) -> None:
        cut.gradient = None


class ForgetsTheLabels:
    @hookimpl
    def before_server_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.targets = torch.nn.functional.one_hot(cut.targets, SMALL.classes).float() / 2


class HidesTheTokens:
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training:
            cut.activations = cut.activations[:, :3]


class HidesTheRows(Shift):
    @hookimpl
    def after_client_forward(self, cut: Cut) -> None:
        if cut.training and len(cut.targets) > 1:
            cut.activations, cut.targets = cut.activations[:-1], cut.targets[:-1]


class HidesItsCodes(Cast):
    @hookimpl
    def before_send(self, message: Message) -> None:
        for name in message.names(Role.PAYLOAD):
            if message.training:
                message.push("codes", str(message[name].dtype).partition(".")[2])
                if not message[name].isfinite().all():
                    raise PluginError("a value is not finite")
                codes = message[name].float().clamp(-3, 3) * 1000
                message.put(name, codes.to(torch.int16), Role.PAYLOAD)

    @hookimpl
    def after_receive(self, message: Message) -> None:
        if dtype := message.pop("codes"):
            [name] = message.names(Role.PAYLOAD)
            message.put(name, message[name].to(getattr(torch, dtype)) / 1000, Role.PAYLOAD)

    @hookimpl
    def traits(self) -> Traits:
        return dataclasses.replace(Cast.traits(self), waits="it looks for what is not finite")


WRONG = [
    (Unmarked, "builds-and-runs", "'after_receive' is called like a hook and not marked"),
    (Returns, "builds-and-runs", "it returned a Tensor"),
    (Fails, "builds-and-runs", "KeyError"),
    (ForgetsToDecode, "decoded-fits-the-model", "activations arrived as torch.bfloat16"),
    (ForgetsTheTokens, "decoded-fits-the-model", "the stack gives the server activations [4, 40]"),
    (ForgetsTheGradient, "decoded-fits-the-model", "the gradient is float32 [4, 4, 8]"),
    (LosesTheGradient, "decoded-fits-the-model", "cut.gradient as NoneType, not a tensor"),
    (ForgetsTheLabels, "decoded-fits-the-model", "probabilities of a row do not sum to 1"),
    (
        HidesTheTokens,
        "changes-are-declared",
        "makes [4, 3, 8] of [4, 5, 8], and traits() does not say so",
    ),
    (HidesTheRows, "changes-are-declared", "add 'batch' to changes"),
    (
        HidesItsCodes,
        "changes-are-declared",
        "before_send sends codes that are no floating-point numbers",
    ),
]


@pytest.mark.parametrize(
    ("plugin", "check", "reason"), WRONG, ids=[plugin.__name__ for plugin, *_ in WRONG]
)
def test_what_is_wrong_fails_one_check_with_its_reason(
    plugin: type, check: str, reason: str, fails_alone: Callable[[type, str, str], None]
) -> None:
    fails_alone(plugin, check, reason)


def test_every_check_finds_something() -> None:
    here = {c.name for c in PLUGIN_CHECKS if c.run.__module__ == hook_checks.__name__}
    assert {check for _, check, _ in WRONG} | {"unpickles-nothing"} == here


def test_pickle_is_found_in_the_module_of_the_plugin(tmp_path: Path) -> None:
    for line, found in (
        ("import pickle", "pickle"),
        ("from marshal import dumps", "marshal"),
        ("import torch\ndef save(path): torch.save({}, path)", "torch.save"),
    ):
        file = tmp_path / f"with_{found}.py"
        file.write_text(f"{line}\n\nclass Method:\n    pass\n")
        [row] = check_plugin(f"{file}:Method", only=["unpickles-nothing"], tiny=SMALL).rows
        assert row.outcome == "failed"
        assert f"plugin 'Method': its module uses {found}" in row.reason


def test_a_plugin_that_refuses_every_model_here_fails_with_its_own_words() -> None:
    report = check_plugin("c3sl:group=1000", only=["builds-and-runs", "bytes-are-real"])
    assert report.failed() == ["builds-and-runs"]
    assert report.rows[0].reason.startswith("plugin 'c3sl': groups of 1000 samples")
    assert report.rows[1].reason == "needs steps that run, see builds-and-runs"


@pytest.mark.gpu
def test_where_there_is_a_gpu_shapes_are_checked_there_too() -> None:
    [row] = check_plugin("adc", only=["decoded-fits-the-model"]).rows
    assert (row.outcome, row.reason) == ("passed", "on CPU and GPU")
