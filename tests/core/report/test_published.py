"""Published curves: read from a file, kept where the regime is that of the runs, told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from splitlab.core import ConfigError
from splitlab.core.report.published import published, read_curves

HEAD = "source,dataset,budget,method,ratio,accuracy\n"
OURS = [("dataset", "d"), ("budget", "epochs=1"), ("lr", "0.1")]


def a_file(folder: Path, *lines: str, head: str = HEAD) -> Path:
    path = folder / "curves.csv"
    path.write_text(head + "".join(f"{line}\n" for line in lines))
    return path


def test_points_of_a_curve_are_in_the_order_of_their_ratios(tmp_path: Path) -> None:
    path = a_file(
        tmp_path,
        "who,d,epochs=1,adc,0.2,0.8",
        "who,d,epochs=1,topk,0.1,0.6",
        "who,d,epochs=1,adc,0.1,0.7",
    )
    one, two = read_curves(path)
    assert (one.source, one.method, one.points) == ("who", "adc", ((0.1, 0.7), (0.2, 0.8)))
    assert one.regime == {"dataset": "d", "budget": "epochs=1"}
    assert two.points == ((0.1, 0.6),)


def test_only_the_regime_of_the_runs_is_kept(tmp_path: Path) -> None:
    curves = read_curves(
        a_file(tmp_path, "who,d,epochs=1,adc,0.2,0.8", "other,e,epochs=1,adc,0.2,0.9")
    )
    found = published(curves, OURS)
    assert [curve.source for curve in found.curves] == ["who"]
    assert found.note == "dashed: who"
    none = published(curves, [("dataset", "f"), ("budget", "epochs=1")])
    assert not none.curves
    assert none.note == "no curve of who: the nearest is of dataset d"
    assert published((), OURS).note == ""


@pytest.mark.parametrize(
    ("head", "line", "told"),
    [
        ("source,method,ratio\n", "who,adc,0.1", "has no column accuracy; it takes source, method"),
        (HEAD, "who,d,epochs=1,adc,0.2,80", "line 2: accuracy '80' is not allowed; it is a share"),
        (HEAD, "who,d,epochs=1,adc,much,0.8", "line 2: ratio 'much' is not allowed"),
        (HEAD, "who,d,epochs=1,adc,nan,0.8", "line 2: ratio 'nan' is not allowed"),
        (HEAD, "who,d,epochs=1,adc,0.2", "line 2: it has not the columns"),
        (HEAD, "who,d,epochs=1,adc,0.2,0.8,more", "line 2: it has not the columns"),
        (HEAD, 'who,d,"epochs', "cannot read the published curves"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, head: str, line: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_curves(a_file(tmp_path, line, head=head))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"published curves .*: No such file"):
        read_curves(tmp_path / "nowhere.csv")
