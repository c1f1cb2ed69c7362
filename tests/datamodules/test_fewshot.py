"""The few-shot classification sets: tiny ones in the layouts of the real ones, and every form of their lists."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.fewshot_index import PLACES, FewShotLists, Picture, items, preview, read_lists, read_sentences, spoken
from datamodules.images import open_picture
from datamodules.tinyworld import DATASETS, make
from datamodules.tinyworld.captions import captioned_scene
from datamodules.tinyworld.fewshot import write_eurosat, write_imagenet
from datamodules.tinyworld.fewshot_classes import COLLECTIONS, photo_of
from datamodules.tinyworld.photos import take
from datamodules.tinyworld.scene import BACKGROUNDS
from genlab.errors import UserError

SIZE = 24
LISTED = {  # what the published lists call the files, relative to the folder of the dataset
    "imagenet": r"images/(train/(n\d{8})/\2_\d+|val/n\d{8}/ILSVRC2012_val_\d{8})\.JPEG",
    "caltech101": r"101_ObjectCategories/\w+/image_\d{4}\.jpg",
    "oxford_pets": r"images/[A-Za-z]\w+_\d+\.jpg",
    "stanford_cars": r"cars_(train|test)/\d{5}\.jpg",
    "oxford_flowers": r"jpg/image_\d{5}\.jpg",
    "food101": r"images/\w+/\d+\.jpg",
    "fgvc": r"images/\d{7}\.jpg",
    "sun397": r"SUN397/([a-z])/\1\w+(/\w+)?/sun_a[a-z]{16}\.jpg",
    "dtd": r"images/(\w+)/\1_\d{4}\.jpg",
    "eurosat": r"2750/(\w+)/\1_\d+\.jpg",
    "ucf101_midframes": r"UCF-101-midframes/\w+_\w+/v_\w+_g\d\d_c\d\d\.jpg",
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All eleven in miniature, side by side under CoOp's names."""
    folder = tmp_path_factory.mktemp("fewshot")
    for dataset, place in PLACES.items():
        counts = {"train": 2, "test": 1} | ({} if dataset == "imagenet" else {"val": 1})
        make(dataset, folder / place.folder, progress=False, size=SIZE, **counts)
    return folder


@pytest.mark.parametrize("dataset", PLACES)
def test_lists_files_and_pictures_agree(root: Path, dataset: str) -> None:
    """Read from the folder of all: counts, names, every file; and each test picture shows what its class is described as."""
    lists, kinds = read_lists(root, dataset), COLLECTIONS[dataset].kinds
    assert lists.names == [kind.name for kind in kinds] and len(set(lists.names)) == len(kinds)
    for split, per in {"train": 2, "val": 1, "test": 1}.items():
        expected = dict.fromkeys(range(len(kinds)), per) if split in lists.splits else {}
        if (dataset, split) == ("caltech101", "train"):
            expected[len(kinds) - 1] = 1
        assert Counter(picture.label for picture in lists.splits.get(split, [])) == expected
    listed = [picture.path for pictures in lists.splits.values() for picture in pictures]
    there = {path.relative_to(lists.folder).as_posix() for path in lists.folder.rglob("*") if path.suffix in (".jpg", ".JPEG")}
    assert len(set(listed)) == len(listed) and set(listed) == there
    assert all(re.fullmatch(LISTED[dataset], path) for path in listed)
    for picture in lists.splits["test"]:
        found, shown = open_picture(lists.folder / picture.path), take(photo_of(dataset, 0, "test", picture.label, 0), SIZE)
        assert min(found.size) == SIZE and np.abs(np.asarray(found, float) - shown).mean() < 12, picture
    with Image.open(lists.folder / listed[0]) as file:
        assert file.format == "JPEG"


