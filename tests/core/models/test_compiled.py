"""Compiled parts: which shapes are compiled, that numbers and names stay, and what failures say."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError
from splitlab.core.contract.errors import Notice
from splitlab.core.contract.measure import Attention, Keys
from splitlab.core.models.build import build_model
from splitlab.core.models.compiled import Compiled

CPU = torch.device("cpu")


def doubled(inputs: torch.Tensor, token_sizes: torch.Tensor | None) -> torch.Tensor:
    return 2 * inputs if token_sizes is None else inputs * token_sizes[..., None]


class Counting:
    """A backend of `torch.compile` that compiles nothing, and notes how many rows there were."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, module: Any, inputs: list[Any]) -> Any:
        self.rows.append(len(next(i for i in inputs if isinstance(i, torch.Tensor))))
        return module.forward


def test_a_shape_is_compiled_once_and_smaller_batches_run_as_they_are() -> None:
    backend = Counting()
    compiled = Compiled(doubled, "default", begins=True, backend=backend)
    for rows in (6, 6, 2, 6, 5):
        assert torch.equal(compiled(torch.ones(rows, 3)), torch.full((rows, 3), 2.0))
    with torch.no_grad():  # an evaluation has its own
        for rows in (4, 4, 3):
            compiled(torch.ones(rows, 3))
    sizes = torch.full((6, 2), 3.0)
    assert torch.equal(compiled(torch.ones(6, 2, 1), sizes), torch.full((6, 2, 1), 3.0))
    assert backend.rows == [6, 4, 6]


def test_after_four_shapes_others_run_as_they_are_and_that_is_said_once() -> None:
    backend = Counting()
    compiled = Compiled(doubled, "default", begins=True, backend=backend)
    for tokens in range(1, 5):
        compiled(torch.ones(2, tokens))
    with pytest.warns(Notice, match=r"default: 4 shapes are compiled; \[2, 5\] and other"):
        assert torch.equal(compiled(torch.ones(2, 5)), torch.full((2, 5), 2.0))
    for tokens in (6, 5, 4):  # a second notice would be an error here
        assert torch.equal(compiled(torch.ones(2, tokens)), torch.full((2, tokens), 2.0))
    assert backend.rows == [2, 2, 2, 2]


def broken(module: Any, inputs: Any) -> Any:
    raise RuntimeError("No working C++ compiler found:\n('none',)\n\nSet a variable for more")


def test_what_cannot_be_compiled_is_told_in_a_line_with_the_way_out() -> None:
    compiled = Compiled(doubled, "default", begins=True, backend=broken)
    with pytest.raises(ConfigError) as caught:
        compiled(torch.ones(2, 3))
    text = str(caught.value)
    assert "\n" not in text
    assert "torch cannot compile this part of the model: RuntimeError: No working C++ " in text
    assert "found: ('none',); it needs a C++ compiler" in text
    assert "leave --compile out" in text


def test_what_fails_without_compiling_says_so_in_its_own_words() -> None:
    def odd(inputs: torch.Tensor, token_sizes: torch.Tensor | None) -> torch.Tensor:
        if inputs.shape[1] == 3:
            raise ConfigError("three is odd")
        return inputs

    with pytest.raises(ConfigError, match=r"^three is odd$"):
        Compiled(odd, "default", begins=True, backend=Counting())(torch.ones(2, 3))


def test_torch_knows_the_options_of_both_modes() -> None:
    import torch._inductor.config as inductor

    # Older torch starts its compile workers here, unless there are to be none.
    with inductor.patch(compile_threads=1):
        for mode in ("default", "reduce-overhead"):
            Compiled(doubled, mode, begins=True)
        with pytest.raises(RuntimeError, match="no_such_option"):
            torch.compile(doubled, options={"no_such_option": True})


