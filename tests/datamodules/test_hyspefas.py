"""HySpeFAS: metameric materials, the tiny dataset in both layouts, and every form of the lists."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.hyspefas_index import (
    Listed,
    UnreadableCube,
    items,
    load_cube,
    preview,
    read_challenge,
    read_full,
    read_list,
    types_by_multiplicity,
)  # fmt: skip
from datamodules.tinyworld import _recipe, make
from datamodules.tinyworld.faces import SKINS
from datamodules.tinyworld.hyspefas import SKIN_PARTS, Setting, Shot, challenge_shots, colours, cube, full_shots, palette, sensing_mask
from datamodules.tinyworld.materials import IMITATIONS, SKIN, VISIBLE, WAVELENGTHS, painted, see
from genlab.errors import UserError

SMALL = {"train_captures": 2, "val_captures": 1, "test_captures": 1, "size": 24}
SETTING = Setting(0, 24, 5, 5, 60)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Both layouts, in miniature."""
    folder = tmp_path_factory.mktemp("hyspefas")
    make("hyspefas", folder / "challenge", progress=False, **SMALL)
    make("hyspefas", folder / "full", progress=False, **{**SMALL, "train_captures": 2, "full": 1})
    return folder


@pytest.mark.parametrize("colour", SKINS)
def test_imitations_are_metamers_of_skin(colour: tuple[float, float, float]) -> None:
    """The camera sees one colour; the spectra differ within its channels, and in the infrared, where water darkens skin alone."""
    skin = painted(SKIN, colour, 0.7)
    water = list(WAVELENGTHS).index(980)
    for material in IMITATIONS.values():
        other = painted(material, colour, 0.7)
        np.testing.assert_allclose(see(other), colour, atol=1e-4)
        assert np.abs(other - skin)[:VISIBLE].max() > 0.08 * skin[:VISIBLE].max()
        assert other[water] / other[water - 4] > skin[water] / skin[water - 4] + 0.08
    np.testing.assert_allclose(see(skin), colour, atol=1e-4)
    assert skin.min() > 0


def test_masks_leave_eyes_and_hair_prints_leave_nothing() -> None:
    bare = replace(SETTING, likeness=0)
    water = list(WAVELENGTHS).index(980)

    def dip(kind: str, part: str) -> float:
        spectrum = palette(bare, Shot(kind, 1, 1, 0))[part]
        return float(spectrum[water] / spectrum[water - 4])

    for part in SKIN_PARTS:
        assert dip("live", part) < 0.85 and all(dip(kind, part) > 0.9 for kind in ("print", "silicone", "latex"))
    for part in ("hair", "iris", "shirt"):
        assert dip("silicone", part) == pytest.approx(dip("live", part), abs=0.02)
    assert dip("print", "hair") == pytest.approx(1, abs=0.01) and dip("live", "hair") > 1.05
    through = palette(replace(SETTING, likeness=95), Shot("latex", 1, 1, 0))["skin"]
    latex, skin = (palette(bare, Shot(kind, 1, 1, 0))["skin"] for kind in ("latex", "live"))
    assert not np.allclose(through, latex) and np.abs(see(through) - see(latex)).max() < 0.03 and skin.shape == (30,)


def test_every_file_holds_what_was_described(root: Path) -> None:
    """Numbers, labels, types, cubes and pictures of the challenge's layout; few live images; five people in every split."""
    shots = challenge_shots(SETTING, {name: SMALL[name] for name in SMALL if name != "size"})
    read = read_challenge(root / "challenge")
    number = 0
    for split, expected in shots.items():
        assert [(s.id, s.label, s.type, s.repeats) for s in read[split]] == [
            (f"{number + i + 1:04d}.mat", shot.label, shot.type, 1) for i, shot in enumerate(expected)
        ]
        number += len(expected)
        for sample, shot in list(zip(read[split], expected))[::5]:
            picture = cube(SETTING, shot)
            assert np.array_equal(load_cube(sample.cube), picture) and picture.min() >= 0 and picture.max() < 1.7
            assert np.array_equal(np.asarray(Image.open(sample.colour)), colours(picture))
    assert Counter(sample.type for sample in read["train"]) == {"live": 2, "print": 2, "silicone": 12, "latex": 12}
    default = challenge_shots(SETTING, {"train_captures": 40, "val_captures": 12, "test_captures": 24})
    assert all({shot.subject for shot in split} == set(range(5)) for split in default.values())
    assert not {s.capture for s in default["train"]} & {s.capture for s in default["test"]}


