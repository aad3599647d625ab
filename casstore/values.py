"""Dataclasses that are made fast: a process of the command line makes two hundred, and uses few of them.

`dataclasses` writes and compiles up to six methods of each class as it is made. Here a method, and the list of fields,
is made when it is first asked for. To everybody else the result is a dataclass as any: fields, `replace`, pickles,
messages, matching. Classes that ask for more (arguments by keyword only, a base that is a dataclass …) are made there.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

__all__ = ["dataclass"]

if TYPE_CHECKING:
    from dataclasses import dataclass
else:
    import dataclasses
    from abc import update_abstractmethods
    from collections.abc import Callable
    from functools import partial
    from operator import attrgetter, ge, gt, le, lt
    from reprlib import recursive_repr
    from types import MethodType
    from typing import Any

    _MISSING = dataclasses.MISSING
    _ORDER = {"__lt__": lt, "__le__": le, "__gt__": gt, "__ge__": ge}
    _OWN = frozenset({"__eq__", "__hash__", "__setattr__", "__delattr__", *_ORDER})
    """methods of its own that a class made here cannot have"""
    _INTERPRETED = 8
    """instances of a class before it is worth while to compile its ``__init__``"""
    _NO_FIELDS = ("ClassVar", "InitVar", "KW_ONLY")

    _Fields = list[dataclasses.Field[Any]]

    def dataclass(
        cls: type | None = None, /, *, frozen: bool = False, slots: bool = False, order: bool = False, **more: bool
    ) -> type | Callable[[type], type]:
        """`dataclasses.dataclass`."""
        if cls is None:
            return lambda cls: dataclass(cls, frozen=frozen, slots=slots, order=order, **more)
        given = None if more else _given(cls)
        if given is None:
            return dataclasses.dataclass(cls, frozen=frozen, slots=slots, order=order, **more)
        return _made(cls, given, frozen=frozen, slots=slots, order=order)

    def _given(cls: type) -> dict[str, Any] | None:
        """Field → its default, or what `dataclasses.field` made of it; None if the class asks for more."""
        if not _OWN.isdisjoint(cls.__dict__):
            return None
        for base in cls.__mro__[1:-1]:
            if "__dataclass_fields__" in base.__dict__ or base.__dict__.get("__slots__"):
                return None
        given = {}
        optional = False
        for name, kind in cls.__dict__.get("__annotations__", {}).items():  # noqa: RUF063 - which imports inspect
            plain = isinstance(kind, type) or (isinstance(kind, str) and not any(word in kind for word in _NO_FIELDS))
            if not plain or kind is dataclasses.InitVar or name == "self":
                return None
            given[name] = value = getattr(cls, name, _MISSING)
            required = value is _MISSING
            if isinstance(value, dataclasses.Field):
                if value.kw_only is True or type(value.default).__hash__ is None:
                    return None
                if not value.init:
                    continue
                required = value.default is value.default_factory  # both are missing
            elif type(value).__hash__ is None:
                return None
            if required and optional:
                return None
            optional = not required
        return given

    def _made(cls: type, given: dict[str, Any], *, frozen: bool, slots: bool, order: bool) -> type:
        own = cls.__dict__
        plan = _Plan(given, own.get("__annotations__", {}), {"frozen": frozen, "order": order})
        added: dict[str, Any] = {
            "__init__": _LaterInit(plan),
            "__repr__": _Later(plan, "__repr__"),
            "__match_args__": tuple(
                [name for name, value in given.items() if getattr(value, "init", True) is not False]
            ),
        }
        if slots and frozen:
            added |= {"__getstate__": _state, "__setstate__": _set_state}
        for name in [name for name in added if name in own]:
            del added[name]
        added |= {
            "__doc__": cls.__doc__ or cls.__name__,  # or its signature is put together
            "__dataclass_params__": _DescribedOptions(plan),
            "__dataclass_fields__": _DescribedFields(plan),
            "__eq__": _Later(plan, "__eq__"),
            "__hash__": _Later(plan, "__hash__") if frozen else None,
        }
        if order:
            added |= {name: _Later(plan, name) for name in _ORDER}
        if frozen:
            added |= {"__setattr__": _Later(plan, "__setattr__"), "__delattr__": _Later(plan, "__delattr__")}
        if slots:
            body = {name: value for name, value in own.items() if name not in given}
            body.pop("__dict__", None)
            body.pop("__weakref__", None)
            body |= added
            body["__slots__"] = tuple(given)
            body["__qualname__"] = cls.__qualname__
            cls = type(cls)(cls.__name__, cls.__bases__, body)
        else:
            for name, value in given.items():
                if isinstance(value, dataclasses.Field):
                    if value.default is _MISSING:
                        delattr(cls, name)
                    else:
                        setattr(cls, name, value.default)
            for name, value in added.items():
                setattr(cls, name, value)
            if "__abstractmethods__" in own:
                update_abstractmethods(cls)
        plan.cls = cls
        return cls

    class _Plan:
        """What the parts of a class are made from."""

        __slots__ = ("cls", "given", "options", "types")
        cls: type

        def __init__(self, given: dict[str, Any], types: dict[str, str], options: dict[str, bool]) -> None:
            self.given = given
            self.types = types
            self.options = options

        def fields(self) -> _Fields:
            """Of the class made."""
            return list(self.cls.__dataclass_fields__.values())

    class _DescribedFields:
        """The fields of a class, until they are asked for."""

        __slots__ = ("plan",)

        def __init__(self, plan: _Plan) -> None:
            self.plan = plan

        def __get__(self, instance: object, owner: type) -> dict[str, dataclasses.Field[Any]]:
            plan = self.plan
            made = {}
            for name, value in plan.given.items():
                field = value
                if not isinstance(value, dataclasses.Field):
                    field = dataclasses.field() if value is _MISSING else dataclasses.field(default=value)
                field.name, field.type, field.kw_only = name, plan.types[name], False
                field._field_type = dataclasses._FIELD  # noqa: SLF001 - what `dataclasses.fields` looks for
                made[name] = field
            plan.cls.__dataclass_fields__ = made
            return made

    class _DescribedOptions:
        """The options of a class, until they are asked for."""

        __slots__ = ("plan",)

        def __init__(self, plan: _Plan) -> None:
            self.plan = plan

        def __get__(self, instance: object, owner: type) -> object:
            made = dataclasses.dataclass(init=False, repr=False, eq=False)(type("Made", (), {"__doc__": "-"}))
            options = made.__dataclass_params__
            options.init = options.repr = options.eq = True
            for name, value in self.plan.options.items():
                setattr(options, name, value)
            self.plan.cls.__dataclass_params__ = options
            return options

    class _Later:
        """A method of a class, until it is asked for."""

        __slots__ = ("name", "plan")

        def __init__(self, plan: _Plan, name: str) -> None:
            self.plan = plan
            self.name = name

        def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
            cls = self.plan.cls
            method = _MAKERS[self.name](cls, self.plan.fields())
            method.__name__, method.__qualname__ = self.name, f"{cls.__qualname__}.{self.name}"
            setattr(cls, self.name, method)  # by two threads at once: to no harm
            return method if instance is None else MethodType(method, instance)

    class _LaterInit(_Later):
        """``__init__``: interpreted for the first instances, as many a class has no more than those."""

        __slots__ = ("left",)

        def __init__(self, plan: _Plan) -> None:
            super().__init__(plan, "__init__")
            self.left = _INTERPRETED

        def __get__(self, instance: object, owner: type) -> Callable[..., Any]:
            if instance is None or not self.left:
                return super().__get__(instance, owner)
            self.left -= 1
            return partial(_fill, self.plan, instance)

    def _fill(plan: _Plan, instance: Any, /, *arguments: object, **named: object) -> None:
        """What the ``__init__`` of a class does; what that refuses is left to it, to be said in its words."""
        cls = plan.cls
        rest, names = iter(arguments), dict(named)
        put = object.__setattr__ if "__setattr__" in cls.__dict__ else setattr
        for name, value in plan.given.items():
            field = value if isinstance(value, dataclasses.Field) else None
            found = _MISSING
            if field is None or field.init:
                found = next(rest, _MISSING)
                if found is _MISSING:
                    found = names.pop(name, _MISSING)
            if found is _MISSING:
                found = value
                if field is not None:
                    found = field.default if field.default_factory is _MISSING else field.default_factory()
            if found is not _MISSING:
                put(instance, name, found)
            elif field is None or field.init:
                names[name] = _MISSING
                break
        if names or next(rest, _MISSING) is not _MISSING:
            cls.__init__(instance, *arguments, **named)
        elif hasattr(cls, "__post_init__"):
            instance.__post_init__()

    def _init(cls: type, fields: _Fields) -> Callable[..., None]:
        frozen = "__setattr__" in cls.__dict__
        outer: dict[str, object] = {"_set": object.__setattr__, "_missing": _MISSING}
        arguments, lines = ["self"], []
        for field in fields:
            name = value = field.name
            if not field.init:
                if field.default_factory is not _MISSING:
                    outer[f"_make_{name}"] = field.default_factory
                    value = f"_make_{name}()"
                elif field.default is not _MISSING:
                    outer[f"_default_{name}"] = field.default
                    value = f"_default_{name}"
                else:
                    continue
            elif field.default is not _MISSING:
                outer[f"_default_{name}"] = field.default
                arguments.append(f"{name}=_default_{name}")
            elif field.default_factory is not _MISSING:
                outer[f"_make_{name}"] = field.default_factory
                arguments.append(f"{name}=_missing")
                value = f"_make_{name}() if {name} is _missing else {name}"
            else:
                arguments.append(name)
            lines.append(f"  _set(self, {name!r}, {value})" if frozen else f"  self.{name} = {value}")
        if hasattr(cls, "__post_init__"):
            lines.append("  self.__post_init__()")
        text = f"def make({', '.join(outer)}):\n def __init__({', '.join(arguments)}):\n"
        made: dict[str, Any] = {}
        exec(  # noqa: S102 - names and nothing else, as dataclasses does it
            text + "\n".join(lines or ["  pass"]) + "\n return __init__", vars(sys.modules[cls.__module__]), made
        )
        init: Callable[..., None] = made["make"](**outer)
        init.__annotations__ = {**{field.name: field.type for field in fields}, "return": None}
        return init

    def _repr(cls: type, fields: _Fields) -> Callable[[object], str]:  # noqa: ARG001
        names = tuple(field.name for field in fields if field.repr)

        def __repr__(self: object) -> str:  # noqa: N807
            shown = ", ".join([f"{name}={getattr(self, name)!r}" for name in names])
            return f"{self.__class__.__qualname__}({shown})"

        return recursive_repr()(__repr__)

    def _values(names: list[str]) -> Callable[[object], tuple[object, ...]]:
        if len(names) > 1:
            return attrgetter(*names)
        return lambda value: tuple([getattr(value, name) for name in names])

    def _eq(cls: type, fields: _Fields) -> Callable[..., Any]:  # noqa: ARG001
        values = _values([field.name for field in fields if field.compare])

        def __eq__(self: object, other: object) -> bool:  # noqa: N807
            if other.__class__ is self.__class__:
                return values(self) == values(other)
            return NotImplemented

        return __eq__

    def _order(name: str) -> Callable[[type, _Fields], Callable[..., Any]]:
        compare = _ORDER[name]

        def make(cls: type, fields: _Fields) -> Callable[..., Any]:  # noqa: ARG001
            values = _values([field.name for field in fields if field.compare])

            def method(self: object, other: object) -> bool:
                if other.__class__ is self.__class__:
                    return compare(values(self), values(other))
                return NotImplemented

            return method

        return make

    def _hash(cls: type, fields: _Fields) -> Callable[..., Any]:  # noqa: ARG001
        hashed = _values([field.name for field in fields if (field.compare if field.hash is None else field.hash)])

        def __hash__(self: object) -> int:  # noqa: N807
            return hash(hashed(self))

        return __hash__

    def _setattr(cls: type, fields: _Fields) -> Callable[..., Any]:
        names = frozenset(field.name for field in fields)

        def __setattr__(self: object, name: str, value: object) -> None:  # noqa: N807
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
            super(cls, self).__setattr__(name, value)

        return __setattr__

    def _delattr(cls: type, fields: _Fields) -> Callable[..., Any]:
        names = frozenset(field.name for field in fields)

        def __delattr__(self: object, name: str) -> None:  # noqa: N807
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
            super(cls, self).__delattr__(name)

        return __delattr__

    def _state(self: Any) -> list[object]:
        return [getattr(self, field.name) for field in dataclasses.fields(self)]

    def _set_state(self: Any, state: list[object]) -> None:
        for field, value in zip(dataclasses.fields(self), state, strict=True):
            object.__setattr__(self, field.name, value)

    _MAKERS: dict[str, Callable[[type, _Fields], Callable[..., Any]]] = {
        "__init__": _init,
        "__repr__": _repr,
        "__eq__": _eq,
        "__hash__": _hash,
        "__setattr__": _setattr,
        "__delattr__": _delattr,
        **{name: _order(name) for name in _ORDER},
    }
