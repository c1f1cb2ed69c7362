"""``genlab data make|prepare|check|show DATASET --root DIR``: write a tiny dataset, unpack a real one, look it through, look at it.

A dataset's folder is only ever read; ``make`` writes a new one, ``prepare`` adds what archives hold.
"""

from __future__ import annotations

import argparse
import importlib
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError
from genlab.files import write_csv, write_json
from genlab.nearest import did_you_mean
from genlab.signatures import Signature, signature

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from datamodules.checks import Item

DATAMODULES = {
    "genvideo": "datamodules.genvideo:GenVideo",
    "defake": "datamodules.defake_images:DefakeImages",
    "inpainting": "datamodules.inpainting:Inpainting",
    "hyspefas": "datamodules.hyspefas:HySpeFAS",
}
FEW_SHOT = (
    "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc", "sun397", "dtd", "eurosat",
    "ucf101_midframes",
)  # fmt: skip
DATAMODULES |= dict.fromkeys(FEW_SHOT, "datamodules.fewshot_images:FewShotImages")
PREPARABLE = {"genvideo": "datamodules.genvideo_prepare"}
HELP = """usage: python -m genlab data ACTION DATASET --root DIR [options]

  make     write the tiny, procedural form of a dataset in the layout of the real one
  prepare  unpack what was downloaded, split archives too; extract frames by the official rule
  check    counts, missing and broken files, copies, wrong labels; of real data or of tiny:DATASET
  show     a contact sheet

  python -m genlab data make genvideo --root data/tiny-genvideo
  python -m genlab data prepare genvideo --root $GENLAB_DATA/GenVideo --archives downloads
  python -m genlab data prepare descriptions --classes names.txt --out sentences.json --endpoint http://localhost:8000/v1 --model NAME
  python -m genlab data prepare text_weights --dataset dtd --root DIR --backbone openai/clip-vit-base-patch16 --out weights.pt
  python -m genlab data check genvideo --root $GENLAB_DATA/GenVideo --level full --out findings.csv
  python -m genlab data show genvideo --root tiny:genvideo

Options of an action: python -m genlab data ACTION --help.
Datasets of make and show: {shown}.
Datasets of check: {checked}.
Datasets of prepare: {prepared}."""


def main(args: list[str]) -> int:
    """Runs ``make``, ``prepare``, ``check`` or ``show``.

    Raises:
        UserError: Unknown action, dataset or option, or a dataset that is not there.
    """
    if not args or args[0] in ("-h", "--help"):
        print(HELP.format(shown=", ".join(_all()), checked=", ".join(DATAMODULES), prepared=", ".join(PREPARABLE)))
        return 0
    actions = {"make": make, "prepare": prepare, "check": check, "show": show}
    if args[0] not in actions:
        raise UserError(f"data: there is no action {args[0]!r}{did_you_mean(args[0], actions) or '.'} There are {', '.join(actions)}.")
    return actions[args[0]](args[1:])


def make(args: Sequence[str]) -> int:
    """Writes a tiny dataset into a new folder; interrupted, the same command goes on."""
    from datamodules import tinyworld

    parser = argparse.ArgumentParser("python -m genlab data make", description=make.__doc__, allow_abbrev=False)
    parser.add_argument("dataset", help=", ".join(tinyworld.DATASETS))
    parser.add_argument("--root", type=Path, required=True, help="the new folder")
    parser.add_argument("--seed", type=int, default=0, help="another seed makes other clips (default 0)")
    dataset = next((word for word in args if not word.startswith("-")), "")
    if dataset:
        _known(dataset, tinyworld.DATASETS, "data make")
        options = _writer_options(tinyworld.DATASETS[dataset])
        for name, parameter in options.parameters.items():
            kind = {"int": int, "float": float}.get(parameter.annotation or "", str)
            parser.add_argument(
                f"--{name}", type=kind, default=argparse.SUPPRESS, metavar="X", help=f"{parameter.help} (default {parameter.default})"
            )
    given, unknown = parser.parse_known_args(args)
    if unknown:
        word, there = unknown[0].partition("=")[0], [f"--{name}" for name in ("root", "seed", *options.parameters)]
        raise UserError(f"data make: {dataset} has no option {word}{did_you_mean(word, there) or '.'} It has {', '.join(there)}.")
    chosen = {name: value for name, value in vars(given).items() if name not in ("dataset", "root", "seed")}
    root = tinyworld.make(dataset, given.root, seed=given.seed, **chosen)
    print(f"tiny {dataset}: {root}")
    return 0