@pytest.mark.parametrize("dataset", PLACES)
def test_every_class_is_described_in_known_words(root: Path, dataset: str) -> None:
    """Words of class names and sentences are those of the captions that tiny:clip learns from, and motions of videos."""
    names = read_lists(root, dataset).names
    sentences = read_sentences(root, dataset, names)
    assert len(sentences) == len(names) and all(len(lines) >= 10 for lines in sentences)
    assert len({tuple(lines) for lines in sentences}) == len(names), "classes are described differently"
    known = {word for n in range(400) for word in captioned_scene("captions", 0, "train", n, "A")[1].split()}
    known |= {word for phrase in BACKGROUNDS["B"].values() for word in phrase.split()} | {"object", "rising", "spinning", "clockwise"}
    known |= {"sliding", "to", "the", "right", "coming", "closer"}
    assert {word for lines in sentences for line in lines for word in line.split()} <= known
    assert {word for name in names for word in spoken(name).lower().split()} <= known | {"blurred", "approaching"}


def test_what_the_sets_are_like() -> None:
    """8 classes or more, an odd number of them in two; pictures are of what their class says, and differ in the rest."""
    assert all(name in DATASETS for name in PLACES) and COLLECTIONS.keys() == PLACES.keys()
    counts = {dataset: len(collection.kinds) for dataset, collection in COLLECTIONS.items()}
    assert min(counts.values()) >= 8 and {dataset for dataset, count in counts.items() if count % 2} == {"oxford_pets", "dtd"}
    for dataset, collection in COLLECTIONS.items():
        for label, kind in enumerate(collection.kinds):
            for number in range(4):
                photo = photo_of(dataset, 0, "train", label, number)
                thing, scene = photo.scene.objects[-1], photo.scene
                for word in ("shape", "colour", "texture", "size"):
                    assert getattr(kind, word) in ("", getattr(thing, word)), (dataset, kind)
                assert kind.background in ("", scene.background)
                assert not kind.motion or {motion.name for motion in photo.motions} == {kind.motion}


def test_same_seed_same_bytes_and_interrupted_goes_on(tmp_path: Path) -> None:
    options = {"train": 1, "val": 1, "test": 1, "size": SIZE}
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_eurosat(tmp_path / name, seed=seed, progress=False, **options)
    written = contents(tmp_path / "one")
    for number, path in enumerate(sorted((tmp_path / "again").rglob("*.*"))):
        if number % 2:
            path.unlink()
    left = {path: path.stat().st_mtime_ns for path in (tmp_path / "again").rglob("*.*")}
    write_eurosat(tmp_path / "again", seed=0, progress=False, **options)
    assert contents(tmp_path / "again") == written and all(path.stat().st_mtime_ns == when for path, when in left.items())
    other = contents(tmp_path / "other")
    assert other.keys() != written.keys() or other != written
    assert not {each for name, each in other.items() if name.endswith(".jpg")} & set(written.values())


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_do_not_depend_on_how_many_there_are() -> None:
    assert photo_of("imagenet", 0, "train", 3, 5) == photo_of("imagenet", 0, "train", 3, 5)
    shown = [photo_of(*key) for key in (("dtd", s, split, 0, n) for s in (0, 1) for split in ("train", "test") for n in (0, 1))]
    assert len(set(shown)) == len(shown)


# ---- readers


def test_a_dataset_is_found_under_each_name(root: Path, tmp_path: Path) -> None:
    (tmp_path / "sets").mkdir()
    (tmp_path / "sets/caltech101").symlink_to(root / "caltech-101")
    for place in (root, root / "caltech-101", tmp_path / "sets"):
        assert len(items(place, "caltech101")) == 16 * 4 - 1
    shown = items(root, "caltech101")
    assert shown[0].group == "dotted circle" and shown[0].label == 0 and shown[0].split == "train"
    assert shown[0].id.startswith("101_ObjectCategories/dotted_circles/")
    assert [picture.size for picture in preview(shown[0])] and preview(shown[0])[0].mode == "RGB"


