"""What records about runs, uses and batches need and do."""

from __future__ import annotations

from dataclasses import replace

from casstore.errors import InvalidNameError
from casstore.format.rows import decode_row, encode_row
from casstore.model import (
    AbortParts,
    BatchRow,
    CollectionRow,
    DeleteRun,
    EndUse,
    FinishParts,
    PartRow,
    PinRow,
    PutOutput,
    PutRun,
    RunRow,
    UpsertPart,
    UseRow,
    UseVersion,
    VersionRow,
    VersionState,
)
from casstore.names import CollectionName, parse_reference
from casstore.state.content import ContentRules, Void
from casstore.state.schema import (
    BATCH,
    COLLECTION,
    DERIVED,
    PART,
    PIN,
    RUN,
    RUN_OUTPUT,
    USE,
    VERSION,
    VERSION_OUTPUT,
    VERSION_USE,
    batch_key,
    batches_prefix,
    current_name,
    derived_keys,
    part_key,
    run_key,
    use_key,
    uses_of,
    version_key,
)

RUNNING = "running"
ACTIVE, ENDED, CANCELLED = "active", "ended", "cancelled"
OPEN, FINISHED, ABORTED = "open", "finished", "aborted"


def check_name(name: str) -> None:
    """Raise `Void` unless a new collection may have this name, in full: no listing could show it otherwise."""
    try:
        sound = str(CollectionName.parse(name)) == name
    except InvalidNameError:
        sound = False
    if not sound:
        raise Void(f"{name!r:.100} is no full name of a collection")