def test_items_and_previews(root: Path) -> None:
    for layout in ("challenge", "full"):
        found = items(root / layout, "hyspefas")
        assert {item.path for item in found} == {path for path in (root / layout).rglob("*.mat") if path.name != "sensing_matrix.mat"}
        assert {item.split for item in found} == {"train", "val", "test"} and all(
            (item.label == 1) == (item.group == "live") for item in found
        )
        colour, beyond = preview(found[0])
        assert colour.shape == beyond.shape and colour.dtype == beyond.dtype == np.uint8


def test_full_layout_and_its_protocols(root: Path) -> None:
    """Types by folder, labels by the last digit; p1 shares no sitting, p2 no person, p3 no place; the snapshot is the coded cube."""
    shots = full_shots(SETTING, 4)
    for protocol, apart in ((1, "_S"), (2, "ID"), (3, "indoor")):
        read = read_full(root / "full", protocol)
        assert all((s.label, s.type) == (shots[s.id].label, {"silicone": "mask", "latex": "mask"}.get(shots[s.id].type, shots[s.id].type))
                   for samples in read.values() for s in samples)  # fmt: skip
        train, test = ({_part(sample.id, apart) for sample in read[split]} for split in ("train", "test"))
        assert train and test and not train & test
    assert sum(map(len, read.values())) == len(shots)
    sample = read["train"][0]
    left, top, right, bottom = sample.box or (0, 0, 0, 0)
    face = load_cube(sample.cube)
    assert face.shape[:2] == (bottom - top, right - left) == np.asarray(Image.open(sample.colour)).shape[:2]
    raw = np.asarray(Image.open(root / "full/data/datasets" / sample.id))
    mask = load_cube(root / "full/data/sensing_matrix.mat", "mask")
    assert raw.dtype == np.uint16 and np.array_equal(mask, sensing_mask(0, raw.shape))
    np.testing.assert_allclose(raw[top:bottom, left:right] / 16000, (face * mask[top:bottom, left:right]).mean(2), atol=1e-4)


def _part(path: str, what: str) -> str:
    name = path.split("/")[-1]
    return path.split("/")[0] if what == "indoor" else name[:4] if what == "ID" else name.split("_")[1]


