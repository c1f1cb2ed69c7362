"""Downloads as people have them: split, nested, damaged and hostile archives; and frames in the official format."""

from __future__ import annotations

import io
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from datamodules.archives import Parts, _followers, find_archives, safe_name, unpack
from datamodules.clip_dataset import ClipDataset, ClipSettings
from datamodules.genvideo import GenVideo
from datamodules.genvideo_index import make_clips, read_list, scan
from datamodules.genvideo_prepare import content_paths, extract_frames, place, unpack_archives
from datamodules.sampling import Draw
from genlab.errors import MissingPath, UserError
from tests.datamodules.video_files import coloured_frames, write_video

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GENLAB_CACHE", str(tmp_path / "cache"))
    (tmp_path / "downloads").mkdir()


def noise(name: str, size: int = 3500) -> bytes:
    return np.random.Generator(np.random.Philox(key=len(name))).bytes(size)


def zip_of(members: Mapping[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


def tar_of(members: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as file:  # type: ignore[call-overload]
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if not isinstance(content, tarfile.TarInfo):
                info.size = len(content)
            file.addfile(info, io.BytesIO(content) if isinstance(content, bytes) else None)
    return buffer.getvalue()


def split(content: bytes, folder: Path, names: list[str]) -> None:
    size = -(-len(content) // len(names))
    for i, name in enumerate(names):
        (folder / name).write_bytes(content[i * size : (i + 1) * size])


def tree(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


CLIPS = {f"train_SVD/{i}.mp4": noise("x" * i) for i in range(6)}


@pytest.mark.parametrize("content", [zip_of(CLIPS), *(tar_of(CLIPS, m) for m in ("w:gz", "w", "w:xz"))], ids=["zip", "gz", "tar", "xz"])
@pytest.mark.parametrize(
    "names",
    [
        ["SVD.split.aa", "SVD.split.ab", "SVD.split.ac"],
        ["SVD_part_9", "SVD_part_10", "SVD_part_11"],
        ["SVD_part_aa", "SVD_part_ab"],
        ["SVD.zip.001", "SVD.zip.002"],
        ["SVD.tar.gz.aa", "SVD.tar.gz.ab"],
        ["SVD.tar.gz"],
    ],
    ids=lambda names: names[0],
)
def test_joins_parts_and_unpacks(tmp_path: Path, content: bytes, names: list[str]) -> None:
    downloads, root = tmp_path / "downloads", tmp_path / "set"
    if names[0] == "SVD_part_9":
        split(content, downloads, [f"SVD_part_{i}" for i in range(1, 12)])
    else:
        split(content, downloads, names)
    (downloads / "README.md").write_text("not an archive")
    report = unpack_archives(downloads, root, progress=False)
    assert tree(root) == CLIPS and not report.failed
    assert report.rows[0]["archive"] == "SVD" and report.rows[0]["written now"] == 6
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    assert unpack_archives(downloads, root, progress=False).rows[0]["written now"] == 0
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before
    (root / "train_SVD/3.mp4").unlink()
    assert unpack_archives(downloads, root, progress=False).rows[0]["written now"] == 1 and tree(root) == CLIPS


def test_parts_that_are_archives_themselves(tmp_path: Path) -> None:
    for i in (1, 2, 3):
        (tmp_path / f"downloads/Real_part_{i}.tar.gz").write_bytes(tar_of({f"Real/{i}.mp4": noise("a" * i)}))
    unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False)
    assert sorted(tree(tmp_path / "set")) == ["Real/1.mp4", "Real/2.mp4", "Real/3.mp4"]


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("SVD.split.aa", "parts before SVD.split.ab are missing"),
        ("SVD.split.ab", "missing between SVD.split.aa and SVD.split.ac"),
        ("SVD.split.ad", "damaged, or the ones after SVD.split.ac are missing"),
    ],
)
@pytest.mark.parametrize("content", [zip_of(CLIPS), tar_of(CLIPS), tar_of(CLIPS, "w")], ids=["zip", "gz", "tar"])
def test_a_missing_part_is_noticed(tmp_path: Path, content: bytes, lost: str, message: str) -> None:
    split(content, tmp_path / "downloads", [f"SVD.split.{p}" for p in ("aa", "ab", "ac", "ad")])
    (tmp_path / "downloads" / lost).unlink()
    with pytest.raises(UserError, match=message):
        unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False)
    for name, found in tree(tmp_path / "set").items():  # what is there is whole
        assert CLIPS[name] == found


def test_cut_and_damaged_downloads(tmp_path: Path) -> None:
    downloads = tmp_path / "downloads"
    split(tar_of(CLIPS), downloads, ["SVD.split.aa", "SVD.split.ab", "SVD.split.ac"])
    os.truncate(downloads / "SVD.split.ab", 2000)
    (downloads / "Latte.tar.gz").write_bytes(b"<html>not found</html>")
    with pytest.raises(UserError, match=r"Latte.tar.gz: no zip and no tar(.|\n)*SVD.split.* has 2,000 bytes"):
        unpack_archives(downloads, tmp_path / "set", progress=False)
    for file in downloads.iterdir():
        file.unlink()
    content = bytearray(tar_of(CLIPS))
    content[-8] ^= 1  # the checksum
    (downloads / "SVD.tar.gz").write_bytes(content)
    (downloads / "Real.zip").write_bytes(zip_of({"Real/a.mp4": b"fine"}))
    with pytest.raises(UserError, match=r"SVD\.tar\.gz: damaged or cut short"):
        unpack_archives(downloads, tmp_path / "set", progress=False)
    assert tree(tmp_path / "set")["Real/a.mp4"] == b"fine"  # another one's damage does not stop it
    with pytest.raises(MissingPath, match="nowhere"):
        unpack_archives(tmp_path / "nowhere", tmp_path / "set")
    with pytest.raises(UserError, match="no archives"):
        unpack_archives(tmp_path / "set", tmp_path / "other")


def hostile() -> dict[str, tarfile.TarInfo]:
    kinds = {"link.mp4": tarfile.SYMTYPE, "hard.mp4": tarfile.LNKTYPE, "pipe.mp4": tarfile.FIFOTYPE, "null.mp4": tarfile.CHRTYPE}
    members = {}
    for name, kind in kinds.items():
        members[name] = tarfile.TarInfo(f"Real/{name}")
        members[name].type, members[name].linkname = kind, "/etc/passwd"
    members["folder"] = tarfile.TarInfo("Real/out")  # a way out for what follows
    members["folder"].type, members["folder"].linkname = tarfile.SYMTYPE, "../.."
    return members


def test_hostile_members_stay_outside(tmp_path: Path) -> None:
    bad = {"../x.mp4": b"x", "/tmp/genlab-x.mp4": b"x", "Real/../../x.mp4": b"x", "C:\\x.mp4": b"x", "Real\\..\\..\\x.mp4": b"x"}
    good = {"Real/a.mp4": b"a", "./Real/b.mp4": b"b"}
    junk = {"__MACOSX/Real/._a.mp4": b"j", "Real/._a.mp4": b"j", "Real/.DS_Store": b"j"}
    through = {"Real/out/x.mp4": b"x"}
    (tmp_path / "downloads/a.tar.gz").write_bytes(tar_of({**bad, **good, **junk, **hostile(), **through}))
    link = zipfile.ZipInfo("Real/ziplink.mp4")
    link.external_attr = 0o120777 << 16
    (tmp_path / "downloads/b.zip").write_bytes(zip_of({**bad, **junk, "Real/c.mp4": b"c"}))
    with zipfile.ZipFile(tmp_path / "downloads/b.zip", "a") as file:
        file.writestr(link, "/etc/passwd")
    report = unpack_archives(tmp_path / "downloads", tmp_path / "deep" / "set", progress=False)
    assert tree(tmp_path / "deep") == {
        "set/Real/a.mp4": b"a", "set/Real/b.mp4": b"b", "set/Real/c.mp4": b"c", "set/Real/out/x.mp4": b"x"
    }  # fmt: skip
    assert not [p for p in (tmp_path / "deep").rglob("*") if p.is_symlink()] and not Path("/tmp/genlab-x.mp4").exists()
    assert not (tmp_path / "x.mp4").exists() and not (tmp_path / "deep/x.mp4").exists()
    assert [row["junk left out"] for row in report.rows] == [3, 3] and [row["refused"] for row in report.rows] == [10, 6]
    assert report.failed["a: Real/link.mp4"] == "a link or device" and report.failed["b: ../x.mp4"] == "leads out of the folder"


def test_what_is_there_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "set/Real").mkdir(parents=True)
    (tmp_path / "set/Real/a.mp4").write_bytes(b"mine")
    (tmp_path / "set/Real/b").write_bytes(b"a file where a folder must be")
    (tmp_path / "downloads/Real.zip").write_bytes(zip_of({"Real/a.mp4": b"theirs", "Real/b/c.mp4": b"c", "Real/d.mp4": b"d"}))
    report = unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False)
    assert tree(tmp_path / "set")["Real/a.mp4"] == b"mine" and tree(tmp_path / "set")["Real/d.mp4"] == b"d"
    assert "another file of 4 bytes is there" in report.failed["Real: Real/a.mp4"] and "Real: Real/b/c.mp4" in report.failed


