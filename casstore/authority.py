"""Who may do what: a transaction as questions for whoever embeds the store (`Runtime.authorize`).

A question is an action and a target. One that is refused keeps the whole transaction out of the log. The actions:

========================================  =================================================================
``log``, ``link``, ``create``, ``rename``  a collection (``project/name``); ``abort`` a batch in one
``update``, ``protect``, ``unprotect``     a version (``name:vN``) or a collection
``delete``, ``restore``, ``purge``         as above; ``unlink`` and ``undo`` (of a purge) a version
``alias``                                 ``name:alias``, set or taken off, also by a log; ``latest`` only on its own
``set-ttl``, ``set-default-ttl``           a version; a collection or ``the store``
``expire``, ``retain``                     ``the store``; a collection: sweeps, whatever they take
``run``, ``delete-run``, ``use``           the id of a run; of a use the version
``set-policy``, ``erase``, ``gc``          ``the store``; so ``pin``, ``unpin``, ``repair``
========================================  =================================================================

Reading, dry runs, drafts and what keeps a long read alive are not asked about. The collector asks as one: what it
sweeps, purges and aborts because its time has come is ``gc``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence

from casstore.config import Runtime
from casstore.errors import RefusedError
from casstore.model import (
    AbortParts,
    DeleteRun,
    DropAlias,
    EndUse,
    Erase,
    FinishParts,
    GCRun,
    Link,
    Pin,
    Protect,
    Purge,
    PurgeCollection,
    PutCollection,
    PutOutput,
    PutRun,
    PutVersion,
    Quarantine,
    Record,
    RenameCollection,
    RenewPin,
    Restore,
    RestoreCollection,
    SetAlias,
    SetCollectionTtl,
    SetPolicy,
    SetTtl,
    Trash,
    TrashCollection,
    Unlink,
    Unpin,
    Unpurge,
    UpdateCollection,
    UpdateVersion,
    UpsertPart,
    UseVersion,
)
from casstore.names import LATEST, CollectionName

STORE = "the store"
Question = tuple[str, str]
"""action, target"""


def is_open(runtime: Runtime) -> bool:
    """Whether everybody may do everything: nobody is asked then."""
    return runtime.authorize is Runtime.authorize


def ask(runtime: Runtime, questions: Iterable[Question]) -> None:
    """Ask each question once. Raises `RefusedError` at the first that is refused, or whose answer is an exception."""
    if is_open(runtime):
        return
    for action, target in dict.fromkeys(questions):
        try:
            allowed = runtime.authorize(runtime.actor, action, target)
        except Exception as error:
            raise RefusedError(
                f"{runtime.actor} may not {action} {target}: {type(error).__name__}: {error}",
                hint="authorize, which whoever runs the store gave it, failed",
            ) from error
        if not allowed:
            raise RefusedError(f"{runtime.actor} may not {action} {target}", hint="ask who runs the store")


def questions(records: Sequence[Record]) -> tuple[Question, ...]:
    """What a transaction is asked about, each once, in the order of its records.

    A run of the collector is one thing, whatever it does. Content, pins that are let go and the like belong to what
    they come with, and are asked about only on their own.
    """
    if any(isinstance(record, GCRun) for record in records):
        return (("gc", STORE),)
    restored = any(isinstance(record, Restore | RestoreCollection) for record in records)
    found = [
        question
        for record in records
        # A restore that must lift a time to live is no more than a restore.
        if not (restored and isinstance(record, SetTtl))
        for question in _asked(record)
    ]
    return tuple(dict.fromkeys(found or (question for record in records for question in _alone(record))))


def _asked(record: Record) -> Iterator[Question]:
    match record:
        case PutVersion():
            yield "log", _name(record.collection)
            yield from _aliases(record.collection, record.aliases)
        case Link():
            yield "link", _name(record.collection)
            yield from _aliases(record.collection, record.aliases)
        case Unlink():
            yield "unlink", _version(record)
        case UpsertPart() | FinishParts():
            yield "log", _name(record.collection)
        case AbortParts():
            yield "abort", _name(record.collection)
        case UpdateVersion():
            yield "update", _version(record)
        case SetAlias() | DropAlias():
            yield from _aliases(record.collection, (record.alias,))
        case Trash():
            yield "delete", _version(record)
        case TrashCollection():
            yield "delete", _name(record.collection)
        case Restore():
            yield "restore", _version(record)
        case RestoreCollection():
            yield "restore", _name(record.collection)
        case Purge():
            yield "purge", _version(record)
        case PurgeCollection():
            yield "purge", _name(record.collection)
        case Unpurge():
            yield "undo", _version(record)
        case SetTtl():
            yield "set-ttl", _version(record)
        case SetCollectionTtl():
            yield "set-default-ttl", _name(record.collection)
        case Protect():
            lifting = "protect" if record.reason else "unprotect"
            yield lifting, _version(record) if record.number >= 0 else _name(record.collection)
        case PutCollection():
            yield "create", _name(record.collection)
        case UpdateCollection():
            yield "update", _name(record.collection)
        case RenameCollection():
            yield "rename", _name(record.collection)
            yield "create", _name(record.name)
        case SetPolicy():
            values = json.loads(record.values)
            if "default_ttl" in values:
                yield "set-default-ttl", STORE
            if values.keys() - {"default_ttl"}:
                yield "set-policy", STORE
        case PutRun():
            yield "run", record.run
        case DeleteRun():
            yield "delete-run", record.run
        case UseVersion():
            yield "use", _version(record)
        case Erase():
            yield "erase", STORE


def _alone(record: Record) -> Iterator[Question]:
    """What a record is asked about that mostly comes with others."""
    match record:
        case PutOutput():
            yield "log", _name(record.collection)
        case SetAlias() | DropAlias():
            yield "alias", f"{_name(record.collection)}:{record.alias}"
        case EndUse():
            yield "run", record.run
        case Pin() | RenewPin():
            yield "pin", STORE
        case Unpin():
            yield "unpin", STORE
        case Quarantine():
            yield "repair", STORE
        case _:
            yield "gc", STORE


def _aliases(collection: str, aliases: Iterable[str]) -> Iterator[Question]:
    for alias in aliases:
        if alias != LATEST:
            yield "alias", f"{_name(collection)}:{alias}"


def _name(collection: str) -> str:
    return CollectionName.parse(collection).short


def _version(record: Trash | Restore | Purge | Unpurge | SetTtl | Protect | UpdateVersion | Unlink | UseVersion) -> str:
    return f"{_name(record.collection)}:v{record.number}"
