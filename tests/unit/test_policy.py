"""Rules that can be changed: what is refused, what a log of a newer casstore says, and the thresholds of repacking."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from casstore import Artifact, Settings, Store
from casstore.config import KIB
from casstore.errors import InvalidInputError
from casstore.gc.plan import Fate
from casstore.model import SetPolicy
from casstore.policy import DEFAULT_POLICY
from casstore.testing.recipes import SMALL


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.create(tmp_path / "s", config=SMALL, settings=Settings(workers=2)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("trash_days", -1),
        ("trash_days", "30"),
        ("grace", timedelta(seconds=-1)),
        ("gc_enabled", 1),
        ("data_waste", 1.5),
        ("data_waste", True),
        ("node_waste", "0.1"),
        ("store_waste", -0.1),
        ("small_packs", 1),
        ("small_packs", 2.5),
        ("copy_bytes", -1),
        ("copy_bytes", 1.5),
        ("no_such_rule", 1),
    ],
)
def test_bad_values_are_refused_and_change_nothing(store: Store, key: str, value: object) -> None:
    before = store.log()
    with pytest.raises(InvalidInputError) as refused:
        store.set_policy(**{"trash_days": 7, key: value})  # type: ignore[arg-type]
    assert refused.value.exit_code == 2
    assert store.policy == DEFAULT_POLICY
    assert store.log() == before


def test_rules_last_and_are_seen_by_others(store: Store, tmp_path: Path) -> None:
    store.set_policy(data_waste=0.5, small_packs=4, copy_bytes=10 * KIB, trash_days=7)
    with Store.open(tmp_path / "s") as other:
        rules = other.policy
        assert (rules.data_waste, rules.small_packs, rules.copy_bytes, rules.trash_days) == (0.5, 4, 10 * KIB, 7.0)
        assert rules.node_waste == DEFAULT_POLICY.node_waste
        assert rules.to_dict()["copy_bytes"] == 10 * KIB
    assert store.set_policy(copy_bytes=None).copy_bytes is None


def test_what_a_newer_casstore_set_is_left_alone(store: Store) -> None:
    store._engine.commit(lambda _: (SetPolicy(b'{"newer": {"a": 1}, "data_waste": "much", "trash_days": 7}'),))
    assert store.policy.trash_days == 7
    assert store.policy.data_waste == DEFAULT_POLICY.data_waste


def half_dead(store: Store) -> None:
    """One data pack that is a third garbage."""
    artifact = Artifact("c")
    for number in range(3):
        artifact.add_bytes(random.Random(number).randbytes(20 * KIB), f"f{number}")
    draft = store.log_artifact(artifact).new_draft()
    draft.remove("f0")
    store.log_artifact(draft)
    store.delete("c:v0", delete_aliases=True)
    store.trash.purge("c:v0")


def repacked(store: Store) -> list[str]:
    return [fate.reason for fate in store.gc(dry_run=True).packs if fate.fate is Fate.REPACK and fate.kind == 0]


def test_the_thresholds_of_repacking_are_the_stores(store: Store) -> None:
    half_dead(store)
    assert repacked(store)
    for loose in ({"data_waste": 0.9}, {"store_waste": 0.9}, {"copy_bytes": 100}):
        store.set_policy(**loose)
        assert repacked(store) == [], loose
        store.set_policy(**{key: getattr(DEFAULT_POLICY, key) for key in loose})
    assert repacked(store)
    store.set_policy(data_waste=0.9)
    assert [f for f in store.gc(dry_run=True, max_waste=0.1).packs if f.fate is Fate.REPACK and f.kind == 0]


def test_how_many_small_packs_are_merged(store: Store) -> None:
    size = SMALL.pack_bytes // 5
    for number in range(6):
        artifact = Artifact(f"c{number}")
        artifact.add_bytes(random.Random(number).randbytes(size), "f")
        store.log_artifact(artifact)
    assert repacked(store) == []
    store.set_policy(small_packs=4)
    assert set(repacked(store)) == {"merged with other small packs"}