def test_archives_in_archives(tmp_path: Path) -> None:
    inner = zip_of({"a.mp4": b"aa", "../x.mp4": b"x", "._a.mp4": b"j"})
    (tmp_path / "downloads/all.tar").write_bytes(tar_of({"train_pika/one.zip": inner, "train_pika/b.mp4": b"b"}, "w"))
    report = unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False)
    assert tree(tmp_path / "set") == {"train_pika/a.mp4": b"aa", "train_pika/b.mp4": b"b"}
    assert report.failed == {"all: one.zip: ../x.mp4": "leads out of the folder"}
    assert unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False).rows[0]["written now"] == 0


def test_clips_without_a_telling_folder_get_the_archives(tmp_path: Path) -> None:
    assert place("Latte", PurePosixPath("a.mp4")) == PurePosixPath("Latte/a.mp4")
    assert place("Latte", PurePosixPath("train_pika/a.mp4")) == PurePosixPath("train_pika/a.mp4")
    assert place("misc", PurePosixPath("a.mp4")) == PurePosixPath("a.mp4")
    assert place("pika", PurePosixPath("clip_7/1.jpg")) == PurePosixPath("pika/clip_7/1.jpg")
    assert place("pika", PurePosixPath("README.md")) == PurePosixPath("README.md")