def prepare(args: Sequence[str]) -> int:
    """Unpacks archives into the dataset's folder and extracts frames. Exit code 3 when some clips could not be had; stopped, it goes on."""
    if args and args[0] == "descriptions":  # no dataset: what class names look like
        from genlab.verbs import descriptions

        return descriptions.main([*args[1:]])
    if args and args[0] == "text_weights":
        from genlab.verbs import text_weights

        return text_weights.main([*args[1:]])
    parser = argparse.ArgumentParser("python -m genlab data prepare", description=prepare.__doc__, allow_abbrev=False)
    parser.add_argument("dataset", help=", ".join(PREPARABLE))
    parser.add_argument("--root", type=Path, required=True, help="folder of the dataset; made when archives are unpacked into it")
    parser.add_argument("--archives", type=Path, metavar="FOLDER", help="zip and tar files, split ones too, to unpack into the root")
    parser.add_argument("--frames", type=Path, metavar="FOLDER", help="where to extract frames to, with lists in the official format")
    parser.add_argument("--workers", type=int, default=None, help="processes; default: one per core")
    given = parser.parse_args(args)
    _known(given.dataset, PREPARABLE, "data prepare")
    if given.workers is not None and given.workers < 0:
        raise UserError(f"data prepare: --workers {given.workers} is too few; use 0 or more.")
    if given.archives is None and given.frames is None:
        raise UserError("data prepare: nothing to do. Give --archives FOLDER to unpack, --frames FOLDER to extract frames, or both.")

    from genlab.reports import console_table

    preparation = importlib.import_module(PREPARABLE[given.dataset])
    failed: dict[str, str] = {}
    try:
        with _stops_on_term():
            if given.archives is not None:
                report = preparation.unpack_archives(given.archives, given.root, given.workers)
                print(console_table(report.rows, f"{given.archives} -> {given.root}"))
                failed |= report.failed
            if given.frames is not None:
                report = preparation.extract_frames(given.root, given.frames, given.workers)
                print(console_table(report.rows, f"{given.root} -> {given.frames}"))
                failed |= report.failed
                lists = [f"--data.{split}_list {given.frames / name}" for split, name in preparation.LISTS.items()]
                print(f"Read them with --data.root {given.frames} {' '.join(lists)}")
    except KeyboardInterrupt:
        print("data prepare: stopped. The same command goes on from there.")
        return 75
    for name, why in list(failed.items())[:20]:
        print(f"not to be had: {name}: {why}")
    if len(failed) > 20:
        print(f"... and {len(failed) - 20} more.")
    return 3 if failed else 0


