"""A paced link takes as long as it says, as the kernel's own limit would, and changes no byte."""

from __future__ import annotations

import math
import re
import shutil
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from splitlab.core import ConfigError, run
from splitlab.core.catalogue.binding import bind
from splitlab.core.catalogue.links import load_transport
from splitlab.core.catalogue.tables import ROOT, catalogue
from splitlab.core.contract.errors import NetworkError
from splitlab.core.contract.message import Kind, Message
from splitlab.core.runs.records import StepRecord, read_records
from splitlab.core.testing import check_link
from splitlab.core.testing.links import a_message, both_ends
from splitlab.core.wire.encode import encode
from splitlab.transports import paced
from splitlab.transports.paced import Paced

VIT = "vit:image_size=28,patch=7,channels=1,width=32,depth=3,heads=2"
PRESETS = [name for name, table in catalogue()["links"].items() if "preset" in table]


def test_a_frame_takes_the_bits_of_its_packets_and_the_delay() -> None:
    link = Paced(rate="1mbit", delay="20ms")
    # 2,896 bytes fill two packets, each with 66 bytes of headers.
    assert link.seconds("server", 2896) == pytest.approx(2 * 1514 * 8 / 1e6 + 0.020)
    assert link.seconds("client", 2897) == pytest.approx((3 * 66 + 2897) * 8 / 1e6 + 0.020)
    assert link.seconds("client", 0) == pytest.approx(66 * 8 / 1e6 + 0.020)


def test_each_direction_has_a_rate_of_its_own() -> None:
    link = Paced(rate="2mbit", up="500kbit")
    up, down = (link.seconds(role, 10_000) for role in ("client", "server"))
    assert up == pytest.approx(4 * down)
    assert Paced(rate="2mbit").seconds("client", 10_000) == pytest.approx(down)
    assert Paced(up="500kbit").seconds("server", 10_000) == 0.0
    assert Paced().seconds("client", 10**9) == 0.0


@pytest.mark.parametrize(
    ("text", "bits"), [("9600bit", 9600), ("1.5mbit", 1.5e6), ("2GBIT", 2e9), (".5kbit", 500)]
)
def test_rates_are_read_with_their_units(text: str, bits: float) -> None:
    assert Paced(rate=text).seconds("server", 1448) == pytest.approx(1514 * 8 / bits)


@pytest.mark.parametrize(("text", "seconds"), [("1.5s", 1.5), ("40ms", 0.04), ("250us", 250e-6)])
def test_times_are_read_with_their_units(text: str, seconds: float) -> None:
    assert Paced(delay=text).seconds("server", 1) == pytest.approx(seconds)


def test_delays_are_drawn_evenly_and_are_those_of_the_message() -> None:
    link = Paced(delay="40ms", jitter="30ms")
    drawn = [link.seconds("client", 100, "ACTIVATION", step) for step in range(400)]
    assert all(0.010 <= seconds <= 0.070 for seconds in drawn)
    # The mean of 400 even draws: 30 ms / sqrt(3) / 20 is its deviation; five of them.
    assert statistics.fmean(drawn) == pytest.approx(0.040, abs=5 * 0.030 / math.sqrt(3) / 20)
    again = Paced(delay="40ms", jitter="30ms")
    assert [again.seconds("client", 100, "ACTIVATION", s) for s in range(400)] == drawn
    assert again.seconds("server", 100, "ACTIVATION", 7) != drawn[7]
    other = Paced(delay="40ms", jitter="30ms", seed=1)
    assert other.seconds("client", 100, "ACTIVATION", 7) != drawn[7]


def test_what_is_lost_costs_its_time_again_and_a_round_trip() -> None:
    still, lossy = Paced(rate="10mbit"), Paced(rate="10mbit", loss=0.2)
    packets = 1000
    once = still.seconds("client", packets * 1448)
    mean = statistics.fmean(lossy.seconds("client", packets * 1448, n) for n in range(50))
    # A packet is sent 1 / (1 - loss) times; 50,000 of them: deviation 0.56 / sqrt(50,000).
    assert mean / once == pytest.approx(1.25, abs=5 * 0.56 / math.sqrt(50_000))


class Drawn:
    """Draws that are what a test says, and then no loss."""

    def __init__(self, *lost: bool) -> None:
        self._lost = [*lost]

    def random(self) -> float:
        return 0.0 if self._lost and self._lost.pop(0) else 1.0