def test_names_and_numbering_of_parts() -> None:
    assert [safe_name(n) and str(safe_name(n)) for n in ("a/./b", "a//b", "..", "/a", "a/..", "c:a", "")] == ["a/b", "a/b", *[None] * 5]
    pairs = [("aa", "ab"), ("az", "ba"), ("yz", "zaaa"), ("9", "10"), ("09", "10"), ("099", "100")]
    assert all(after in _followers(before) for before, after in pairs)


def test_a_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    path = tmp_path / "downloads/SVD.tar"
    path.write_bytes(tar_of(CLIPS, "w"))
    with path.open("r+b") as file:  # a sparse file, larger than any disk here
        os.truncate(path, shutil.disk_usage(tmp_path).total * 2)
        file.flush()
    with pytest.raises(UserError, match="GB are free"):
        unpack_archives(tmp_path / "downloads", tmp_path / "set", progress=False)
    assert tree(tmp_path / "set") == {}


def test_parts_read_as_one_file(tmp_path: Path) -> None:
    content = noise("parts", 10_000)
    split(content, tmp_path / "downloads", ["x.aa", "x.ab", "x.ac"])
    file = io.BufferedReader(Parts(tuple(sorted((tmp_path / "downloads").iterdir()))), 100)
    for start, count in ((0, 10_000), (3300, 100), (9990, 100), (0, 1), (6000, 3000)):
        file.seek(start)
        assert file.read(count) == content[start : start + count]