class LineageRules(ContentRules):
    """The rules for what runs do with versions, and for versions in the making."""

    # --- runs

    def _run(self, run: str) -> RunRow:
        row = self.tables.get(RUN, run.encode())
        found = None if row is None else decode_row(row, RunRow)
        if found is None or found.deleted:
            raise Void(f"there is no run {run}")
        return found

    def _put_run(self, record: PutRun) -> None:
        if "\0" in record.run:
            raise Void("the id of a run holds a NUL")
        row = self.tables.get(RUN, record.run.encode())
        known = None if row is None else decode_row(row, RunRow)
        if known is not None and known.deleted:
            raise Void(f"run {record.run} was deleted")
        ended = 0 if record.status == RUNNING else self.segment.claimed
        if known is None:
            known = RunRow("", "", "", b"{}", record.actor, self.segment.claimed, 0, self.segment.seq)
        self.tables.put(
            RUN,
            record.run.encode(),
            encode_row(
                replace(
                    known,
                    name=record.name,
                    job_type=record.job_type,
                    status=record.status,
                    attrs=record.attrs,
                    ended=known.ended or ended if ended else 0,
                )
            ),
        )
        if ended:
            for key, value in list(self.tables.scan(USE, prefix=run_key(record.run))):
                use = decode_row(value, UseRow)
                if use.state == ACTIVE:
                    self._end_use(record.run, *_place(key), use, ENDED, record.actor)

    def _delete_run(self, record: DeleteRun) -> None:
        run = self._run(record.run)
        self._put_run(PutRun(record.run, run.name, run.job_type, "deleted", b"{}", record.actor))
        self.tables.put(RUN, record.run.encode(), encode_row(replace(self._run(record.run), deleted=True)))

    def _put_output(self, record: PutOutput) -> None:
        self._run(record.run)
        collection = self._identifier(record.collection)
        if self.tables.get(VERSION, version_key(collection, record.number)) is None:
            raise Void(f"there is no version {record.collection}:v{record.number}")
        self.tables.put(RUN_OUTPUT, use_key(record.run, collection, record.number), b"")
        self.tables.put(VERSION_OUTPUT, version_key(collection, record.number) + record.run.encode(), b"")

    def _note_base(self, base: str, collection: int, number: int) -> None:
        """Remember what a version was made from by more than its name, which may change."""
        try:
            reference = parse_reference(base)
        except InvalidNameError:  # it is only for the record
            return
        row = self.tables.get(COLLECTION, current_name(self.tables, str(reference.collection)).encode())
        if row is None or reference.number is None:
            return
        place = (decode_row(row, CollectionRow).id, reference.number)
        if self.tables.get(VERSION, version_key(*place)) is not None and place != (collection, number):
            for key, value in derived_keys(place, (collection, number)):
                self.tables.put(DERIVED, key, value)

    def _identifier(self, collection: str) -> int:
        row = self.tables.get(COLLECTION, current_name(self.tables, collection).encode())
        if row is None:
            raise Void(f"there is no collection {collection}")
        return decode_row(row, CollectionRow).id

    # --- uses

    def _use_version(self, record: UseVersion) -> None:
        run = self._run(record.run)
        if run.status != RUNNING:
            raise Void(f"run {record.run} has ended")
        collection = self._identifier(record.collection)
        row = self.tables.get(VERSION, version_key(collection, record.number))
        if row is None or decode_row(row, VersionRow).state is not VersionState.COMMITTED:
            raise Void(f"{record.collection}:v{record.number} is not there")
        use = UseRow(record.purpose, record.holder, ACTIVE, self.segment.claimed, 0, self.segment.seq, record.actor)
        known = self.tables.get(USE, use_key(record.run, collection, record.number))
        if known is not None and (before := decode_row(known, UseRow)).state == ACTIVE:
            # The same use goes on, whatever for: who holds it may tell by its position that it was never cancelled.
            use = replace(use, since=before.since, seq=before.seq)
        self.tables.put(USE, use_key(record.run, collection, record.number), encode_row(use))
        self.tables.put(VERSION_USE, version_key(collection, record.number) + record.run.encode(), b"")

    def _end_one_use(self, record: EndUse) -> None:
        collection = self._identifier(record.collection)
        row = self.tables.get(USE, use_key(record.run, collection, record.number))
        use = None if row is None else decode_row(row, UseRow)
        if use is None or use.state != ACTIVE:
            raise Void(f"run {record.run} does not use {record.collection}:v{record.number}")
        self._end_use(record.run, collection, record.number, use, ENDED, record.actor)

    def _cancel_uses(self, collection: int, number: int, actor: str) -> None:
        for run, use in uses_of(self.tables, collection, number):
            if use.state == ACTIVE:
                self._end_use(run, collection, number, use, CANCELLED, actor)

    def _end_use(self, run: str, collection: int, number: int, use: UseRow, state: str, actor: str) -> None:
        over = replace(use, state=state, ended=self.segment.claimed, ended_by=actor)
        self.tables.put(USE, use_key(run, collection, number), encode_row(over))

    # --- batches

    def _batch(self, collection: str, batch: str) -> BatchRow:
        row = self.tables.get(BATCH, batch_key(collection, batch))
        if row is None:
            raise Void(f"there is no batch {batch} of {collection}")
        found = decode_row(row, BatchRow)
        if found.state != OPEN:
            raise Void(f"batch {batch} of {collection} is {found.state}")
        return found

    def _put_batch(self, collection: str, batch: str, row: BatchRow) -> None:
        self.tables.put(BATCH, batch_key(collection, batch), encode_row(row))

    def _parts(self, collection: str, batch: str) -> dict[str, PartRow]:
        rows = (decode_row(row, PartRow) for _, row in self.tables.scan(PART, prefix=batch_key(collection, batch)))
        return {part.name: part for part in rows}

    def _upsert_part(self, record: UpsertPart) -> None:
        key = batch_key(record.collection, record.batch)
        if self.tables.get(BATCH, key) is None:
            check_name(record.collection)
            batch = BatchRow(
                record.collection,
                record.batch,
                record.type,
                OPEN,
                self.segment.claimed,
                self.segment.seq,
                record.expires,
                record.actor,
            )
        else:
            batch = self._batch(record.collection, record.batch)
        if batch.type != record.type:
            raise Void(f"batch {record.batch} makes a {batch.type}")
        # It ends as a whole: no part before the others.
        expires = max(batch.expires, record.expires)
        parts = self._parts(record.collection, record.batch)
        known = parts.get(record.part)
        if known is not None and known.root != record.root:
            raise Void(f"part {record.part} of batch {record.batch} is there with other content")
        if known is None or self.tables.get(PIN, known.pin) is None:
            if self.tables.get(PIN, record.pin) is not None:
                raise Void("the pin is held already")
            self._hold_root(record.root)
            purpose = f"part {record.part} of {record.batch}"
            pin = PinRow(record.holder, purpose, (record.root,), expires, self.segment.seq)
            self.tables.put(PIN, record.pin, encode_row(pin))
            part = PartRow(
                record.part,
                record.root,
                record.size,
                record.file_count,
                record.pin,
                record.holder,
                self.segment.claimed,
                self.segment.seq,
            )
            self.tables.put(PART, part_key(record.collection, record.batch, record.part), encode_row(part))
        for part in parts.values():
            row = self.tables.get(PIN, part.pin)
            if row is not None:
                self.tables.put(PIN, part.pin, encode_row(replace(decode_row(row, PinRow), expires=expires)))
        self._put_batch(record.collection, record.batch, replace(batch, expires=expires))

    def _finish_parts(self, record: FinishParts, made: int | None) -> None:
        """``made``: number of the version that the same transaction made."""
        batch = self._batch(record.collection, record.batch)
        parts = self._parts(record.collection, record.batch)
        if {name: part.root for name, part in parts.items()} != dict(zip(record.parts, record.digests, strict=False)):
            raise Void(f"batch {record.batch} has other parts by now")
        collection = self._identifier(record.collection)
        number = record.number if made is None else made
        row = self.tables.get(VERSION, version_key(collection, number)) if number >= 0 else None
        if row is None or decode_row(row, VersionRow).state is not VersionState.COMMITTED:
            raise Void(f"batch {record.batch} makes no version")
        self._let_go(record.collection, record.batch, parts)
        done = replace(batch, state=FINISHED, collection=collection, number=number, asked=record.asked)
        self._put_batch(record.collection, record.batch, done)

    def _abort_parts(self, record: AbortParts) -> None:
        batch = self._batch(record.collection, record.batch)
        self._let_go(record.collection, record.batch, self._parts(record.collection, record.batch))
        self._put_batch(record.collection, record.batch, replace(batch, state=ABORTED, reason=record.reason))

    def _move_batches(self, collection: str, name: str) -> None:
        """Batches go with a collection that gets another name."""
        for key, value in list(self.tables.scan(BATCH, prefix=batches_prefix(collection))):
            row = decode_row(value, BatchRow)
            if self.tables.get(BATCH, batch_key(name, row.batch)) is not None:
                raise Void(f"there is a batch {row.batch} of {name}, too")
            parts = self._parts(collection, row.batch)
            self.tables.delete(BATCH, key)
            self._put_batch(name, row.batch, replace(row, name=name))
            for part in parts.values():
                self.tables.delete(PART, part_key(collection, row.batch, part.name))
                self.tables.put(PART, part_key(name, row.batch, part.name), encode_row(part))

    def _let_go(self, collection: str, batch: str, parts: dict[str, PartRow]) -> None:
        for name, part in parts.items():
            row = self.tables.get(PIN, part.pin)
            if row is not None:
                for root in decode_row(row, PinRow).roots:
                    self._release(root)
                self.tables.delete(PIN, part.pin)
            self.tables.delete(PART, part_key(collection, batch, name))


def _place(key: bytes) -> tuple[int, int]:
    """Collection and number at the end of a key."""
    return int.from_bytes(key[-16:-8], "big"), int.from_bytes(key[-8:], "big")
