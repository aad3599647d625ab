"""Dataclasses, made in a third of the time: a process of the command line makes more than a hundred before it begins.

`dataclasses` writes and compiles up to six methods of each class. Here only ``__init__`` is compiled; the others are
shared code. To everybody else the result is a dataclass as any: fields, `replace`, pickles, messages, matching. Classes
that ask for more (order, fields that are no arguments, a base that is a dataclass, ``__post_init__``) are made there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    from collections.abc import Callable
    from operator import attrgetter
    from reprlib import recursive_repr
    from typing import Any

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, **more: bool
    ) -> type | Callable[[type], type]:
        """`dataclasses.dataclass`."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, slots=slots, **more)
        if more or hasattr(cls, "__post_init__") or any(hasattr(base, "__dataclass_fields__") for base in cls.__mro__):
            return dataclasses.dataclass(cls, frozen=frozen, slots=slots, **more)
        if not {"__eq__", "__hash__", "__setattr__", "__delattr__"}.isdisjoint(cls.__dict__):
            return dataclasses.dataclass(cls, frozen=frozen, slots=slots)
        given = [value for value in vars(cls).values() if isinstance(value, dataclasses.Field)]
        if any(not field.init or field.kw_only is True for field in given):
            return dataclasses.dataclass(cls, frozen=frozen, slots=slots)
        return _made(cls, frozen=frozen, slots=slots)

    def _made(cls: type, *, frozen: bool, slots: bool) -> type:
        cls.__doc__ = cls.__doc__ or cls.__name__  # or its signature is put together
        own = set(cls.__dict__)
        cls = dataclasses.dataclass(init=False, repr=False, eq=False)(cls)
        cls.__dataclass_params__.init = cls.__dataclass_params__.repr = cls.__dataclass_params__.eq = True
        cls.__dataclass_params__.frozen = frozen
        fields = dataclasses.fields(cls)
        if slots:
            cls = _slotted(cls, tuple(field.name for field in fields))
            if frozen:
                cls.__getstate__, cls.__setstate__ = _state, _set_state
        methods = {
            "__init__": _init(cls, fields, frozen=frozen),
            "__repr__": _repr(tuple(field.name for field in fields if field.repr)),
            **_comparisons(fields, frozen=frozen),
            **(_frozen(cls, frozenset(field.name for field in fields)) if frozen else {}),
        }
        for name, method in methods.items():
            if name not in own:
                if method is not None:
                    method.__name__, method.__qualname__ = name, f"{cls.__qualname__}.{name}"
                setattr(cls, name, method)
        return cls

    def _slotted(cls: type, names: tuple[str, ...]) -> type:
        body = {name: value for name, value in cls.__dict__.items() if name not in names}
        body.pop("__dict__", None)
        body.pop("__weakref__", None)
        made = type(cls)(cls.__name__, cls.__bases__, {**body, "__slots__": names})
        made.__qualname__ = cls.__qualname__
        return made

    def _init(cls: type, fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> Callable[..., None]:
        outer: dict[str, object] = {"_set": object.__setattr__, "_missing": dataclasses.MISSING}
        arguments, lines = ["self"], []
        for field in fields:
            name = value = field.name
            if field.default is not dataclasses.MISSING:
                outer[f"_default_{name}"] = field.default
                arguments.append(f"{name}=_default_{name}")
            elif field.default_factory is not dataclasses.MISSING:
                outer[f"_make_{name}"] = field.default_factory
                arguments.append(f"{name}=_missing")
                value = f"_make_{name}() if {name} is _missing else {name}"
            else:
                arguments.append(name)
            lines.append(f"  _set(self, {name!r}, {value})" if frozen else f"  self.{name} = {value}")
        text = f"def make({', '.join(outer)}):\n def __init__({', '.join(arguments)}):\n"
        made: dict[str, Any] = {}
        exec(  # noqa: S102 - names and nothing else, as dataclasses does it
            text + "\n".join(lines or ["  pass"]) + "\n return __init__", vars(sys.modules[cls.__module__]), made
        )
        init: Callable[..., None] = made["make"](**outer)
        init.__annotations__ = {**{field.name: field.type for field in fields}, "return": None}
        return init

    def _repr(names: tuple[str, ...]) -> Callable[[object], str]:
        def __repr__(self: object) -> str:  # noqa: N807
            shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in names])
            return f"{self.__class__.__qualname__}({shown})"

        return recursive_repr()(__repr__)

    def _values(names: list[str]) -> Callable[[object], tuple[object, ...]]:
        if len(names) > 1:
            return attrgetter(*names)
        return lambda value: tuple([getattr(value, name) for name in names])

    def _comparisons(fields: tuple[dataclasses.Field[Any], ...], *, frozen: bool) -> dict[str, Any]:
        compared = [field for field in fields if field.compare]
        values = _values([field.name for field in compared])
        hashed = _values([field.name for field in fields if (field.compare if field.hash is None else field.hash)])

        def __eq__(self: object, other: object) -> bool:  # noqa: N807
            if other.__class__ is self.__class__:
                return values(self) == values(other)
            return NotImplemented

        def __hash__(self: object) -> int:  # noqa: N807
            return hash(hashed(self))

        return {"__eq__": __eq__, "__hash__": __hash__ if frozen else None}

    def _frozen(cls: type, names: frozenset[str]) -> dict[str, Any]:
        def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
            super(cls, self).__setattr__(name, value)

        def __delattr__(self: object, name: str) -> None:  # noqa: N807
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
            super(cls, self).__delattr__(name)

        return {"__setattr__": __setattr__, "__delattr__": __delattr__}

    def _state(self: Any) -> list[object]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def _set_state(self: Any, state: list[object]) -> None:
        for field, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, field.name, value)