@pytest.mark.parametrize(
    ("lost", "seconds"),
    [
        ((), 4.0),
        ((True,), 5.0),  # known when two more have left, and repeated before the last
        ((False, False, False, True), 4 + 2 + 1.0),  # the last one: a round trip's silence
        ((False, False, True, True), 4 + 1 + 1 + 1.0),  # the link is idle until the first is known
        ((False, False, False, True, True), 4 + 2 + 1 + 2 + 1.0),  # and lost again
    ],
)
def test_a_packet_is_repeated_as_soon_as_it_is_known_to_be_lost(
    lost: tuple[bool, ...], seconds: float
) -> None:
    draws: Any = Drawn(*lost)
    assert paced._repeating(4, 1.0, 2.0, 0.5, draws) == seconds


def test_lost_packets_of_a_long_frame_cost_no_round_trip_each() -> None:
    near, far = (Paced(rate="10mbit", delay=delay, loss=0.2) for delay in ("0ms", "100ms"))
    late = far.seconds("client", 1000 * 1448, 3) - near.seconds("client", 1000 * 1448, 3)
    # Its own delay, and the silence at the end: 1.5 s are sent, and a round trip is 0.2 s.
    assert 0.1 <= late < 1.5


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("rate=20", "rate=20 is not allowed; a rate above 0 with its unit"),
        ("rate=0mbit", "rate=0mbit is not allowed"),
        ("up=fast", r"up=fast is not allowed; .*as in up=20mbit"),
        ("delay=40", "delay=40 is not allowed; 0 to 60 s with the unit us, ms or s"),
        ("delay=2min", "delay=2min is not allowed"),
        ("delay=61s", "delay=61s is not allowed"),
        ("delay=2ms,jitter=5ms", "jitter=5ms is more than delay=2ms"),
        ("loss=0.6", "loss=0.6 is not allowed; a share of the packets, 0 to 0.5"),
        ("loss=nan", "loss=nan is not allowed"),
        ("loss=1%", "loss=1% is not allowed; loss takes float"),
    ],
)
def test_bad_settings(settings: str, told: str) -> None:
    with pytest.raises(ConfigError, match=rf"^link 'paced': {told}"):
        bind("links", settings).build()


@pytest.mark.parametrize("name", PRESETS)
def test_profiles_can_be_made_and_changed(name: str) -> None:
    profile = bind("links", name).build()
    assert 0 < profile.seconds("client", 1500) < 2
    far = bind("links", f"{name}:delay=3s").build()
    assert far.seconds("server", 1500) > 3


def test_the_page_of_links_has_their_numbers() -> None:
    page = (ROOT / "docs" / "links.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| (\S+) (\w)bit/s \| (\S+) (\w)bit/s \| (\S+) ms", page, re.M)
    assert [row[0] for row in rows] == PRESETS
    for name, down, unit, up, units, delay in rows:
        params = bind("links", name).params
        told = {"rate": f"{down}{unit}bit".lower(), "up": f"{up}{units}bit".lower()}
        assert told == {"rate": params["rate"], "up": params["up"] or params["rate"]}, name
        assert params["delay"] == f"{delay}ms"


def test_a_paced_link_holds_what_every_link_holds() -> None:
    check_link("rate=10gbit,delay=1ms,jitter=1ms,loss=0.001").raise_if_failed()


def test_a_frame_that_takes_longer_than_a_peer_waits_is_refused_at_once() -> None:
    trained, evaluated = a_message(step=8), a_message(step=7)
    assert (trained.training, evaluated.training) == (True, False)
    with both_ends(load_transport("inprocess")) as (client, server, _):
        slow = bind("links", "rate=1kbit").build().wrap(client, "client")
        size = encode(trained).nbytes
        with pytest.raises(NetworkError, match=rf"a frame of {size:,} bytes takes \S+ s on") as why:
            slow.send(trained, 0.5)
        seconds = math.ceil(Paced(rate="1kbit").seconds("client", size))
        assert f"give --timeout {seconds} or more" in str(why.value)
        with pytest.raises(NetworkError):
            server.receive(0.05)  # nothing came
        slow.send(evaluated, 0.5)  # which nothing waits for
        assert server.receive(5.0).step == 7
        slow.send(Message(Kind.ERROR, meta={"error": "interrupted"}), 0.5)
        assert server.receive(5.0).kind is Kind.ERROR


