"""The probe of energy: by a model with stated numbers, and by meters where they can be read."""

from __future__ import annotations

import json
import re
import sys
import typing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from splitlab.core import ConfigError, Kind, Message, run
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.tables import ROOT
from splitlab.core.runs.records import StepRecord, read_records
from splitlab.plugins.probes import energy
from splitlab.plugins.probes.energy import DEVICES, RADIOS, Energy

VIT = "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2"


@pytest.fixture(autouse=True)
def unmetered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return where meters of the CPU would be; there are none yet."""
    place = tmp_path / "powercap"
    place.mkdir()
    monkeypatch.setattr(energy, "_POWERCAP", place)
    return place


def png(file: Path) -> bool:
    return file.read_bytes().startswith(b"\x89PNG")


def trained(data: str, folder: Path, probe: str) -> tuple[list[StepRecord], Any]:
    options: dict[str, Any] = {"model": VIT, "weights": "none", "threads": 1, "device": "cpu"}
    result = run(
        data_dir=data,
        output=str(folder),
        budget="steps=3",
        batch_size=8,
        plugins=["quantize:bits=8"],
        probes=[probe, "overhead:every=1"],
        **options,
    )
    steps = [r for r in read_records(result.folder) if isinstance(r, StepRecord)]
    return steps, json.loads((result.folder / "probes" / "energy" / "energy.json").read_text())


def test_without_a_meter_it_is_flops_and_bits_by_the_stated_numbers(
    small_images: str, tmp_path: Path
) -> None:
    steps, told = trained(small_images, tmp_path / "r", "energy:device=a100,radio=lte,every=2")
    up, down = RADIOS["lte"]
    for step in steps:
        numbers, seen = step.metrics["energy"], step.metrics["overhead"]
        flops = sum(value for name, value in seen.items() if name.endswith("FLOPs"))
        assert numbers["compute joules"] == pytest.approx(flops * DEVICES["a100"])
        assert step.bytes_up
        assert step.bytes_down
        bits = 8 * step.bytes_up * up + 8 * step.bytes_down * down
        assert numbers["radio joules"] == pytest.approx(bits)
        assert numbers["joules"] == pytest.approx(
            numbers["compute joules"] + numbers["radio joules"]
        )
    assert (told["compute"], told["meters"], told["device"]) == ("modelled", [], "a100")
    assert (told["radio of"], told["joules per bit up"]) == ("lte", up)
    assert told["joules"] == pytest.approx(sum(s.metrics["energy"]["joules"] for s in steps))


def test_the_server_has_no_radio(small_images: str, tmp_path: Path) -> None:
    trained(small_images, tmp_path / "r", "energy")
    lines = (tmp_path / "r" / "server-metrics.jsonl").read_text().splitlines()
    numbers = [json.loads(line) for line in lines][1]["metrics"]["energy"]
    said = {folder.name: folder / "said.txt" for folder in (tmp_path / "r" / "probes").iterdir()}
    assert "J radio, modelled: wifi" in said["energy"].read_text()
    assert "J radio" not in said["energy-server"].read_text()
    assert all(png(said[name].with_name("energy.png")) for name in ("energy", "energy-server"))
    assert numbers["radio joules"] == 0
    assert numbers["joules"] == numbers["compute joules"] > 0


def test_numbers_of_ones_own(tiny: Any) -> None:
    probe = bind("probes", "energy:joules_per_flop=2.0,joules_per_bit=0.5").build()
    probe.setup(tiny.peer())
    probe.step_begin(0)
    probe.flops["model"] = 10
    sent, got = Message(Kind.ACTIVATION), Message(Kind.GRADIENT)
    sent.sent(100)
    got.sent(50)
    for hook in (probe.before_send(sent), probe.after_receive(got)):
        next(hook)
        assert next(hook, None) is None
    probe.step_end()
    assert probe.metrics(0) == {
        "joules": 2.0 * 10 + 0.5 * 8 * 150,
        "compute joules": 20.0,
        "radio joules": 600.0,
    }


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("joules_per_flop=-1.0", "joules_per_flop=-1.0 is not allowed; 0 or more"),
        ("joules_per_bit=nan", "joules_per_bit=nan is not allowed; 0 or more"),
        ("device=toaster", r"device=toaster is not allowed; device takes jetson-nano \| a100"),
        ("radio=smoke", r"radio=smoke is not allowed; radio takes wifi \| lte"),
        ("every=0", "every=0 is not allowed; 1 or more"),
    ],
)
def test_bad_settings(settings: str, told: str) -> None:
    with pytest.raises(ConfigError, match=f"^probe 'energy': {told}"):
        bind("probes", f"energy:{settings}").build()


def test_the_named_devices_and_radios_are_those_that_it_takes() -> None:
    assert set(typing.get_args(energy.Device)) == DEVICES.keys()
    assert set(typing.get_args(energy.Radio)) == RADIOS.keys()
    assert all(1e-12 < joules < 1e-9 for joules in DEVICES.values())


def test_the_page_of_costs_has_their_numbers() -> None:
    page = (ROOT / "docs" / "costs.md").read_text()
    number = r"\| (\d\S*) "
    devices = re.findall(rf"^\| `([\w-]+)` {number}\| NVIDIA", page, re.M)
    assert dict(devices) == {name: f"{joules:.1e}" for name, joules in DEVICES.items()}
    radios = re.findall(rf"^\| `(\w+)` {number}{number}\|$", page, re.M)
    told = {name: (float(up), float(down)) for name, up, down in radios}
    assert told == {
        name: (float(f"{up:.2e}"), float(f"{down:.2e}")) for name, (up, down) in RADIOS.items()
    }


# Meters.


def package(place: Path, number: int, joules: float, name: str = "package-0") -> Path:
    zone = place / f"intel-rapl:{number}"
    zone.mkdir(exist_ok=True)
    (zone / "name").write_text(f"{name}\n")
    (zone / "max_energy_range_uj").write_text("9999999\n")
    (zone / "energy_uj").write_text(f"{round(joules * 1e6)}\n")
    return zone


def test_packages_of_the_cpu_are_measured(unmetered: Path, tmp_path: Path, tiny: Any) -> None:
    package(unmetered, 0, 9.0)
    package(unmetered, 1, 1.0, "package-1")
    package(unmetered, 2, 5.0, "psys")  # the whole machine, the packages once more
    probe = Energy()
    probe.setup(tiny.peer())
    probe.step_begin(0)
    assert not probe.due(1)  # FLOPs are not needed
    package(unmetered, 0, 0.5)  # its counter began anew: 1.5 J
    package(unmetered, 1, 3.0, "package-1")
    package(unmetered, 2, 8.0, "psys")
    probe.step_end()
    assert probe.metrics(0)["compute joules"] == pytest.approx(1.5 + 2.0, abs=1e-5)
    probe.step_begin(1)
    probe.step_end()
    assert probe.metrics(1)["compute joules"] == 0
    assert probe.report(tmp_path).startswith("3.5 J compute, measured: RAPL package-0 + RAPL pack")
    told = json.loads((tmp_path / "energy.json").read_text())
    assert told["compute"] == "measured"
    assert told["meters"] == ["RAPL package-0", "RAPL package-1"]
    assert told["compute joules"] == pytest.approx(3.5, abs=1e-5)


def test_a_meter_that_may_not_be_read_is_none_and_says_why(
    unmetered: Path, tmp_path: Path, tiny: Any
) -> None:
    package(unmetered, 1, 1.0, "package-1")  # and one of several is not what all took
    (package(unmetered, 0, 1.0) / "energy_uj").unlink()
    probe = Energy()
    probe.setup(tiny.peer())
    assert probe.due(0)
    probe.step_begin(0)
    probe.step_end()
    assert probe.metrics(0)["compute joules"] == 0  # nothing was computed
    said = probe.report(tmp_path)
    assert "0 J compute, modelled: jetson-nano; 0 J radio, modelled: wifi; no meter: RAPL: " in said
    assert str(unmetered) in json.loads((tmp_path / "energy.json").read_text())["no meter"]
    assert png(tmp_path / "energy.png")


def test_a_gpu_is_measured_by_its_own_meter(
    unmetered: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda = torch.device("cuda")
    package(unmetered, 0, 1.0)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    meters, why = energy._meters(cuda)
    assert meters == {}  # the CPU's alone would not be what computes
    assert why.startswith("NVML: ")
    counted = iter((1000, 5000, 7500))
    handles = []
    fake = SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: handles.append(uuid),
        nvmlDeviceGetTotalEnergyConsumption=lambda handle: next(counted),
    )
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    facts = SimpleNamespace(uuid="1234")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    meters, why = energy._meters(cuda)
    assert why == ""
    assert [*meters] == ["NVML", "RAPL package-0"]
    assert handles == ["GPU-1234"]
    assert [meters["NVML"](), meters["NVML"]()] == [5.0, 7.5]


def test_a_resumed_run_goes_on_with_its_sums(tmp_path: Path) -> None:
    probe = Energy()
    history = [{"step": 1, "joules": 3.0}]
    probe.load_state_dict({"sums": {"joules": 3.0}, "flops": {"model": 7}, "history": history})
    again = Energy()
    again.load_state_dict(json.loads(json.dumps(probe.state_dict())))
    again.report(tmp_path)
    assert json.loads((tmp_path / "energy.json").read_text())["joules"] == 3.0
    assert again.flops == {"model": 7}
    assert again.state_dict()["history"] == history