def test_unreadable_and_missing_pictures_have_no_preview(root: Path, tmp_path: Path) -> None:
    shutil.copytree(root / "dtd", tmp_path / "dtd")
    broken, gone, *_ = items(tmp_path, "dtd")
    broken.path.write_bytes(broken.path.read_bytes()[:300])
    gone.path.unlink()
    assert preview(broken) == preview(gone) == []


def split(path: Path, **lists: object) -> Path:
    path.mkdir(exist_ok=True)
    file = path / "split_zhou_EuroSAT.json"
    file.write_text(json.dumps({"train": [["A/A_1.jpg", 0, "A"]], "val": [], "test": []} | lists))
    return path


def test_lists_as_others_write_them(tmp_path: Path) -> None:
    """Classes in any order, names with blanks and underscores, capital endings, byte order mark; order of the list is kept."""
    train = [["River/River_2.JPG", 1, "Sea or Lake"], ["A/A_1.jpg", 0, "Annual_Crop"], ["River/x.png", 1, "Sea or Lake"]]
    folder = split(tmp_path / "eurosat", train=train, test=[["A/é 1.jpg", 0, "Annual_Crop"]])
    file = folder / "split_zhou_EuroSAT.json"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())
    assert read_lists(tmp_path, "eurosat") == FewShotLists(
        folder,
        ["Annual_Crop", "Sea or Lake"],
        {
            "train": [Picture("2750/River/River_2.JPG", 1), Picture("2750/A/A_1.jpg", 0), Picture("2750/River/x.png", 1)],
            "val": [],
            "test": [Picture("2750/A/é 1.jpg", 0)],
        },
    )


def test_aircraft_and_imagenet_in_their_owners_form(tmp_path: Path) -> None:
    """Variants of several words in the order of variants.txt; labels of ImageNet by sorted wnid, whatever the order of classnames.txt;
    names of several words, twice the same one, more of them than there are folders."""
    (tmp_path / "variants.txt").write_text("737-200\nA300B4\nCessna 172\n\n")
    for part, lines in {"train": "0034 Cessna 172\r\n1025794 737-200\r\n", "val": "2 A300B4\n", "test": "3 737-200\n"}.items():
        (tmp_path / f"images_variant_{part}.txt").write_bytes(lines.encode())
    aircraft = read_lists(tmp_path, "fgvc")
    assert aircraft.names == ["737-200", "A300B4", "Cessna 172"]
    assert aircraft.splits["train"] == [Picture("images/0034.jpg", 2), Picture("images/1025794.jpg", 0)]
    folder = tmp_path / "imagenet"
    for name in (
        "train/n02/n02_10.JPEG",
        "train/n02/n02_2.JPEG",
        "train/n01/n01_1.JPEG",
        "train/n01/.x.JPEG",
        "val/n02/v_1.JPEG",
        "val/n02/readme.txt",
    ):
        (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "images" / name).write_bytes(b"")
    (folder / "classnames.txt").write_text("n02 great white shark\nn01 missile\nn03 missile\n")
    lists = read_lists(tmp_path, "imagenet")
    assert lists.names == ["missile", "great white shark"] and lists.splits["test"] == [Picture("images/val/n02/v_1.JPEG", 1)]
    assert [picture.path.split("/")[-1] for picture in lists.splits["train"]] == ["n01_1.JPEG", "n02_10.JPEG", "n02_2.JPEG"]


def test_lists_go_class_by_class_or_mixed(root: Path) -> None:
    """As those of the real ones; few-shot draws go by first appearance, which is not always the order of labels."""
    for dataset, ordered in {"oxford_flowers": False, "stanford_cars": False, "food101": True, "dtd": True}.items():
        labels = [picture.label for picture in read_lists(root, dataset).splits["train"]]
        assert (labels == sorted(labels)) == ordered


