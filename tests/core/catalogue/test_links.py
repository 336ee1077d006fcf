"""Transports are made with their settings, or refused with what they lack; so are wrappers."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.catalogue.links import (
    bind_wrappers,
    lacks,
    load_transport,
    working_transports,
)
from splitlab.core.contract.link import WrappedLink


class Works:
    """A transport with a setting."""

    def __init__(self, *, nodelay: bool = False) -> None:
        self.nodelay = nodelay

    def unavailable(self) -> str | None:
        return None


class Lacks(Works):
    """A transport that works only with its setting."""

    def unavailable(self) -> str | None:
        return None if self.nodelay else "there is no driver"


class Needs(Works):
    """A transport that cannot be made without a setting."""

    def __init__(self, *, host: str) -> None: ...


class Explodes(Works):
    """A transport that raises when it is made."""

    def __init__(self) -> None:
        raise RuntimeError("no card")


class Stutters(Works):
    """A transport that raises when it is asked."""

    def unavailable(self) -> str | None:
        raise OSError("no answer")


@pytest.fixture(autouse=True)
def outside(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch, own: Path) -> None:
    """Let a package bring all of these, and one that is not there."""
    module = type(sys)(__name__)
    vars(module).update(globals())
    monkeypatch.setitem(sys.modules, __name__, module)
    install(
        "splitlab.transports",
        alien="a_package_that_is_not_there:Alien",
        works=f"{__name__}:Works",
        lacks=f"{__name__}:Lacks",
        needs=f"{__name__}:Needs",
        explodes=f"{__name__}:Explodes",
        stutters=f"{__name__}:Stutters",
    )


def test_a_transport_takes_settings() -> None:
    assert load_transport("works").nodelay is False  # type: ignore[union-attr]
    assert load_transport("works:nodelay=true").nodelay is True  # type: ignore[union-attr]
    assert load_transport("works") is not load_transport("works")
    with pytest.raises(ConfigError, match=r"transport 'works': unknown parameter 'delay'"):
        load_transport("works:delay=1")
    with pytest.raises(ConfigError, match=r"unknown transport 'workz' .did you mean 'works'"):
        load_transport("workz")


def test_what_ships_is_made_by_its_name() -> None:
    assert load_transport("inprocess").unavailable() is None


def test_a_transport_that_cannot_work_here_names_those_that_can() -> None:
    with pytest.raises(
        ConfigError,
        match=r"^transport 'lacks' cannot be used here: there is no driver; these can: .*inprocess",
    ):
        load_transport("lacks")
    assert load_transport("lacks:nodelay=yes").unavailable() is None
    assert lacks("lacks") == "there is no driver"
    assert lacks("lacks:nodelay=yes") is None


def test_where_no_transport_works_the_error_says_so(
    install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitlab.core.catalogue import tables

    monkeypatch.setattr(tables, "catalogue", dict)
    install("splitlab.transports", lacks=f"{__name__}:Lacks")
    with pytest.raises(ConfigError, match=r"no driver; these can: none$"):
        load_transport("lacks")


def test_a_broken_transport_disturbs_no_other() -> None:
    working = working_transports()
    assert {"inprocess", "works"} <= set(working)
    assert working == sorted(working)
    assert not {"alien", "lacks", "needs", "explodes", "stutters"} & set(working)


def test_what_is_wrong_with_a_broken_transport_is_said_in_one_line() -> None:
    told = "transport 'explodes' cannot be built: RuntimeError: no card (test_links.py:"
    assert (lacks("explodes") or "").startswith(told)
    assert lacks("needs") == "transport 'needs' needs host; write needs:host=…"
    assert "ModuleNotFoundError" in (lacks("alien") or "")
    reason = "transport 'stutters' cannot say whether it works here: OSError: no answer"
    assert (lacks("stutters") or "").startswith(f"{reason} (test_links.py:")
    with pytest.raises(PluginError, match="cannot say whether it works here"):
        load_transport("stutters")


def test_a_transport_of_a_file_is_one_like_any_other(tmp_path: Path) -> None:
    file = tmp_path / "pigeon.py"
    file.write_text(
        "class Pigeon:\n"
        "    def __init__(self, *, birds: int = 1) -> None:\n        self.birds = birds\n"
        "    def unavailable(self) -> str | None:\n"
        "        return None if self.birds else 'no birds'\n"
    )
    assert load_transport(f"{file}:Pigeon:birds=3").birds == 3  # type: ignore[union-attr]
    with pytest.raises(ConfigError, match=r"pigeon\.py:Pigeon:birds=0' cannot .*: no birds"):
        load_transport(f"{file}:Pigeon:birds=0")


def test_wrappers_are_bound_in_order_and_not_built(own: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(
        "from splitlab.core.contract.link import WrappedLink\n"
        "class Slow:\n"
        "    def __init__(self, *, delay: float = 0.0) -> None:\n        self.delay = delay\n"
        "    def wrap(self, link, role):\n        return WrappedLink(link)\n"
    )
    own.write_text("[links.slow]\ntarget = 'slow.py:Slow'")
    bound = bind_wrappers(["slow:delay=0.5", f"{tmp_path}/slow.py:Slow"])
    assert [str(b) for b in bound] == ["slow:delay=0.5", "Slow"]
    assert {b.kind for b in bound} == {"link"}
    assert [b.build().delay for b in bound] == [0.5, 0.0]
    assert isinstance(bound[0].build().wrap(None, "client"), WrappedLink)
    assert bind_wrappers([]) == []
    with pytest.raises(ConfigError, match=r"unknown link 'slo' .did you mean 'slow'"):
        bind_wrappers(["slow", "slo"])
    with pytest.raises(ConfigError, match="link 'slow': delay=x is not allowed; delay takes float"):
        bind_wrappers(["slow:delay=x"])


SLOW = (
    "class Slow:\n"
    "    def __init__(self, *, rate: str = '1mbit', loss: float = 0.0) -> None:\n"
    "        self.rate, self.loss = rate, loss\n"
    "    def wrap(self, link, role):\n        return link\n"
)


def test_a_preset_is_a_link_with_settings_and_users_may_set_them(own: Path, tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text(SLOW)
    own.write_text(
        "[links.slow]\ntarget = 'slow.py:Slow'\n"
        "[links.bad]\npreset = 'slow:rate=9kbit,loss=0.5'\nsummary = 'a bad one'"
    )
    [bad] = bind_wrappers(["bad"])
    assert (str(bad), dict(bad.params)) == ("bad", {"rate": "9kbit", "loss": 0.5})
    [better] = bind_wrappers(["bad:loss=0.1"])
    assert (str(better), better.build().rate, better.build().loss) == (
        "bad:loss=0.1",
        "9kbit",
        0.1,
    )
    own.write_text("[links.bad]\npreset = 'nobody:x=1'\ntarget = 'slow.py:Slow'")
    with pytest.raises(ConfigError, match=r"\[links.bad\] has the keys 'target' and 'preset'"):
        bind_wrappers(["bad"])
    own.write_text("[links.bad]\npreset = 'bad:x=1'")
    with pytest.raises(ConfigError, match="link 'bad' is a preset of itself"):
        bind_wrappers(["bad"])


def test_settings_alone_mean_the_link_that_takes_them() -> None:
    [bound] = bind_wrappers(["rate=20mbit,delay=40ms"])
    [named] = bind_wrappers([f"{bound.label}:rate=20mbit,delay=40ms"])
    assert (str(bound), bound.params) == (str(named), named.params)
    assert str(bound).endswith(":rate=20mbit,delay=40ms")
    with pytest.raises(ConfigError, match=r"unknown parameter 'rat' .did you mean 'rate'"):
        bind_wrappers(["rat=20mbit"])
    with pytest.raises(ConfigError, match="rate is given twice"):
        bind_wrappers(["rate=20mbit,rate=1mbit"])
    with pytest.raises(ConfigError, match="unknown transport 'nodelay=true'"):
        load_transport("nodelay=true")
