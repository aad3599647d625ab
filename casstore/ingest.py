"""Artifact → version: have it read and stored, decide what the version is, commit."""

# ruff: noqa: PLC0415 - start-up: what is heavy is imported where it is used

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from casstore.artifact import Artifact, referred_files
from casstore.catalogue import open_collection
from casstore.engine import Engine
from casstore.errors import (
    RefusedError,
    StaleBaseError,
    TypeConflictError,
)
from casstore.expiry import Terms, expires, resolve_latest, terms_in_force, visible
from casstore.format.packs import VersionNote
from casstore.model import (
    CollectionRow,
    Progress,
    PutOutput,
    PutVersion,
    Record,
    SetAlias,
    SetTtl,
    Unpin,
    UpdateVersion,
    VersionRow,
    VersionState,
    no_progress,
)
from casstore.names import LATEST, CollectionName, canonical_metadata, check_aliases
from casstore.overlay import Tables
from casstore.policy import Policy, in_force
from casstore.reading import Session, is_at_hand
from casstore.state import PIN, alias_target, aliases_of, head_of, runs_logging
from casstore.tree import Tree
from casstore.values import dataclass
from casstore.view import collection_name, identifier_of, version_at, with_root
from casstore.writer import Writer


@dataclass(frozen=True, slots=True)
class LogRequest:
    """What the caller of ``log_artifact`` asked for, checked."""

    collection: CollectionName
    aliases: tuple[str, ...]
    move_latest: bool
    tags: tuple[str, ...]
    ttl: int
    dedup: str
    base: str
    strict_base: int | None
    update: bool
    actor: str
    pin: bytes | None
    admit: Callable[[Tables, int], None] | None = None
    """raises if packs of so many bytes may not be added to a state"""
    run: str = ""
    """id of the run it is an output of"""
    attrs: bytes = b"{}"
    drafted: tuple[int, int] | None = None
    """the version that the artifact is a draft of: ``base`` names it, whatever its collection is called by then"""
    follow: bool = False
    """it goes to the collection of that, whatever that is called by then"""


@dataclass(slots=True)
class LogResult:
    """What became of it."""

    collection: int
    """id of the collection, whatever its name is by now"""
    number: int
    created: bool
    root: bytes
    new_bytes: int = 0
    stored_bytes: int = 0
    latest_before: int | None = None
    ignored: tuple[str, ...] = ()


@dataclass(slots=True)
class Decision:
    """The outcome of looking at the head: filled by each build, used after the last."""

    number: int | None = None
    latest_before: int | None = None
    ignored: tuple[str, ...] = ()
    collection: int = 0
    """the id of the collection"""


def ingest(engine: Engine, artifact: Artifact, request: LogRequest, progress: Progress = no_progress) -> LogResult:
    """Store an artifact and commit it as a version, or find that it is one already. Durable on return."""
    at_hand = is_at_hand(engine, artifact, progress)
    if at_hand:
        # What would be refused is refused by the commit, as soon: nothing is read, waited for or published before.
        seq, roots = engine.view.keep_up(), None
    else:
        seq, roots = check_rules(engine, artifact, request)
    metadata = canonical_metadata(artifact.metadata)
    writer = Writer(engine, seq)
    try:
        session = Session(engine, writer, artifact, progress)
        if at_hand:
            with engine.view.read():  # one snapshot for all that is looked up
                session.run()
        else:
            session.run()
        decision = Decision()

        def notes() -> Sequence[VersionNote]:
            tree = session.tree
            return (
                VersionNote(
                    str(request.collection),
                    artifact.type,
                    tree.root,
                    tree.size,
                    tree.count,
                    artifact.description,
                    metadata,
                    request.tags,
                    engine.runtime.now(),
                    request.actor,
                ),
            )

        def records(tables: Tables) -> Sequence[Record] | None:
            if (now := in_force(tables).reference_roots) != roots:
                check_references(artifact, now)
            found = version_records(tables, artifact, request, session.tree, metadata, decision)
            if found is not None and request.admit is not None:
                request.admit(tables, writer.pending_bytes)
            return found

        done = writer.commit(records, session.restore, notes)
    except BaseException:
        writer.abandon()
        raise
    session.cache.flush()
    created = decision.number is None
    if created:
        assert done is not None
        number = done.numbers[0]
    else:
        assert decision.number is not None
        number = decision.number
    return LogResult(
        decision.collection,
        number,
        created,
        session.tree.root,
        writer.new_bytes if created else 0,
        writer.stored_bytes if created else 0,
        decision.latest_before,
        decision.ignored,
    )


