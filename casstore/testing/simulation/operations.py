"""What processes do: a registry of operations, each a function of the process and random choices of its own.

Register another with ``@operation("name", weight)``. It may raise what the library raises; `World.operate` judges it.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import timedelta

from casstore.artifact import Artifact, draft_base
from casstore.errors import (
    AlreadyExistsError,
    BackendError,
    CasstoreError,
    FormatError,
    IntegrityError,
    InvalidInputError,
    ParentDeletedError,
)
from casstore.model import (
    AddNode,
    AddPack,
    ChunkKind,
    Condemn,
    Drop,
    Entry,
    PackContent,
    Pin,
    Purge,
    PutVersion,
    Record,
    Restore,
    Retire,
    SetAlias,
    Transaction,
    Unpin,
)
from casstore.names import CollectionName
from casstore.overlay import Tables
from casstore.state import head_of
from casstore.testing.simulation.conformance import LIVE
from casstore.testing.simulation.content import Files, draw_files, whole
from casstore.testing.simulation.host import Process
from casstore.testing.simulation.names import COMMITTED, TRASHED, Difference
from casstore.testing.simulation.options import DAY, HOUR
from casstore.tree import INLINE_CHUNKS, write_chunk_list, write_entries
from casstore.version import Version
from casstore.view import collection_named
from casstore.writer import Writer

Run = Callable[[Process, random.Random], None]
OPERATIONS: dict[str, Run] = {}
WEIGHTS: dict[str, int] = {}
ALIASES = ("prod", "best")
KIND = "data"


def operation(kind: str, weight: int) -> Callable[[Run], Run]:
    """Register an operation."""

    def register(run: Run) -> Run:
        OPERATIONS[kind], WEIGHTS[kind] = run, weight
        return run

    return register


@dataclass(frozen=True, slots=True)
class Target:
    """A version an operation is about."""

    name: str
    number: int
    root: bytes

    @property
    def ref(self) -> str:
        return f"{self.name}:v{self.number}"


def pick(process: Process, rng: random.Random, state: object = COMMITTED) -> Target | None:
    """Some version that is in a state at the head of the log; recent ones rather than old ones."""
    versions = process.world.machine.versions
    found = [Target(name, number, v.root) for (name, number), v in versions.items() if v.state is state]
    if not found:
        return None
    return rng.choice(found[-8:]) if rng.random() < 0.5 else rng.choice(found)


def _collection(process: Process, rng: random.Random) -> str:
    return str(CollectionName.parse(f"c{rng.randrange(process.world.options.collections)}"))


def _get(process: Process, ref: str) -> Version:
    assert process.store is not None
    return process.store.get(ref)


# --- writing -------------------------------------------------------------------------------------


class _Raw:
    """A session below artifacts: blocks as they are, no files, no chunker."""

    def __init__(self, process: Process, files: Files) -> None:
        self.engine = process.engine
        self.writer = Writer(self.engine)
        self.files = files
        self.nodes = process.world.nodes
        self.root = b""
        self.size = 0

    def store(self) -> None:
        """Store what is new and the tree."""
        hashed = {block: self.engine.hash(block) for blocks in self.files.values() for block in blocks}
        missing = self.writer.missing(list(hashed.values()))
        for block, digest in hashed.items():
            if digest in missing:
                self.writer.put(digest, block)
        average = self.engine.config.node_bytes
        entries = []
        for path, blocks in sorted(self.files.items()):
            chunks = tuple((hashed[block], len(block)) for block in blocks)
            size = sum(length for _, length in chunks)
            tree = write_chunk_list(chunks, average, self._node).root if len(chunks) > INLINE_CHUNKS else None
            entries.append(Entry(path, size=size, chunks=() if tree else chunks, tree=tree))
        self.root = write_entries(entries, average, self._node).root
        self.size = sum(entry.length for entry in entries)

    def _node(self, data: bytes, children: tuple[bytes, ...]) -> bytes:
        if len(self.nodes) < 40:
            self.nodes.append(data)
        return self.writer.put_node(data, children)

    def restore(self, missing: set[bytes]) -> None:
        """Store again what the collector took."""
        self.store()
        lost = [digest for digest in missing if not self.writer.has(digest)]
        if lost and not all(self.engine.view.known(lost)):
            # A node that the new tree does not have any more: nothing depends on it.
            return


@operation("write", 24)
def write(process: Process, rng: random.Random) -> None:
    """Commit a version through `Writer`."""
    files, name = draw_files(rng), _collection(process, rng)
    if process.world.nodes and rng.random() < 0.04:
        files["twin"] = (rng.choice(process.world.nodes),)
    plain, oracle = whole(files), process.world.oracle
    token = oracle.token(plain)
    aliases = tuple(rng.sample(ALIASES, 1)) if rng.random() < 0.2 else ()

    def records(tables: Tables) -> Sequence[Record]:
        collection = collection_named(tables, name)
        if collection is not None and collection.state is TRASHED:
            raise ParentDeletedError(f"{name} is in the trash")
        return (
            PutVersion(
                name, KIND, raw.root, raw.size, len(files), token, b"{}", (), aliases, True, "", -1, process.base
            ),
        )

    raw = _Raw(process, files)
    try:
        raw.store()
        done = raw.writer.commit(records, raw.restore)
    except (BackendError, IntegrityError, FormatError):
        raw.writer.abandon()
        raise
    except CasstoreError:
        raw.writer.abandon()
        oracle.refuse(token)
        raise
    if done is None:
        raise Difference("I5", f"{token} was not committed and not refused")
    oracle.promise(name, done.numbers[0], plain)


def _log(process: Process, artifact: Artifact, plain: dict[str, bytes], rng: random.Random) -> None:
    oracle, store = process.world.oracle, process.store
    assert store is not None
    token = artifact.description = oracle.token(plain)
    aliases = tuple(rng.sample(ALIASES, 1)) if rng.random() < 0.15 else ()
    try:
        version = store.log_artifact(artifact, aliases=aliases, dedup=rng.choice(("latest", "never", "any")))
    except (BackendError, IntegrityError, FormatError):
        raise  # what became of it is not known
    except CasstoreError:
        oracle.refuse(token)
        raise
    oracle.promise(str(CollectionName.parse(version.qualified_name.partition(":")[0])), version.number, plain)


@operation("log", 8)
def log(process: Process, rng: random.Random) -> None:
    """Log an artifact."""
    files = draw_files(rng)
    artifact = Artifact(CollectionName.parse(_collection(process, rng)).short, KIND)
    plain = whole(files)
    for path, data in plain.items():
        artifact.add_bytes(data, path)
    _log(process, artifact, plain, rng)


@operation("draft", 6)
def draft(process: Process, rng: random.Random) -> None:
    """Make a draft of a version, or edit and log one made earlier, or let it go."""
    if len(process.drafts) < 2 and (not process.drafts or rng.random() < 0.5):
        target = pick(process, rng)
        if target is not None:
            version = _get(process, target.ref)
            process.drafts.append((version.new_draft(), dict(process.world.oracle.contents[target.root])))
        return
    artifact, plain = process.drafts.pop(rng.randrange(len(process.drafts)))
    if rng.random() < 0.2:
        return
    base, _ = draft_base(artifact)
    try:
        _edit(process, artifact, plain, rng)
    except IntegrityError:
        # Its pin may have expired, and what it held may be gone.
        if getattr(base, "pin", None) in process.world.machine.pins:
            raise


def _edit(process: Process, artifact: Artifact, plain: dict[str, bytes], rng: random.Random) -> None:
    for path, data in whole(draw_files(rng)).items():
        if rng.random() < 0.5:
            artifact.add_bytes(data, path, overwrite=True)
            plain[path] = data
    if plain and rng.random() < 0.3:
        path = rng.choice(sorted(plain))
        artifact.remove(path)
        del plain[path]
    _log(process, artifact, plain, rng)


# --- names ---------------------------------------------------------------------------------------


@operation("alias", 5)
def alias(process: Process, rng: random.Random) -> None:
    """Move an alias, or take one off."""
    target = pick(process, rng)
    if target is None:
        return
    version = _get(process, target.ref)
    chosen = rng.choice(ALIASES)
    if rng.random() < 0.7:
        version.add_alias(chosen)
    else:
        version.remove_alias(chosen, missing_ok=True)


@operation("update", 2)
def update(process: Process, rng: random.Random) -> None:
    """Change a label."""
    target = pick(process, rng)
    if target is not None:
        _get(process, target.ref).update(tags=[f"tag{rng.randrange(3)}"])


@operation("trash", 13)
def trash(process: Process, rng: random.Random) -> None:
    """Move a version to the trash."""
    target = pick(process, rng)
    if target is not None and process.store is not None:
        process.store.delete(target.ref, delete_aliases=rng.random() < 0.8)


@operation("restore", 5)
def restore(process: Process, rng: random.Random) -> None:
    """Bring a version back."""
    target = pick(process, rng, TRASHED)
    if target is not None and process.store is not None:
        process.store.trash.restore(target.ref)


@operation("purge", 7)
def purge(process: Process, rng: random.Random) -> None:
    """Purge a version from the trash now."""
    target = pick(process, rng, TRASHED)
    if target is not None and process.store is not None:
        process.store.trash.purge(target.ref)


@operation("protect", 2)
def protect(process: Process, rng: random.Random) -> None:
    """Protect a version, or no longer."""
    target = pick(process, rng)
    if target is not None:
        version = _get(process, target.ref)
        if rng.random() < 0.4:
            version.protect("simulated")
        else:
            version.unprotect()


@operation("age", 2)
def age(process: Process, rng: random.Random) -> None:
    """Give a version a time to live."""
    target = pick(process, rng)
    if target is not None:
        _get(process, target.ref).set_ttl(timedelta(hours=rng.choice((1, 30, 200))), allow_immediate=True)


@operation("expire", 1)
def expire(process: Process, rng: random.Random) -> None:
    """Trash what is past its time."""
    assert process.store is not None
    process.store.expire()


@operation("hide", 1)
def hide(process: Process, rng: random.Random) -> None:
    """Move a collection to the trash."""
    assert process.store is not None
    process.store.collection(CollectionName.parse(_collection(process, rng)).short).delete(delete_aliases=True)


@operation("show", 3)
def show(process: Process, rng: random.Random) -> None:
    """Bring a collection back."""
    hidden = [name for name, found in process.world.machine.collections.items() if found.state is TRASHED]
    if hidden and process.store is not None:
        with suppress(InvalidInputError):  # by now it is not there, and the name means no version
            process.store.trash.restore(CollectionName.parse(rng.choice(hidden)).short)


@operation("forget", 1)
def forget(process: Process, rng: random.Random) -> None:
    """Purge a collection that is in the trash."""
    hidden = [name for name, found in process.world.machine.collections.items() if found.state is TRASHED]
    if hidden and process.store is not None:
        with suppress(InvalidInputError):
            process.store.trash.purge(CollectionName.parse(rng.choice(hidden)).short)


@operation("pin", 3)
def pin(process: Process, rng: random.Random) -> None:
    """Hold a root for some time."""
    target = pick(process, rng)
    if target is None:
        return
    name = process.engine.new_pack()
    length = rng.choice((HOUR, DAY, 6 * DAY))

    def build(tables: Tables) -> Sequence[Record]:
        if not process.engine.view.known((target.root,))[0]:
            return ()
        return (Pin(name, process.base, "simulated", (target.root,), head_of(tables).safe + length),)

    if process.engine.commit(build) is not None:
        process.pins.append(name)


@operation("unpin", 3)
def unpin(process: Process, rng: random.Random) -> None:
    """Let a root go."""
    if process.pins:
        name = process.pins.pop(rng.randrange(len(process.pins)))
        process.engine.commit(lambda tables: (Unpin(name),) if _held(tables, name) else ())


def _held(tables: Tables, name: bytes) -> bool:
    return tables.get("pin", name) is not None


# --- reading -------------------------------------------------------------------------------------


@operation("read", 12)
def read(process: Process, rng: random.Random) -> None:
    """Read every file of a version."""
    target = pick(process, rng)
    if target is None:
        return
    version = _get(process, target.ref)
    found = {entry.path: entry.read() for entry in version.files()}
    process.world.oracle.check_read(target.name, target.number, target.root, found)


@operation("verify", 3)
def verify(process: Process, rng: random.Random) -> None:
    """Have the library check every stored byte of a version."""
    target = pick(process, rng)
    if target is not None:
        _get(process, target.ref).verify()


# --- space ---------------------------------------------------------------------------------------


@operation("gc", 11)
def gc(process: Process, rng: random.Random) -> None:
    """Collect, in one way or another."""
    assert process.store is not None
    report = process.store.gc(
        dry_run=rng.random() < 0.1,
        grace=rng.choice((0, 0, 0, 60.0, None)),
        incremental=rng.random() < 0.3,
        orphan_age=rng.choice((0, 0, 3600.0, None)),
        max_waste=rng.choice((None, None, 0.0, 0.3)),
        max_bytes=rng.choice((None, None, None, 500, 3000)),
    )
    if report.purged or report.freed_chunks:
        process.world.runs.append(report.run_id)


@operation("undo", 2)
def undo(process: Process, rng: random.Random) -> None:
    """Take back what a collection did, if its bytes are still there."""
    if process.world.runs and process.store is not None:
        process.store.gc_undo(rng.choice(process.world.runs[-4:]))


@operation("compact", 2)
def compact(process: Process, rng: random.Random) -> None:
    """What an offline run does, beside writers."""
    assert process.store is not None
    process.store.gc(grace=0, orphan_age=0, max_waste=0.0)


@operation("preview", 1)
def preview(process: Process, rng: random.Random) -> None:
    """Ask what a deletion would free."""
    target = pick(process, rng)
    if target is not None and process.store is not None:
        process.store.preview_delete([target.ref])


# --- somebody who does not use this library -------------------------------------------------------


@operation("rogue", 3)
def rogue(process: Process, rng: random.Random) -> None:
    """Put a transaction into the log that no writer of ours would: replicas must find it void, or a duplicate."""
    engine, machine = process.engine, process.world.machine
    engine.view.refresh()
    with engine.view.read() as tables:
        _, segment = engine._ahead(tables, None)  # noqa: SLF001 - past the commit path on purpose
    record = _wrong(process, rng)
    if record is None:
        return
    again = sorted(machine.txids)[-1:] if rng.random() < 0.2 else []
    transaction = Transaction(again[0] if again else engine.runtime.random_bytes(16), (record,))
    machine.rogues.add(transaction.txid)
    try:
        engine.log.create(replace(segment, transactions=(transaction,)))
    except AlreadyExistsError:
        return


def _wrong(process: Process, rng: random.Random) -> Record | None:
    """A record that is not valid here, or hardly ever."""
    machine = process.world.machine
    held = [digest for digest in machine.chunks if machine.holders(digest)]
    live = [pack for pack, state in machine.packs.items() if state == LIVE and machine.placed[pack]]
    hidden = pick(process, rng, TRASHED)
    shown = pick(process, rng)
    choices: list[Record] = [PutVersion("x", KIND, bytes(16), 0, 0, "", b"{}", (), (), True, "", -1, "rogue")]
    if held and live:
        pack = rng.choice(live)
        content = PackContent(ChunkKind.DATA, (), (), ())
        choices += [
            Drop((rng.choice(held),)),
            Retire(pack, ()),
            Condemn(pack),
            AddPack(pack, 0, content),
            AddNode(rng.choice(held), (bytes(16),)),
            AddNode(bytes(16), ()),
            Unpin(bytes(16)),
            Pin(bytes(16), "rogue", "", (bytes(16),), 0),
        ]
    if hidden is not None:
        seq = machine.versions[hidden.name, hidden.number].trash_seq
        choices += [
            Purge(hidden.name, hidden.number, seq - 1, force=True),
            Restore(hidden.name, hidden.number, seq - 1),
            SetAlias(hidden.name, "prod", hidden.number),
        ]
        if machine.safe + 2 * DAY < machine.versions[hidden.name, hidden.number].purge_at:
            choices.append(Purge(hidden.name, hidden.number, seq, force=False))
    if shown is not None:
        choices += [
            SetAlias(shown.name, "prod", shown.number, expect=10_000),
            Restore(shown.name, shown.number, 0),
            Purge(shown.name, shown.number, 0, force=True),
        ]
    return rng.choice(choices)


# --- the process itself --------------------------------------------------------------------------


@operation("rebuild", 1)
def rebuild(process: Process, rng: random.Random) -> None:
    """Make the view again from the log."""
    assert process.store is not None
    process.store.rebuild_index()


@operation("reopen", 3)
def reopen(process: Process, rng: random.Random) -> None:
    """Close the store and open it again, on the same view."""
    process.drafts = []
    process.open()


__all__ = ["OPERATIONS", "WEIGHTS", "operation", "pick"]
