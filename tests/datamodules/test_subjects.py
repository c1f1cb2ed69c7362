"""Particular subjects and prompts with pictures: tiny ones in the layouts of the real ones, and every form of their lists."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.images import open_picture, pictures_in
from datamodules.subjects_index import items, make_request, parse_images, preview, read_prompt_lists, read_requests, read_subjects, scenes
from datamodules.tinyworld import make
from datamodules.tinyworld.photos import take
from datamodules.tinyworld.scene import BACKGROUNDS, COLOURS, SHAPES
from datamodules.tinyworld.subjects import (
    DEEP,
    FEWEST,
    MOST,
    prompts_and_classes,
    scene_prompts,
    subject_photos,
    subjects,
    write_dreambooth,
    write_multimodal_prompt,
)
from genlab.errors import UserError

SIZE = 40
REAL = {  # subjects of the DreamBooth dataset by class
    "backpack": "backpack backpack_dog", "stuffed animal": "bear_plushie grey_sloth_plushie wolf_plushie", "bowl": "berry_bowl",
    "can": "can", "candle": "candle", "cat": "cat cat2", "clock": "clock", "sneaker": "colorful_sneaker shiny_sneaker",
    "dog": "dog dog2 dog3 dog5 dog6 dog7 dog8", "toy": "duck_toy monster_toy poop_emoji rc_car robot_toy", "boot": "fancy_boot",
    "glasses": "pink_sunglasses", "cartoon": "red_cartoon", "teapot": "teapot", "vase": "vase",
}  # fmt: skip
SHARED = (
    "in the jungle", "in the snow", "on the beach", "on a cobblestone street", "on top of pink fabric", "on top of a wooden floor",
    "with a city in the background", "with a mountain in the background", "with a blue house in the background",
    "on top of a purple rug in a forest",
)  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("subjects")
    make("dreambooth", folder / "dreambooth", progress=False, count=3, size=SIZE)
    make("multimodal_prompt", folder / "multimodal_prompt", progress=False, size=SIZE)
    return folder


def test_every_picture_shows_its_subject(root: Path) -> None:
    there = read_subjects(root / "dreambooth")
    described = subjects("dreambooth", 0, 3)
    assert [(subject.name, subject.class_name) for subject in there] == [(subject.name, subject.shape) for subject in described]
    for found, subject in zip(there, described):
        photos = subject_photos("dreambooth", 0, subject)
        assert FEWEST <= len(photos) <= MOST and len({photo.scene.background for photo in photos}) == len(photos)
        assert [path.name for path in found.pictures] == [f"{i:02d}.jpg" for i in range(len(photos))]
        for path, photo in zip(found.pictures, photos):
            assert np.abs(np.asarray(open_picture(path), float) - take(photo, SIZE)).mean() < 8
            body, mark = photo.scene.objects
            assert (body.shape, body.colour, body.texture) == (subject.shape, subject.colour, subject.texture)
            assert (mark.shape, mark.colour) == (subject.mark, subject.mark_colour)
    shown = items(root / "dreambooth", "dreambooth")
    assert len(shown) == sum(len(subject.pictures) for subject in there) and shown[0].group == "circle (circle)"
    assert all(len(preview(item)) == 1 for item in shown)


def test_subjects_are_particular() -> None:
    """All different, of classes of which some have two; marks of another shape and colour that lie on them; other seeds, other subjects."""
    for dataset in ("dreambooth", "multimodal_prompt"):
        all_there = subjects(dataset, 0)
        assert len({(subject.colour, subject.texture) for subject in all_there}) == len(all_there) == 10
        assert sorted({subject.shape for subject in all_there}) == sorted(SHAPES)
        for subject in all_there:
            assert subject.mark != subject.shape and subject.mark_colour != subject.colour and subject.mark_colour in COLOURS
            depth = SHAPES[subject.shape](np.array([subject.u]), np.array([subject.v]))[0]
            assert depth < DEEP, subject
    assert subjects("dreambooth", 0) != subjects("dreambooth", 1) and subjects("dreambooth", 0)[:3] == subjects("dreambooth", 0, 3)


def test_the_mark_stays_where_it_is_stuck() -> None:
    """However the subject is turned: in its own coordinates, worked out from the objects of each photograph."""
    for subject in subjects("dreambooth", 0, 4):
        for photo in subject_photos("dreambooth", 0, subject):
            body, mark = photo.scene.objects
            radius = 0.46 * photo.scales[0]
            turn = np.exp(-1j * np.radians(body.angle)) * complex(mark.x - body.x, mark.y - body.y) / radius
            assert turn == pytest.approx(complex(subject.u, subject.v), abs=2e-3) and mark.angle == body.angle


def test_prompts_are_scenes_of_the_tiny_world(root: Path) -> None:
    lists = read_prompt_lists(root / "dreambooth/dataset/prompts_and_classes.txt")
    objects, living = scene_prompts()
    assert (lists.objects, lists.living) == (objects, living) and len(objects) == len(living) == len(set(objects)) == 25
    assert len(lists.shared_scenes) == 10 and set(lists.shared_scenes) > set(BACKGROUNDS["A"].values())
    assert all(scene.endswith(tuple(BACKGROUNDS["A"].values())) for scene in scenes(objects) + scenes(living))
    assert len(scenes(objects)) == 20 and "a red {0} {1}" in objects


def test_the_real_list_reads(tmp_path: Path) -> None:
    """30 subjects, 25 + 25 prompts, 10 scenes that both kinds of subjects share; two cats and seven dogs live."""
    own = {"Object Prompts": "with item {} in the background", "Live Subject Prompts": "wearing outfit {}"}
    changes = [f"a {word} {{0}} {{1}}" for word in ("red", "purple", "shiny", "wet", "cube shaped")]
    text = "Classes\n\nsubject_name,class\n" + "".join(f"{name},{kind}\n" for kind, names in REAL.items() for name in names.split())
    text += "\nPrompts\n"
    for title, ending in own.items():
        prompts = [f"a {{0}} {{1}} {scene}" for scene in (*SHARED, *(ending.format(i) for i in range(10)))] + changes
        text += f"\n{title}\n\nprompt_list = [\n" + ",\n".join(f"'{each}'.format(unique_token, class_token)" for each in prompts) + "\n]\n"
    (tmp_path / "prompts_and_classes.txt").write_text(text)
    lists = read_prompt_lists(tmp_path / "prompts_and_classes.txt")
    assert len(lists.classes) == 30 and lists.classes["grey_sloth_plushie"] == "stuffed animal"
    assert len(lists.objects) == len(lists.living) == 25 and lists.shared_scenes == list(SHARED)
    for name in lists.classes:
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "00.jpg")
    Image.new("RGB", (8, 8)).save(tmp_path / "teaser_static.jpg")
    there = read_subjects(tmp_path)
    assert len(there) == 30 and sum(subject.living for subject in there) == 9
    shutil.rmtree(tmp_path / "dog6")
    with pytest.raises(UserError, match=r"prompts_and_classes\.txt names subjects without pictures: dog6\. Bring their folders"):
        read_subjects(tmp_path)


def test_concepts_without_a_list_and_a_folder_of_ones_own(root: Path, tmp_path: Path) -> None:
    """Textual Inversion's folders, and a single one; hidden files and texts are no pictures, endings may be capital."""
    source = read_subjects(root / "dreambooth")[0].pictures
    for name in ("cat-toy/B.JPG", "cat-toy/a.jpeg", "cat-toy/._a.jpeg", "red mug/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(source[0], tmp_path / name)
    (tmp_path / "cat-toy/notes.txt").write_text("x")
    (tmp_path / "empty").mkdir()
    there = read_subjects(tmp_path)
    assert [(subject.name, [path.name for path in subject.pictures]) for subject in there] == [
        ("cat-toy", ["B.JPG", "a.jpeg"]), ("red mug", ["1.png"]),
    ]  # fmt: skip
    assert there[0].class_name == "" and items(tmp_path, "dreambooth")[0].group == "cat-toy (no class given)"
    (own,) = read_subjects(tmp_path / "cat-toy")
    assert own.name == "cat-toy" and len(own.pictures) == 2


def test_pictures_are_turned_as_the_camera_was_held(tmp_path: Path) -> None:
    picture = Image.new("RGB", (20, 10), "red")
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    picture.save(tmp_path / "x.jpg", exif=exif)
    Image.new("LA", (4, 3)).save(tmp_path / "y.png")
    assert open_picture(tmp_path / "x.jpg").size == (10, 20) and open_picture(tmp_path / "y.png").mode == "RGB"
    assert pictures_in(tmp_path) == [tmp_path / "x.jpg", tmp_path / "y.png"]


def test_prompts_with_pictures_read_back(root: Path) -> None:
    requests = read_requests(root / "multimodal_prompt")
    known = {subject.name: subject for subject in subjects("multimodal_prompt", 0)}
    assert len(requests) == 6 and {len(request.images) for request in requests} == {1, 2, 3}
    for request in requests:
        assert request.prompt.count("[img]") == len(request.images) == len(request.concepts)
        for path, concept in zip(request.images, request.concepts):
            behind = request.prompt.split("[img]")[request.images.index(path)].endswith("on the background of ")
            assert (concept.get("role") == "background") == behind == (path.stem not in known)
            if path.stem in known:
                assert concept["foreground"] == f"a {known[path.stem].words}"
                shown = take(subject_photos("multimodal_prompt", 0, known[path.stem])[0], SIZE)
                assert np.abs(np.asarray(open_picture(path), float) - shown).mean() < 8
            else:
                assert any(phrase.endswith(concept["background"]) for phrase in BACKGROUNDS["A"].values())
    assert requests[0].concepts[0]["identifier"] == "sks"
    shown_items = items(root / "multimodal_prompt", "multimodal_prompt")
    assert [item.id for item in shown_items[:2]] == ["images/heart.jpg", "images/star.jpg"] and all(preview(item) for item in shown_items)


def test_pictures_of_a_prompt_in_every_form(root: Path) -> None:
    """Lists, the command line's form, a subject's folder with the number of a picture; concepts may be left out."""
    assert parse_images("[a.jpg, b c.jpg]") == parse_images(["a.jpg", "b c.jpg"]) == ["a.jpg", "b c.jpg"] and parse_images("[]") == []
    folder = root / "dreambooth/dataset"
    request = make_request("[img] and [img]", "[circle, cross/01.jpg]", [{"index": 2}, {}], folder)
    assert request.images == (folder / "circle/02.jpg", folder / "cross/01.jpg") and request.concepts == ({}, {})
    assert make_request("[img]", ["circle"], folder=folder).images == (folder / "circle/00.jpg",)
    assert make_request("a star", []).images == ()


@pytest.mark.parametrize(
    ("record", "said"),
    [
        ({"prompt": "[img] and [img]", "images": ["circle"]}, r"has 2 \[img\], but there are 1 images"),
        ({"prompt": "[img]", "images": ["no.jpg"]}, r"no\.jpg is not there"),
        ({"prompt": "[img]", "images": "circle", "concepts": [{"index": 9}]}, r"index 9 is wrong; the folder has \d pictures"),
        ({"prompt": "[img]", "images": "circle", "concepts": [{}, {}]}, "2 concepts for 1 images"),
        ({"prompt": "[img]", "images": "circle", "concepts": [{"forground": "a"}]}, "no field 'forground'; did you mean 'foreground'"),
        ({"prompt": "[img]", "images": "circle", "concepts": [{"role": "main"}]}, "role is 'main'; use object or background"),
        ({"images": "circle"}, r"entry 1 is .*; an entry has a prompt and its images"),
    ],
)
def test_wrong_requests_are_named(root: Path, tmp_path: Path, record: dict[str, object], said: str) -> None:
    (tmp_path / "circle").symlink_to(root / "dreambooth/dataset/circle")
    (tmp_path / "prompts.json").write_text(json.dumps([{"prompt": "[img]", "images": "circle"}, record]))
    with pytest.raises(UserError, match=rf"prompts\.json: entry 1.*{said}|{said}"):
        read_requests(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("cross,cross", "cross", r"txt:5: 'cross' is no line subject,class"),
        ("cross,cross", "circle,ring", r"txt:5: 'circle,ring' is there twice"),
        ("'a {0} {1} in a studio'.", "'a {0} in a studio'.", r"txt:13: .* is no line 'a \{0\} \{1\}"),
        ("Classes\n", "", r"txt:3: 'circle,circle' stands before the heading Classes"),
        ("Live Subject Prompts", "Object Prompts", "nothing under Live Subject Prompts; fetch the file"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    text = prompts_and_classes(subjects("dreambooth", 0, 3))
    assert text.count(old) >= 1
    (tmp_path / "prompts_and_classes.txt").write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=said):
        read_prompt_lists(tmp_path / "prompts_and_classes.txt")


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds neither pictures nor folders of pictures"):
        read_subjects(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_subjects(tmp_path / "no")
    with pytest.raises(UserError, match=r"prompts\.json is not there\. Expected a list of prompts"):
        read_requests(tmp_path)
    (tmp_path / "prompts.json").write_text("[{")
    with pytest.raises(UserError, match=r"prompts\.json:1: not JSON"):
        read_requests(tmp_path)
    with pytest.raises(UserError, match=r"dreambooth: count=11 size=96; count is 1 to 10"):
        make("dreambooth", tmp_path / "new", count=11)
    with pytest.raises(UserError, match=r"multimodal_prompt: size 4 is wrong"):
        make("multimodal_prompt", tmp_path / "new", size=4)


def test_same_seed_same_bytes_and_interrupted_goes_on(root: Path, tmp_path: Path) -> None:
    write_dreambooth(tmp_path, seed=0, progress=False, count=3, size=SIZE)
    written = contents(root / "dreambooth")
    assert contents(tmp_path) == written
    for path in list(pictures_in(tmp_path / "dataset/cross"))[1:]:
        path.unlink()
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.jpg")}
    write_dreambooth(tmp_path, seed=0, progress=False, count=3, size=SIZE)
    assert contents(tmp_path) == written and all(path.stat().st_mtime_ns == when for path, when in left.items())
    write_multimodal_prompt(tmp_path / "other", seed=1, progress=False, size=SIZE)
    assert not set(contents(tmp_path / "other").values()) & set(contents(root / "multimodal_prompt").values())


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "tinyworld.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
