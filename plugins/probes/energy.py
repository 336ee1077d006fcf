"""Joules of every training step: what computing took, and what a radio would take for the bytes.

    splitlab run --plugin adc --probe energy
    splitlab run --plugin adc --probe energy:device=a100,radio=lte
    splitlab run --plugin adc --probe energy:joules_per_flop=1e-10,joules_per_bit=5e-8

After every step ``metrics.jsonl`` holds, under ``energy``, ``"compute joules"``, ``"radio joules"``
and their sum, ``"joules"``, which reports draw accuracy against; ``server-metrics.jsonl`` holds
what the server's computing took. ``probes/energy/energy.json`` says how each was found, why no
meter was read, and sums; ``energy.png`` has the sums over steps.

Computing is *measured* where the meter of the device can be read: RAPL of the CPU's packages
(``/sys/class/powercap``, mostly for root alone), NVML of the GPU (with ``nvidia-ml-py``). These
count what the whole package or board took in the step, the server in the same machine and other
programs included. Otherwise it is *modelled*: FLOPs of this peer, times J per FLOP of a device.
They count as `splitlab.plugins.probes.counting` says; between two steps that are counted they are
those of the last one.

A radio is always modelled: bits of the frames, up and down, times J per bit. No meter of a computer
reads a radio. docs/costs.md has the numbers and their sources.
"""

from __future__ import annotations

import importlib
import json
import math
from collections import defaultdict
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import torch

from splitlab.core import ConfigError, Kind, Message, Peer, hookimpl, picture
from splitlab.plugins.probes.counting import Counting

__all__ = ["DEVICES", "RADIOS", "Energy"]

Device = Literal["jetson-nano", "a100", "h100"]
Radio = Literal["wifi", "lte", "3g", "none"]

DEVICES: Final[Mapping[str, float]] = {
    "jetson-nano": 10 / 236e9,
    "a100": 400 / 19.5e12,
    "h100": 700 / 67e12,
}
"""J per FLOP in float32: watts at full load over the peak FLOPs a second, by the data sheets."""

RADIOS: Final[Mapping[str, tuple[float, float]]] = {
    "wifi": (283.17e-9, 137.01e-9),
    "lte": (438.39e-9, 51.97e-9),
    "3g": (868.98e-9, 122.12e-9),
    "none": (0.0, 0.0),
}
"""J per bit up and down, besides the base power of a phone's radio: Huang et al. (2012)."""

_POWERCAP = Path("/sys/class/powercap")

Read = Callable[[], float]
"""Returns the joules that a meter has counted so far."""


