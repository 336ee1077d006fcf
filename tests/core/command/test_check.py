"""``splitlab check``: the table of one report, the lines of many, and the exit status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core import hookimpl, testing
from splitlab.core.command.main import main

pytestmark = pytest.mark.usefixtures("starts_fast")


class Boasts:
    """Compresses nothing, and says that it does. A fresh peer finds it in this file, too."""

    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        """Return what is not true."""
        return 0.5, 0.0


def test_it_prints_a_table_and_its_status_is_the_verdict(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    assert main(["check", "--transport", "inprocess"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("inprocess: 13 passed, 8 skipped\n")
    assert re.search(r"passed +every-kind-arrives +both ways", printed)

    assert main(["check", "inprocess"]) == 0  # a transport goes by its name alone, too
    assert capsys.readouterr().out == printed

    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:2])
    assert main(["check", f"{__file__}:Boasts"]) == 1
    printed = capsys.readouterr().out
    assert re.search(r"failed +bytes-are-real +a plain .* +plugin 'Boasts' failed in", printed)

    assert main(["check", f"{__file__}:Boasts", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert [row["outcome"] for row in report["rows"]] == ["passed", "failed"]

    error = fails("check", "adc", "--transport", "tcp")
    assert "check adc and --transport tcp exclude each other; give one" in error
    error = fails("check", "--transport", "tcp", "--link", "delay")
    assert "check --transport tcp and --link delay exclude each other; give one" in error


def test_a_plugin_is_checked_on_another_model(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fails: Callable[..., str],
) -> None:
    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:2])
    model = "vit:image_size=16,patch=8,width=16,depth=2,heads=2"
    assert main(["check", "quantize", "--model", model]) == 0
    assert capsys.readouterr().out.startswith(f"quantize on {model}: 2 passed\n")

    assert main(["check", "adc", "--model", "resnet18", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["subject"] == "adc on resnet18"
    [row] = report["rows"]
    assert "'adc' needs the attention of a class token, which this model" in row["reason"]

    error = fails("check", "--model", "resnet18")
    assert "--model resnet18 needs a NAME" in error
    assert "splitlab check quantize --model resnet18" in error
    own = str(Path(__file__).parents[3] / "examples/small_cnn.py:small_cnn")
    for name in ("resnet18", "vit-mini", "vit-mini:depth=2", own):
        told = f"{name} is a model; check a plugin on it: splitlab check quantize --model {name}"
        assert told in fails("check", name)
    error = fails("check", "tcp:nodelay=false", "--model", "resnet18")
    assert "--model resnet18 is for plugins; check tcp:nodelay=false without it" in error
    assert "--device cuda needs a NAME" in fails("check", "--device", "cuda")
    error = fails("check", "tcp", "--device", "cuda")
    assert "--device cuda is for plugins; check tcp without it" in error
    assert "unknown model 'resnet19'" in fails("check", "adc", "--model", "resnet19")


def test_a_plugin_with_a_parameter_called_classes_is_no_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:1])
    file = tmp_path / "mine.py"
    file.write_text(
        "from splitlab.core import hookimpl\n\n\n"
        "class Mine:\n"
        "    def __init__(self, *, classes: int = 3) -> None:\n        pass\n\n"
        "    @hookimpl\n"
        "    def after_client_forward(self, cut):\n        pass\n"
    )
    assert main(["check", f"{file}:Mine"]) == 0
    assert "1 passed" in capsys.readouterr().out


def test_a_link_wrapper_is_checked_by_its_name_or_its_file(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    fails: Callable[..., str],
) -> None:
    file = tmp_path / "wrappers.py"
    file.write_text(
        "from splitlab.core import WrappedLink\n\n\n"
        "class Passes:\n"
        "    def __init__(self, *, seconds: float = 0.0) -> None:\n"
        "        self.seconds = seconds\n\n"
        "    def wrap(self, link, role):\n"
        "        return WrappedLink(link)\n"
    )
    registry = tmp_path / "own.toml"
    registry.write_text('[links.passes]\ntarget = "wrappers.py:Passes"\n')
    monkeypatch.setenv("SPLITLAB_REGISTRY", str(registry))
    monkeypatch.setattr(testing.wrapper, "LINK_CHECKS", testing.wrapper.LINK_CHECKS[:2])
    for named in (
        ("passes",),
        ("passes:seconds=1",),
        ("--link", "passes"),
        ("--link", f"{file}:Passes:seconds=1"),
    ):
        assert main(["check", *named]) == 0
        assert capsys.readouterr().out.startswith(f"{named[-1]}: 2 passed\n")
    assert "unknown link 'pass'" in fails("check", "--link", "pass")


def test_a_probe_is_checked_by_its_name_or_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, fails: Callable[..., str]
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from splitlab.core import hookimpl\n\n\n"
        "class Talks:\n"
        "    @hookimpl\n"
        "    def metrics(self):\n"
        "        return {'mood': 'good'}\n"
    )
    for named in (("time",), ("--probe", "time")):
        assert main(["check", *named]) == 0
        assert capsys.readouterr().out.startswith("time: 1 passed\n")
    assert main(["check", "--probe", f"{file}:Talks"]) == 1
    printed = " ".join(capsys.readouterr().out.split())
    assert "failed probe-changes-nothing" in printed
    assert "probe 'Talks' failed in metrics: 'mood' is 'good', not a number by name" in printed
    assert "unknown probe 'tim'" in fails("check", "--probe", "tim")
    error = fails("check", "--link", "delay", "--probe", "time")
    assert "check --link delay and --probe time exclude each other; give one" in error
    assert "--model resnet18 is for plugins; check time" in fails(
        "check", "time", "--model", "resnet18"
    )


def test_without_a_name_it_checks_all_that_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = [("plugin", "adc"), ("plugin", "lost"), ("transport", "inprocess"), ("probe", "time")]
    monkeypatch.setattr(testing, "listed", lambda: few)
    monkeypatch.setattr(testing.plugin, "PLUGIN_CHECKS", testing.plugin.PLUGIN_CHECKS[:2])
    assert main(["check"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.match(r"  1/4  adc +2 passed +\d", lines[0])
    assert re.match(r"  2/4  lost +1 failed +\d", lines[1])
    assert "unknown plugin 'lost'" in lines[2]
    assert re.match(r"  3/4  inprocess +13 passed, 8 skipped", lines[3])
    assert re.match(r"  4/4  time +1 passed +\d", lines[4])
    monkeypatch.setattr(testing, "listed", lambda: few[::2])
    assert main(["check", "--json"]) == 0
    assert [report["subject"] for report in json.loads(capsys.readouterr().out)] == [
        "adc",
        "inprocess",
    ]


def test_a_transport_is_checked_with_what_it_asks_for(
    tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.touch(0o600)
    assert "holds 0 bytes" in fails("check", "tcp", "--secret-file", str(secret))
    secret.write_text("x" * 32)
    assert main(["check", "tcp", "--secret-file", str(secret)]) == 0
    assert "failed" not in capsys.readouterr().out
    assert "takes no --insecure" in fails("check", "inprocess", "--insecure")
    line = fails("check", "quantize", "--tls-ca", "ca.pem")
    assert "--tls-ca is for transports; check quantize without it" in line
