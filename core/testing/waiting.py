"""Who would make the host wait for a GPU, found on the CPU: a `Lookout` follows every tensor.

It remembers which tensors a GPU would hold: those that `Lookout.hold` was given, what is made of
them, what is created with ``device=…`` and what `splitlab.core.contract.transfer.upload` takes
there. Of these it notes every call that reads a number, or whose shape depends on one. What is made
of other tensors stays with the host, which may do with it what it likes until both meet.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from splitlab.core.contract import transfer

__all__ = ["Lookout", "Wait"]

_READS = {
    "_linalg_check_errors": "it looks whether the decomposition succeeded",
    "_linalg_eigh": "it looks whether the decomposition succeeded",
    "_linalg_svd": "it looks whether the decomposition succeeded",
    "_local_scalar_dense": "it reads a number, as .item(), float() and if do",
    "_unique": "its shape depends on data",
    "_unique2": "its shape depends on data",
    "allclose": "it reads a number",
    "bincount": "it reads the largest number",
    "equal": "it reads a number",
    "linalg_eig": "it looks whether the decomposition succeeded",
    "linalg_lstsq": "it looks whether the decomposition succeeded",
    "masked_select": "its shape depends on data",
    "multinomial": "it looks whether the probabilities are some",
    "nonzero": "its shape depends on data",
    "nonzero_numpy": "its shape depends on data",
    "unique_consecutive": "its shape depends on data",
    "unique_dim": "its shape depends on data",
    "unique_dim_consecutive": "its shape depends on data",
}
"""Operations of aten that wait on CUDA, whatever their arguments, and why."""

_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_COPIES = {"copy_", "_to_copy", "_foreach_copy_"}

_LEAVES = {
    torch.Tensor.__array__,
    torch.Tensor.cpu,
    torch.Tensor.numpy,
    torch.Tensor.tolist,
}
"""Calls that take numbers to the host, of which nothing is dispatched on a CPU."""

_FROM_PYTHON = {torch.tensor, torch.as_tensor, torch.asarray}

_QUIET = {torch.nn.functional.one_hot, torch.quantile, torch.nanquantile, torch.Tensor.quantile}
"""Calls that check their arguments on a CPU only."""

_SKIPPED = ("pluggy", "torch")


@dataclass(frozen=True, slots=True)
class Wait:
    """One place that waits.

    Attributes:
        file: where.
        line: of the file.
        call: what is called there.
        why: it waits.
    """

    file: str
    line: int
    call: str
    why: str

    def __str__(self) -> str:
        return f"{Path(self.file).name}:{self.line} calls {self.call}, which waits: {self.why}"


class Lookout:
    """Watches what torch is told to do in `watching`, and notes in `waits` who waits.

    Attributes:
        noting: whether waits are noted; tensors are followed anyway.
        waits: what was found, every place once.
    """

    def __init__(self) -> None:
        self.noting = True
        self.waits: list[Wait] = []
        self._quiet = 0
        # By the storage that they share with their views, which is kept so that none comes anew
        # under an old address: whether a GPU would hold it.
        self._held: dict[int, tuple[torch.UntypedStorage, bool]] = {}

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the block, in which nothing is `at_hand`."""
        with ExitStack() as modes:
            modes.enter_context(transfer.pretending())
            modes.enter_context(_Calls(self))
            modes.enter_context(_Operations(self))
            yield

    def hold(self, tensors: Iterable[torch.Tensor], *, device: bool = True) -> None:
        """Take note that a GPU would hold these tensors, or that the host does."""
        for tensor in tensors:
            if tensor.layout is torch.strided:
                storage = tensor.untyped_storage()
                self._held[storage._cdata] = (storage, device)

    def on_device(self, value: object) -> bool | None:
        """Return whether a GPU would hold this; None of what was there before the watch."""
        if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
            return None
        _, device = self._held.get(value.untyped_storage()._cdata, (None, None))
        return device

    def note(self, call: str, why: str) -> None:
        """Note a wait of whoever called torch, unless that is what fetches for the engine."""
        frame = _caller(sys._getframe(1))
        if not self.noting or self._quiet or frame is None:
            return
        file = frame.f_code.co_filename
        wait = Wait(file, frame.f_lineno, call, why)
        if file != transfer.__file__ and wait not in self.waits:
            self.waits.append(wait)

    # What the modes ask.

    def operation(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operation of aten, and follow what comes of it."""
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        places = [self.on_device(tensor) for tensor in given]
        name = func.overloadpacket.__name__
        if True in places:
            why = _READS.get(name) or _shape_from_data(name, func, args, kwargs)
            if why is None and name not in _COPIES and _apart(given, places):
                why = "it takes a tensor of the host along with those of a device; upload it"
            if why is None and name == "copy_" and places[:2] == [True, False]:
                why = "it takes numbers of the host; upload them"
            if why is not None:
                self.note(name.lstrip("_"), why)
        results = func(*args, **kwargs)
        # Nobody tells here whether what is made in a backward pass was given a device.
        if True in places or (None not in places and (given or not _going_back())):
            made = [leaf for leaf in tree_leaves(results) if isinstance(leaf, torch.Tensor)]
            self.hold(made, device=True in places)
        return results

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run a call of torch's, and follow what goes from one memory to the other."""
        quiet = func in _QUIET
        self._quiet += quiet
        try:
            result = func(*args, **kwargs)
        finally:
            self._quiet -= quiet
        first = args[0] if args else None
        name = (resolve_name(func) or str(func)).removeprefix("torch.")
        if func in _LEAVES:
            if self.on_device(first):
                self.note(name, "it takes numbers to the host")
                if isinstance(result, torch.Tensor):
                    result = result.clone()
                    self.hold([result], device=False)
            return result
        if func is torch.Tensor.to:
            return self._moved(name, args, kwargs, result)
        if func is torch.Tensor.new_tensor and self.on_device(first):
            self.note(name, "it takes numbers of the host; fill a tensor, or upload one")
            self.hold([result])
        there = kwargs.get("device") not in (None, "cpu")
        if func in _FROM_PYTHON:  # which dispatch nothing
            if there:
                self.note(name, "it takes numbers of the host; make it there, and upload it")
            elif self.on_device(result) is None:
                self.hold([result], device=False)
        if there and isinstance(result, torch.Tensor):
            self.hold([result])
        return result

    def _moved(self, name: str, args: Any, kwargs: Any, result: Any) -> Any:
        """Follow what ``Tensor.to`` returns."""
        to = next(
            (arg for arg in (*args[1:], kwargs.get("device"), kwargs.get("other"))
             if isinstance(arg, (str, torch.device, torch.Tensor))),
            None,
        )  # fmt: skip
        here = self.on_device(args[0])
        there = self.on_device(to) if isinstance(to, torch.Tensor) else to != "cpu"
        if to is None or here is there or there is None or here is None:
            return result
        if here or not kwargs.get("non_blocking"):
            self.note(name, "it takes numbers from one memory to the other; see upload and Fetch")
        result = result.clone()
        self.hold([result], device=there)
        return result


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, lookout: Lookout) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._lookout = lookout

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._lookout.operation(func, args, kwargs or {})


