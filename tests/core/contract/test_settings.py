"""Settings: a signature says what a text may be, and a class becomes something to build."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from splitlab.core import ConfigError, PluginError
from splitlab.core.contract.settings import Bound, Parameter, Piecewise, parameters


class Method:
    """Takes a parameter of every type."""

    def __init__(
        self,
        *,
        ratio: float = 0.1,
        count: int = 3,
        name: str = "a",
        on: bool = False,
        alloc: Literal["sqrt", "fifth"] = "sqrt",
        bits: Literal[2, 4, 8] = 8,
        tau: float | None = None,
        label: str | None = None,
        size: int | Literal["all"] = "all",
        untyped=None,
        listed: tuple[int, ...] = (),
    ) -> None:
        self.given = {key: value for key, value in locals().items() if key != "self"}


class Needs:
    """Cannot be built without two of its parameters."""

    def __init__(self, rank: int, *, mode: Literal["a", "b"], depth: int = 1, **rest: Any) -> None:
        self.rank = rank


class Breaks:
    """Refuses whatever it is given."""

    def __init__(self, *, how: Literal["config", "value"] = "value") -> None:
        if how == "config":
            raise ConfigError("how=config is refused")
        raise ValueError("a bug")


class Bare:
    """Has no constructor."""


def function(*, classes: int, depth: int = 2) -> tuple[int, int]:
    return classes, depth


def bound(factory: Any, kind: str = "plugin", **given: Any) -> Bound:
    defaults = {key: p.default for key, p in parameters(factory).items() if not p.required}
    name = factory.__name__.lower()
    return Bound(name, name, factory, {**defaults, **given}, given, kind=kind)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("ratio", "0.25", 0.25),
        ("ratio", "1e-3", 1e-3),
        ("ratio", "1", 1.0),
        ("count", "-2", -2),
        ("name", "sqrt=x", "sqrt=x"),
        ("name", "", ""),
        ("on", "true", True),
        ("on", "No", False),
        ("on", "1", True),
        ("on", "off", False),
        ("alloc", "fifth", "fifth"),
        ("bits", "4", 4),
        ("tau", "none", None),
        ("tau", "None", None),
        ("tau", "0.5", 0.5),
        ("label", "none", None),
        ("label", "x", "x"),
        ("size", "12", 12),
        ("size", "all", "all"),
        ("untyped", "text", "text"),
    ],
)
def test_texts_take_the_type_of_the_annotation(key: str, text: str, value: Any) -> None:
    parsed = parameters(Method)[key].parse("plugin 'method'", text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("ratio", "half", "ratio=half is not allowed; ratio takes float (default 0.1)"),
        ("ratio", "", "ratio= is not allowed; ratio takes float"),
        ("count", "1.5", "count takes int (default 3)"),
        ("on", "maybe", "on takes true | false (default false)"),
        ("alloc", "cube", "alloc takes sqrt | fifth (default sqrt)"),
        ("bits", "3", "bits takes 2 | 4 | 8 (default 8)"),
        ("tau", "x", "tau takes float | none (default none)"),
        ("size", "some", "size takes int | all (default all)"),
        ("listed", "1", "listed takes tuple"),
    ],
)
def test_texts_that_do_not_fit_name_owner_value_and_way_out(
    key: str, text: str, words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        parameters(Method)[key].parse("probe 'method'", text)
    assert words in str(caught.value)
    assert str(caught.value).startswith("probe 'method': ")


def test_a_needed_parameter_has_no_default_to_name() -> None:
    with pytest.raises(ConfigError, match=r"rank takes int$"):
        parameters(Needs)["rank"].parse("plugin 'needs'", "x")
    assert parameters(Needs)["rank"].default_text == "(needed)"


def test_parameters_are_described_as_users_read_them() -> None:
    kinds = {p.name: p.kind for p in parameters(Method).values()}
    assert kinds["ratio"] == "float"
    assert kinds["tau"] == "float | none"
    assert kinds["alloc"] == "sqrt | fifth"
    assert kinds["size"] == "int | all"
    assert [p.name for p in parameters(Needs).values() if p.required] == ["rank", "mode"]
    assert "rest" not in parameters(Needs)
    assert parameters(Bare) == {}
    assert Parameter("x", int, 3).required is False


def test_a_function_has_parameters_as_a_class_has() -> None:
    found = parameters(function)
    assert list(found) == ["classes", "depth"]
    assert found["classes"].required
    assert found["depth"].parse("model 'function'", "7") == 7


def test_annotations_that_name_nothing_are_the_plugins_error() -> None:
    def init(self: Any, x: Any = None) -> None: ...

    init.__annotations__["x"] = "Missing"
    with pytest.raises(
        PluginError, match=r"types of the parameters of Odd .* NameError: .*Missing"
    ):
        parameters(type("Odd", (), {"__init__": init}))


def test_what_is_bound_builds_anew_and_reads_as_it_was_written() -> None:
    method = bound(Method, count=5, ratio=0.2)
    assert str(method) == "method:count=5,ratio=0.2"
    assert method.build().given == method.params
    assert method.build() is not method.build()
    assert str(bound(Method, on=True, tau=None)) == "method:on=true,tau=none"
    bare = bound(Bare)
    assert (str(bare), bare.agreement(), bare.label) == ("bare", "bare", "bare")


def test_what_users_do_not_set_is_given_when_it_is_built() -> None:
    model = Bound("function", "function", function, {"depth": 3}, {"depth": 3}, kind="model")
    assert model.build(classes=10) == (10, 3)
    with pytest.raises(PluginError, match=r"cannot be built: TypeError: .*classes"):
        model.build()


def test_what_peers_agree_on_holds_defaults() -> None:
    assert bound(Method, ratio=0.1).agreement() == bound(Method).agreement()
    assert "ratio=0.1," in bound(Method).agreement()
    assert bound(Method, on=True).agreement() != bound(Method).agreement()


@pytest.mark.parametrize("kind", ["plugin", "transport", "probe"])
def test_constructors_that_refuse_are_named(kind: str) -> None:
    with pytest.raises(ConfigError, match=f"^{kind} 'breaks': how=config is refused$"):
        bound(Breaks, kind, how="config").build()
    with pytest.raises(PluginError, match=f"{kind} 'breaks' cannot be built: ValueError: a bug"):
        bound(Breaks, kind).build()


def test_a_reconstruction_says_so_in_its_title() -> None:
    assert Bound("m", "m", Bare, {}, {}, reconstruction=True).title == "m-recon"
    assert str(Bound("m", "m", Bare, {}, {"a": 1}, reconstruction=True)) == "m-recon:a=1"
    assert Bound("m", "m", Bare, {}, {}).title == "m"


# Settings that change while a run goes on.


def test_values_that_follow_each_other_are_parsed_each() -> None:
    found = parameters(Method)
    parsed = found["ratio"].parse("plugin 'method'", "0.4..0.2..1e-1", piecewise=True)
    assert (parsed, str(parsed)) == (Piecewise((0.4, 0.2, 0.1)), "0.4..0.2..0.1")
    assert found["tau"].parse("plugin 'method'", "none..1", piecewise=True).values == (None, 1.0)
    assert found["alloc"].parse("p", "fifth..sqrt", piecewise=True).values == ("fifth", "sqrt")
    assert found["untyped"].parse("p", "../a", piecewise=True) == "../a"  # any text is a value


@pytest.mark.parametrize(
    ("text", "piecewise"), [("0.4..x", True), ("0.4..", True), ("..", True), ("0.4..0.2", False)]
)
def test_values_that_do_not_follow_each_other_are_refused(text: str, piecewise: bool) -> None:
    with pytest.raises(ConfigError, match="is not allowed; ratio takes float"):
        parameters(Method)["ratio"].parse("plugin 'method'", text, piecewise)


def test_what_changes_is_built_piece_by_piece() -> None:
    params = {key: p.default for key, p in parameters(Method).items()}
    changing = {"ratio": Piecewise((0.4, 0.1))}
    bound = Bound("method", "method", Method, params | changing, changing)
    assert (bound.pieces, str(bound)) == (2, "method:ratio=0.4..0.1")
    assert "ratio=0.4..0.1" in bound.agreement()
    assert [bound.piece(i).build().given["ratio"] for i in range(2)] == [0.4, 0.1]
    assert (str(bound.piece(1)), bound.piece(1).pieces) == ("method:ratio=0.1", 1)
    with pytest.raises(
        ConfigError, match=r"ratio=0.4..0.1 changes .* one value, such as ratio=0.4"
    ):
        bound.build()
