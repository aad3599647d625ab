"""What a run found, as a JSON document (docs/cli.md, ``bench/1``) and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from casstore.bench.contenders import Contender
from casstore.bench.goals import goals
from casstore.bench.runner import Plan, Record, Sample

_COLUMNS = ("first", "next", "reread", "all", "restore", "collect", "optimize", "restore-optimized", "only")


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A contender or corpus that was asked for and is not in the run, and why."""

    name: str
    reason: str


def document(
    record: Record,
    contenders: Sequence[Contender],
    left_out: Sequence[LeftOut],
    plan: Plan,
    *,
    scale: float,
    machine: Mapping[str, object],
) -> dict[str, Any]:
    """The whole run: every sample, and medians with their spread. JSON types only."""
    summary = _summary(record.samples, record)
    sizes = _sizes(record)
    return {
        "machine": dict(machine),
        "rounds": plan.rounds,
        "scale": scale,
        "cache": f"cold ({record.dropped_caches_by})" if plan.cold else "warm",
        "contenders": [
            {
                "name": contender.name,
                "tool": contender.tool,
                "version": contender.version(),
                "flags": contender.flags,
                "deduplicates": contender.deduplicates,
                "durable": contender.durable,
                "syncs": record.syncs.get(contender.name, {}),
                "commands": record.commands.get(contender.name, {}),
            }
            for contender in contenders
        ],
        "left_out": [{"name": what.name, "reason": what.reason} for what in left_out],
        "corpora": [
            {
                "name": facts.name,
                "textual": facts.textual,
                "bytes": facts.bytes,
                "versions": [{"name": name, "files": held.files, "bytes": held.bytes} for name, held in facts.versions],
            }
            for facts in record.corpora
        ],
        "samples": [
            {
                "corpus": sample.corpus,
                "contender": sample.contender,
                "step": sample.step,
                "round": sample.round,
                "position": sample.position,
                "wall": round(sample.usage.wall, 4),
                "cpu_user": round(sample.usage.user, 4),
                "cpu_system": round(sample.usage.system, 4),
                "peak_rss": sample.usage.peak,
                "outcome": sample.outcome,
            }
            for sample in record.samples
        ],
        "summary": summary,
        "stored": sizes,
        "goals": goals(summary, sizes, record.corpora, contenders),
    }


def _summary(samples: Sequence[Sample], record: Record) -> list[dict[str, Any]]:
    """Medians by corpus, contender and step; ``all`` is first, next and rest together."""
    found: list[dict[str, Any]] = []
    for facts in record.corpora:
        first, total = facts.versions[0][1].bytes, facts.bytes
        latest = facts.versions[-1][1].bytes
        second = facts.versions[min(1, len(facts.versions) - 1)][1].bytes
        handled = {"first": first, "next": second, "reread": second, "all": total, "restore": latest}
        of_corpus = [sample for sample in samples if sample.corpus == facts.name]
        for contender in dict.fromkeys(sample.contender for sample in of_corpus):
            of_contender = [sample for sample in of_corpus if sample.contender == contender]
            for step in _COLUMNS:
                rounds = _per_round(of_contender, step)
                if not rounds:
                    continue
                walls = [sum(s.usage.wall for s in group) for group in rounds]
                cpus = [sum(s.usage.user + s.usage.system for s in group) for group in rounds]
                outcomes = [s.outcome for group in rounds for s in group if s.outcome != "ok"]
                wall = median(walls)
                logical = handled.get(step, 0)
                found.append(
                    {
                        "corpus": facts.name,
                        "contender": contender,
                        "step": step,
                        "n": len(rounds),
                        "median": round(wall, 4),
                        "min": round(min(walls), 4),
                        "max": round(max(walls), 4),
                        "cpu": round(median(cpus), 4),
                        "peak_rss": max(s.usage.peak for group in rounds for s in group),
                        "mb_per_s": round(logical / wall / 1e6, 1) if wall and logical and not outcomes else None,
                        "outcome": outcomes[0] if outcomes else "ok",
                    }
                )
    return found


def _per_round(samples: Sequence[Sample], step: str) -> list[list[Sample]]:
    """The samples of a step, one list for each round."""
    wanted = {"first", "next", "rest"} if step == "all" else {step}
    rounds: dict[int, list[Sample]] = {}
    for sample in samples:
        if sample.step in wanted:
            rounds.setdefault(sample.round, []).append(sample)
    return list(rounds.values())


def _sizes(record: Record) -> list[dict[str, Any]]:
    """Stored bytes by corpus, contender and moment: medians over the rounds."""
    groups: dict[tuple[str, str, str], list[Any]] = {}
    for stored in record.stored:
        groups.setdefault((stored.corpus, stored.contender, stored.when), []).append(stored)
    return [
        {
            "corpus": corpus,
            "contender": contender,
            "when": when,
            "bytes": round(median(stored.whole.apparent for stored in group)),
            "without_index": round(median(stored.without_index.apparent for stored in group)),
            "allocated": round(median(stored.whole.allocated for stored in group)),
        }
        for (corpus, contender, when), group in groups.items()
    ]


