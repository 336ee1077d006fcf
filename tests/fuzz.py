"""Look for frames that a peer answers with anything but an answer or a refusal.

    python tests/fuzz.py SECONDS

First every change of `hostile`, at a server and a client of every stack; then, for the seconds that
are left, headers and tensors of any bytes with the right checksums: made by atheris, which looks at
the lines that they reach, where it is installed (``pip install --group fuzz``), and drawn at random
otherwise. What is found ends it with its traceback, and the input's bytes.
"""

from __future__ import annotations

import random
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "helpers"))

try:
    import atheris
except ImportError:
    atheris = None

import contextlib

if atheris is None:
    looking: Any = contextlib.nullcontext()
else:
    looking = atheris.instrument_imports(
        include=["splitlab.core.wire", "splitlab.core.session", "splitlab.core.engine"]
    )
with looking:
    import hostile
    import torch

    from splitlab.core import ProtocolError, SplitlabError
    from splitlab.core.session.states import State
    from splitlab.core.testing.tiny import freeze, thaw
    from splitlab.core.wire.decode import decode
    from splitlab.core.wire.layout import OPENING, OPENING_BYTES

_SLOW = 5.0
_NAMES = [*hostile.STACKS]
_tables: dict[str, hostile.Table] = {}


def every_change(until: float) -> int:
    """Try every change at both peers of every stack, until that time; return how many."""
    tried = 0
    for name, stack in hostile.STACKS.items():
        for what in ("train", "query", "past"):
            table = hostile.Table(stack)
            raw = freeze(table.question(what)[1])
            for label, change in hostile.changes(thaw(raw)):
                if time.monotonic() > until:
                    return tried
                message = thaw(raw)
                change(message)
                table.session._state = State.READY
                if not guarded(f"server {name} {what} {label}", partial(table.ask, message)):
                    table = hostile.Table(stack)
                tried += 1
        for what in ("train", "query"):
            good = hostile.answered(stack, what, lambda message: None)
            for label, change in hostile.changes(good):
                if time.monotonic() > until:
                    return tried
                answer = partial(hostile.answered, stack, what, change)
                guarded(f"client {name} {what} {label}", answer)
                tried += 1
    return tried


def guarded(label: str, call: Any) -> bool:
    """Return whether the other end's fault was refused; name what raises anything else."""
    started = time.process_time()
    try:
        call()
    except ProtocolError:
        return True
    except SplitlabError:
        return False
    except BaseException:
        print(f"found: {label}", file=sys.stderr)
        raise
    finally:
        assert time.process_time() - started < _SLOW, f"slow: {label}"
    return False


def bytes_of_any_kind(data: bytes) -> None:
    """Decode a frame with this header and these tensors, and give a server what comes of it."""
    if len(data) < 4:
        return
    name, kind, flags, length = _NAMES[data[0] % len(_NAMES)], data[1] % 7, data[2] % 4, data[3]
    if length < 128:  # a good frame, with some of its bytes changed
        table = _tables.pop(name, None) or hostile.Table(hostile.STACKS[name])
        raw = bytearray(freeze(table.question("train" if length < 64 else "query")[1]))
        *_, header = OPENING.unpack(raw[:OPENING_BYTES])
        for at in range(4, len(data) - 2, 3):
            place = int.from_bytes(data[at : at + 2], "little") % (len(raw) - OPENING_BYTES - 8)
            raw[OPENING_BYTES + place] ^= data[at + 2]
        text, tensors = (
            raw[OPENING_BYTES : OPENING_BYTES + header],
            raw[OPENING_BYTES + header : -8],
        )
        kind, flags = raw[6], raw[7]
    else:
        table = _tables.pop(name, None) or hostile.Table(hostile.STACKS[name])
        text, tensors = bytearray(data[4 : 4 + 2 * length]), bytearray(data[4 + 2 * length :])
    head, rest = hostile.sealed(bytes(text), bytes(tensors), kind, flags)
    try:
        message = decode(head, rest)
        freeze(message)
    except SplitlabError:
        _tables[name] = table
        return
    message = thaw(freeze(message))
    table.session._state = State.READY
    if guarded(f"server {name}", partial(table.ask, message)):
        _tables[name] = table


def main() -> None:
    """Fuzz for so many seconds."""
    warnings.simplefilter("error")
    torch.set_num_threads(1)
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    until = time.monotonic() + seconds
    print(f"{every_change(until - seconds / 2)} changes tried", flush=True)
    if atheris is not None:
        left = max(1, int(until - time.monotonic()))
        Path("build").mkdir(exist_ok=True)  # where what is found is left
        options = ["-len_control=0", "-max_len=256", "-artifact_prefix=build/fuzz-"]
        atheris.Setup([sys.argv[0], f"-max_total_time={left}", *options], bytes_of_any_kind)
        atheris.Fuzz()
    draw, tried = random.Random(), 0
    while time.monotonic() < until:
        data = draw.randbytes(draw.randrange(4, 40))
        try:
            bytes_of_any_kind(data)
        except BaseException:
            print(f"found: {data!r}", file=sys.stderr)
            raise
        tried += 1
    print(f"{tried} frames of random bytes tried")


if __name__ == "__main__":
    main()
