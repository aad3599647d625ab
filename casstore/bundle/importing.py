"""Bundle → versions of a store: all of them in one commit, or none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial

from casstore.authority import ask
from casstore.bundle.cutting import Counting, store_trees
from casstore.bundle.reading import Bundle, read_bundle
from casstore.bundle.source import BundleFile, opened
from casstore.config import from_micros
from casstore.digest import Digest
from casstore.engine import Engine
from casstore.errors import ConflictError, InvalidInputError, LimitError
from casstore.expiry import terms_in_force, visible
from casstore.format.bundles import Labels
from casstore.format.packs import VersionNote
from casstore.ingest import home
from casstore.model import Progress, PutVersion, Record, SetAlias, VersionRow, VersionState, no_progress
from casstore.names import LATEST, CollectionName, check_aliases, parse_reference
from casstore.overlay import Tables
from casstore.policy import in_force
from casstore.reference import confine, scheme_of
from casstore.state import alias_target, aliases_of
from casstore.tree import Tree
from casstore.values import dataclass
from casstore.view import with_root
from casstore.writer import Writer


@dataclass(frozen=True, slots=True)
class ImportedVersion:
    """A version of a bundle and what it is in the store now.

    ``source``: its full reference where it was exported; ``ref``: here. ``created``: False if the collection had the
    content already. ``aliases``: those it got by the import; ``aliases_taken``: those that another version has, which
    were not moved; ``ignored``: labels of the bundle that a version which was there already did not take over.
    """

    source: str
    ref: str
    created: bool
    source_digest: Digest
    digest: Digest
    size: int
    file_count: int
    logged_at: datetime
    """when it was committed in the store it was exported from"""
    aliases: tuple[str, ...] = ()
    aliases_taken: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, object]:
        """The version as JSON values."""
        return {
            "source": self.source,
            "ref": self.ref,
            "created": self.created,
            "source_digest": str(self.source_digest),
            "digest": str(self.digest),
            "size": self.size,
            "file_count": self.file_count,
            "logged_at": self.logged_at.isoformat(),
            "aliases": list(self.aliases),
            "aliases_taken": list(self.aliases_taken),
            "ignored": list(self.ignored),
        }


@dataclass(frozen=True, slots=True)
class ImportReport:
    """What an import did, or with ``dry_run`` would do. Versions are in the order of the bundle.

    ``new_bytes``: plaintext that the store did not have; ``stored_bytes``: of the packs that were written.
    ``recut``: the store cuts or names content in another way, so digests differ from those of the bundle.
    """

    versions: tuple[ImportedVersion, ...]
    """new here"""
    skipped: tuple[ImportedVersion, ...]
    """here already"""
    new_bytes: int
    stored_bytes: int
    recut: bool
    dry_run: bool

    @property
    def refs(self) -> dict[str, str]:
        """Reference in the bundle → reference in the store, for every version."""
        return {found.source: found.ref for found in (*self.versions, *self.skipped)}

    def to_dict(self) -> dict[str, object]:
        """The report as JSON values."""
        return {
            "versions": [found.to_dict() for found in (*self.versions, *self.skipped)],
            "new_bytes": self.new_bytes,
            "stored_bytes": self.stored_bytes,
            "recut": self.recut,
            "dry_run": self.dry_run,
        }


@dataclass(frozen=True, slots=True)
class ImportRequest:
    """What the caller of ``import_bundle`` asked for."""

    project: str | None
    rename: Mapping[str, str]
    aliases: bool
    max_bytes: int | None
    dry_run: bool
    actor: str
    admit: Callable[[Tables, int], None]
    """raises if packs of so many bytes may not be added to a state"""
    allow: Callable[[str, int], None]
    """raises if a version of a type may not have a time to live"""


def import_bundle(
    engine: Engine, file: BundleFile, request: ImportRequest, progress: Progress = no_progress
) -> ImportReport:
    """Bring all versions of a bundle into a store, in one commit. The bundle is checked to its end before that.

    See `casstore.store.Store.import_bundle`.
    """
    _check_request(request)
    if not request.dry_run:
        engine.check_writable()
    engine.view.refresh()
    with engine.view.read() as tables:
        roots = in_force(tables).reference_roots
    with opened(file, request.max_bytes) as source:
        bundle = read_bundle(source, engine.codec, request.max_bytes, partial(_allow, roots), progress)
        _check_size(engine, bundle, request)
        names = _targets(bundle, request)
        if not request.dry_run:
            ask(engine.runtime, [("log", name.short) for name in names])
        engine.view.refresh()
        with engine.view.read() as tables:
            for labels, name in zip(bundle.versions, names, strict=True):
                home(tables, name, labels.type)
        for kind, ttl in {(labels.type, labels.ttl) for labels in bundle.versions}:
            request.allow(kind, ttl)
        return (
            _foresee(engine, bundle, names, request, progress)
            if request.dry_run
            else _store(engine, bundle, names, roots, request, progress)
        )


def _check_size(engine: Engine, bundle: Bundle, request: ImportRequest) -> None:
    """Files that are cut again are read at their full length, however small zeros are when they are compressed."""
    size = sum(labels.size for labels in bundle.versions)
    if request.max_bytes is not None and size > request.max_bytes and not bundle.header.is_like(engine.config):
        raise LimitError(
            f"the files of the bundle, which have to be cut again, have {size} bytes,"
            f" at most {request.max_bytes} are allowed",
            hint="max_bytes=, or --max-bytes",
        )


def _allow(roots: tuple[str, ...] | None, uri: str) -> None:
    """Refuse a reference to a file outside the directories that the policy allows. Raises `RefusedError`."""
    if roots is not None and scheme_of(uri) == "file":
        confine(uri, roots)


def _check_request(request: ImportRequest) -> None:
    if not isinstance(request.rename, Mapping):
        raise InvalidInputError(f"rename={request.rename!r:.100} is not a mapping of collection names")
    limit = request.max_bytes
    if limit is not None and not (isinstance(limit, int) and limit > 0):
        raise InvalidInputError(f"max_bytes={limit!r} is not a number of bytes")


def _targets(bundle: Bundle, request: ImportRequest) -> list[CollectionName]:
    """The collection each version goes to. Raises `InvalidInputError` if two become one, or a name is not there."""
    renamed: dict[CollectionName, CollectionName] = {}
    for old, new in request.rename.items():
        inside = request.project is not None and isinstance(new, str) and "/" not in new
        renamed[CollectionName.parse(old)] = CollectionName.parse(new, request.project if inside else None)
    target: dict[str, CollectionName] = {}
    for text in dict.fromkeys(labels.collection for labels in bundle.versions):
        name = CollectionName.parse(text)
        moved = name if request.project is None else CollectionName.parse(name.name, request.project)
        target[text] = renamed.pop(name, moved)
    for missing in renamed:
        raise InvalidInputError(
            f"there is no {missing.short} in the bundle to rename",
            hint=f"it has {', '.join(CollectionName.parse(text).short for text in list(target)[:10])}",
        )
    origin: dict[CollectionName, str] = {}
    for text, name in target.items():
        if name in origin:
            raise InvalidInputError(
                f"{origin[name]} and {text} of the bundle would both become {name.short}", hint="rename one of them"
            )
        origin[name] = text
    return [target[labels.collection] for labels in bundle.versions]


def _store(
    engine: Engine,
    bundle: Bundle,
    names: list[CollectionName],
    roots: tuple[str, ...] | None,
    request: ImportRequest,
    progress: Progress,
) -> ImportReport:
    writer = Writer(engine)
    plan: _Plan | None = None
    trees: list[Tree] = []

    def records(tables: Tables) -> Sequence[Record] | None:
        nonlocal plan
        if in_force(tables).reference_roots != roots:
            raise ConflictError("the policy reference_roots changed during the import", hint="import again")
        plan = _Plan(engine, tables, bundle, names, trees, request)
        if plan.records:
            request.admit(tables, writer.pending_bytes)
        return plan.records or None

    def restore(_: set[bytes]) -> None:
        trees[:] = store_trees(engine, bundle, writer, no_progress)

    try:
        trees = store_trees(engine, bundle, writer, progress)
        writer.commit(records, restore, lambda: _notes(engine, bundle, names, trees, request))
    except BaseException:
        writer.abandon()
        raise
    assert plan is not None
    return plan.report(writer.new_bytes, writer.stored_bytes)


def _foresee(
    engine: Engine, bundle: Bundle, names: list[CollectionName], request: ImportRequest, progress: Progress
) -> ImportReport:
    sink = Counting(engine)
    trees = store_trees(engine, bundle, sink, progress)
    with engine.view.read() as tables:
        return _Plan(engine, tables, bundle, names, trees, request).report(sink.new_bytes, 0)


def _notes(
    engine: Engine, bundle: Bundle, names: list[CollectionName], trees: list[Tree], request: ImportRequest
) -> list[VersionNote]:
    now = engine.runtime.now()
    return [
        VersionNote(
            str(name),
            labels.type,
            tree.root,
            tree.size,
            tree.count,
            labels.description,
            labels.metadata,
            labels.tags,
            now,
            request.actor,
        )
        for labels, name, tree in zip(bundle.versions, names, trees, strict=True)
    ]


class _Plan:
    """What an import is on one state: the records, and what becomes of each version."""

    def __init__(
        self,
        engine: Engine,
        tables: Tables,
        bundle: Bundle,
        names: list[CollectionName],
        trees: list[Tree],
        request: ImportRequest,
    ) -> None:
        self.engine = engine
        self.tables = tables
        self.bundle = bundle
        self.request = request
        self.records: list[Record] = []
        self.found: list[ImportedVersion] = []
        self._terms = terms_in_force(tables)
        self._next: dict[CollectionName, int] = {}
        self._matched: dict[tuple[CollectionName, bytes], list[VersionRow]] = {}
        self._given: set[tuple[CollectionName, str]] = set()
        """aliases that this import sets"""
        self._numbers: dict[tuple[str, int], str] = {}
        for labels, name, tree in zip(bundle.versions, names, trees, strict=True):
            self._version(labels, name, tree)

    def _version(self, labels: Labels, name: CollectionName, tree: Tree) -> None:
        there = self._there(labels, name, tree.root)
        aliases, taken = self._aliases(labels, name, there)
        if there is None:
            number = self._next[name]
            self._next[name] += 1
            self.records.append(
                PutVersion(
                    collection=str(name),
                    type=labels.type,
                    root=tree.root,
                    size=tree.size,
                    file_count=tree.count,
                    description=labels.description,
                    metadata=labels.metadata,
                    tags=labels.tags,
                    aliases=aliases,
                    move_latest=True,
                    base=self._base(labels),
                    ttl=labels.ttl,
                    actor=self.request.actor,
                    attrs=labels.attrs,
                )
            )
        else:
            number = there.number
            self.records += [
                SetAlias(str(name), alias, number, expect=-1, actor=self.request.actor) for alias in aliases
            ]
        ref = f"{name.short}:v{number}"
        self._numbers[labels.collection, labels.number] = ref
        self.found.append(
            ImportedVersion(
                f"{labels.collection}:v{labels.number}",
                ref,
                there is None,
                Digest(self.bundle.header.digest, labels.root),
                self.engine.digest(tree.root),
                tree.size,
                tree.count,
                from_micros(labels.created),
                aliases,
                taken,
                () if there is None else _ignored(labels, there),
            )
        )

    def _there(self, labels: Labels, name: CollectionName, root: bytes) -> VersionRow | None:
        """The version that has this content already; each stands for one of the bundle, the lowest first."""
        collection = home(self.tables, name, labels.type)
        self._next.setdefault(name, 0 if collection is None else collection.next_number)
        if collection is None or collection.state is not VersionState.COMMITTED:
            return None
        if (name, root) not in self._matched:
            rows = [v for v in with_root(self.tables, collection.id, root) if v.state is VersionState.COMMITTED]
            self._matched[name, root] = list(visible(self.tables, self._terms, collection, rows))
        left = self._matched[name, root]
        return left.pop(0) if left else None

    def _aliases(
        self, labels: Labels, name: CollectionName, there: VersionRow | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Aliases a version gets, and those that others have."""
        if not self.request.aliases:
            return (), ()
        collection = home(self.tables, name, labels.type)
        free: list[str] = []
        taken: list[str] = []
        for alias in labels.aliases:
            living = collection is not None and collection.state is VersionState.COMMITTED
            holder = alias_target(self.tables, collection.id, alias) if collection is not None and living else None
            if holder is None and (name, alias) not in self._given:
                free.append(alias)
                self._given.add((name, alias))
            elif there is None or holder != there.number:
                taken.append(alias)
        if there is not None and free:
            check_aliases({*free, *aliases_of(self.tables, there.collection, there.number)} - {LATEST})
        return tuple(free), tuple(taken)

    def _base(self, labels: Labels) -> str:
        """What a version was made from, if that is in the bundle, too: elsewhere its name means something else."""
        if not labels.base:
            return ""
        base = parse_reference(labels.base)
        return self._numbers.get((str(base.collection), base.number or 0), "")

    def report(self, new_bytes: int, stored_bytes: int) -> ImportReport:
        """The plan as what was done."""
        return ImportReport(
            tuple(found for found in self.found if found.created),
            tuple(found for found in self.found if not found.created),
            new_bytes,
            stored_bytes,
            not self.bundle.header.is_like(self.engine.config),
            self.request.dry_run,
        )


def _ignored(labels: Labels, there: VersionRow) -> tuple[str, ...]:
    """Labels that differ from those of a version that is there; as for an artifact that is logged again."""
    pairs = (
        ("description", labels.description == there.description),
        ("metadata", labels.metadata == there.metadata),
        ("tags", not labels.tags or labels.tags == there.tags),
        ("ttl", labels.ttl in {-1, there.ttl}),
        ("attrs", labels.attrs == there.attrs),
    )
    return tuple(name for name, same in pairs if not same)
