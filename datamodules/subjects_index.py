"""Pictures of particular subjects, and prompts that have pictures in them.

Subjects: the DreamBooth dataset (Ruiz et al., CVPR 2023) as distributed, ``dataset/<subject>/NN.jpg`` with ``prompts_and_classes.txt``;
concepts of Textual Inversion (Gal et al., ICLR 2023), a folder each without any list; or one folder of pictures of one subject.
Prompts: ``prompts.json``, a list of ``{"prompt": "A photo of [img]", "images": ["dog.jpg"]}``.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodules.checks import Item
from datamodules.images import pictures_in, preview
from datamodules.listfiles import raise_all, read_json, read_text, some
from genlab.errors import MissingPath, UserError
from genlab.nearest import did_you_mean

__all__ = ["PromptLists", "Request", "Subject", "items", "parse_images", "preview", "read_prompt_lists", "read_requests", "read_subjects"]

LIST = "prompts_and_classes.txt"
REQUESTS = "prompts.json"
PLACEHOLDER = "[img]"
LIVING = ("cat", "dog")  # classes whose subjects take the prompts for living ones
CONCEPT = ("foreground", "background", "action", "role", "identifier", "index")


@dataclass(frozen=True)
class Subject:
    """A subject and its pictures, by name of the file.

    Args:
        class_name: "stuffed animal"; empty where no list says.
    """

    name: str
    class_name: str
    pictures: tuple[Path, ...]

    @property
    def living(self) -> bool:
        """Whether the prompts for living subjects are its own."""
        return self.class_name in LIVING


@dataclass(frozen=True)
class PromptLists:
    """``prompts_and_classes.txt``.

    Args:
        classes: Class by name of the subject.
        objects: Prompts with ``{0}`` for the identifier and ``{1}`` for the class.
        living: The same for living subjects.
    """

    classes: dict[str, str]
    objects: list[str]
    living: list[str]

    @property
    def shared_scenes(self) -> list[str]:
        """What follows the subject ("in the jungle") in prompts that both lists have; without changes of the subject itself."""
        return [scene for scene in scenes(self.objects) if scene in scenes(self.living)]


def scenes(prompts: Sequence[str]) -> list[str]:
    """What follows ``a {0} {1}``; prompts that say something of the subject itself are no scenes."""
    start = "a {0} {1} "
    return [prompt.removeprefix(start) for prompt in prompts if prompt.startswith(start)]


def read_prompt_lists(path: Path) -> PromptLists:
    """Reads ``prompts_and_classes.txt``; its lists look like Python and are only looked at.

    Raises:
        MissingPath: There is no such file.
        UserError: What is wrong with it, by line.
    """
    classes: dict[str, str] = {}
    prompts: dict[str, list[str]] = {"Object Prompts": [], "Live Subject Prompts": []}
    section, wrong = "", []
    for number, raw in enumerate(read_text(path).splitlines(), 1):
        line = raw.strip()
        if line in ("Classes", "Prompts", *prompts):
            section = line
        elif not line or line in ("subject_name,class", "prompt_list = [", "]"):
            continue
        elif section == "Classes":
            name, comma, class_name = (part.strip() for part in line.partition(","))
            if not (name and comma and class_name) or name in classes:
                wrong.append(f"{path}:{number}: {line[:80]!r} is {'there twice' if name in classes else 'no line subject,class'}.")
            else:
                classes[name] = class_name
        elif section in prompts:
            found = re.match(r"""(['"])(?P<prompt>.*)\1\s*\.format\(""", line)
            if found is None or not {"{0}", "{1}"} <= set(re.findall(r"\{.*?\}", found["prompt"])):
                wrong.append(f"{path}:{number}: {line[:80]!r} is no line 'a {{0}} {{1}} ...'.format(unique_token, class_token).")
            else:
                prompts[section].append(found["prompt"])
        else:
            wrong.append(f"{path}:{number}: {line[:80]!r} stands before the heading Classes, or under no list of prompts.")
    raise_all(wrong)
    if not classes or not all(prompts.values()):
        empty = ["Classes"] * (not classes) + [title for title, listed in prompts.items() if not listed]
        raise UserError(f"{path}: nothing under {', '.join(empty)}; fetch the file of the DreamBooth dataset again.")
    return PromptLists(classes, *prompts.values())


def subjects_folder(root: Path) -> Path:
    """Where the folders of the subjects are: ``root``, or ``dataset`` in it."""
    return root / "dataset" if (root / "dataset").is_dir() else root


def read_subjects(root: Path) -> list[Subject]:
    """All subjects: those of the list in its order, then folders with pictures that it does not name; or ``root`` as one subject.

    Raises:
        MissingPath: No pictures, or a subject of the list without any.
        UserError: The list is not as it should be.
    """
    folder = subjects_folder(root)
    if not folder.is_dir():
        raise MissingPath(f"data.root: {folder} is not a folder. Name one with a folder of pictures per subject, or with pictures.")
    classes = read_prompt_lists(folder / LIST).classes if (folder / LIST).is_file() else {}
    there = sorted(each.name for each in os.scandir(folder) if each.is_dir() and not each.name.startswith("."))
    found = [Subject(name, classes.get(name, ""), tuple(pictures_in(folder / name))) for name in [*classes, *there] if name in there]
    found = list({subject.name: subject for subject in found}.values())
    having = {subject.name for subject in found if subject.pictures}
    if gone := [name for name in classes if name not in having]:
        raise MissingPath(f"{folder / LIST} names subjects without pictures: {some(gone)}. Bring their folders.")
    found = [subject for subject in found if subject.pictures]
    if not found and (own := pictures_in(folder)):
        return [Subject(folder.resolve().name, "", tuple(own))]
    if not found:
        raise MissingPath(f"data.root: {folder} holds neither pictures nor folders of pictures. A subject is a folder of 3 to 6 pictures.")
    return found


# ---- prompts with pictures


@dataclass(frozen=True)
class Request:
    """A prompt with ``[img]`` in it, as many pictures, and what is said of each.

    Args:
        concepts: Per picture any of foreground, background, action, role, identifier; empty where an analyser has to look.
    """

    prompt: str
    images: tuple[Path, ...]
    concepts: tuple[dict[str, str], ...] = field(default=())


def parse_images(images: str | Sequence[str]) -> list[str]:
    """Names of pictures; also in the form of a command line, ``"[a.jpg, b.jpg]"``."""
    if not isinstance(images, str):
        return [str(each) for each in images]
    return [name.strip() for name in images.strip().removeprefix("[").removesuffix("]").split(",") if name.strip()]


def make_request(prompt: str, images: str | Sequence[str], concepts: Sequence[dict[str, Any]] = (), folder: Path = Path()) -> Request:
    """Checks what a user asks for.

    Args:
        images: Files, or folders of a subject, of which the picture number ``index`` of its concept is taken (0 where that is not said).
        concepts: One per picture, or none at all.
        folder: What names of files are relative to.

    Raises:
        MissingPath: A picture is not there.
        UserError: Numbers that do not match, or fields that concepts do not have.
    """
    names = parse_images(images)
    if prompt.count(PLACEHOLDER) != len(names):
        raise UserError(
            f"prompt {prompt!r} has {prompt.count(PLACEHOLDER)} {PLACEHOLDER}, but there are {len(names)} images; give one for each."
        )
    if concepts and len(concepts) != len(names):
        raise UserError(
            f"prompt {prompt!r}: {len(concepts)} concepts for {len(names)} images; give one for each, {{}} where nothing is to say."
        )
    paths: list[Path] = []
    said: list[dict[str, str]] = []
    for name, concept in zip(names, concepts or [{}] * len(names)):
        for key in concept:
            if key not in CONCEPT:
                raise UserError(
                    f"concept of {name}: there is no field {key!r}{did_you_mean(key, CONCEPT) or '.'} There are {', '.join(CONCEPT)}."
                )
        if concept.get("role", "object") not in ("object", "background"):
            raise UserError(f"concept of {name}: role is {concept['role']!r}; use object or background.")
        paths.append(_picture(folder / name, concept.get("index", 0)))
        said.append({key: str(value) for key, value in concept.items() if key != "index" and value is not None})
    return Request(prompt, tuple(paths), tuple(said))


def _picture(path: Path, index: object) -> Path:
    """The file, or the picture number ``index`` of a folder."""
    if path.is_file():
        return path
    if not path.is_dir():
        raise MissingPath(f"image {path} is not there; name a picture, or a folder of pictures of one subject.")
    pictures = pictures_in(path)
    if not isinstance(index, int) or not 0 <= index < len(pictures):
        raise UserError(f"image {path}: index {index!r} is wrong; the folder has {len(pictures)} pictures, from 0.")
    return pictures[index]


def read_requests(root: Path) -> list[Request]:
    """The prompts of ``prompts.json``.

    Raises:
        UserError: It is missing, or not as it should be.
    """
    path = root / REQUESTS
    if not path.is_file():
        expected = '[{"prompt": "A photo of [img] on the beach", "images": ["dog.jpg"]}]'
        raise MissingPath(f"data.root: {path} is not there. Expected a list of prompts with the pictures that they name: {expected}.")
    records = read_json(path)
    found: list[Request] = []
    for number, record in enumerate(records if isinstance(records, list) else [records]):
        match record:
            case {"prompt": str(prompt), "images": str() | list() as images}:
                try:
                    found.append(make_request(prompt, images, record.get("concepts") or (), root))
                except UserError as error:
                    raise type(error)(f"{path}: entry {number}: {error}") from error
            case _:
                raise UserError(f"{path}: entry {number} is {json.dumps(record)[:80]}; an entry has a prompt and its images.")
    return found


# ---- for ``data show``


def items(root: Path, dataset: str) -> list[Item]:
    """Every picture: of ``multimodal_prompt`` by prompt, else by subject."""
    if dataset == "multimodal_prompt":
        return [
            Item(os.path.relpath(path, root), path, number, request.prompt, "all")
            for number, request in enumerate(read_requests(root))
            for path in request.images
        ]
    return [
        Item(f"{subject.name}/{path.name}", path, number, f"{subject.name} ({subject.class_name or 'no class given'})", "all")
        for number, subject in enumerate(read_subjects(root))
        for path in subject.pictures
    ]