# Frames


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    root = tmp_path / "set"
    write_video(root / "Real/youku/v 'é'.mp4", coloured_frames(80), fps=8)
    write_video(root / "Real/a.mp4", coloured_frames(24)[::-1], fps=8)
    write_video(root / "kinetics400/abseiling/k.mp4", coloured_frames(40), fps=8)
    write_video(root / "train_pika/a.mp4", coloured_frames(24), fps=8)
    write_video(root / "train_pika/a.gif", coloured_frames(16), fps=8)
    write_video(root / "train_pika/b.mp4.mp4", coloured_frames(5), fps=8)
    write_video(root / "train_VideoCrafter/deep/a.mp4", coloured_frames(16), fps=8)
    write_video(root / "GenVideo-Val/Real/a.mp4", coloured_frames(16, 64, 48), fps=8)
    for generator in ("Show_1", "Sora", "Crafter"):
        write_video(root / f"GenVideo-Val/Fake/{generator}/a.mp4", coloured_frames(30), fps=8)
    (root / "train_pika/broken.mp4").write_bytes(b"no video")
    return root


def test_frames_are_the_clips_that_decoding_gives(videos: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    report = extract_frames(videos, frames, workers=0, progress=False)
    assert list(report.failed) == ["train_pika/broken.mp4"]
    clips = scan(videos)[0]
    good = clips.where(clips.id != "train_pika/broken.mp4")
    contents = content_paths(good)
    assert sum(row["clips"] for row in report.rows) == len(clips)
    for split_name, name in (("train", "train.csv"), ("test", "val_ood.csv")):
        part = good.where(good.split == split_name)
        back = read_list(frames / name, frames, split_name)
        order = [back.id.tolist().index(contents[good.id.tolist().index(i)]) for i in part.id.tolist()]
        listed = back.where(np.array(order))
        assert len(back) == len(part) and listed.label.tolist() == part.label.tolist()
        assert listed.generator.tolist() == part.generator.tolist()
        crop = np.zeros(len(part))
        decoded, extracted = (ClipDataset(clips, ClipSettings(8, 32), crop) for clips in (part, listed))
        for i in range(len(part)):
            one, other = decoded[Draw(i, 0, 0)], extracted[Draw(i, 0, 0)]
            assert one["num_frames"] == other["num_frames"] > 0
            assert (one["video"].float() - other["video"].float()).abs().mean() < 6  # JPEG
    assert "real/youku/v 'é'" in contents and "real/kinetics400/abseiling/k" in contents and "fake/VideoCrafter2/deep/a" in contents
    assert "real/MSRVTT/a" in contents and "fake/Pika/b_mp4" in contents
    data = GenVideo(str(frames), train_list=str(frames / "train.csv"), test_list=str(frames / "val_ood.csv"), val_fraction=0.3)
    data.setup("test")
    assert data.generators["test"] == ["Crafter", "Show_1", "Sora"]
    header, *lines = (frames / "train.csv").read_text().splitlines()
    assert header == "content_path,image_path,type_id,label,frame_len,frame_seq"
    assert lines[0] == 'real/a,real/a/1.jpg,真实视频,0,9,"[1, 2, 3, 4, 5, 6, 7, 8, 9]"'
    fake = re.compile(r'(fake/Pika/a_[0-9a-f]{8}),\1/1\.jpg,AIGC视频,1,8,"\[1, .*\]"')
    assert [line for line in lines if fake.fullmatch(line)]


def test_extraction_goes_on_and_redoes_what_changed(videos: Path, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    extract_frames(videos, frames, workers=0, progress=False)
    before = {p: p.stat().st_mtime_ns for p in frames.rglob("*.jpg")}
    shutil.rmtree(frames / "fake/Sora/a")
    write_video(videos / "Real/a.mp4", coloured_frames(24, 96, 96), fps=8)
    extract_frames(videos, frames, workers=0, progress=False)
    after = {p: p.stat().st_mtime_ns for p in frames.rglob("*.jpg")}
    assert set(before) == set(after)
    assert {p.parent.relative_to(frames).as_posix() for p in before if before[p] != after[p]} == {"fake/Sora/a", "real/a"}
    for wrong in (videos, videos / "frames", tmp_path):
        with pytest.raises(UserError, match="beside"):
            extract_frames(videos, wrong)


def test_unclear_and_colliding_names_get_paths_of_their_own(tmp_path: Path) -> None:
    names = ["train_x/a.mp4", "train_x/A.gif", "train_x/a.avi", "GenVideo-Val/Fake/x/a.mp4"]
    clips = make_clips(tmp_path, [(n, 1, "x", "test" if "Val" in n else "train", 1, -1) for n in names])
    paths = content_paths(clips)
    assert len({p.lower() for p in paths}) == 4 and all(p.startswith("fake/x/") for p in paths)


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.parametrize("what", ["--archives", "--frames"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_stopped_it_goes_on(tmp_path: Path, what: str, how: signal.Signals) -> None:
    root, downloads = tmp_path / "set", tmp_path / "downloads"
    if what == "--archives":
        content = noise("large", 300_000)
        split(tar_of({f"Real/{i:04d}.mp4": content for i in range(600)}), downloads, ["Real.split.aa", "Real.split.ab"])
        target, other = [what, str(downloads)], root
    else:
        first = write_video(root / "Real/000.mp4", coloured_frames(100, 240, 320), fps=10)
        for i in range(1, 100):
            shutil.copy(first, root / f"Real/{i:03d}.mp4")
        target, other = [what, str(tmp_path / "frames"), "--workers", "1"], tmp_path / "frames"
    command = [sys.executable, "-m", "genlab", "data", "prepare", "genvideo", "--root", str(root), *target]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    started = re.compile(r" [1-9][\d.]*M/" if what == "--archives" else r" [2-9]\d/100")
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        seen = ""
        while not started.search(seen) and process.stderr is not None and (letter := process.stderr.read(1)):
            seen += letter
        process.send_signal(how)
        out, _ = process.communicate()
    done = {p: p.stat().st_mtime_ns for p in other.rglob("*.*") if p.suffix in (".mp4", ".jpg") and ".part" not in str(p)}
    assert 0 < len(done) < (600 if what == "--archives" else 2000)
    assert process.returncode == (-9 if how == signal.SIGKILL else 75) and (how == signal.SIGKILL or "goes on from there" in out)
    subprocess.run(command, env=env, check=True, capture_output=True)
    assert len([p for p in other.rglob("*") if p.suffix in (".mp4", ".jpg")]) == (600 if what == "--archives" else 2000)
    kept = [p for p, time in done.items() if p.stat().st_mtime_ns == time]
    assert len(kept) >= len(done) - (0 if what == "--archives" else 6 * 20)  # six clips were on their way
    assert not list(other.rglob(".*.part")), "leftovers of the killed one"


def test_an_archive_goes_on_where_it_was(tmp_path: Path) -> None:
    (tmp_path / "downloads/SVD.tar.gz").write_bytes(tar_of(CLIPS))
    (archive,) = find_archives(tmp_path / "downloads")
    assert unpack(archive, tmp_path / "set").written == 6
    for i in (2, 4):
        (tmp_path / f"set/train_SVD/{i}.mp4").unlink()
    assert unpack(archive, tmp_path / "set").written == 2 and tree(tmp_path / "set") == CLIPS
