"""What a part runs, compiled by `torch.compile`.

A function is compiled, never a module, so that parameters keep their names. Shapes are static: each
one is compiled apart, when it comes for the first time. Only shapes that come again are worth that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch

from splitlab.core.contract.errors import FAULTS, ConfigError, Notice, SplitlabError

__all__ = ["Compiled"]

_MOST = 4
"""Shapes that are compiled of a part; torch itself gives up behind eight in one process."""

_Form = tuple[Any, ...]


class Compiled:
    """A part's function of tokens or images, and of token sizes or None.

    Fewer rows than the most seen so far, in training or in evaluation, run as they are: an epoch's
    last batch would take longer to compile than to run for the rest of the training. So does every
    shape after the first `_MOST`.

    Args:
        function: takes inputs (rows, …) and token sizes or None, and returns (rows, …).
        mode: ``default``, or ``reduce-overhead``: CUDA graphs, where the inputs are on a GPU.
        begins: whether a call begins a step of all that is compiled in this process.
        backend: of `torch.compile`, inductor but in tests.
    """

    def __init__(
        self,
        function: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor],
        mode: str,
        *,
        begins: bool,
        backend: str | Callable[..., Any] = "inductor",
    ) -> None:
        self._function = function
        self._mode = mode
        self._begins = begins
        self._most_rows = {True: 0, False: 0}
        self._forms: set[_Form] = set()
        self._full = False
        options: dict[str, Any] = {}
        if backend == "inductor":
            # Draws are those of torch's own kernels, so that dropout is the same as without.
            graphs = mode == "reduce-overhead"
            options = {"options": {"fallback_random": True, "triton.cudagraphs": graphs}}
        torch.compiler.reset()  # what an earlier run compiled counts against torch's limit
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch imports of its own
            self._compiled = torch.compile(function, dynamic=False, backend=backend, **options)

    def __call__(
        self, inputs: torch.Tensor, token_sizes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Run the function on these.

        Raises:
            ConfigError: it cannot be compiled.
        """
        graphs = self._graphs(inputs)
        if graphs and self._begins:
            # By itself torch would begin anew between the backward passes of two parts.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        training = torch.is_grad_enabled()
        if len(inputs) < self._most_rows[training]:
            return self._function(inputs, token_sizes)
        self._most_rows[training] = len(inputs)
        sizes = None if token_sizes is None else token_sizes.shape
        form = (training, inputs.shape, inputs.dtype, sizes)
        if form not in self._forms and len(self._forms) == _MOST:
            self._say_full(inputs)
            return self._function(inputs, token_sizes)
        if not graphs:
            return self._run(form, inputs, token_sizes)
        # What a graph leaves is overwritten by its next run: copies may be kept, and may cross.
        if inputs.requires_grad:
            inputs.register_hook(torch.clone)  # type: ignore[no-untyped-call]
        return self._run(form, inputs, token_sizes).clone()

    def _graphs(self, inputs: torch.Tensor) -> bool:
        return self._mode == "reduce-overhead" and inputs.is_cuda

    def _run(
        self, form: _Form, inputs: torch.Tensor, token_sizes: torch.Tensor | None
    ) -> torch.Tensor:
        if form in self._forms:
            return self._compiled(inputs, token_sizes)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torch's advice on speed
                made = self._compiled(inputs, token_sizes)
        except (SplitlabError, torch.OutOfMemoryError):
            raise
        except FAULTS as error:
            self._function(inputs, token_sizes)  # what fails without, too, says so in its own words
            raise ConfigError(
                f"--compile {self._mode}: torch cannot compile this part of the model: "
                f"{_short(error)}; it needs a C++ compiler (g++, or what $CXX names), and on a GPU "
                "Triton; install them, or leave --compile out"
            ) from error
        self._forms.add(form)
        return made

    def _say_full(self, inputs: torch.Tensor) -> None:
        if self._full:
            return
        self._full = True
        warnings.warn(
            f"--compile {self._mode}: {_MOST} shapes are compiled; {[*inputs.shape]} and other new "
            "ones run as they are",
            Notice,
            stacklevel=2,
        )


def _short(error: BaseException) -> str:
    """Return why it failed in a line, without torch's advice on how to debug it."""
    inner = getattr(error, "inner_exception", error)
    text = " ".join(str(inner).partition("\n\n")[0].split())
    return f"{type(inner).__name__}: {text}"
