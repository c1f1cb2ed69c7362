"""``genlab mllm compare RUN...``: one table of MLLM prompts, their fusion, traditional detectors and people, as in the paper.

All judge the same pictures: those of the runs. Detectors are GenLab's own (their ``predictions.csv``), two simple ones that are computed
here, and published image classifiers; Cohen's kappa and McNemar's test are against the first run's fusion.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.errors import MissingPath, UserError
from genlab.files import read_csv, write_csv

if TYPE_CHECKING:
    from PIL.Image import Image

    from datamodules.checks import Item
    from genlab.metrics.judges import Judged

CONSOLE = (
    "kind", "judge", "n", "accuracy_strict", "accuracy_low", "accuracy_high", "refusal_rate", "balanced_accuracy", "auroc_fake", "kappa",
    "mcnemar_p",
)  # fmt: skip
NOTE = """accuracy_strict counts a picture without a verdict as wrong; accuracy_low and accuracy_high are Wilson's 95 % interval of
accuracy_answered. kappa is Cohen's, over pictures that both have a verdict on, mcnemar_p the exact test over all, both against the first
run's fusion. n differs where a judge was not shown every picture."""


def main(args: list[str]) -> int:
    """Writes the table as HTML and CSV, and prints it.

    Raises:
        UserError: Runs over different pictures, files that are none of what they should be, judges that share no picture.
    """
    given = _parse(args)

    from datamodules.defake_people import read_people
    from genlab.methods.mllm_defake.records import judges_of, read_answers
    from genlab.metrics.judges import Judged, comparison, matched
    from genlab.reports import Report, console_table

    labels: dict[str, int] = {}
    judges: list[Judged] = []
    reference = ""
    runs = [_named(each) for each in given.runs]
    for name, path in runs:
        answers = read_answers(path)
        labelled = {facts["id"]: facts["label"] for facts, _ in answers if facts["label"] is not None}
        if not labelled or (labels and labelled != labels):
            raise UserError(f"mllm compare: {path} is over {'other pictures than the first run' if labels else 'pictures without labels'}.")
        labels = labelled
        found = judges_of([(facts["id"], judgement) for facts, judgement in answers if judgement is not None])
        prefix = f"{name}: " if len(runs) > 1 else ""
        found = [Judged(f"{prefix}{each.name}", each.kind, each.verdicts, each.p_fake) for each in found]
        reference = reference or found[-1].name
        judges += found
    judges += [_detector(*_named(each), labels) for each in given.detector]
    judges += list(_computed(given, labels))
    for file in given.humans:
        for person, said in read_people(file).items():
            known = matched(list(said), list(labels))
            if not known:
                raise UserError(f"{file}: {person} answers about no picture of the run; the first is {next(iter(said), 'none')!r}.")
            judges.append(Judged(person, "human", {known[name]: said[name] for name in known}))
    rows = comparison(judges, labels, reference)
    write_csv(given.out.with_suffix(".csv"), rows)
    report = Report("MLLM prompts, fusion, detectors, people", f"{len(labels)} pictures, {sum(labels.values())} of them generated")
    report.text(NOTE).table(rows, highlight={"accuracy_strict": "max", "balanced_accuracy": "max", "macro_f1": "max"})
    report.write(given.out)
    print(console_table([{key: row.get(key) for key in CONSOLE} for row in rows], f"{len(labels)} pictures"))
    print(f"{given.out}, {given.out.with_suffix('.csv')}")
    return 0


