"""Guards what links, portfolios, renames and the trash do to one another: a random walk beside a small model.

The model is a few dictionaries that know the rules of FEATURES C1, H1-H6, K7, M2, M4 and nothing of tables, records or
reference counts. After every step versions, aliases, collections and names must be as it says; in the end all counts
must be right, the log must give the same state again, and a collection must leave no garbage.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import (
    AliasGuardError,
    Artifact,
    CasstoreError,
    ConflictError,
    InvalidInputError,
    LinkGuardError,
    NameTakenError,
    NotFoundError,
    ParentDeletedError,
    ProtectedError,
    RefusedError,
    Store,
    TypeConflictError,
)
from casstore.backend.memory import forget_memory
from casstore.model import (
    Link,
    PutCollection,
    PutVersion,
    RenameCollection,
    Restore,
    SetTtl,
    Trash,
    TrashCollection,
    Unlink,
    Unpurge,
)
from casstore.testing.checks import check_no_garbage, recount, replayed, view_hash
from casstore.testing.clock import Clock
from casstore.view import aliases, collections, versions

NAMES = ("a", "b", "c", "p", "q")
ALIASES = ("best", "good")
KINDS = ("dataset", "model")
CONTENT = tuple(random.Random(i).randbytes(3000) for i in range(4))
DAYS = timedelta(days=30)
NEVER = datetime.max.replace(tzinfo=UTC)
LIVE, TRASHED, PURGED = "COMMITTED", "TRASHED", "PURGED"


@dataclass(eq=False)
class Ver:
    home: Col
    number: int
    kind: str
    source: Ver | None = None
    links: list[Ver] = field(default_factory=list)
    state: str = LIVE
    lost: tuple[str, ...] = ()
    by: str = ""
    group: int = 0
    until: datetime = NEVER
    guarded: bool = False

    @property
    def live_links(self) -> list[Ver]:
        return [link for link in self.links if link.state == LIVE]


@dataclass(eq=False)
class Col:
    name: str
    kind: str
    portfolio: bool
    state: str = LIVE
    members: list[Ver] = field(default_factory=list)
    aliases: dict[str, Ver] = field(default_factory=dict)
    group: int = 0
    until: datetime = NEVER

    def live(self) -> list[Ver]:
        return [v for v in self.members if v.state == LIVE]

    def unit(self) -> list[Ver]:
        return [v for v in self.members if v.state == TRASHED and v.by == "collection" and v.group == self.group]


class Model:
    def __init__(self, now: Callable[[], datetime]) -> None:
        self.names: dict[str, Col] = {}
        self.moved: dict[str, Col] = {}
        self.now = now
        self.groups = 0

    # --- names

    def read(self, name: str) -> Col:
        col = self.names.get(name) or self.moved.get(name)
        if col is None:
            raise NotFoundError("")
        return col

    def shown(self, name: str) -> Col:
        col = self.read(name)
        if col.state != LIVE:
            raise NotFoundError("")
        return col

    def at(self, name: str, number: int) -> Ver:
        col = self.read(name)
        if number >= len(col.members):
            raise NotFoundError("")
        return col.members[number]

    def get(self, name: str, number: int) -> Ver:
        self.shown(name)
        found = self.at(name, number)
        if found.state != LIVE:
            raise NotFoundError("")
        return found

    def open(self, name: str, kind: str, *, portfolio: bool) -> Col:
        col = self.names.get(name)
        if col is None:
            self.moved.pop(name, None)
            col = self.names[name] = Col(name, kind, portfolio)
        elif col.state == PURGED:
            col.kind, col.portfolio, col.state = kind, portfolio, LIVE
        return col

    # --- what is done

    def create(self, name: str, kind: str, portfolio: bool) -> None:
        if name in self.names and self.names[name].state != PURGED:
            raise NameTakenError("")
        self.open(name, kind, portfolio=portfolio)

    def log(self, name: str, kind: str, wanted: tuple[str, ...]) -> None:
        col = self.names.get(name)
        if col is not None and col.state == TRASHED:
            raise NameTakenError("")
        if col is not None and col.state == LIVE:
            if col.kind != kind:
                raise TypeConflictError("")
            if col.portfolio:
                raise RefusedError("")
        self.put(self.open(name, kind, portfolio=False), Ver(Col("", "", portfolio=False), 0, kind), wanted)

    def put(self, col: Col, new: Ver, wanted: tuple[str, ...]) -> None:
        new.home, new.number = col, len(col.members)
        col.members.append(new)
        col.aliases.update(dict.fromkeys((*wanted, "latest"), new))

    def link(self, name: str, number: int, target: str, wanted: tuple[str, ...]) -> None:
        found = self.get(name, number)
        source = found.source or found
        col = self.names.get(target)
        if col is not None and col.state == TRASHED:
            raise NameTakenError("")
        if col is not None and col.state == LIVE:
            if col is source.home:
                raise InvalidInputError("")
            if col.kind != source.kind:
                raise TypeConflictError("")
            for known in source.live_links:
                if known.home is col:
                    col.aliases.update(dict.fromkeys((*wanted, "latest"), known))
                    return
        link = Ver(Col("", "", portfolio=False), 0, source.kind, source)
        source.links.append(link)
        self.put(self.open(target, source.kind, portfolio=True), link, wanted)

    def unlink(self, name: str, number: int) -> None:
        found = self.get(name, number)
        if found.source is None:
            raise InvalidInputError("")
        self.end(found)

    def protect(self, name: str, number: int) -> None:
        found = self.get(name, number)
        found.guarded = not found.guarded

    def end(self, found: Ver) -> None:
        if found.guarded:
            raise ProtectedError("")
        found.state = PURGED
        self.drop_aliases(found)

    def drop_aliases(self, found: Ver) -> tuple[str, ...]:
        col = found.home
        held = sorted(alias for alias, on in col.aliases.items() if on is found)
        for alias in held:
            del col.aliases[alias]
        if "latest" in held and col.live():
            col.aliases["latest"] = col.live()[-1]
        return tuple(alias for alias in held if alias != "latest")

    def delete(self, name: str, number: int, delete_aliases: bool, delete_links: bool) -> None:
        found = self.at(name, number)
        if found.state == PURGED or (found.source is not None and found.state == TRASHED):
            raise NotFoundError("")
        if found.source is not None:
            self.end(found)
            return
        if found.state == TRASHED:
            return
        self.guard(found, found.live_links, delete_aliases, delete_links)
        self.groups += 1
        self.hide(found, "user", self.groups, self.now() + DAYS)

    def guard(self, found: Ver, links: list[Ver], delete_aliases: bool, delete_links: bool) -> None:
        if found.guarded:
            raise ProtectedError("")
        if not delete_aliases and any(on is found for alias, on in found.home.aliases.items() if alias != "latest"):
            raise AliasGuardError("")
        if links and not delete_links:
            raise LinkGuardError("")
        if any(link.guarded for link in links):
            raise ProtectedError("")

    def delete_all(self, refs: list[tuple[str, int]], delete_aliases: bool, delete_links: bool) -> None:
        """All or none; links first."""
        chosen = [self.at(*ref) for ref in refs]
        if any(found.state == PURGED for found in chosen):
            raise NotFoundError("")
        ordered = sorted(dict.fromkeys(chosen), key=lambda v: (v.home.name, v.number))
        links = [v for v in ordered if v.source is not None]
        sources = [v for v in ordered if v.source is None and v.state == LIVE]
        for found in links:
            if found.state != LIVE:
                raise NotFoundError("")
            if found.guarded:
                raise ProtectedError("")
        for found in sources:
            self.guard(found, [v for v in found.live_links if v not in links], delete_aliases, delete_links)
        for found in links:
            self.end(found)
        self.groups += 1
        for found in sources:
            self.hide(found, "user", self.groups, self.now() + DAYS)

    def restore_as(self, name: str, number: int, target: str) -> None:
        found = self.at(name, number)
        if found.state != TRASHED:
            raise NotFoundError("")
        if found.source is not None:
            raise InvalidInputError("")
        col = self.names.get(target)
        free = tuple(alias for alias in found.lost if col is None or alias not in col.aliases)
        self.log(target, found.kind, free)

    def hide(self, found: Ver, by: str, group: int, until: datetime) -> None:
        found.state, found.by, found.group, found.until = TRASHED, by, group, until
        found.lost = self.drop_aliases(found)
        for link in found.live_links:
            self.hide(link, "source", group, until)

    def restore(self, name: str, number: int) -> None:
        found = self.at(name, number)
        if found.state != TRASHED:
            raise NotFoundError("")
        if found.home.state != LIVE or (found.source is not None and found.source.state != LIVE):
            raise ParentDeletedError("")
        self.show(found)

    def show(self, found: Ver) -> None:
        found.state = LIVE
        col = found.home
        for alias in found.lost:
            col.aliases.setdefault(alias, found)
        if "latest" not in col.aliases or col.aliases["latest"].number < found.number:
            col.aliases["latest"] = found
        for link in found.links:
            if link.state == TRASHED and link.by == "source" and link.group == found.group:
                if link.home.state == LIVE:
                    self.show(link)
                else:
                    link.by, link.group, link.until = "collection", link.home.group, link.home.until

    def purge(self, name: str, number: int) -> None:
        found = self.at(name, number)
        if found.state == LIVE:
            raise RefusedError("")
        if found.state == PURGED:
            raise NotFoundError("")
        self.forget(found)

    def forget(self, found: Ver) -> None:
        for each in (found, *found.links):
            each.state = PURGED

    def delete_collection(self, name: str, delete_aliases: bool, delete_links: bool) -> None:
        col = self.shown(name)
        if any(v.guarded for v in col.live()):
            raise ProtectedError("")
        if not delete_aliases and set(col.aliases) - {"latest"}:
            raise AliasGuardError("")
        for found in col.live():
            self.guard(found, found.live_links, True, delete_links)
        self.groups += 1
        for found in col.live():
            self.hide(found, "collection", self.groups, self.now() + DAYS)
        col.state, col.group, col.until = TRASHED, self.groups, self.now() + DAYS

    def restore_collection(self, col: Col) -> None:
        unit = col.unit()
        col.state = LIVE
        for found in unit:
            if found.source is None or found.source.state == LIVE:
                self.show(found)
            else:
                found.by, found.group, found.until = "source", found.source.group, found.source.until
        if col.live():
            col.aliases["latest"] = col.live()[-1]

    def purge_collection(self, col: Col) -> None:
        for found in col.members:
            if found.state == TRASHED:
                self.forget(found)
        col.state = PURGED

    def rename(self, name: str, new: str) -> None:
        col = self.shown(name)
        if col.name == new:
            return
        if new in self.names:
            raise NameTakenError("")
        del self.names[col.name]
        self.moved[col.name] = col
        self.moved.pop(new, None)
        self.names[new] = col
        col.name = new

    def alias(self, name: str, number: int, alias: str) -> None:
        found = self.get(name, number)
        found.home.aliases[alias] = found

    def hidden(self) -> list[Ver]:
        return [v for col in self.names.values() for v in col.members if v.state == TRASHED]

    def items(self) -> list[str]:
        hidden = [col for col in self.names.values() if col.state == TRASHED]
        within = [v for col in hidden for v in col.unit()]
        beside = [v for v in self.hidden() if v not in within and v.by != "source"]
        return sorted([col.name for col in hidden] + [f"{v.home.name}:v{v.number}" for v in beside])

    def empty(self) -> None:
        for col in list(self.names.values()):
            if col.state == TRASHED:
                self.purge_collection(col)
        for found in self.hidden():
            if found.by != "source":
                self.forget(found)

    def time(self) -> None:
        for found in self.hidden():
            if found.by != "source" and found.until <= self.now():
                self.forget(found)
        for col in self.names.values():
            if col.state == TRASHED and col.until <= self.now() and not any(v.state == TRASHED for v in col.members):
                col.state = PURGED

    # --- what is seen

    def seen(self) -> dict[str, object]:
        return {
            col.name: (
                col.state,
                col.kind,
                col.portfolio,
                [(v.state, v.kind, v.source and (v.source.home.name, v.source.number)) for v in col.members],
                {alias: v.number for alias, v in sorted(col.aliases.items())},
            )
            for _, col in sorted(self.names.items())
        }  # fmt: skip


def seen(store: Store) -> dict[str, object]:
    with store._engine.view.read() as tables:
        rows = list(collections(tables))
        names = {row.id: row.name.rpartition("/")[2] for row in rows}
        return {
            names[row.id]: (
                str(row.state),
                row.type,
                row.portfolio,
                [
                    (str(v.state), v.type, (names[v.source_collection], v.source_number) if v.is_link else None)
                    for v in versions(tables, row.id)
                ],
                dict(sorted(aliases(tables, row.id).items())),
            )
            for row in rows
        }


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(clock: Clock) -> Iterator[Store]:
    with Store.create("memory://links", clock=clock) as opened:
        yield opened
    forget_memory("links")


def outcome(call: Callable[[], object]) -> str:
    try:
        call()
    except CasstoreError as error:
        return next(
            cls.__name__
            for cls in type(error).__mro__
            if cls in {
                NotFoundError, NameTakenError, TypeConflictError, InvalidInputError, AliasGuardError, LinkGuardError,
                ParentDeletedError, ProtectedError, RefusedError, CasstoreError,
            }
        )  # fmt: skip
    return "done"


STEPS = {
    "log": 14,
    "link": 16,
    "unlink": 4,
    "delete": 12,
    "delete many": 5,
    "restore": 9,
    "restore as": 2,
    "purge": 3,
    "create": 2,
    "rename": 4,
    "alias": 5,
    "protect": 3,
    "delete collection": 7,
    "restore collection": 7,
    "purge collection": 1,
    "empty": 0.4,
    "time": 5,
}
"""what is done how often"""
Step = tuple[Callable[[], object], Callable[[], object]]
"""in the store, in the model"""


class Walk:
    """One step at a time, in both worlds."""

    def __init__(self, store: Store, clock: Clock, seed: int) -> None:
        self.store, self.clock = store, clock
        self.model = Model(clock)
        self.random = random.Random(seed)
        self.steps: list[str] = []
        self.went: dict[str, int] = {}

    def name(self) -> str:
        return self.random.choice(NAMES)

    def some(self, *states: str) -> tuple[str, int]:
        """Mostly a version there is, in one of some states; by any name of its collection."""
        known = [v for col in self.model.names.values() for v in col.members if not states or v.state in states]
        if not known or self.random.random() < 0.1:
            return self.name(), self.random.randrange(4)
        found = self.random.choice(known)
        names = [found.home.name, *(name for name, col in self.model.moved.items() if col is found.home)]
        return self.random.choice(names), found.number

    def aliases(self) -> tuple[str, ...]:
        return tuple(alias for alias in ALIASES if self.random.random() < 0.3)

    def step(self) -> None:
        roll = self.random.choices(tuple(STEPS), tuple(STEPS.values()))[0]
        real, model = getattr(self, "_" + roll.replace(" ", "_"))()
        wanted, got = outcome(model), outcome(real)
        self.went[f"{roll}: {got}"] = self.went.get(f"{roll}: {got}", 0) + 1
        trail = "\n".join(self.steps[-12:])
        assert got == wanted, f"{trail}\ngot {got}, wanted {wanted}"
        assert seen(self.store) == self.model.seen(), trail

    def say(self, text: str) -> None:
        self.steps.append(text)

    def _log(self) -> Step:
        name, kind, wanted = self.name(), self.random.choices(KINDS, (4, 1))[0], self.aliases()
        artifact = Artifact(name, type=kind)
        artifact.add_bytes(self.random.choice(CONTENT), "f")
        self.say(f"log {name} {kind} {wanted}")
        return (
            lambda: self.store.log_artifact(artifact, aliases=wanted, dedup="never"),
            lambda: self.model.log(name, kind, wanted),
        )

    def _link(self) -> Step:
        (name, number), target, wanted = self.some(LIVE), self.name(), self.aliases()
        self.say(f"link {name}:v{number} to {target} {wanted}")
        return (
            lambda: self.store.link(f"{name}:v{number}", target, wanted),
            lambda: self.model.link(name, number, target, wanted),
        )

    def _unlink(self) -> Step:
        name, number = self.some(LIVE)
        self.say(f"unlink {name}:v{number}")
        return lambda: self.store.get(f"{name}:v{number}").unlink(), lambda: self.model.unlink(name, number)

    def _delete(self) -> Step:
        (name, number), free, links = self.some(LIVE), self.random.random() < 0.6, self.random.random() < 0.6
        self.say(f"delete {name}:v{number} aliases={free} links={links}")
        return (
            lambda: self.store.delete(f"{name}:v{number}", free, delete_links=links),
            lambda: self.model.delete(name, number, free, links),
        )

    def _delete_many(self) -> Step:
        refs = [self.some(LIVE) for _ in range(self.random.randrange(1, 4))]
        free, links = self.random.random() < 0.8, self.random.random() < 0.6
        self.say(f"delete {refs} aliases={free} links={links}")
        named = [f"{name}:v{number}" for name, number in refs]
        return (
            lambda: self.store.plan_delete(named, free, delete_links=links).apply(),
            lambda: self.model.delete_all(refs, free, links),
        )

    def _protect(self) -> Step:
        name, number = self.some(LIVE)
        self.say(f"protect or unprotect {name}:v{number}")

        def real() -> None:
            found = self.store.get(f"{name}:v{number}")
            if found.protected:
                found.unprotect()
            else:
                found.protect("so")

        return real, lambda: self.model.protect(name, number)

    def _restore_as(self) -> Step:
        (name, number), target = self.some(TRASHED), self.name()
        self.say(f"restore {name}:v{number} as {target}")
        return (
            lambda: self.store.trash.restore(f"{name}:v{number}", target),
            lambda: self.model.restore_as(name, number, target),
        )

    def _restore(self) -> Step:
        name, number = self.some(TRASHED)
        self.say(f"restore {name}:v{number}")
        return lambda: self.store.trash.restore(f"{name}:v{number}"), lambda: self.model.restore(name, number)

    def _purge(self) -> Step:
        name, number = self.some(TRASHED)
        self.say(f"purge {name}:v{number}")
        return lambda: self.store.trash.purge(f"{name}:v{number}"), lambda: self.model.purge(name, number)

    def _create(self) -> Step:
        name, kind, portfolio = self.name(), self.random.choice(KINDS), self.random.random() < 0.5
        self.say(f"create {name} {kind} portfolio={portfolio}")
        return (
            lambda: self.store.create_collection(name, kind, "portfolio" if portfolio else "sequence"),
            lambda: self.model.create(name, kind, portfolio),
        )

    def _rename(self) -> Step:
        name, new = self.name(), self.random.choice((*NAMES, "x", "y"))
        self.say(f"rename {name} {new}")
        return lambda: self.store.collection(name).rename(new), lambda: self.model.rename(name, new)

    def _alias(self) -> Step:
        (name, number), alias = self.some(LIVE), self.random.choice((*ALIASES, "latest"))
        self.say(f"alias {name}:v{number} {alias}")
        return (
            lambda: self.store.get(f"{name}:v{number}").add_alias(alias),
            lambda: self.model.alias(name, number, alias),
        )

    def _delete_collection(self) -> Step:
        name, free, links = self.name(), self.random.random() < 0.7, self.random.random() < 0.7
        self.say(f"delete collection {name} aliases={free} links={links}")
        return (
            lambda: self.store.collection(name).delete(free, delete_links=links),
            lambda: self.model.delete_collection(name, free, links),
        )

    def _hidden(self) -> Col | None:
        hidden = [col for col in self.model.names.values() if col.state == TRASHED]
        return self.random.choice(hidden) if hidden else None

    def _restore_collection(self) -> Step:
        col = self._hidden()
        if col is None:
            return self._link()
        self.say(f"restore collection {col.name}")
        return lambda: self.store.trash.restore(col.name), lambda: self.model.restore_collection(col)

    def _purge_collection(self) -> Step:
        col = self._hidden()
        if col is None:
            return self._link()
        self.say(f"purge collection {col.name}")
        return lambda: self.store.trash.purge(col.name), lambda: self.model.purge_collection(col)

    def _empty(self) -> Step:
        self.say("empty")
        return self.store.trash.empty, self.model.empty

    def _time(self) -> Step:
        days = self.random.choice((3, 9, 14))
        self.clock.now += timedelta(days=days)
        self.say(f"{days} days, gc")
        return self.store.gc, self.model.time

    def look(self) -> None:
        """Through the public doors."""
        store, model = self.store, self.model
        assert sorted(item.ref for item in store.trash.list()) == model.items()
        assert len(store.trash) == len(model.items())
        shown = [col for _, col in sorted(model.names.items()) if col.state == LIVE]
        assert [info.name for info in store.collections()] == [col.name for col in shown]
        for col in shown:
            for found in store.versions(col.name, newest_first=False):
                known = col.members[found.number]
                assert found.is_link == (known.source is not None)
                assert [link.ref for link in found.linked_artifacts] == sorted(
                    (f"{link.home.name}:v{link.number}" for link in known.live_links),
                    key=lambda ref: [store.collection(ref.partition(":")[0])._id, int(ref.partition(":v")[2])],
                )
                if known.source is not None:
                    assert found.source_artifact.ref == f"{known.source.home.name}:v{known.source.number}"
                    assert found.exclusive_size == 0

    def end(self) -> None:
        self.look()
        store = self.store
        recount(store._engine)
        assert replayed(store._engine) == view_hash(store._engine)
        assert store.fsck(read_data=True).clean
        store.trash.empty()
        store.gc(offline=True, grace=timedelta())
        check_no_garbage(store)
        recount(store._engine)


# --- the rules themselves: what nobody sends in good faith is void on every replica


def named(name: str) -> str:
    return f"default/default/{name}"


def test_records_against_the_rules_are_void(store: Store) -> None:
    for name in ("a", "b"):
        artifact = Artifact(name, type="dataset")
        artifact.add_bytes(CONTENT[0], "f")
        store.log_artifact(artifact)
    store.link("a:v0", "p")
    store.link("b:v0", "p").protect("live")
    store.collection("b").rename("c")
    log = artifact_record(store)
    before = view_hash(store._engine)
    for why, record in (
        ("takes links only", log),
        ("is a link", Trash(named("p"), 0, 0, (), "", "")),
        ("has links", Trash(named("a"), 0, 0, (), "", "")),
        ("protected link", Trash(named("c"), 0, 0, (), "", "", delete_links=True)),
        ("protected link", TrashCollection(named("c"), 0, "", "", delete_links=True)),
        ("is protected", Unlink(named("p"), 1)),
        ("is no link", Unlink(named("a"), 0)),
        ("is a link", SetTtl(named("p"), 0, 5)),
        ("is a link itself", Link(named("q"), named("p"), 0, (), move_latest=True)),
        ("is in", Link(named("a"), named("a"), 0, (), move_latest=True)),
        ("has a link to", Link(named("p"), named("a"), 0, (), move_latest=True)),
        ("is taken", RenameCollection(named("a"), named("p"))),
        ("there is a collection", PutCollection(named("a"), "dataset", portfolio=False)),
        ("is COMMITTED", Unpurge(named("p"), 0, 0)),
    ):
        with pytest.raises(ConflictError, match=why):
            store._engine.commit(lambda _, record=record: (record,))  # type: ignore[misc]
    assert view_hash(store._engine) == before
    store._engine.commit(lambda _: (Trash(named("a"), 0, 0, (), "", "", delete_links=True),))
    hidden = store.versions("p", trashed=True)[0]._found.version
    with pytest.raises(ConflictError, match="the source of"):
        store._engine.commit(lambda _: (Restore(named("p"), 0, hidden.trash_seq),))


def artifact_record(store: Store) -> PutVersion:
    row = store.get("a")._found.version
    return PutVersion(
        named("p"), "dataset", row.root, row.size, 1, "", b"{}", (), (), move_latest=True, base="", ttl=0, actor=""
    )


@pytest.mark.parametrize("seed", range(12))
def test_a_random_walk_goes_as_the_model_says(store: Store, clock: Clock, seed: int) -> None:
    walk = Walk(store, clock, seed)
    for number in range(300):
        walk.step()
        if number % 40 == 39:
            walk.look()
    walk.end()


def test_the_walk_on_disk_leaves_the_state_that_memory_has(tmp_path: Path, clock: Clock) -> None:
    """The index on disk and the log folded into memory, and a handle that comes later and folds all of it."""
    with Store.create(tmp_path / "s", clock=clock) as store:
        walk = Walk(store, clock, 99)
        for _ in range(120):
            walk.step()
        assert replayed(store._engine) == view_hash(store._engine)
        with Store.open(tmp_path / "s", clock=clock, rebuild_index=True) as other:
            assert view_hash(other._engine) == view_hash(store._engine)
        walk.end()


if __name__ == "__main__":  # many steps by hand: python tests/unit/test_state_links.py FIRST LAST STEPS
    import sys

    first, last, steps = map(int, sys.argv[1:])
    went: dict[str, int] = {}
    for chosen in range(first, last):
        forget_memory("links")
        time = Clock()
        with Store.create("memory://links", clock=time) as opened:
            by_hand = Walk(opened, time, chosen)
            for _ in range(steps):
                by_hand.step()
            by_hand.end()
            for key, count in by_hand.went.items():
                went[key] = went.get(key, 0) + count
    for key, count in sorted(went.items()):
        print(f"{count:6}  {key}")
