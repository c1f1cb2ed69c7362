"""Is a dataset whole, and is it what its labels say? :func:`check_sample` before a fit, :func:`check_all` for ``data check``.

Nothing is written into the dataset and nothing is repaired. This file knows only :class:`Item` and a function that reads one, so that
every dataset can be checked; what to read lies beside the dataset (``genvideo_checks.py``).
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from datamodules.processes import in_processes, worth_starting
from genlab.store import RowStore
from genlab.training.randomness import keyed_rng

VERSION = 1  # of what is remembered; a higher one makes every file be read again
NAMED = 5  # examples in a message
TELLING = 0.75  # share of clips whose class one fact may tell before it is called a shortcut
FEW = 4  # clips per class from which on one value for each class is no accident
ENOUGH = 30  # clips per class below which such a share means nothing

# What can be wrong: whether it is an error of the dataset, in words, and what to do.
PROBLEMS: dict[str, tuple[bool, str, str]] = {
    "missing": (True, "not there though listed", "Finish the download, or take them off the list."),
    "empty": (True, "with nothing in them", "Download them again."),
    "unreadable": (True, "unreadable", "Download them again, or remove them."),
    "truncated": (True, "cut short or broken inside", "Download them again, or remove them."),
    "conflict": (True, "with the same content under different labels", "One of the labels is wrong: find out which, remove that file."),
    "overlap": (True, "that another split holds too", "Remove them from training: whatever is tested on them has seen them."),
    "duplicate": (False, "that repeat another one of their split", "Copies count double in training and in averages."),
    "short": (False, "with too few different frames for a clip", "Frames are repeated, or empty ones added."),
    "name": (False, "named like another class", "Look at them: their label may be wrong."),
}
UNREAD = ("missing", "empty", "unreadable", "truncated")


@dataclass(frozen=True, slots=True)
class Item:
    """One sample, as the index of its dataset has it.

    Args:
        id: Path below the dataset's root, with forward slashes.
        path: A file, or a folder of frames.
        label: Of the class.
        group: What counts are split by: the generator, the class, the domain.
        split: ``train``, ``test`` ...
        frames: Of a folder: how many frames the index promises.
        first: Of a folder: the smallest frame number; -1 for a file.
    """

    id: str
    path: Path
    label: int
    group: str
    split: str
    frames: int = 0
    first: int = -1

    @property
    def companions(self) -> tuple[Path, ...]:
        """Other files that belong to the sample, such as a mask: when one of them changes, it is another sample."""
        return ()


@dataclass(frozen=True, slots=True)
class Facts:
    """What was found in an item.

    Args:
        problem: A key of ``PROBLEMS``, or an empty string.
        detail: What exactly.
        digest: Hash of the content; empty where it was not asked for.
        measures: What should not tell the classes apart: numbers, or words such as ``640x480``.
    """

    problem: str = ""
    detail: str = ""
    digest: str = ""
    measures: dict[str, float | str] = field(default_factory=dict)


Read = Callable[[Item, bool], Facts]  # reads an item, wholly or (False) as an evaluation would; raises nothing but OSError
Looked = Sequence[tuple[Item, Facts]]
Finding = tuple[Item, str, str]  # with a key of PROBLEMS and the detail


@dataclass
class CheckReport:
    """What a check has found.

    Args:
        errors: What spoils results, a message each.
        warnings: What one should know.
        counts: Rows ``split, generator, label, clips`` and a column per problem.
        findings: Rows ``path, problem, split, detail``.
        distributions: Rows ``split, measure, label, clips, typical, low, high``: median, 5th and 95th percentile; of words the most
            frequent one and its share.
    """

    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    counts: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] = field(default_factory=list)
    distributions: list[dict[str, Any]] = field(default_factory=list)


def checks_folder() -> Path:
    """Where checks remember what they have read: ``$GENLAB_CACHE/checks``."""
    return Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser() / "checks"


def check_sample(items: Sequence[Item], read: Read, labels: Mapping[int, str], sample: int = 200) -> CheckReport:
    """Whether every item is there, and whether ``sample`` of them, spread over splits and groups, can be read.

    Single unreadable ones are warnings; it is an error when a whole group is unreadable.
    """
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        groups[item.split, item.group].append(item)
    chosen = _spread(groups, sample)
    with ThreadPoolExecutor(4) as pool:
        looked = list(zip(chosen, pool.map(lambda item: examine(read, item, whole=False), chosen)))
    found = [(item, facts.problem, facts.detail) for item, facts in looked if facts.problem in UNREAD]
    seen = {item.id for item in chosen}
    found += [(item, "missing", "") for item in items if item.id not in seen and not item.path.exists()]
    report = _report(items, found, labels, ("read", *UNREAD), Counter((item.split, item.group, item.label) for item in chosen))
    report.warnings, report.errors = report.errors + report.warnings, []
    for (split, group), members in groups.items():
        verdicts = [facts for item, facts in looked if (item.split, item.group) == (split, group)]
        if verdicts and all(facts.problem in UNREAD for facts in verdicts) and len(verdicts) >= min(3, len(members)):
            why = verdicts[0].detail or PROBLEMS[verdicts[0].problem][1]
            report.errors.append(f"{split}, {group}: of {len(members)} clips {len(verdicts)} were tried and none can be read ({why}).")
    return report


def check_all(
    items: Sequence[Item],
    read: Read,
    labels: Mapping[int, str],
    store: Path,
    workers: int | None = None,
    progress: bool = True,
    suspicion: Callable[[Item], str] = lambda item: "",
) -> CheckReport:
    """Reads every item wholly: what is broken, what is there twice, what is labelled wrongly, what gives the classes away.

    Args:
        store: SQLite file that remembers what was read, so that a stopped check goes on and a second one reads only what has changed.
        workers: Processes; 0 reads in this one; left out, one per core.
        suspicion: Says why an item's name speaks against its label; empty if it does not.
    """
    looked = _examine_all(items, read, store, workers, progress)
    found = [(item, facts.problem, facts.detail) for item, facts in looked if facts.problem]
    found += [*_copies(looked, labels), *((item, "name", why) for item in items if (why := suspicion(item)))]
    report = _report(items, found, labels, PROBLEMS)
    _compare_classes(report, looked, labels)
    return report


def examine(read: Read, item: Item, whole: bool = True) -> Facts:
    """Facts about one item; what the file system refuses is a fact too."""
    try:
        if not item.path.exists():
            return Facts("missing")
        files = _files(item.path)
        if not any(file.stat().st_size for file in files):
            return Facts("empty", "0 bytes" if files else "no files")
        facts = read(item, whole)
        return replace(facts, digest=_digest([*files, *(each for each in item.companions if each.exists())])) if whole else facts
    except OSError as error:
        return Facts("unreadable", error.strerror or str(error))


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    inside = (file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
    return sorted(inside, key=lambda file: (len(file.name), file.name))  # 2.jpg before 10.jpg


def _digest(files: Iterable[Path]) -> str:
    content = hashlib.blake2b(digest_size=16)
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                content.update(block)
    return content.hexdigest()


def _spread(groups: Mapping[tuple[str, str], Sequence[Item]], count: int) -> list[Item]:
    """``count`` items, as many from each group as it has and as is fair; always the same ones."""
    orders = [[members[i] for i in keyed_rng("check", *key).permutation(len(members))[:count]] for key, members in sorted(groups.items())]
    turns = (order[turn] for turn in range(count) for order in orders if turn < len(order))
    return list(islice(turns, count))


def _examine_all(items: Sequence[Item], read: Read, path: Path, workers: int | None, progress: bool) -> list[tuple[Item, Facts]]:
    store = RowStore(path)
    with closing(store):
        states = [_state(item) for item in items]
        by_state = dict(zip(states, items))
        todo = {state: by_state[state] for state in store.missing(by_state)}
        bar = tqdm(desc="reading", total=len(by_state), initial=len(by_state) - len(todo), unit="clip", disable=not progress)
        with bar, closing(in_processes(partial(examine, read), todo, worth_starting(workers, len(todo)))) as results:
            for state, facts in results:
                store.put(state, asdict(facts or Facts("unreadable", "the decoder crashes on it")))
                bar.update()
        known = {state: Facts(**row) for state, row in store.rows() if state in by_state}
    return [(item, known[state]) for item, state in zip(items, states)]


def _state(item: Item) -> str:
    """Changes whenever the item must be read again."""
    try:
        stats = [file.stat() for file in (*_files(item.path), *item.companions) if file.exists()] if item.path.exists() else []
    except OSError:  # gone or forbidden in this moment: examine() tells
        stats = []
    files = f"{len(stats)} {sum(s.st_size for s in stats)} {max((s.st_mtime_ns for s in stats), default=0)}"
    return f"{VERSION} {item.path.absolute()} {item.first} {item.frames} {files}"


def _copies(looked: Looked, labels: Mapping[int, str]) -> Iterator[Finding]:
    same: dict[str, list[Item]] = defaultdict(list)
    for item, facts in looked:
        if facts.digest:
            same[facts.digest].append(item)
    for items in same.values():
        items.sort(key=lambda item: (item.split != "train", item.split, item.id))
        for place, item in enumerate(items):
            if other := next((o for o in items if o.label != item.label), None):
                yield item, "conflict", f"labelled {labels[item.label]}, the same as {other.id}, labelled {labels[other.label]}"
            if item.split != items[0].split:
                yield item, "overlap", f"the same as {items[0].id} of {items[0].split}"
            elif place and not other:
                yield item, "duplicate", "listed twice" if item.id == items[0].id else f"the same as {items[0].id}"


def _report(
    items: Sequence[Item], found: Sequence[Finding], labels: Mapping[int, str], columns: Iterable[str], read: Counter[Any] | None = None
) -> CheckReport:
    clips = Counter((item.split, item.group, item.label) for item in items)
    per = Counter((item.split, item.group, item.label, problem) for item, problem, _ in found)
    report = CheckReport()
    for split, group, label in sorted(clips, key=lambda key: (key[0] != "train", key[0], key[2], key[1])):
        key = split, group, label
        tallies = {name: read[key] if name == "read" and read is not None else per[*key, name] for name in columns}
        report.counts.append({"split": split, "generator": group, "label": labels[label], "clips": clips[key], **tallies})
    order = list(PROBLEMS)
    for item, problem, detail in sorted(found, key=lambda one: (order.index(one[1]), one[0].split, one[0].id)):
        report.findings.append({"path": item.id, "problem": problem, "split": item.split, "detail": detail})
    for problem, (is_error, phrase, advice) in PROBLEMS.items():
        if rows := [row for row in report.findings if row["problem"] == problem]:
            named = "; ".join(row["path"] + (f" ({row['detail']})" if row["detail"] else "") for row in rows[:NAMED])
            more = f"; and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
            message = f"{len(rows)} clip{'s'[: len(rows) > 1]} {phrase}: {named}{more}. {advice}"
            (report.errors if is_error else report.warnings).append(message)
    return report


def _compare_classes(report: CheckReport, looked: Looked, labels: Mapping[int, str]) -> None:
    """Adds the distributions, and a warning for each measure that gives the class away."""
    values: dict[tuple[str, str], dict[int, list[Any]]] = defaultdict(lambda: defaultdict(list))
    for item, facts in looked:
        for measure, value in facts.measures.items():
            values[item.split, measure][item.label].append(value)
    for (split, measure), by_label in sorted(values.items(), key=lambda entry: (entry[0][0] != "train", entry[0])):
        rows = []
        for label, numbers in sorted(by_label.items()):
            row = {"split": split, "measure": measure, "label": labels[label], "clips": len(numbers)}
            rows.append(row | _summary(numbers))
        report.distributions += rows
        if len(by_label) == 2 and (share := shortcut(*by_label.values())):
            typical = ", ".join(f"{row['label']} {row['typical']}" for row in rows)
            report.warnings.append(
                f"{split}: the {measure} alone tells the class of {share:.0%} of the clips ({typical}). A detector may learn it instead of "
                "what it should: compare with one that sees nothing else."
            )


def _summary(values: Sequence[Any]) -> dict[str, Any]:
    if isinstance(values[0], str):
        word, count = Counter(values).most_common(1)[0]
        return {"typical": word, "low": f"{count / len(values):.0%}", "high": ""}
    low, typical, high = (round(float(q), 2) for q in np.percentile(values, [5, 50, 95]))
    return {"typical": f"{typical:g}", "low": f"{low:g}", "high": f"{high:g}"}


def shortcut(first: Sequence[Any], second: Sequence[Any]) -> float:
    """Share of items whose class one value tells, where that is worth a warning; else 0.

    Of few items per class only this is: all of one class share a value, all of the other another one.
    """
    if min(len(first), len(second)) >= ENOUGH:
        share = told_apart(first, second)
        return share if share >= TELLING else 0.0
    apart = len(set(first)) == len(set(second)) == 1 and first[0] != second[0]
    return 1.0 if apart and min(len(first), len(second)) >= FEW else 0.0


def told_apart(first: Sequence[Any], second: Sequence[Any], bins: int = 8) -> float:
    """Share of items, classes weighing the same, whose class the best rule on one value tells. In [0.5, 1]; 0.5 is chance.

    Values count as numbers by which eighth of all values they lie in, as words one by one (the most frequent ones).
    """
    both = [*first, *second]
    if isinstance(both[0], str):
        frequent = [word for word, _ in Counter(both).most_common(bins - 1)]
        codes = np.array([frequent.index(word) if word in frequent else bins - 1 for word in both])
    else:
        numbers = np.round(np.asarray(both, dtype=float), 2)
        distinct = np.unique(numbers)
        edges = distinct[1:] if len(distinct) <= bins else np.unique(np.quantile(numbers, np.arange(1, bins) / bins))
        codes = np.searchsorted(edges, numbers, side="right")
    shares = [np.bincount(part, minlength=bins) / len(part) for part in (codes[: len(first)], codes[len(first) :])]
    return float(0.5 + np.abs(shares[0] - shares[1]).sum() / 4)