@pytest.mark.parametrize("begins", [True, False])
def test_what_a_graph_leaves_is_copied_and_steps_begin_where_they_should(
    monkeypatch: pytest.MonkeyPatch, begins: bool
) -> None:
    kept = torch.empty(4, 3)

    class Overwrites(torch.autograd.Function):
        """Gives its results in memory that the next run uses again, as a CUDA graph does."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return kept.copy_(2 * x)

        @staticmethod
        def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
            return kept.copy_(3 * gradient)

    begun: list[None] = []
    monkeypatch.setattr(torch.compiler, "cudagraph_mark_step_begin", lambda: begun.append(None))
    monkeypatch.setattr(Compiled, "_graphs", lambda self, inputs: True)
    compiled = Compiled(doubled, "reduce-overhead", begins=begins, backend=Counting())
    monkeypatch.setattr(compiled, "_run", lambda form, x, sizes: Overwrites.apply(x.view_as(x)))
    leaf = torch.ones(4, 3, requires_grad=True)
    made = compiled(leaf)
    made.backward(torch.ones(4, 3))
    kept.zero_()
    assert leaf.grad is not None
    assert torch.equal(made, torch.full((4, 3), 2.0))
    assert torch.equal(leaf.grad, torch.full((4, 3), 3.0))
    assert len(begun) == int(begins)


MODELS = {
    "vit": ("vit:patch=8,width=16,depth=2,heads=2", [Attention(), Keys()]),
    "cnn": ("resnet18", []),
}


@pytest.mark.parametrize("kind", MODELS)
def test_numbers_names_and_measurements_stay(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    # torch's own kernels run, traced: whatever is not traced rightly shows in the last bit.
    eager = functools.partial(Compiled, backend="eager")
    monkeypatch.setattr("splitlab.core.models.segments.Compiled", eager)
    name, requests = MODELS[kind]
    model = build_model(name, classes=4, seed=0, image_size=32, weights="none")
    draws = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 32, 32, generator=draws)
    found = []
    for compiles in (False, True):
        near, far = (model.part(index, (1,), CPU) for index in (0, 1))
        for request in requests:
            near.watch(request)
        if compiles:
            near.compile("default", begins=True)
            far.compile("default", begins=False)
        seen: dict[str, torch.Tensor] = {}
        for step in range(2):
            made = near.forward(images)
            seen |= {f"{step} {request}": t for request, t in near.measured().items()}
            leaf = made.detach().requires_grad_()
            sizes = torch.full(leaf.shape[:2], 2.0) if kind == "vit" else None
            logits = far.forward(leaf, sizes)
            logits.square().sum().backward()
            made.backward(leaf.grad)
            seen |= {f"{step} made": made.detach(), f"{step} logits": logits.detach()}
        for part in (near, far):
            seen |= {
                f"gradient {n}": p.grad for n, p in part.named_parameters() if p.grad is not None
            }
            seen |= part.state_dict()
        found.append(seen)
    plain, traced = found
    assert plain.keys() == traced.keys()
    assert [name for name in plain if not torch.equal(plain[name], traced[name])] == []


INDUCTOR = """
import torch
from splitlab.core.models.build import build_model
model = build_model(
    "vit:patch=8,width=16,depth=1,heads=2", classes=4, seed=0, image_size=16, weights="none"
)
images, made = torch.randn(4, 3, 16, 16), []
for compiles in (False, True):
    part = model.part(0, (1,), torch.device("cpu"))
    if compiles:
        part.compile("default", begins=True)
    tokens = part.forward(images)
    tokens.square().mean().backward()
    made.append([tokens.detach(), *(p.grad for _, p in part.named_parameters())])
for plain, compiled in zip(*made, strict=True):
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)
print("close")
"""


@pytest.mark.long
@pytest.mark.timeout(900)
def test_inductor_makes_the_same_numbers_but_for_rounding() -> None:
    # In a process of its own: torch's compile workers outlive a test.
    if shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("no C++ compiler")
    environment = os.environ | {"TORCHINDUCTOR_COMPILE_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-c", INDUCTOR], capture_output=True, text=True, env=environment
    )
    assert done.stdout == "close\n", done.stderr
