"""How far casstore is ahead: ratios to the rivals of the same run, and whether they are what was promised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from casstore.bench.contenders import Contender
from casstore.bench.runner import CorpusFacts

DEDUPLICATORS = frozenset({"restic", "borg", "casync", "dvc", "hf_xet"})
"""rivals of the goals; git and the floors are compared with, but nothing is promised"""

MAX_RSS = 256 << 20
FIRST, FIRST_TEXTUAL = 0.6, 0.8
NEXT = REREAD = 0.5
STORED = 0.95
COLLECTED = 1.05
RESTORE, RESTORE_OF_COPY = 1.0, 1.5
COLLECT, COLLECT_OF_UNSAFE = 1 / 3, 1.0

Summary = Sequence[Mapping[str, Any]]


def goals(
    summary: Summary, stored: Summary, corpora: Sequence[CorpusFacts], contenders: Sequence[Contender]
) -> list[dict[str, Any]]:
    """For each corpus and each variant of casstore: what was measured against which limit (None: for information)."""
    tools = {contender.name: contender.tool for contender in contenders}
    ours = [contender.name for contender in contenders if contender.tool == "casstore"]
    found: list[dict[str, Any]] = []
    for facts in corpora:
        times = {
            (entry["contender"], entry["step"]): entry
            for entry in summary
            if entry["corpus"] == facts.name and entry["outcome"] == "ok"
        }
        sizes = {(entry["contender"], entry["when"]): entry for entry in stored if entry["corpus"] == facts.name}
        for name in ours:
            for goal, measured, limit, against in _of_one(name, times, sizes, tools, textual=facts.textual):
                found.append(
                    {
                        "corpus": facts.name,
                        "contender": name,
                        "goal": goal,
                        "measured": round(measured, 4),
                        "limit": limit,
                        "passed": None if limit is None else measured <= limit,
                        "against": against,
                    }
                )
    return found


_Goal = tuple[str, float, float | None, str]


def _of_one(
    name: str,
    times: Mapping[tuple[str, str], Mapping[str, Any]],
    sizes: Mapping[tuple[str, str], Mapping[str, Any]],
    tools: Mapping[str, str],
    *,
    textual: bool,
) -> Iterator[_Goal]:
    def fastest(step: str, of: frozenset[str]) -> tuple[float, str] | None:
        walls = [(entry["median"], who) for (who, what), entry in times.items() if what == step and tools[who] in of]
        return min(walls, default=None)

    def ratio(goal: str, step: str, of: frozenset[str], limit: float | None) -> Iterator[_Goal]:
        mine, best = times.get((name, step)), fastest(step, of)
        if mine and best and best[0]:
            yield f"{goal}, ratio of time", mine["median"] / best[0], limit, f"{best[1]}: {best[0]:.2f} s"

    git, copy = frozenset({"git"}), frozenset({"cp"})
    yield from ratio("first ingest", "first", DEDUPLICATORS, FIRST_TEXTUAL if textual else FIRST)
    yield from ratio("next version", "next", DEDUPLICATORS, NEXT)
    yield from ratio("forced re-read", "reread", DEDUPLICATORS, REREAD)
    yield from ratio("restore", "restore", DEDUPLICATORS, RESTORE)
    yield from ratio("restore", "restore", copy, RESTORE_OF_COPY)
    yield from ratio("delete and collect", "collect", frozenset({"restic", "borg"}), COLLECT)
    yield from ratio("delete and collect", "collect", frozenset({"casync", "dvc"}), COLLECT_OF_UNSAFE)
    for step in ("first", "next", "reread", "restore", "collect"):
        yield from ratio(step, step, git, None)

    def size(goal: str, when: str, best: tuple[float, str] | None, limit: float | None) -> Iterator[_Goal]:
        mine = sizes.get((name, when))
        if mine and best:
            yield f"{goal}, ratio of bytes", mine["bytes"] / best[0], limit, f"{best[1]}: {best[0] / 1e6:,.2f} MB"

    def smallest(when: str, of: frozenset[str], key: str = "without_index") -> tuple[float, str] | None:
        return min(
            ((entry[key], who) for (who, what), entry in sizes.items() if what == when and tools[who] in of),
            default=None,
        )

    # Our whole store with its index, against theirs without what could be made again.
    yield from size("stored after all versions", "all", smallest("all", DEDUPLICATORS), STORED)
    yield from size("stored after optimizing", "optimized", smallest("optimized", git), None)
    only = sizes.get((name, "only"))
    if only:
        yield from size("stored after collecting", "collected", (only["bytes"], "only the latest"), COLLECTED)
    peak = max((entry["peak_rss"] for (who, _), entry in times.items() if who == name), default=0)
    yield "peak RSS in MiB", peak / (1 << 20), MAX_RSS / (1 << 20), "any step"
