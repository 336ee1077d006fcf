from __future__ import annotations

from collections.abc import Callable

import pytest

from splitlab.core.command.elsewhere import _ELSEWHERE, mistyped
from splitlab.core.command.main import parser


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "--max-steps", "10"], "unknown option --max-steps; use --budget steps=10"),
        (["run", "--epochs=3"], "unknown option --epochs; use --budget epochs=3"),
        (["run", "--learning_rate", "0.1"], "unknown option --learning_rate; use --lr 0.1"),
        (["run", "--epochs", "--seed", "1"], "unknown option --epochs; use --budget epochs=…"),
        (["compare", "--num-epochs", "2"], "unknown option --num-epochs; use --budget epochs=2"),
        (["run", "--batch_size", "4"], "unknown option --batch_size (did you mean --batch-size?)"),
        (["run", "--gpu"], "unknown option --gpu; use --device cuda"),
        (["serve", "--port", "80"], "unknown option --port; use --address SCHEME://HOST:PORT"),
        (["run", "--pluggin", "adc"], "unknown option --pluggin (did you mean --plugin?)"),
        (["serve", "--max-steps", "10"], "unknown option --max-steps;"),  # serve takes no budget
        (["serve", "--budget", "x"], "unknown option --budget: other commands take it"),
        (["run", "--zzz"], "unknown option --zzz;"),
        (["run", "adc"], "unexpected argument 'adc'; use --plugin adc"),
        (["run", "adc+quantize:bits=8"], "use --plugin adc+quantize:bits=8"),
        (["run", "adc-q4"], "unexpected argument 'adc-q4';"),
        (["run", "cifar10"], "unexpected argument 'cifar10'; use --dataset cifar10"),
        (["serve", "tcp://0.0.0.0:4711"], "use --address tcp://0.0.0.0:4711"),
        (["run", "tcp"], "unexpected argument 'tcp'; use --transport tcp"),
    ],
)
def test_a_mistyped_word_is_answered_with_the_right_one(
    words: list[str], told: str, refuses: Callable[..., str]
) -> None:
    error = refuses(*words)
    assert told in error
    assert "\x1b" not in error


def test_control_characters_are_not_given_back(refuses: Callable[..., str]) -> None:
    assert "\\x1b[31m" in refuses("run", "--\x1b[31m")


def test_every_answer_is_an_option_that_a_command_takes() -> None:
    commands = [parser().parse_known_args([name])[0].parser for name in ("run", "compare", "serve")]
    known = {text for command in commands for text in command._option_string_actions}
    assert {answer.split()[0] for answer in _ELSEWHERE} <= known


def test_no_name_of_others_is_said_twice_or_is_our_own() -> None:
    names = [name for others in _ELSEWHERE.values() for name in others.split()]
    assert len(names) == len(set(names))
    run = parser().parse_known_args(["run"])[0].parser
    assert not {f"--{name}" for name in names} & run._option_string_actions.keys()
    for name in names:
        assert mistyped(run, [f"--{name}"]).startswith(f"unknown option --{name}")