def test_sentences_are_found_by_spoken_names(tmp_path: Path) -> None:
    folder = split(tmp_path / "eurosat")
    (tmp_path / "gpt3_prompts").mkdir()
    file = tmp_path / "gpt3_prompts/CuPL_prompts_eurosat.json"
    file.write_text(json.dumps({"Sea or Lake": ["a", "b", "a"], "forest land": ["c"], "A": []}))
    assert read_sentences(folder, "eurosat", ["Forest_Land", "Sea_or_Lake"]) == [["c"], ["a", "b", "a"]]
    with pytest.raises(UserError, match=r"no sentences for 2 of 3 classes: A, Highway or Road\. Add them"):
        read_sentences(folder, "eurosat", ["A", "Highway_or_Road", "Sea or Lake"])
    file.write_text('["a"]')
    with pytest.raises(UserError, match="expected an object: class name -> list of sentences"):
        read_sentences(folder, "eurosat", ["A"])
    file.unlink()
    with pytest.raises(UserError, match=r"CuPL_prompts_eurosat\.json is not there, nor beside .* or use templates alone"):
        read_sentences(folder, "eurosat", ["A"])


@pytest.mark.parametrize(
    ("lists", "said"),
    [
        ({"val": None}, "expected an object with the lists train, val and test"),
        ({"train": [["a.jpg", "0", "A"]]}, r'train\[0\] is \["a.jpg", "0", "A"\]; an entry is \[path, label, class name\]'),
        ({"train": [["a.jpg", 0, "A"], ["b.jpg", 0, "B"]]}, r"train\[1\] calls class 0 'B', an entry before 'A'"),
        ({"test": [["a.jpg", 4, "E"]]}, r"test\[0\] has label 4 \(E\), of which there is no training picture"),
        ({"train": [["a.jpg", 0, "A"], ["b.jpg", 2, "B"]]}, "labels count from 0 without gaps; no training picture has: 1"),
        ({"train": []}, "labels count from 0 without gaps; no training picture has: 0"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, lists: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"split_zhou_EuroSAT\.json: {said}"):
        read_lists(split(tmp_path, **lists), "eurosat")


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no split_zhou_Food101\.json in .*, nor in its folder food-101.*DATASETS\.md of the CoOp"):
        read_lists(tmp_path, "food101")
    (split(tmp_path) / "split_zhou_EuroSAT.json").write_text("{")
    with pytest.raises(UserError, match=r"EuroSAT\.json:1: not JSON"):
        read_lists(tmp_path, "eurosat")
    (tmp_path / "variants.txt").write_text("A\n")
    with pytest.raises(UserError, match=r"images_variant_train\.txt is not there"):
        read_lists(tmp_path, "fgvc")
    for part in ("train", "val", "test"):
        (tmp_path / f"images_variant_{part}.txt").write_text("1 A\n2 B\n")
    with pytest.raises(UserError, match=r"images_variant_train\.txt:2: variant 'B' is not in variants\.txt"):
        read_lists(tmp_path, "fgvc")
    (tmp_path / "classnames.txt").write_text("n01 x\nn02\n")
    with pytest.raises(UserError, match=r"images/train has no folders in it\. Unpack the training pictures"):
        read_lists(tmp_path, "imagenet")
    (tmp_path / "images/train/n03").mkdir(parents=True)
    with pytest.raises(UserError, match=r"images/val has no folders in it\. .*valprep\.sh"):
        read_lists(tmp_path, "imagenet")
    (tmp_path / "images/val/n04").mkdir(parents=True)
    with pytest.raises(
        UserError, match=r"txt:2: no class name behind 'n02'\n.*n03: this class is not in classnames\.txt\n.*n04: there is no"
    ):
        read_lists(tmp_path, "imagenet")


def test_sizes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"imagenet: size 8 is wrong, use 16 or more; test 0 is wrong, use 1 or more\."):
        write_imagenet(tmp_path / "x", size=8, test=0, progress=False)
    assert not (tmp_path / "x").exists()