def test_a_run_takes_the_seconds_of_the_link_and_the_same_bytes(tmp_path: Path) -> None:
    link = "rate=20mbit,delay=4ms,jitter=2ms,loss=0.05"
    common: dict[str, Any] = {
        "model": VIT,
        "plugins": ["quantize:bits=8"],
        "budget": "steps=2",
        "batch_size": 250,
        "weights": "none",
        "threads": 1,
        "device": "cpu",
    }
    bare = run(output=str(tmp_path / "bare"), **common)
    late = run(output=str(tmp_path / "late"), links=[link], **common)
    assert late.ledger.counts == bare.ledger.counts
    assert late.summary.loss == bare.summary.loss
    assert late.summary.links == (f"paced:{link}",)
    shape = bind("links", link).build()
    expected = 0.0
    for record in read_records(late.folder):
        if isinstance(record, StepRecord):
            assert record.bytes_up
            assert record.bytes_down
            step = record.step - 1
            expected += shape.seconds("client", record.bytes_up, "ACTIVATION", step)
            expected += shape.seconds("server", record.bytes_down, "GRADIENT", step)
    assert expected > 4 * 2e-3
    assert late.summary.link_seconds >= 0.99 * expected


# Beside the kernel: the same bytes through `tc … tbf` and through the wrapper.

RATE = "20mbit"
SET_UP = f"""
refuse() {{ echo "$1" >&2; exit 77; }}
unshare -n sleep 120 & holder=$!
trap 'kill $holder' EXIT
sleep 0.5
there="nsenter -t $holder -n"
ip link add name near0 type veth peer name far0 netns $holder || refuse "no veth pair"
ip addr add 10.9.0.1/24 dev near0 && ip link set near0 up || refuse "no address"
$there ip addr add 10.9.0.2/24 dev far0 && $there ip link set far0 up || refuse "no address"
sleep 0.5
exchange() {{ $there "$@" server & "$@" client; wait $!; }}
limit="root tbf rate {RATE} burst 16kb latency 400ms"
tc qdisc add dev near0 $limit && $there tc qdisc add dev far0 $limit || refuse "no tc tbf"
exchange "$@" none
tc qdisc del dev near0 root && $there tc qdisc del dev far0 root
exchange "$@" rate={RATE}
"""
PEER = """
import sys, time, torch
from splitlab.core.catalogue.binding import bind
from splitlab.core.contract.message import Kind, Message, Role
from splitlab.transports.tcp import Tcp

shape, role = sys.argv[1:]
address, cpu = "tcp://10.9.0.2:4711", torch.device("cpu")
if role == "server":
    link = Tcp(insecure=True).listen(address, device=cpu).accept(30.0)
else:
    link = Tcp().connect(address, device=cpu, timeout=30.0)
if shape != "none":
    link = bind("links", shape).build().wrap(link, role)
for n, size in enumerate((1000, 1_000_000, 1_000_000, 1_000_000)):
    message = Message(Kind.ACTIVATION, n)
    message.put("activations", torch.zeros(size, dtype=torch.uint8), Role.PAYLOAD)
    began = time.perf_counter()
    if role == "server":
        link.receive(30.0)
    link.send(message, 30.0)
    if role == "client":
        link.receive(30.0)
        print(size, time.perf_counter() - began, flush=True)
"""


@pytest.mark.long
def test_it_is_as_slow_as_the_kernels_own_limit() -> None:
    tools = ("unshare", "nsenter", "ip", "tc", "bash")
    if missing := [tool for tool in tools if shutil.which(tool) is None]:
        pytest.skip(f"no {', '.join(missing)} here, with which two network namespaces are made")
    ended = subprocess.run(
        ["unshare", "-rn", "bash", "-c", SET_UP, "bash", sys.executable, "-c", PEER],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    if not ended.stdout and (ended.returncode == 77 or "unshare:" in ended.stderr):
        said = " ".join(ended.stderr.split())
        pytest.skip(f"two network namespaces with a limited rate are not allowed here: {said}")
    rows = [line.split() for line in ended.stdout.splitlines()]
    assert [size for size, _ in rows] == ["1000", *["1000000"] * 3] * 2, ended.stderr
    kernel, ours = (
        statistics.median(float(seconds) for _, seconds in rows[begin : begin + 3])
        for begin in (1, 5)
    )
    assert ours == pytest.approx(kernel, rel=0.10)