def _parse(args: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m genlab mllm compare", description="One table of all judges.", allow_abbrev=False)
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN", help="folders of tests with answers.jsonl, over the same pictures")
    parser.add_argument("--detector", action="append", default=[], metavar="NAME=FILE", help="predictions.csv of a GenLab image detector")
    parser.add_argument("--root", help="folder of the pictures, for the detectors below")
    parser.add_argument("--edges", action="store_true", help="share of edge pixels, as in the released code")
    parser.add_argument("--frequency", action="store_true", help="radial spectrum, fitted on --fit_split or --fit_root")
    parser.add_argument("--fit_split", default="train", help="split of the root that the frequency baseline is fitted on (default train)")
    parser.add_argument("--fit_root", help="other pictures to fit it on, instead of a split")
    parser.add_argument(
        "--classifier", action="append", default=[], metavar="NAME=WEIGHTS", help="published image classifier: hub id or folder"
    )
    parser.add_argument("--fake_label", help="the classifiers' class that means fake, where its name does not tell")
    parser.add_argument("--humans", action="append", default=[], type=Path, metavar="FILE", help="answers of people: CSV, or decider.json")
    parser.add_argument(
        "--out", type=Path, default=Path("comparison.html"), help="page to write, a CSV beside it (default comparison.html)"
    )
    given = parser.parse_args(args)
    if given.out.suffix != ".html" or given.out.is_dir():
        raise UserError(f"mllm compare: --out {given.out}; name an .html file.")
    if given.root is None and (given.edges or given.frequency or given.classifier):
        raise UserError("mllm compare: --edges, --frequency and --classifier look at the pictures; say where they are with --root DIR.")
    return given


def _named(text: str) -> tuple[str, Path]:
    """``NAME=PATH``, or a path that is called after its folder."""
    name, equals, path = text.partition("=")
    return (name, Path(path)) if equals and name else (Path(text).name or text, Path(text))


def _detector(name: str, path: Path, labels: dict[str, int]) -> Judged:
    """A detector by its table.

    Raises:
        MissingPath: There is no such file.
        UserError: It is no table of predictions, over other pictures, or with other labels.
    """
    from genlab.metrics.judges import Judged, matched

    path = path / "predictions.csv" if path.is_dir() else path
    if not path.is_file():
        raise MissingPath(f"mllm compare: {path} is not there; name the predictions.csv of a detector's test.")
    rows = read_csv(path)
    if not rows or not {"id", "score", "status"} <= rows[0].keys():
        raise UserError(f"{path}: no table of predictions; it has the columns id, label, score, status.")
    known = matched([row["id"] for row in rows], list(labels))
    if not known:
        raise UserError(f"{path}: none of its pictures is in the run; its first is {rows[0]['id']!r}, the run's {next(iter(labels))!r}.")
    verdicts: dict[str, int | None] = {}
    scores: dict[str, float] = {}
    for number, row in enumerate(rows, 2):
        if (each := known.get(row["id"])) is None:
            continue
        if row.get("label") in ("0", "1") and int(row["label"]) != labels[each]:
            raise UserError(f"{path}:{number}: {row['id']} is labelled {row['label']}, in the run {labels[each]}; 1 is fake in both.")
        verdicts[each] = None
        if row["status"] == "ok":
            scores[each] = float(row["score"])
            verdicts[each] = int(scores[each] >= float(row.get("threshold") or 0.5))
    return Judged(name, "traditional", verdicts, scores)


def _computed(given: argparse.Namespace, labels: dict[str, int]) -> Iterator[Judged]:
    """The detectors that look at the pictures."""
    if given.root is None:
        return
    from datamodules.defake_images import DATASET
    from datamodules.defake_index import items
    from datamodules.tinyworld import tiny_root
    from genlab.metrics.judges import Judged, matched
    from genlab.models.simple_detectors import EDGES, ImageClassifier, SpectrumDetector, edge_share

    everything = items(tiny_root(given.root), DATASET)
    known = matched([item.id for item in everything], list(labels))
    there = [item for item in everything if item.id in known]
    if not there:
        raise UserError(f"mllm compare: no picture of the run is in {given.root}; the run's first is {next(iter(labels))!r}.")

    def judged(name: str, p_fake: dict[str, float], decided: dict[str, int]) -> Judged:
        verdicts: dict[str, int | None] = {known[item.id]: None for item in there}
        return Judged(name, "traditional", verdicts | decided, p_fake)

    if given.edges:
        share = {known[item.id]: edge_share(image) for item, image in _opened(there)}
        yield judged("edges", {}, {name: int(value <= EDGES) for name, value in share.items()})
    if given.frequency:
        fit = (
            items(tiny_root(given.fit_root), DATASET) if given.fit_root else [item for item in everything if item.split == given.fit_split]
        )
        fit = [item for item in fit if item.id not in known] if not given.fit_root else fit
        if not fit:
            raise UserError(f"mllm compare: {given.root} has no split {given.fit_split!r} beside the judged pictures; give --fit_root DIR.")
        pairs = list(_opened(fit))
        detector = SpectrumDetector.fit([image for _, image in pairs], [item.label for item, _ in pairs])
        p_fake = {known[item.id]: detector(image) for item, image in _opened(there)}
        yield judged("frequency", p_fake, {name: int(p >= 0.5) for name, p in p_fake.items()})
    for each in given.classifier:
        name, equals, weights = each.partition("=")
        classifier = ImageClassifier(weights if equals else name, given.fake_label)
        readable = [item for item, _ in _opened(there)]
        p_fake = dict(zip((known[item.id] for item in readable), classifier(image for _, image in _opened(readable))))
        yield judged(name, p_fake, {key: int(p >= 0.5) for key, p in p_fake.items()})


def _opened(items: list[Item]) -> Iterator[tuple[Item, Image]]:
    """Those that can be read, with their pictures."""
    from datamodules.images import open_picture

    for item in items:
        try:
            yield item, open_picture(item.path)
        except OSError:
            continue
