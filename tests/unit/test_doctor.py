"""Guards `doctor`: a store that could be set up better says so, and a good one does not cry wolf."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from casstore import Artifact, Store
from casstore.doctor import Check, Level
from casstore.model import Quarantine


def by_name(store: Store) -> dict[str, Check]:
    return {check.name: check for check in store.doctor()}


def test_a_new_store_is_well(tmp_path: Path) -> None:
    with Store.create(tmp_path / "s") as store:
        assert {check.level for check in store.doctor() if check.name != "disk"} == {Level.OK}
        assert all(check.hint for check in store.doctor() if check.level is not Level.OK)


def test_a_clock_that_is_behind_the_log(tmp_path: Path) -> None:
    now = datetime.now(UTC)
    with Store.create(tmp_path / "s", clock=lambda: now) as store:
        artifact = Artifact("x")
        artifact.add_bytes(b"1", "f")
        store.log_artifact(artifact)
        assert by_name(store)["clock"].level is Level.OK
        now -= timedelta(minutes=4)
        assert by_name(store)["clock"].level is Level.OK
        now -= timedelta(minutes=2)
        assert by_name(store)["clock"].level is Level.WARN


@pytest.mark.parametrize("days", [-2, 2])
def test_a_clock_that_is_not_the_machines(tmp_path: Path, days: int) -> None:
    now = datetime.now(UTC) + timedelta(days=days)
    with Store.create(tmp_path / "s", clock=lambda: now) as store:
        assert by_name(store)["clock"].level is Level.WARN


def test_room_and_log_and_quota(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "s") as store:
        artifact = Artifact("x")
        artifact.add_bytes(b"1" * 1000, "f")
        ref = store.log_artifact(artifact).ref
        monkeypatch.setattr("casstore.doctor.free_bytes", lambda _: 1 << 60)
        monkeypatch.setattr("casstore.doctor.LONG_TAIL", 100)
        found = by_name(store)
        assert found["disk"].level is found["log"].level is Level.OK
        assert "quota" not in found
        store.set_policy(quota_bytes=1_000_000)
        assert by_name(store)["quota"].level is Level.OK
        store.set_policy(quota_bytes=store.status().stored)
        monkeypatch.setattr("casstore.doctor.free_bytes", lambda _: 1000)
        monkeypatch.setattr("casstore.doctor.LONG_TAIL", 1)
        found = by_name(store)
        assert found["disk"].level is found["log"].level is found["quota"].level is Level.WARN
        root = store.get(ref)._found.version.root
        (place,) = store._engine.view.locate([root])
        assert place is not None
        store._engine.commit(lambda _: (Quarantine(root, place.pack),))
        assert by_name(store)["damage"].level is Level.BAD


def test_a_network_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Store.create(tmp_path / "s") as store:
        monkeypatch.setattr("casstore.doctor.on_network", lambda _: True)
        assert by_name(store)["backend"].level is Level.WARN


def test_a_store_in_memory_has_no_disk() -> None:
    with Store.create("memory://doctor") as store:
        assert "disk" not in by_name(store)
