"""Values are dataclasses as `dataclasses` makes them, to everybody who looks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import typing
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from casstore import model, values


def classes(decorate: Any) -> tuple[type[Any], type[Any]]:
    @decorate(frozen=True, slots=True)
    class Still:
        """Said of it."""

        a: int
        b: tuple[str, ...] = ()
        hidden: object = dataclasses.field(default=None, compare=False, repr=False)
        made: list[int] = dataclasses.field(default_factory=list, hash=False)

        @property
        def double(self) -> int:
            return self.a * 2

    @decorate(slots=True)
    class Moving:
        a: int
        b: str = "x"

    return Still, Moving


OURS, THEIRS = classes(values.dataclass), classes(dataclasses.dataclass)
both = pytest.mark.parametrize(("still", "moving"), [OURS, THEIRS], ids=["ours", "theirs"])
Frozen: Any = values.dataclass(frozen=True, slots=True)(
    type("Frozen", (), {"__annotations__": {"a": "int", "b": "str"}, "b": "x", "__module__": __name__})
)


@both
def test_they_are_made_compared_hashed_and_shown_alike(still: type[Any], moving: type[Any]) -> None:
    one = still(1, ("x",), hidden=object())
    assert (one.a, one.b, one.made, one.double) == (1, ("x",), [], 2)
    assert one == still(1, b=("x",), hidden=None)
    assert one != still(1, ("y",))
    assert one != (1, ("x",), None, [])
    assert hash(one) == hash(still(1, ("x",), made=[7]))
    assert hash(one) != hash(still(2, ("x",)))
    assert repr(one) == f"{still.__qualname__}(a=1, b=('x',), made=[])"
    assert one.made is not still(1).made
    assert moving(1) == moving(1, "x")
    with pytest.raises(TypeError, match="unhashable"):
        hash(moving(1))
    with pytest.raises(TypeError, match="required positional argument: 'a'"):
        still()
    with pytest.raises(TypeError, match="unexpected keyword argument 'c'"):
        still(1, c=2)
    assert still.__doc__ == "Said of it."


@both
def test_frozen_ones_stay_as_they_are_and_others_change(still: type[Any], moving: type[Any]) -> None:
    one = still(1)
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'a'"):
        one.a = 2
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'a'"):
        del one.a
    other = moving(1)
    other.a = 2
    assert other == moving(2)
    for value in (one, other):
        assert not hasattr(value, "__dict__")
        with pytest.raises((AttributeError, TypeError)):
            value.new = 1


@both
def test_fields_copies_and_matching_are_the_same(still: type[Any], moving: type[Any]) -> None:
    one = still(1, ("x",))
    assert [field.name for field in dataclasses.fields(one)] == ["a", "b", "hidden", "made"]
    assert dataclasses.asdict(one) == {"a": 1, "b": ("x",), "hidden": None, "made": []}
    assert dataclasses.replace(one, a=2) == still(2, ("x",))
    assert copy.copy(one) == copy.deepcopy(one) == one
    match one:
        case still(1, ("x",)):
            pass
        case _:
            pytest.fail("it does not match")
    parameters = inspect.signature(still).parameters
    assert list(parameters) == ["a", "b", "hidden", "made"]
    assert parameters["b"].default == ()
    assert typing.get_type_hints(still.__init__)["b"] == tuple[str, ...]
    assert dataclasses.is_dataclass(moving)
    made: Any = moving
    assert made.__dataclass_params__.frozen is False
    made = still
    assert made.__dataclass_params__.frozen is True


def test_they_travel_as_pickles_and_as_messages() -> None:
    value = Frozen(1, "y")
    assert pickle.loads(pickle.dumps(value)) == value
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(value), type=Frozen) == value
    row = model.ChunkRow(model.Location(b"p" * 16, 1, 2, 3, 4, 5, model.ChunkKind.DATA), 6)
    assert pickle.loads(pickle.dumps(row)) == row


def test_one_that_holds_itself_can_be_shown() -> None:
    _, moving = OURS
    value = moving(1)
    value.b = value
    assert repr(value).endswith("(a=1, b=...)")


def unusual(decorate: Any) -> list[Callable[[], Any]]:
    made: Any

    @decorate(frozen=True, slots=True, order=True)
    class Ordered:
        a: int

    @decorate(frozen=True)
    class Told:
        a: int
        b: int = dataclasses.field(init=False, default=3)

    @decorate(frozen=True)
    class Checked:
        a: int

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("negative")

    @decorate(frozen=True)
    class Below(Checked):
        c: int = 1

    @decorate(slots=True)
    class Equal:
        a: int

        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None  # type: ignore[assignment]

    made = (Ordered, Checked, Below, Equal, Told)
    ordered, checked, below, equal, told = made
    return [
        lambda: ordered(1) < ordered(2),
        lambda: checked(-1),
        lambda: repr(below(1, c=2)).rpartition(".")[2],
        lambda: below(-1),
        lambda: equal(1) == 5,
        lambda: hash(equal(1)),
        lambda: told(1, 2),
        lambda: told(1).b,
    ]


@pytest.mark.parametrize("number", range(8))
def test_what_asks_for_more_gets_it(number: int) -> None:
    def outcome(decorate: Any) -> object:
        try:
            return unusual(decorate)[number]()
        except (TypeError, ValueError) as error:
            return type(error)

    assert outcome(values.dataclass) == outcome(dataclasses.dataclass)


WRONG: list[tuple[list[object], dict[str, object]]] = [
    ([], {}),
    ([1, 2, 3, 4, 5], {}),
    ([1], {"a": 2}),
    ([1], {"z": 2}),
    ([], {"b": ()}),
]


def test_the_first_instances_are_as_the_later_ones() -> None:
    still, moving = classes(values.dataclass)
    made = [still(1, ("x",), made=[number]) for number in range(20)]
    assert [one.made for one in made] == [[number] for number in range(20)]
    assert {(one.a, one.b, one.hidden) for one in made} == {(1, ("x",), None)}
    assert [moving(number, b="y").a for number in range(20)] == list(range(20))
    for arguments, named in WRONG:
        still, _ = classes(values.dataclass)  # anew: with an ``__init__`` that was not compiled yet
        said = [refused(still, *arguments, **named) for _ in range(12)]
        assert set(said) == {refused(THEIRS[0], *arguments, **named)}
        assert still(1) == still(1, ())


def refused(cls: type[Any], *arguments: object, **named: object) -> str:
    with pytest.raises(TypeError) as found:
        cls(*arguments, **named)
    return str(found.value)


def test_fields_that_are_no_arguments_and_order_are_as_theirs() -> None:
    def facts(decorate: Any) -> list[object]:
        class Sorted:
            a: int
            length: int = dataclasses.field(init=False, default=3)
            seen: list[int] = dataclasses.field(init=False, compare=False, default_factory=list)
            b: int = 0

            def __post_init__(self) -> None:
                self.seen.append(self.a)

        made = decorate(frozen=True, slots=True, order=True)(Sorted)
        one, other = made(1, 2), made(1, b=3)
        return [
            [made(number, 1).seen for number in range(20)],
            (one < other, one <= other, one > other, other >= one, one.length, made.__match_args__),
            sorted([other, one]) == [one, other],
            [(field.name, field.init, field.type, field.kw_only) for field in dataclasses.fields(made)],
            repr(made.__dataclass_params__),
            str(inspect.signature(made)),
        ]

    assert facts(values.dataclass) == facts(dataclasses.dataclass)