def test_an_interrupted_call_goes_on_and_gives_the_same_files(root: Path, tmp_path: Path) -> None:
    """In place of every third file of a finished dataset there is none yet."""
    name = f".again.{_recipe('hyspefas', 0, SMALL).hash}.partial"
    shutil.copytree(root / "challenge", tmp_path / name)
    for path in sorted((tmp_path / name).rglob("*.*"))[::3]:
        path.unlink()
    kept = {
        path.relative_to(tmp_path / name): path.stat().st_ino for path in (tmp_path / name).rglob("*.*") if path.suffix in (".mat", ".png")
    }
    make("hyspefas", tmp_path / "again", progress=False, **SMALL)
    first, second = (
        {p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (root / "challenge", tmp_path / "again")
    )
    assert first == second and len(kept) > 20
    assert all((tmp_path / "again" / path).stat().st_ino == inode for path, inode in kept.items()), "not written again"
    assert [path.name for path in tmp_path.iterdir()] == ["again"]
    assert not np.array_equal(cube(SETTING, Shot("live", 0, 0, 0)), cube(replace(SETTING, seed=1), Shot("live", 0, 0, 0)))


def test_lists_in_every_form(tmp_path: Path) -> None:
    path = tmp_path / "list.txt"
    path.write_bytes("\ufeff0001.mat 1\r\n\r\nimages\\0002.mat\t0\r\n0003.mat\n".encode())
    assert read_list(path) == [Listed("0001.mat", 1), Listed("images/0002.mat", 0), Listed("0003.mat", -1)]
    path.write_text("indoor/real/ID01_a b_0.tiff 10 20 110 140.0\n")
    assert read_list(path) == [Listed("indoor/real/ID01_a b_0.tiff", -1, (10, 20, 110, 140))]
    path.write_text("image,label\n0001.mat,0\n0001.mat,0\n0002.mat,0\n0003.mat,1\n")
    rows = read_list(path)
    assert len(rows) == 4 and types_by_multiplicity(rows) == {"0001": "print", "0002": "mask"}
    assert types_by_multiplicity(rows[1:]) == {}
    path.write_text("image\n0004.png\n")
    assert read_list(path) == [Listed("0004.png", -1)]


def test_the_same_cubes_under_other_lists(root: Path, tmp_path: Path) -> None:
    """One of the two folders alone; without answers; and the balanced CSV, whose repetitions tell prints from masks."""
    source = root / "challenge/HySpeFAS_trainval"
    assert [len(samples) for samples in read_challenge(source).values()] == [28, 9]
    samples = read_challenge(source)["train"]
    part = tmp_path / "csv"
    part.mkdir()
    (part / "images").symlink_to(source / "images")
    (part / "val.txt").write_text((source / "val.txt").read_text())
    rows = [f"{s.id},{s.label}" for s in samples for _ in range({"live": 1, "print": 10}.get(s.type, 1))]
    (part / "train_all_balance.csv").write_text("\n".join(["image,label", *rows]))
    read = read_challenge(part)
    assert [(s.type, s.repeats) for s in read["train"]] == [
        ("live", 1) if s.type == "live" else ("print", 10) if s.type == "print" else ("mask", 1) for s in samples
    ]
    assert {(s.label, s.type) for s in read["val"]} == {(-1, "")}
    chosen = read_challenge(part, {"all": source / "train.txt"})
    assert list(chosen) == ["all"] and all(s.cube.is_file() and s.colour.is_file() for s in chosen["all"])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0001.mat 1\n0002.mat 2\n", r"train\.txt:2: '0002\.mat 2' is not"),
        ("0001\n", r"train\.txt:1: '0001' is not 'name'"),
        ("x.tiff 30 0 10 20\n", r"train\.txt:1"),
        ("\n", "is empty"),
        ("image,label\n0001.mat,live\n", r"train\.txt:2: image '0001\.mat', label 'live'; a label is 1 \(live\) or 0"),
        ("0001.mat 1\n0001.mat 0\n", "listed as live and as an attack"),
    ],
)
def test_broken_lists_are_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "train.txt").write_text(text)
    with pytest.raises(UserError, match=said):
        items(tmp_path, "hyspefas")


def test_what_is_wrong_with_a_folder_is_said(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no lists of HySpeFAS\. Expected the challenge's HySpeFAS_trainval/train\.txt"):
        items(tmp_path, "hyspefas")
    with pytest.raises(UserError, match="is not a folder"):
        items(tmp_path / "no", "hyspefas")
    (tmp_path / "train_p1.txt").write_text("indoor/2D/ID01_x_0.tiff 0 0 9 9\nindoor/2D/ID01_x.tiff 0 0 9 9\n")
    with pytest.raises(UserError, match=r"the folder says print, the name's last digit real\n.*ends neither with _0"):
        items(tmp_path, "hyspefas")
    for content, said in ((None, "not there"), (b"", "not a MATLAB file|damaged"), (b"x" * 500, "not a MATLAB file|damaged")):
        if content is not None:
            (tmp_path / "x.mat").write_bytes(content)
        with pytest.raises(UnreadableCube, match=said):
            load_cube(tmp_path / "x.mat")
    whole = next((root / "challenge").rglob("*.mat"))
    (tmp_path / "x.mat").write_bytes(whole.read_bytes()[:2000])
    with pytest.raises(UnreadableCube):
        load_cube(tmp_path / "x.mat")
    with pytest.raises(UnreadableCube, match="holds no array 'cube'"):
        load_cube(whole, "cube")
    for option, said in (
        ({"noise": 90}, "noise 90 is out of range; use 0 to 50"),
        ({"full": 2}, "full 2"),
        ({"test_captures": 0}, "test_captures 0"),
    ):
        with pytest.raises(UserError, match=said):
            make("hyspefas", tmp_path / "new", **option)
