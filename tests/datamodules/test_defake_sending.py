"""What leaves the house with a picture, and what gives a class away that is not in the picture."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from datamodules.defake_checks import jpeg_quality
from datamodules.defake_images import DefakeImages
from datamodules.defake_people import read_people
from datamodules.sending import sent_bytes
from genlab.cli import main
from genlab.errors import UserError
from genlab.training.randomness import keyed_rng


def pixels(number: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    return Image.fromarray(keyed_rng("sending", number).integers(0, 256, (size[1], size[0], 3), np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def decoded(file: bytes) -> Any:
    with Image.open(io.BytesIO(file)) as image:
        return np.asarray(image.convert("RGB"))


def exif(**tags: Any) -> Image.Exif:
    found = Image.Exif()
    found[0x010F] = "SECRET CAMERA"
    for name, value in tags.items():
        found[{"orientation": 0x0112}[name]] = value
    return found


def test_metadata_stays_here_and_the_picture_bit_for_bit() -> None:
    texts = PngImagePlugin.PngInfo()
    texts.add_text("parameters", "SECRET CAMERA")
    files = [encoded(pixels(), "JPEG", exif=exif(), comment=b"SECRET CAMERA"), encoded(pixels(), "PNG", pnginfo=texts, exif=exif())]
    for file in files:
        assert b"SECRET CAMERA" in file
        sent = sent_bytes(file)
        assert b"SECRET" not in sent and len(sent) < len(file)
        assert np.array_equal(decoded(sent), decoded(file))
        assert sent_bytes(file, strip_metadata=False) == file
        assert sent_bytes(sent) == sent


def test_a_picture_that_exif_turns_is_turned() -> None:
    sent = sent_bytes(encoded(pixels(), "JPEG", exif=exif(orientation=6), quality=95))
    assert decoded(sent).shape[:2] == (40, 30) and b"SECRET" not in sent


def test_all_alike_and_not_too_large() -> None:
    for kind in ("PNG", "JPEG", "WEBP"):
        file = encoded(pixels(), kind)
        assert sent_bytes(file, "png").startswith(b"\x89PNG") and sent_bytes(file, "jpeg").startswith(b"\xff\xd8")
        assert decoded(sent_bytes(file, max_side=20)).shape[:2] == (15, 20)
    assert np.array_equal(decoded(sent_bytes(encoded(pixels(), "PNG"), "png")), np.asarray(pixels()))


@pytest.mark.parametrize("quality", [30, 50, 75, 90, 95])
def test_jpeg_quality_is_told_from_its_table(quality: int) -> None:
    with Image.open(io.BytesIO(encoded(pixels(), "JPEG", quality=quality))) as picture:
        assert abs(jpeg_quality(list(picture.quantization[0])) - quality) <= 2  # type: ignore[attr-defined]


def write(root: Path, real: tuple[str, dict[str, Any]], fake: tuple[str, dict[str, Any]], count: int = 6) -> Path:
    for name, (kind, options) in (("real", real), ("fake", fake)):
        for number in range(count):
            path = root / name / f"{number}.{kind.lower()}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(encoded(pixels(hash((name, number)) % 1000), kind, **options))
    return root


def test_generated_png_against_real_jpeg_is_said_before_anything_is_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = DefakeImages(str(write(tmp_path / "set", ("JPEG", {}), ("PNG", {}))))
    data.setup("test")
    (warning,) = [each for each in data.warnings if "the format alone" in each]
    assert "100% of the pictures (real JPEG, fake PNG)" in warning and warning in caplog.text
    same = DefakeImages(str(write(tmp_path / "same", ("PNG", {}), ("PNG", {}))))
    same.setup("test")
    assert not same.warnings


def test_quality_and_size_are_said_of_enough_pictures(tmp_path: Path) -> None:
    data = DefakeImages(str(write(tmp_path / "set", ("JPEG", {"quality": 75}), ("JPEG", {"quality": 95}), 30)))
    data.setup("test")
    assert [each for each in data.warnings if "the JPEG quality alone" in each and "real 75, fake 95" in each]
    assert [each for each in data.warnings if "bytes per pixel" in each]


def test_copies_and_specks_are_said(tmp_path: Path) -> None:
    root = write(tmp_path / "set", ("PNG", {}), ("PNG", {}), 3)
    (root / "fake/copy.png").write_bytes((root / "real/0.png").read_bytes())
    (root / "real/speck.png").write_bytes(encoded(pixels(5, (1, 1)), "PNG"))
    data = DefakeImages(str(root))
    data.setup("test")
    speck, copy = data.warnings
    assert speck == "1 pictures are smaller than 8 pixels: real/speck.png"
    assert copy == "1 pictures have the same content under both labels: fake/copy.png and real/0.png"


def test_data_check_says_it_too(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    root = write(tmp_path / "set", ("JPEG", {}), ("PNG", {}))
    assert main(["data", "check", "defake", "--root", str(root), "--workers", "0"]) == 0
    said = capsys.readouterr().out
    assert "warning: all: the format alone tells the class of 100% of the clips (real JPEG, fake PNG)" in said


def test_broken_pictures_have_no_bytes_and_boxes_follow_the_size(tmp_path: Path) -> None:
    from datamodules.defake_images import PictureFiles
    from datamodules.defake_index import DefakeItem, Region
    from datamodules.sampling import Draw

    (tmp_path / "a.png").write_bytes(encoded(pixels(0, (80, 40)), "PNG"))
    (tmp_path / "b.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    items = [DefakeItem(name, tmp_path / name, 1, "x", "all", regions=(Region("sign", (8, 4, 40, 20)),)) for name in ("a.png", "b.png")]
    files = PictureFiles(list(items), lambda file: sent_bytes(file, max_side=20))
    assert files[Draw(0, 0)]["regions"] == [[2.0, 1.0, 10.0, 5.0]]
    assert files[Draw(1, 0)] == {"id": "b.png", "label": 1, "group": "x", "file": None, "regions": []}


def test_people_of_the_released_code_and_of_tables(tmp_path: Path) -> None:
    (tmp_path / "ann.csv").write_text("path,verdict\nx\\a.png,Fake\nb.png,0\nc.png,unsure\n")
    assert read_people(tmp_path / "ann.csv") == {"ann": {"x/a.png": 1, "b.png": 0, "c.png": None}}
    (tmp_path / "d.json").write_text('{"pointer": 1, "decisions": {"a.png": 1, "b.png": 0}}')
    assert read_people(tmp_path / "d.json") == {"d": {"a.png": 0, "b.png": 1}}  # there 1 = real
    for text in ("", "id,answer\na.png,perhaps\n", "picture\n"):
        (tmp_path / "x.csv").write_text(text)
        with pytest.raises(UserError, match=r"x\.csv"):
            read_people(tmp_path / "x.csv")