class Energy(Counting):
    """Joules of every step: read from the machine's meters, or by a stated model.

    Args:
        device: whose J per FLOP stand for computing where no meter can be read.
        radio: whose J per bit stand for sending and receiving.
        joules_per_flop: a number of your own, in place of the device's; no meter is read then.
        joules_per_bit: a number of your own, in place of the radio's, both ways.
        every: steps between two in which FLOPs are counted.
    """

    def __init__(
        self,
        *,
        device: Device = "jetson-nano",
        radio: Radio = "wifi",
        joules_per_flop: float | None = None,
        joules_per_bit: float | None = None,
        every: int = 100,
    ) -> None:
        super().__init__(every)
        for name, value in (("flop", joules_per_flop), ("bit", joules_per_bit)):
            if value is not None and not (0 <= value < math.inf):
                raise ConfigError(f"joules_per_{name}={value} is not allowed; 0 or more")
        self._per_flop = DEVICES[device] if joules_per_flop is None else joules_per_flop
        self._up, self._down = RADIOS[radio] if joules_per_bit is None else (joules_per_bit,) * 2
        self._told = {
            "device": device if joules_per_flop is None else "given",
            "radio": radio if joules_per_bit is None else "given",
        }
        self._modelled = joules_per_flop is not None
        self._meters: dict[str, Read] = {}
        self._unread = "joules_per_flop is given" if self._modelled else ""
        self._before = 0.0
        self._sent: Message | None = None
        self._bits = {"up": 0, "down": 0}
        self._sums: dict[str, float] = defaultdict(float)
        self._history: list[dict[str, float]] = []  # the sums, every so many steps
        self._last = 0

    @hookimpl
    def setup(self, peer: Peer) -> None:
        """Look for meters."""
        super().setup(peer)
        if peer.role == "server":
            self._told["radio"], self._up, self._down = "none", 0.0, 0.0
        if not self._modelled:
            self._meters, self._unread = _meters(peer.device)

    @hookimpl
    def step_begin(self, step: int) -> None:
        """Read the meters."""
        self._bits = {"up": 0, "down": 0}
        self._before = self._read()
        super().step_begin(step)

    def due(self, step: int) -> bool:
        """Return whether FLOPs are to be counted: in the first step, too, if they are needed."""
        return not self._meters and (super().due(step) or not self.flops)

    @hookimpl(wrapper=True)
    def before_send(self, message: Message) -> Generator[None, None, None]:
        """Keep what is sent: its bytes are known when it has left."""
        if message.kind is Kind.ACTIVATION and message.training:
            self._sent = message
        return (yield from self._around())

    @hookimpl(wrapper=True)
    def after_receive(self, message: Message) -> Generator[None, None, None]:
        """Take the bytes of both frames, at the client."""
        if self._sent is not None and message.kind is Kind.GRADIENT:
            self._bits = {"up": 8 * self._sent.frame_bytes, "down": 8 * message.frame_bytes}
            self._sent = None
        return (yield from self._around())

    @hookimpl
    def metrics(self, step: int) -> Mapping[str, float]:
        """Return the joules of the step."""
        self.complete()
        compute = self._per_flop * sum(self.flops.values())
        if self._meters:
            compute = self._read() - self._before
        radio = self._up * self._bits["up"] + self._down * self._bits["down"]
        found = {"joules": compute + radio, "compute joules": compute, "radio joules": radio}
        for name, joules in found.items():
            self._sums[name] += joules
        self._last = step + 1
        if step % self._every == 0:
            self._history.append({"step": self._last, **self._sums})
        return found

    @hookimpl
    def state_dict(self) -> Mapping[str, Any]:
        """Return the sums, which a resumed run goes on with."""
        return {"sums": dict(self._sums), "flops": dict(self.flops), "history": self._history}

    @hookimpl
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the sums."""
        self._sums = defaultdict(float, state["sums"])
        self.flops = dict(state["flops"])
        self._history = [dict(each) for each in state["history"]]

    @hookimpl
    def report(self, folder: Path) -> str:
        """Say how the joules were found, and what they are in all; draw them over steps."""
        measured = [*self._meters]
        how = "measured" if measured else "modelled"
        told = {
            "compute": how,
            "meters": measured,
            **({} if measured else {"no meter": self._unread}),
            **({} if measured else {"device": self._told["device"]}),
            **({} if measured else {"joules per FLOP": self._per_flop}),
            "radio": "modelled",
            "radio of": self._told["radio"],
            "joules per bit up": self._up,
            "joules per bit down": self._down,
            **self._sums,
        }
        (folder / "energy.json").write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
        source = " + ".join(measured) if measured else self._told["device"]
        compute, radio = f"compute, {how}: {source}", f"radio, modelled: {self._told['radio']}"
        if self._last:
            self._draw(folder / "energy.png", compute=compute, radio=radio)
        said = f"{self._sums['compute joules']:.3g} J {compute}"
        if self._told["radio"] != "none":
            said += f"; {self._sums['radio joules']:.3g} J {radio}"
        return f"{said}; no meter: {self._unread}" if self._unread else said

    def _draw(self, path: Path, **told: str) -> None:
        """Draw the sums over steps: computing below, the radio on top of it."""
        history = [*self._history]
        if not history or history[-1]["step"] != self._last:
            history.append({"step": self._last, **self._sums})
        begun = [{"step": 0, "compute joules": 0.0, "radio joules": 0.0}, *history]
        with picture(path, 4.6, 2.6) as figure:
            axes = figure.subplots()
            stacked = [[each[f"{kind} joules"] for each in begun] for kind in told]
            axes.stackplot([each["step"] for each in begun], *stacked, labels=[*told.values()])
            axes.legend(frameon=False, loc="upper left", reverse=True)
            axes.set(xlabel="training step", ylabel="joules since the first step")
            axes.set(xlim=(0, self._last), ylim=(0, None))

    def _read(self) -> float:
        return sum(read() for read in self._meters.values())


def _meters(device: torch.device) -> tuple[dict[str, Read], str]:
    """Return what can be read, by name, or nothing, and why: the device's own meter is needed."""
    packages, why = _rapl()
    if device.type == "cpu":
        return packages, why
    if device.type != "cuda":
        return {}, f"of a device of type {device.type} none is known"
    board, why = _nvml(device)
    return ({**board, **packages}, "") if board else ({}, why)


def _rapl() -> tuple[dict[str, Read], str]:
    """Return the meters of all of the CPU's packages, or nothing, and why."""
    found: dict[str, Read] = {}
    for zone in sorted(_POWERCAP.glob("*-rapl:*")):
        try:
            name = (zone / "name").read_text().strip()
            if name.startswith("package"):
                found[f"RAPL {name}"] = _Package(zone)
        except (OSError, ValueError) as error:  # for root alone, on most machines
            return {}, f"RAPL: {error}"
    return found, "" if found else f"no RAPL package in {_POWERCAP}"


class _Package:
    """Reads one package; its counter begins anew at its largest value."""

    def __init__(self, zone: Path) -> None:
        self._counter = zone / "energy_uj"
        self._most = int((zone / "max_energy_range_uj").read_text())
        self._last = int(self._counter.read_text())
        self._whole = 0

    def __call__(self) -> float:
        now = int(self._counter.read_text())
        self._whole += (now - self._last) % (self._most + 1)
        self._last = now
        return self._whole / 1e6


def _nvml(device: torch.device) -> tuple[dict[str, Read], str]:
    """Return the meter of a GPU's board, or nothing, and why."""
    try:
        nvml = importlib.import_module("pynvml")
        nvml.nvmlInit()
        uuid = torch.cuda.get_device_properties(device).uuid
        handle = nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}")
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except Exception as error:  # noqa: BLE001  # nvml raises its own, of a library that may not be there
        return {}, f"NVML: {error or type(error).__name__}"
    return {"NVML": lambda: float(nvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1e3}, ""
