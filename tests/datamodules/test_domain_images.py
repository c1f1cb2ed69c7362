"""Pictures of a domain: tiny ones, and every form of their folders."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datamodules.domain_images_index import DomainPicture, items, preview, read_folder
from datamodules.images import open_picture
from datamodules.tinyworld import make
from datamodules.tinyworld.domains import DOMAINS, domain_photo, domain_picture, write_domain_images
from datamodules.tinyworld.scene import BACKGROUNDS, SHAPES
from genlab.errors import UserError

OPTIONS = {"target": 3, "reference": 4, "source": 2, "size": 24}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make("domain_images", tmp_path_factory.mktemp("domains") / "all", progress=False, **OPTIONS)


def test_folders_hold_what_is_described(root: Path) -> None:
    for name, domain in DOMAINS.items():
        seen: list[bytes] = []
        for part, place, count in (("target", "target_dataset", 3), ("reference", "reference", 4)):
            pictures = read_folder(root / place / name)
            assert len(pictures) == count
            for number, picture in enumerate(pictures):
                pixels = np.asarray(open_picture(picture.path))
                assert np.array_equal(pixels, np.asarray(domain_picture(name, 0, part, number, 24)))
                shape = domain_photo(name, 0, part, number).scene.objects[0].shape
                assert picture.category == ("" if domain.category else shape) and shape == (domain.category or shape)
                seen.append(pixels.tobytes())
        assert len(set(seen)) == 7, "references are other pictures than targets"
        if domain.category:
            sources = read_folder(root / "source_image" / domain.category)
            shown = [domain_picture(name, 0, "source", number, 24) for number in range(2)]
            digests = [hashlib.sha1(np.asarray(picture).tobytes()).hexdigest() for picture in shown]
            assert [picture.path.name for picture in sources] == [f"{i}-{digest}.jpg" for i, digest in enumerate(digests)]
            for picture, there in zip(sources, shown):
                assert np.abs(np.asarray(open_picture(picture.path), float) - np.asarray(there)).mean() < 10


def test_a_domain_is_what_its_name_says() -> None:
    """Sketches have no colour, paintings more than what was painted, watercolours a white rim; sources are style A without any of it."""

    def colour(name: str, part: str) -> float:
        pixels = np.stack([np.asarray(domain_picture(name, 0, part, number, 48), float) for number in range(6)])
        return float((pixels.max(-1) - pixels.min(-1)).mean())

    assert colour("sketched_stars", "target") == colour("sketched_shapes", "reference") == 0 < 10 < colour("sketched_stars", "source")
    assert colour("painted_hearts", "target") > 1.3 * colour("painted_hearts", "source")
    for number in range(4):
        washed = np.asarray(domain_picture("watercolour_squares", 0, "target", number, 48))
        assert washed[0].mean() > 240 > 225 > washed[12:36, 12:36].mean(), "white, but for where colour has run over the edge"
        worn = domain_photo("spectacled_circles", 0, "target", number).scene.objects
        assert [thing.shape for thing in worn] == ["circle", "ring", "ring"]
        outlined = domain_photo("outlined_triangles", 0, "target", number).scene
        assert outlined.style == "B" and outlined.background in BACKGROUNDS["B"]
        for name in DOMAINS:
            scene = domain_photo(name, 0, "source", number).scene
            assert len(scene.objects) == 1 and scene.style == "A" and scene.background in BACKGROUNDS["A"]
    assert {domain_photo("sketched_shapes", 0, "target", number).scene.objects[0].shape for number in range(10)} == set(SHAPES)


def test_every_folder_is_shown(root: Path, tmp_path: Path) -> None:
    shown = items(root, "domain_images")
    assert len(shown) == 6 * (3 + 4) + 5 * 2 and {item.split for item in shown} == {"target", "reference", "source"}
    assert {item.group for item in shown if item.split == "source"} == {"star", "circle", "heart", "square", "triangle"}
    assert "sketched_shapes (circle)" in {item.group for item in shown} and all(len(preview(item)) == 1 for item in shown)
    (own,) = {(item.split, item.group) for item in items(root / "target_dataset/painted_hearts", "domain_images")}
    assert own == ("target", "painted_hearts")
    assert {item.split for item in items(root / "reference", "domain_images")} == {"target"}
    shutil.copytree(root / "target_dataset/painted_hearts", tmp_path / "x")
    (tmp_path / "x/00.png").write_bytes(b"no picture")
    assert [len(preview(item)) for item in items(tmp_path / "x", "domain_images")] == [0, 1, 1]


def test_a_flat_folder_as_users_have_it(tmp_path: Path) -> None:
    """Any kind of picture, sorted by name; hidden files, texts and folders are passed over."""
    for name in ("10.jpg", "2.PNG", "a.webp", "b.jpeg"):
        Image.new("RGB", (6, 5)).save(tmp_path / name)
    for name in (".DS_Store", "._2.PNG", "Thumbs.db", "readme.md"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "masks").mkdir()
    assert read_folder(tmp_path) == [DomainPicture(tmp_path / name) for name in ("10.jpg", "2.PNG", "a.webp", "b.jpeg")]
    lines = [f'{{"file_name": "{name}", "category": "dog", "author": 7}}\r\n' for name in ("b.jpeg", "10.jpg", "2.PNG", "a.webp")]
    (tmp_path / "metadata.jsonl").write_bytes(b"\xef\xbb\xbf" + "\n".join(lines).encode())
    assert {picture.category for picture in read_folder(tmp_path)} == {"dog"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"file_name": "0.png", "category": "face"}\n', r"metadata\.jsonl has no line for 1\.png\. Every picture needs its category"),
        ('{"file_name": "0.png"}\n{', r"jsonl:1: .*; expected .*\n.*jsonl:2: \{; expected"),
        ('{"file_name": "0.png", "category": ""}\n', r"jsonl:1: .*; expected"),
        ('{"file_name": "0.png", "category": "a"}\n' * 2, r"jsonl:2: 0\.png is there twice"),
        ('{"file_name": "2.png", "category": "face"}\n', r"names pictures that are not there: 2\.png\. Bring them, or drop"),
    ],
)
def test_wrong_categories_are_named(tmp_path: Path, text: str, said: str) -> None:
    for number in range(2):
        Image.new("RGB", (6, 5)).save(tmp_path / f"{number}.png")
    (tmp_path / "metadata.jsonl").write_text(text)
    with pytest.raises(UserError, match=said):
        read_folder(tmp_path)


def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"has neither pictures nor folders of pictures in it\. About ten"):
        items(tmp_path, "domain_images")
    with pytest.raises(UserError, match=r"no is not a folder\. Name one of pictures"):
        items(tmp_path / "no", "domain_images")
    (tmp_path / "target_dataset/x").mkdir(parents=True)
    with pytest.raises(UserError, match=r"there are no pictures in .*target_dataset/x"):
        items(tmp_path, "domain_images")
    with pytest.raises(UserError, match=r"domain_images: target 0, size 8; counts start at 1, size at 16"):
        make("domain_images", tmp_path / "new", target=0, size=8)


def test_same_seed_same_bytes_and_interrupted_goes_on(root: Path, tmp_path: Path) -> None:
    for folder in ("target_dataset", "source_image"):
        shutil.copytree(root / folder, tmp_path / folder)
    left = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    write_domain_images(tmp_path, seed=0, progress=False, **OPTIONS)
    assert contents(tmp_path) == contents(root) and all(path.stat().st_mtime_ns == when for path, when in left.items())
    assert np.asarray(domain_picture("painted_hearts", 1, "target", 0, 24)).tobytes() not in {
        np.asarray(domain_picture("painted_hearts", 0, part, 0, 24)).tobytes() for part in ("target", "reference", "source")
    }


def contents(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "tinyworld.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