@dataclass(frozen=True, slots=True)
class Known:
    """Content that is in the store already, to be logged: labels (an artifact without content), tree, request."""

    artifact: Artifact
    tree: Tree
    request: LogRequest


def log_known(engine: Engine, draft: Callable[[Tables], Known]) -> LogResult:
    """Log content that the store has, by its tree alone. Reads and stores no bytes of files. Durable on return.

    ``draft`` gives it on the state the version is committed to, in which something must hold the root of the tree.
    """
    decision = Decision()
    root = b""

    def records(tables: Tables) -> Sequence[Record]:
        nonlocal root
        known = draft(tables)
        root = known.tree.root
        metadata = canonical_metadata(known.artifact.metadata)
        return version_records(tables, known.artifact, known.request, known.tree, metadata, decision) or ()

    done = engine.commit(records)
    if decision.number is None:
        assert done is not None
        return LogResult(decision.collection, done.numbers[0], True, root, latest_before=decision.latest_before)
    return LogResult(decision.collection, decision.number, False, root, 0, 0, decision.latest_before, decision.ignored)


def check_rules(engine: Engine, artifact: Artifact, request: LogRequest) -> tuple[int, tuple[str, ...] | None]:
    """Refuse a wrong type, base or reference before anything is read.

    Returns the position of the log at which that was looked at, and the roots the references were compared with.
    Raises `TypeConflictError`, `StaleBaseError`, `RefusedError`.
    """
    engine.view.keep_up()
    with engine.view.read() as tables:
        seq = head_of(tables).seq
        going = destined(tables, request)
        terms = terms_in_force(tables)
        _latest(tables, terms, going, home(tables, going.collection, artifact.type, terms.policy))
        roots = terms.policy.reference_roots
    check_references(artifact, roots)
    return seq, roots


def named_now(tables: Tables, place: tuple[int, int]) -> tuple[CollectionName, str]:
    """The name of the collection of a version by now, and its ``name:vN``."""
    identifier, number = place
    name = CollectionName.parse(collection_name(tables, identifier))
    return name, f"{name.short}:v{number}"


def destined(tables: Tables, request: LogRequest) -> LogRequest:
    """A request with the names that collections have on a state."""
    if request.drafted is None:
        return request
    name, label = named_now(tables, request.drafted)
    return replace(request, base=label, collection=name if request.follow else request.collection)


def check_references(artifact: Artifact, roots: tuple[str, ...] | None) -> None:
    """Raise `RefusedError` for references to files outside the directories that the policy allows."""
    if roots is not None:
        from casstore.reference import confine

        for uri in referred_files(artifact):
            confine(uri, roots)


def check_open(tables: Tables, kind: str, rules: Policy | None = None) -> None:
    """Raise `RefusedError` for a type the store keeps for itself. ``rules``: those in force, if they are known."""
    if kind in (rules or in_force(tables)).reserved_types:
        raise RefusedError(
            f"the type {kind!r} is reserved in this store", hint="another type; the store's policy reserved_types"
        )


def home(tables: Tables, name: CollectionName, kind: str, rules: Policy | None = None) -> CollectionRow | None:
    """The collection that versions of a type go to by some name; None: it is made with the first.

    ``rules``: those in force, if they are known. Raises `NameTakenError` if the name belongs to a collection in the
    trash, `TypeConflictError`; `RefusedError` if the store keeps the type for itself, or the collection takes links
    only.
    """
    check_open(tables, kind, rules)
    collection = open_collection(tables, name)
    if collection is None or collection.state is VersionState.PURGED:
        # A name that is free again may get another type.
        return collection
    if collection.type != kind:
        raise TypeConflictError(
            f"collection {name.short} has type {collection.type!r}, not {kind!r}",
            hint="log to another name, or with the collection's type",
        )
    if collection.portfolio:
        raise RefusedError(
            f"{name.short} is a portfolio: it takes links only",
            hint=f"log to another collection, then version.link({name.short!r}), or casstore link",
        )
    return collection


def _latest(tables: Tables, terms: Terms, request: LogRequest, collection: CollectionRow | None) -> int | None:
    """The version that readers get as ``latest``. Raises `StaleBaseError` if it had to be another."""
    latest = None
    if collection is not None:
        named = alias_target(tables, collection.id, LATEST)
        latest = resolve_latest(tables, terms, collection, named)
    if request.strict_base is not None and latest != request.strict_base:
        raise StaleBaseError(
            f"{request.collection.short}: latest is {'absent' if latest is None else f'v{latest}'}, "
            f"the draft was made from v{request.strict_base}",
            hint="make the draft again from latest",
        )
    return latest


