"""``genlab subjects --methods comfusion,dreambooth --root DIR``: DreamBooth's benchmark (Ruiz et al., arXiv 2208.12242), and its table.

Each subject is learned by each method and drawn for the 25 prompts of its list, four pictures each; CLIP-I and DINO-I are mean cosines of
all drawn to all real pictures of the subject, CLIP-T those of pictures to their prompts without the identifier. All methods are scored by
the same networks, from the files that they drew.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.cli import take_apart
from genlab.config import Composed, check, compose, explain, shipped_experiments
from genlab.errors import CONTINUE_ME, MissingPath, UserError
from genlab.files import read_csv, write_csv
from genlab.nearest import did_you_mean
from genlab.store import content_key
from genlab.verbs.cells import Cell, Row, run_cells

if TYPE_CHECKING:
    from datamodules.subjects_index import Subject
    from genlab.models.scoring_towers import ClipScorer, DinoFeatures

HELP = "DreamBooth's benchmark: methods over subjects; goes on where it was. Other options are those of genlab fit: -c FILE, --KEY VALUE."
WHOLE = {"datamodules.subject_scenes.SubjectScenes": "instance", "datamodules.domain_images.DomainImages": "root"}
SCORES = ("dino_i", "clip_i", "clip_t")
BATCH = 32


def main(args: list[str]) -> int:
    """Runs what is missing, and writes ``results.csv`` and ``report.html`` into the benchmark's folder.

    Raises:
        UserError: Unknown methods, subjects or networks, or a cell that cannot run.
    """
    parser = argparse.ArgumentParser("python -m genlab subjects", description=HELP, allow_abbrev=False)
    parser.add_argument("--methods", required=True, metavar="M1,M2", help="experiments that learn subjects: comfusion, dreambooth ...")
    parser.add_argument("--root", required=True, help="the DreamBooth dataset, or tiny:dreambooth")
    parser.add_argument("--subjects", default="", metavar="S1,S2", help="left out, all")
    parser.add_argument("--seeds", default="1", metavar="S1,S2", help="default 1")
    parser.add_argument("--pictures", type=int, default=4, help="of each prompt (DreamBooth: 4)")
    parser.add_argument("--prompts", type=int, default=None, metavar="N", help="the first N of the list alone")
    parser.add_argument("--clip", default="openai/clip-vit-base-patch32", help="hub id, folder or tiny:clip")
    parser.add_argument("--dino", default="facebook/dino-vits16", help="hub id or folder; none leaves DINO-I out")
    parser.add_argument("--experiments", default="", metavar="FOLDER", help="of experiments/ that the methods are taken from, such as tiny")
    parser.add_argument("--out", type=Path, default=Path("runs/subjects"), help="folder of the benchmark (default runs/subjects)")
    own, rest = parser.parse_known_args(args)
    given = take_apart(rest)
    if given.positionals:
        raise UserError(f"subjects: {given.positionals[0]!r} stands alone; values are given as --key value.")
    if own.pictures < 1 or (own.prompts is not None and own.prompts < 1):
        raise UserError("subjects: --pictures and --prompts are 1 or more.")
    if wrong := [each for each in own.seeds.split(",") if not each.strip().isdigit()]:
        raise UserError(f"subjects: --seeds: {wrong[0]!r} is no number; write --seeds 1,2,3.")
    learners = {method: _experiment(method, own.experiments) for method in own.methods.split(",")}
    chosen = _subjects(own)
    scorer = Scorer(own.clip, None if own.dino == "none" else own.dino)  # before hours of training that would be lost without it
    cells = list(_cells(own, learners, *chosen, given.configs, given.overrides, scorer))
    rows, stopped = run_cells(cells, own.out, "subjects")
    if rows:
        print(report(rows, own.out))
    return CONTINUE_ME if stopped else 0


def _experiment(method: str, folder: str) -> str:
    there = [name.removesuffix(".yaml") for name in shipped_experiments()]
    names = [f"{folder}/{method}"] if folder else [method, f"baselines/{method}"]
    fitting = [name for name in there if compose([name]).get("data.class_path") in WHOLE]
    found = next((name for name in names if name in fitting), None)
    if found is None:
        short = sorted({name.rpartition("/")[2] for name in fitting if not folder or name.startswith(f"{folder}/")})
        raise UserError(f"subjects: --methods: there is no {method!r}{did_you_mean(method, short) or '.'} There are {', '.join(short)}.")
    return found


def _subjects(own: argparse.Namespace) -> tuple[dict[str, Subject], dict[str, list[str]]]:
    """The wanted subjects, and the prompts of each, with ``{0}`` for the identifier and ``{1}`` for the class."""
    from datamodules.subjects_index import LIST, read_prompt_lists, read_subjects, subjects_folder
    from datamodules.tinyworld import tiny_root

    root = tiny_root(own.root)
    folder = subjects_folder(root)
    if not (folder / LIST).is_file():
        raise MissingPath(f"subjects: {folder / LIST} is not there. It has the prompts and classes of the DreamBooth dataset.")
    lists, found = read_prompt_lists(folder / LIST), {subject.name: subject for subject in read_subjects(root)}
    wanted = own.subjects.split(",") if own.subjects else list(lists.classes)
    for name in wanted:
        if name not in found or not found[name].class_name:
            known = ", ".join(lists.classes)
            raise UserError(f"subjects: --subjects: there is no {name!r}{did_you_mean(name, lists.classes) or '.'} There are {known}.")
    chosen = {name: found[name] for name in wanted}
    return chosen, {name: (lists.living if each.living else lists.objects)[: own.prompts] for name, each in chosen.items()}


def _cells(
    own: argparse.Namespace,
    learners: Mapping[str, str],
    subjects: Mapping[str, Subject],
    prompts: Mapping[str, list[str]],
    configs: Sequence[str],
    overrides: Sequence[tuple[str, str]],
    scorer: Scorer,
) -> Iterator[Cell]:
    files, options = [word for file in configs for word in ("-c", file)], [f"--{key}={value}" for key, value in overrides]
    for method, experiment in learners.items():
        for name, subject in subjects.items():
            for seed in map(int, own.seeds.split(",")):
                composed = compose([experiment, *configs], [("seed_everything", str(seed)), *overrides])
                settings = [("seed_everything", str(seed)), *_learned(composed, subject)]
                composed = compose([experiment, *configs], [*settings, *overrides])
                if problems := check(composed, "fit"):
                    raise UserError(explain(problems))
                drawn = [prompt.replace("{0} {1}", "{V} {N}") for prompt in prompts[name]]
                key = content_key(composed.yaml, drawn, own.pictures, own.clip, own.dino, [str(path) for path in subject.pictures])
                run = own.out / "runs" / method / f"{name}-seed{seed}-{key[:8]}"
                settings += [("run.root", str(own.out / "runs")), ("run.experiment", method), ("run.name", run.name)]
                words = ["-c", experiment, *files, *(f"--{k}={v}" for k, v in settings), *options, "--ckpt_path=last"]
                draw = [f"--data.prompts={json.dumps(drawn)}", f"--data.pictures={own.pictures}"]
                facts: Row = {"method": method, "subject": name, "class": subject.class_name, "seed": seed}
                said = {each.replace("{0} {1}", subject.class_name): place for place, each in enumerate(prompts[name])}
                row = partial(_row, facts, run, subject, list(said), own.pictures, scorer)
                yield Cell(f"{method} {name} seed{seed}", key, [["fit", *words], ["predict", *words, *draw]], row)


def _learned(composed: Composed, subject: Subject) -> list[tuple[str, str]]:
    """What tells the datamodule of an experiment which pictures to learn, and of what class."""
    folder, field = subject.pictures[0].parent, WHOLE[str(composed.get("data.class_path"))]
    noun = "class_name" if field == "instance" else "category"
    return [(f"data.{field}", str(folder)), (f"data.{noun}", subject.class_name), *([("data.domain", "null")] if field == "root" else [])]


class Scorer:
    """The networks, loaded once.

    Args:
        clip: Its name.
        dino: Its name, or ``None``.

    Raises:
        MissingPath: One of them is not on this machine.
    """

    def __init__(self, clip: str, dino: str | None) -> None:
        from genlab.models.scoring_towers import ClipScorer, DinoFeatures

        self.clip: ClipScorer = ClipScorer(clip)
        self.dino: DinoFeatures | None = DinoFeatures(dino) if dino is not None else None

    def __call__(self, drawn: Sequence[Path], prompts: Sequence[str], real: Sequence[Path]) -> dict[str, float]:
        """``dino_i``, ``clip_i`` and ``clip_t`` of drawn pictures, a prompt each, and real ones."""
        import torch
        from torchvision.transforms.v2 import functional as vision

        from datamodules.images import open_picture

        def batches(paths: Sequence[Path]) -> Iterator[torch.Tensor]:
            for start in range(0, len(paths), BATCH):
                pictures = [open_picture(path) for path in paths[start : start + BATCH]]
                yield torch.stack([
                    vision.pil_to_tensor(vision.center_crop(vision.resize(each, [256], antialias=True), [256])) for each in pictures
                ]).float() / 255  # fmt: skip

        def vectors(network: torch.nn.Module, paths: Sequence[Path]) -> torch.Tensor:
            return torch.cat([network(some) for some in batches(paths)])

        seen, own = vectors(self.clip, drawn), vectors(self.clip, real)
        texts = self.clip.text(list(dict.fromkeys(prompts)))
        places = [list(dict.fromkeys(prompts)).index(each) for each in prompts]
        found = {"clip_i": float((seen @ own.T).mean()), "clip_t": float((seen * texts[places]).sum(1).mean())}
        if self.dino is not None:
            found["dino_i"] = float((vectors(self.dino, drawn) @ vectors(self.dino, real).T).mean())
        return found


def _row(facts: Row, run: Path, subject: Subject, prompts: Sequence[str], pictures: int, scorer: Scorer) -> Row:
    """Scores the files that ``predict`` has left."""
    (folder,) = [path.parent for path in run.glob("predict*/predictions.csv")]
    rows = read_csv(folder / "predictions.csv")
    if len(rows) != len(prompts) * pictures:
        raise UserError(f"subjects: {folder} has {len(rows)} pictures where {len(prompts)} prompts have {pictures} each.")
    drawn = [folder / "pictures" / f"{row['id']}.png" for row in rows]
    told = [prompts[int(row["id"].partition("-")[0])] for row in rows]
    return {**facts, **scorer(drawn, told, subject.pictures), "n": len(rows), "run": str(folder)}


def report(rows: Sequence[Row], out: Path) -> str:
    """Writes the benchmark's files and returns what is printed."""
    from genlab.reports import Report, console_table

    table = means(rows)
    write_csv(out / "results.csv", rows, ("method", "subject", "class", "seed", *SCORES))
    page = Report("DreamBooth's benchmark of subjects")
    page.table(table, caption="Mean over subjects, and deviation over seeds where there are several")
    page.table([{key: value for key, value in row.items() if key != "run"} for row in rows], caption="Each subject", search=True)
    for row in rows[:24]:
        grid = Path(row["run"]) / "media" / "grid.png"
        if grid.is_file():
            page.picture(grid, f"{row['method']}, {row['subject']}, seed {row['seed']}", half=True, enlarge=True)
    page.write(out / "report.html")
    return f"{console_table(table, 'Subjects')}\n{out / 'report.html'}"


def means(rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    """A row per method: the mean over subjects of each score; with several seeds, mean and deviation of these means."""
    table: list[Row] = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = [row for row in rows if row["method"] == method]
        line: Row = {"method": method, "subjects": len({row["subject"] for row in mine}), "seeds": len({row["seed"] for row in mine})}
        for score in SCORES:
            by_seed = [
                statistics.mean(row[score] for row in mine if row["seed"] == seed)
                for seed in sorted({row["seed"] for row in mine})
                if all(score in row for row in mine)
            ]
            line[score] = statistics.mean(by_seed) if by_seed else None
            if len(by_seed) > 1:
                line[f"{score} ±"] = statistics.stdev(by_seed)
        table.append({key: value for key, value in line.items() if not (isinstance(value, float) and math.isnan(value))})
    return table
