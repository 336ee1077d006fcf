"""The kit passes what is right, and takes a plugin in many ways."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from right import Cast, Commits, Corrects, Remembers, Shift
from test_gradient_checks import DerivesWrongly

from splitlab.core import ConfigError, Peer, hookimpl
from splitlab.core.testing import PLUGIN_CHECKS, FreshPeers, Tiny, check_plugin


@pytest.mark.parametrize("plugin", [Shift, Cast, Remembers, Corrects, Commits])
def test_a_plugin_that_is_right_passes(plugin: type, fresh: FreshPeers) -> None:
    report = check_plugin(plugin, fresh=fresh)
    report.raise_if_failed()
    assert report.ok
    assert [row.check for row in report.rows] == [check.name for check in PLUGIN_CHECKS]
    skipped = [row.check for row in report.rows if row.outcome == "skipped"]
    assert skipped == (["gradient-as-declared"] if plugin is Corrects else [])


def test_every_check_stands_in_a_module_with_tests_of_its_own() -> None:
    for check in PLUGIN_CHECKS:
        module = check.run.__module__.rpartition(".")[2]
        assert check.run.__name__ == check.name.replace("-", "_")
        assert Path(__file__).with_name(f"test_{module}.py").is_file()


class Looks(Cast):
    seen: ClassVar[set[torch.device]] = set()

    @hookimpl
    def setup(self, peer: Peer) -> None:
        self.seen.add(peer.device)


def test_a_plugin_is_checked_on_a_device(fresh: FreshPeers) -> None:
    only = ["builds-and-runs", "gradient-as-declared", "frames-are-enough"]
    report = check_plugin(Looks, only=only, fresh=fresh, device="cpu:0")
    report.raise_if_failed()
    assert report.subject.endswith(" on cpu:0")
    assert Looks.seen == {torch.device("cpu", 0)}
    with pytest.raises(ConfigError, match="--device cuda:99 cannot be used here"):
        check_plugin("cast", device="cuda:99")


class Boasts(Cast):
    @hookimpl
    def nominal_ratio(self) -> tuple[float, float]:
        return 0.5, 0.0


def test_a_plugin_is_named_in_many_ways(tmp_path: Path) -> None:
    def outcome(plugin: Any) -> tuple[str, str]:
        report = check_plugin(plugin, only=["bytes-are-real"])
        return report.subject, report.rows[0].outcome

    file = tmp_path / "method.py"
    file.write_text(
        "from splitlab.core import hookimpl\n"
        "class Method:\n"
        "    def __init__(self, *, bits: int = 8) -> None: ...\n"
        "    run_end = hookimpl(lambda self: None)\n"
    )
    assert outcome("adc-token-select:ratio=0.5") == ("adc-token-select:ratio=0.5", "passed")
    assert outcome("adc-q8") == ("adc-q8", "passed")
    assert outcome(f"{file}:Method:bits=4") == (f"{file}:Method:bits=4", "passed")
    assert outcome(Shift) == ("Shift", "passed")
    assert outcome(Tiny().bound(Shift, label="mine")) == ("mine", "passed")
    with pytest.raises(ConfigError, match="unknown plugin 'ad'"):
        check_plugin("ad")
    with pytest.raises(ConfigError, match=r"unknown check 'bytes-real' .*'bytes-are-real'"):
        check_plugin("adc", only=["bytes-real"])
    with pytest.raises(ConfigError, match=r"'adc': ratio=0.2..0.1 changes .* here it needs one"):
        check_plugin("adc:ratio=0.2..0.1")


SMALL_CNN = str(Path(__file__).with_name("small_cnn.py"))


@pytest.mark.parametrize("model", ["small_cnn", "one_place", "vectors"])
@pytest.mark.parametrize("plugin", [Shift, Cast, Remembers, Corrects])
def test_a_plugin_that_is_right_passes_on_any_model(
    plugin: type, model: str, fresh: FreshPeers
) -> None:
    report = check_plugin(plugin, fresh=fresh, model=f"{SMALL_CNN}:{model}")
    report.raise_if_failed()
    assert [row.check for row in report.rows] == [check.name for check in PLUGIN_CHECKS]
    skipped = [row.check for row in report.rows if row.outcome == "skipped"]
    assert skipped == (["gradient-as-declared"] if plugin is Corrects else [])
    assert report.subject == f"{plugin.__name__} on {SMALL_CNN}:{model}"


def test_a_vision_transformer_of_any_shape_will_do(fresh: FreshPeers) -> None:
    model = "vit:image_size=16,patch=4,width=32,depth=2,heads=2,class_token=false"
    check_plugin("quantize", fresh=fresh, model=model).raise_if_failed()


@pytest.mark.long
def test_a_network_of_timms_will_do() -> None:
    only = [
        check.name for check in PLUGIN_CHECKS if check.name != "state-survives-resume"
    ]  # takes long
    report = check_plugin("quantize", model="resnet18", only=only)
    report.raise_if_failed()
    assert {row.outcome for row in report.rows} == {"passed"}


def test_what_is_wrong_is_found_on_another_model_too(fresh: FreshPeers) -> None:
    report = check_plugin(DerivesWrongly, fresh=fresh, model=f"{SMALL_CNN}:vectors")
    assert report.failed() == ["gradient-as-declared"], str(report)
    # Behind batch norm, the one direction that would tell is flat, and that is said.
    only = ["gradient-as-declared"]
    [row] = check_plugin(DerivesWrongly, only=only, model=f"{SMALL_CNN}:small_cnn").rows
    assert row.outcome == "warning"
    assert "does not depend on the size of the activations" in row.reason


@pytest.mark.parametrize(
    ("plugin", "reason"),
    [
        ("adc", "'adc' needs the attention of a class token, which this model does not have"),
        ("tome", "'tome' needs the attention keys of a transformer's block"),
        ("grid-pool", "'grid-pool' leaves other tokens than the model made"),
    ],
)
def test_a_model_that_a_plugin_cannot_work_on_is_said_once(plugin: str, reason: str) -> None:
    report = check_plugin(plugin, model="resnet18")
    assert report.subject == f"{plugin} on resnet18"
    [row] = report.rows
    assert (row.check, row.outcome) == ("fits-the-model", "failed")
    assert reason in row.reason
    assert row.reason.endswith("without a model it is checked on a small one that all methods fit")
    with pytest.raises(ConfigError, match="unknown check 'bytes'"):
        check_plugin(plugin, model="resnet18", only=["bytes"])


def test_a_model_that_cannot_be_built_is_no_fault_of_the_plugin() -> None:
    with pytest.raises(ConfigError, match="unknown model 'resnet19'"):
        check_plugin(Shift, model="resnet19")