# --- tables


def tables(found: Mapping[str, Any]) -> Iterator[str]:
    """Lines of Markdown that read well on a terminal, too: a section for each corpus."""
    yield f"{found['rounds']} rounds, cache {found['cache']}, " + ", ".join(
        f"{key} {value}" for key, value in found["machine"].items()
    )
    yield from ("", "Left out: " + "; ".join(f"{w['name']}: {w['reason']}" for w in found["left_out"])) * bool(
        found["left_out"]
    )
    yield ""
    yield from _grid(
        ("contender", "version", "flags", "durable", "syncs counted"),
        [(c["name"], c["version"], c["flags"], c["durable"], _counts(c["syncs"])) for c in found["contenders"]],
        left=5,
    )
    for corpus in found["corpora"]:
        yield from _corpus_tables(found, corpus)


def _corpus_tables(found: Mapping[str, Any], corpus: Mapping[str, Any]) -> Iterator[str]:
    name = corpus["name"]
    times = {(s["contender"], s["step"]): s for s in found["summary"] if s["corpus"] == name}
    sizes = {(s["contender"], s["when"]): s for s in found["stored"] if s["corpus"] == name}
    names = list(dict.fromkeys(contender for contender, _ in times))
    versions = corpus["versions"]
    yield ""
    said = f"{len(versions)} versions, {corpus['bytes'] / 1e6:,.1f} MB, {versions[-1]['files']:,} files in the last"
    yield f"### {name}: {said}"
    yield ""
    yield "Seconds of whole processes, median (min-max):"
    yield ""
    columns = [step for step in _COLUMNS if any((name, step) in times for name in names)]
    yield from _grid(("", *columns), [(name, *(_time(times.get((name, step))) for step in columns)) for name in names])
    yield ""
    yield "CPU seconds of all processes, and the largest process:"
    yield ""
    cpu = [[_number(times.get((name, step)), "cpu") for step in columns] for name in names]
    peaks = [max(times[key]["peak_rss"] for key in times if key[0] == name) for name in names]
    yield from _grid(
        ("", *columns, "peak RSS MB"),
        [(name, *row, f"{peak / 1e6:,.0f}") for name, row, peak in zip(names, cpu, peaks, strict=True)],
    )
    yield ""
    yield "Stored MB (the whole store as `du -sb` says; allocated: blocks on the disk):"
    yield ""
    moments = [when for when in ("all", "optimized", "collected", "only") if any((n, when) in sizes for n in names)]
    yield from _grid(
        ("", *moments, "all, without index", "all, allocated"),
        [
            (
                name,
                *(_size(sizes.get((name, when)), "bytes") for when in moments),
                _size(sizes.get((name, "all")), "without_index"),
                _size(sizes.get((name, "all")), "allocated"),
            )
            for name in names
        ],
    )
    here = [goal for goal in found["goals"] if goal["corpus"] == name]
    if here:
        yield ""
        yield from (_goal(goal) for goal in here)


def _goal(goal: Mapping[str, Any]) -> str:
    verdict = "INFO" if goal["limit"] is None else "PASS" if goal["passed"] else "FAIL"
    limit = "" if goal["limit"] is None else f", at most {goal['limit']:,.2f}"
    return f"    {verdict}  {goal['contender']}, {goal['goal']}: {goal['measured']:,.2f}{limit} ({goal['against']})"


def _counts(syncs: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" if count else name for name, count in syncs.items()) or "not counted"


def _time(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "-"
    if entry["outcome"] != "ok":
        word = entry["outcome"].partition(":")[0]
        return f"> {entry['median']:.0f}" if word.startswith("stopped") else word.upper()
    spread = f" ({entry['min']:.2f}-{entry['max']:.2f})" if entry["n"] > 1 else ""
    return f"{entry['median']:.2f}{spread}"


def _number(entry: Mapping[str, Any] | None, key: str) -> str:
    return "-" if entry is None or entry["outcome"] != "ok" else f"{entry[key]:.2f}"


def _size(entry: Mapping[str, Any] | None, key: str) -> str:
    return "-" if entry is None else f"{entry[key] / 1e6:,.2f}"


def _grid(head: Sequence[str], rows: Sequence[Sequence[object]], *, left: int = 1) -> Iterator[str]:
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for number, row in enumerate(cells):
        padded = [
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "| " + " | ".join(padded) + " |"
        if not number:
            yield "|" + "|".join("-" * (w + 2) if i < left else "-" * (w + 1) + ":" for i, w in enumerate(widths)) + "|"