def check(args: Sequence[str]) -> int:
    """Looks a dataset through. Exit code 1 when it has errors; stopped, a full check goes on where it was."""
    parser = _parser("check", check.__doc__)
    levels = "quick: the lists, and 200 clips decoded, as before a fit; full (default): every clip"
    parser.add_argument("--level", choices=("quick", "full"), default="full", help=levels)
    parser.add_argument("--workers", type=int, default=None, help="processes; 0: none beside this one; default: one per core")
    parser.add_argument("--out", type=Path, help="FILE.json for the whole report, FILE.csv for the findings")
    given = parser.parse_args(args)
    if given.workers is not None and given.workers < 0:
        raise UserError(f"data check: --workers {given.workers} is too few; use 0 or more.")
    _known(given.dataset, DATAMODULES, "data check")
    _check_out(given.out, (".json", ".csv"), given.root)

    from genlab.reports import console_table

    data = _datamodule(given)
    try:
        with _stops_on_term():
            report = data.check(given.level, given.workers)
    except KeyboardInterrupt:
        print("data check: stopped. What was read is remembered: the same command goes on from there.")
        return 75
    print(console_table(report.counts, f"{given.dataset} in {data.root}"))
    if report.distributions:
        print("\n" + console_table(report.distributions, "What should not tell the classes apart (median, 5th and 95th percentile)"))
    for kind, messages in (("error", report.errors), ("warning", report.warnings)):
        for message in messages:
            print(f"\n{kind}: {message}")
    print(f"\n{given.level} check: {len(report.errors)} errors, {len(report.warnings)} warnings, {len(report.findings)} findings.")
    if given.out is not None:
        if given.out.suffix == ".json":
            write_json(given.out, asdict(report))
        else:
            write_csv(given.out, report.findings, ("path", "problem", "split", "detail"))
        print(f"written: {given.out}")
    return 1 if report.errors else 0