def version_records(
    tables: Tables, artifact: Artifact, request: LogRequest, tree: Tree, metadata: bytes, decision: Decision
) -> Sequence[Record] | None:
    """The records this log needs on the state at hand; None when it needs none."""
    request = destined(tables, request)
    name = str(request.collection)
    terms = terms_in_force(tables)
    collection = home(tables, request.collection, artifact.type, terms.policy)
    decision.collection = identifier_of(tables, name) if collection is None else collection.id
    latest = _latest(tables, terms, request, collection)
    decision.number, decision.latest_before, decision.ignored = None, latest, ()
    if request.run:
        from casstore.lineage import running

        running(tables, request.run)
    unpin: list[Record] = []
    if request.pin is not None and tables.get(PIN, request.pin) is not None:
        unpin.append(Unpin(request.pin))
    hit = None if collection is None else _hit(tables, terms, collection, latest, tree.root, request.dedup)
    if hit is not None:
        assert collection is not None
        identifier = collection.id
        decision.number = hit.number
        check_aliases({*request.aliases, *aliases_of(tables, identifier, hit.number)} - {LATEST})
        aliases = [*request.aliases, LATEST] if request.move_latest else list(request.aliases)
        moves: list[Record] = [
            SetAlias(name, alias, hit.number, actor=request.actor)
            for alias in aliases
            if alias_target(tables, identifier, alias) != hit.number
        ]
        moves += _labels(request, name, hit, artifact, metadata, decision)
        moves += _time_to_live(terms, request, collection, hit, decision)
        if request.attrs not in {b"{}", hit.attrs}:
            decision.ignored += ("attrs",)
        if request.run and request.run not in runs_logging(tables, identifier, hit.number):
            moves.append(PutOutput(request.run, name, hit.number))
        return [*moves, *unpin] or None
    version = PutVersion(
        collection=name,
        type=artifact.type,
        root=tree.root,
        size=tree.size,
        file_count=tree.count,
        description=artifact.description,
        metadata=metadata,
        tags=request.tags,
        aliases=request.aliases,
        move_latest=request.move_latest,
        base=request.base,
        ttl=request.ttl,
        actor=request.actor,
        run=request.run,
        attrs=request.attrs,
    )
    return [version, *unpin]


def _hit(
    tables: Tables, terms: Terms, collection: CollectionRow, latest: int | None, root: bytes, dedup: str
) -> VersionRow | None:
    """The committed version this content is already, if the rules let it be that one. A link is another's version."""
    if dedup == "never":
        return None
    if latest is not None:
        version = version_at(tables, collection.id, latest)
        if version is not None and _is_own(version) and version.root == root:
            return version
    if dedup == "any":
        found = [v for v in with_root(tables, collection.id, root) if _is_own(v)]
        seen = list(visible(tables, terms, collection, found))
        return seen[-1] if seen else None
    return None


def _is_own(version: VersionRow) -> bool:
    return version.state is VersionState.COMMITTED and not version.is_link


def _labels(
    request: LogRequest, name: str, hit: VersionRow, artifact: Artifact, metadata: bytes, decision: Decision
) -> list[Record]:
    """Labels that differ from those of the version that was hit: applied or reported."""
    different = [
        label
        for label, same in (
            ("description", hit.description == artifact.description),
            ("metadata", hit.metadata == metadata),
            ("tags", not request.tags or hit.tags == request.tags),
        )
        if not same
    ]
    if not different:
        return []
    if not request.update:
        decision.ignored = tuple(different)
        return []
    return [
        UpdateVersion(
            name,
            hit.number,
            artifact.description if "description" in different else None,
            metadata if "metadata" in different else None,
            request.tags if "tags" in different else None,
        )
    ]


def _time_to_live(
    terms: Terms, request: LogRequest, collection: CollectionRow, hit: VersionRow, decision: Decision
) -> list[Record]:
    """As `_labels`, for a time to live that was given; one that is over already is only reported."""
    if request.ttl in {-1, hit.ttl}:
        return []
    moment = expires(terms, collection, replace(hit, ttl=request.ttl))
    if not request.update or (moment is not None and moment <= terms.safe):
        decision.ignored += ("ttl",)
        return []
    return [SetTtl(str(request.collection), hit.number, request.ttl, request.actor)]