class _Calls(TorchFunctionMode):
    def __init__(self, lookout: Lookout) -> None:
        super().__init__()
        self._lookout = lookout

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._lookout.call(func, args, kwargs or {})


def _shape_from_data(name: str, func: Any, args: Any, kwargs: Any) -> str | None:
    """Return why indexing or repeating waits, if it does."""
    if name == "repeat_interleave" and func._overloadname == "Tensor":
        return None if kwargs.get("output_size") else "give it output_size"
    if name not in _INDEXING:
        return None
    masks = [index for index in args[1] if index is not None and index.dtype in _MASKS]
    if not masks:
        return None
    # One number for all that a mask chooses: torch fills them in, wherever they are.
    if name.startswith(("index_put", "_index_put")) and args[2].numel() == 1 == len(args[1]):
        return None
    return "a mask as an index makes a shape that depends on data; use torch.where"


_MASKS = (torch.bool, torch.uint8)


def _apart(given: list[torch.Tensor], places: list[bool | None]) -> bool:
    """Return whether a tensor with dimensions is the host's, where others are not."""
    return any(place is False and tensor.ndim for tensor, place in zip(given, places, strict=True))


def _going_back() -> bool:
    """Return whether autograd is at work, whose calls a mode for functions does not see."""
    return torch._C._current_graph_task_id() != -1


def _caller(frame: FrameType | None) -> FrameType | None:
    """Return the innermost frame that is neither torch's nor this file's."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module != __name__ and module.partition(".")[0] not in _SKIPPED:
            return frame
        frame = frame.f_back
    return None