def show(args: Sequence[str]) -> int:
    """Makes a contact sheet: a row per split and class (generator, domain, subject); of clips the first and last frame side by side."""
    from datamodules.layouts import LAYOUTS

    parser = _parser("show", show.__doc__, [*DATAMODULES, *LAYOUTS])
    parser.add_argument("--out", type=Path, help="PNG or JPEG to write (default DATASET-sheet.png here)")
    parser.add_argument("--per", type=int, default=4, help="samples in a row (default 4)")
    parser.add_argument("--rows", type=int, default=24, help="rows at the most, spread over all there are (default 24)")
    given = parser.parse_args(args)
    for option in ("per", "rows"):
        if getattr(given, option) < 1:
            raise UserError(f"data show: --{option} {getattr(given, option)} is too few; use 1 or more.")
    _known(given.dataset, {**DATAMODULES, **LAYOUTS}, "data show")
    out = given.out or Path(f"{given.dataset}-sheet.png")
    _check_out(out, (".png", ".jpg", ".jpeg"), given.root)

    from PIL import Image

    from genlab.sheets import contact_sheet

    items, preview, note = _reader(given)
    groups: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in sorted(items, key=lambda item: (item.split != "train", item.split, item.label, item.group)):
        groups[item.split, item.group].append(item)
    chosen = list(groups)[:: -(-len(groups) // given.rows)]
    rows = [(key, _row(preview, note, groups[key], given.per)) for key in chosen]
    frames = max(len(pictures) for _, row in rows for pictures, _ in row)
    if not frames:
        raise UserError(f"data show: none of the samples looked at in {given.root} can be read; python -m genlab data check says why.")
    images: list[Any] = []
    captions: list[str] = []
    for (split, group), row in rows:
        row += [([Image.new("RGB", (160, 120), "white")] * frames, "")] * (given.per - len(row))
        for pictures, caption in row:
            images += pictures or [Image.new("RGB", (160, 120), "#c8c8c8")] * frames
            captions += [f"{split}: {group}\n{caption}" if caption else ""] * frames
    sheet = contact_sheet(images, captions, columns=frames * given.per)
    _save(sheet, out)
    left = f" of {len(groups)}" if len(rows) < len(groups) else ""
    print(f"{len(rows)} rows{left} of {given.per} samples: {out.resolve()}")
    return 0


def _reader(given: argparse.Namespace) -> tuple[list[Item], Callable[[Item], Sequence[Image | np.ndarray]], Callable[[Item], str]]:
    """Samples of the dataset, what shows one, and what is written under it."""
    from datamodules.layouts import LAYOUTS, layout_of
    from datamodules.tinyworld import tiny_root

    def file_name(item: Item) -> str:
        return Path(item.id).name

    if given.dataset not in LAYOUTS:
        data = _datamodule(given)
        return data.items(), data.preview, file_name
    if given.train_list or given.test_list:
        raise UserError(f"data show: {given.dataset} takes no --train_list and --test_list.")
    layout, root = layout_of(given.dataset), tiny_root(given.root)
    if not root.is_dir():
        raise UserError(f"data show: {root} is not a folder. Name the dataset's, or --root tiny:{given.dataset} for a procedural one.")
    return layout.items(root, given.dataset), layout.preview, getattr(layout, "note", file_name)


def _parser(action: str, description: str | None, datasets: Sequence[str] = tuple(DATAMODULES)) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(f"python -m genlab data {action}", description=description, allow_abbrev=False)
    parser.add_argument("dataset", help=", ".join(datasets))
    parser.add_argument("--root", required=True, help="folder of the dataset, or tiny:DATASET")
    parser.add_argument("--train_list", help="CSV list of training clips, instead of the folders")
    parser.add_argument("--test_list", help="CSV list of test clips")
    return parser


def _all() -> list[str]:
    from datamodules.layouts import LAYOUTS
    from datamodules.tinyworld import DATASETS

    return list(dict.fromkeys([*DATASETS, *DATAMODULES, *LAYOUTS]))


def _known(dataset: str, there: dict[str, str], verb: str) -> None:
    if dataset in there:
        return
    listed = f"There are: {', '.join(there)}."
    if dataset in _all():
        raise UserError(f"{verb}: not for {dataset} yet. {listed}")
    raise UserError(f"{verb}: there is no dataset {dataset!r}{did_you_mean(dataset, there) or '.'} {listed}")


def _writer_options(writer: str) -> Signature:
    found = signature(writer.replace(":", "."))
    for name in ("folder", "seed", "progress"):
        found.parameters.pop(name, None)
    return found


def _check_out(out: Path | None, suffixes: tuple[str, ...], root: str) -> None:
    """Refuses, before any work, a file that could not be written or would change the dataset."""
    if out is None:
        return
    if out.suffix.lower() not in suffixes:
        raise UserError(f"--out {out}: unknown kind of file; use {' or '.join(suffixes)}.")
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name a file.")
    if not root.startswith("tiny:") and out.resolve().is_relative_to(Path(root).resolve()):
        raise UserError(f"--out {out} lies in the dataset {root}, which stays as it is; name a file elsewhere.")


def _datamodule(given: argparse.Namespace) -> Any:
    """The dataset's datamodule."""
    module, name = DATAMODULES[given.dataset].split(":")
    lists = {key: getattr(given, key) for key in ("train_list", "test_list") if getattr(given, key)}
    if unknown := lists.keys() - signature(f"{module}.{name}").parameters.keys():
        raise UserError(f"data: {given.dataset} takes no --{min(unknown)}.")
    if given.dataset in FEW_SHOT:
        lists = {"dataset": given.dataset}
    return getattr(importlib.import_module(module), name)(root=given.root, **lists)


@contextmanager
def _stops_on_term() -> Iterator[None]:
    """TERM stops as Ctrl-C does: orderly, with nothing left running."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _row(
    preview: Callable[[Item], Sequence[Image | np.ndarray]], note: Callable[[Item], str], items: Sequence[Item], count: int
) -> list[tuple[Sequence[Image | np.ndarray], str]]:
    """Pictures and caption of ``count`` samples, or of all where there are fewer; always the same ones."""
    from genlab.training.randomness import keyed_rng

    order = keyed_rng("show", items[0].split, items[0].group).permutation(len(items))[:count]
    row: list[tuple[Sequence[Image | np.ndarray], str]] = []
    for item in (items[i] for i in sorted(order)):
        pictures = preview(item)
        row.append((pictures, note(item) if pictures else f"unreadable: {Path(item.id).name}"))
    return row


def _save(sheet: Image, out: Path) -> None:
    import io

    from genlab.files import write_bytes

    buffer = io.BytesIO()
    sheet.save(buffer, "PNG" if out.suffix.lower() == ".png" else "JPEG")
    write_bytes(out, buffer.getvalue())
