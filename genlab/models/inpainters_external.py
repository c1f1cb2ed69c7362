"""Inpainters that live elsewhere: a TorchScript file, a program with an environment of its own, a folder of finished pictures."""

from __future__ import annotations

import json
import shlex
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from genlab.errors import MissingPath, UserError
from genlab.files import fingerprint
from genlab.models.inpainters import Inpainter, from_uint8, to_uint8

NAMED = 5  # pictures in a message
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(eq=False)
class TorchScript(Inpainter):
    """A scripted network f(image (B, 3, H, W) in [0, 1], hole (B, 1, H, W)) -> image, such as LaMa's widespread ``big-lama.pt``.

    Args:
        path: The file. It holds code that will be run.
        multiple_of: Pictures are padded to multiples of it, by reflection, and cut again.
        name: In tables; left out, the file's.
        batch_size: Pictures per call.
    """

    path: str
    multiple_of: int = 8
    name: str = ""
    batch_size: int = 4

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.path).stem

    def load(self, device: torch.device) -> None:
        if not Path(self.path).is_file():
            raise MissingPath(f"TorchScript: {self.path} is not there. Name a file saved with torch.jit.save, such as big-lama.pt.")
        try:
            self._network = torch.jit.load(self.path, map_location=device).eval()
        except RuntimeError as error:
            raise UserError(f"TorchScript: {self.path} is no TorchScript file ({str(error).strip().splitlines()[0][:200]}).") from error

    def key(self) -> dict[str, Any]:
        path = Path(self.path)
        return super().key() | {"path": fingerprint([(path.name, path.stat().st_size)]) if path.is_file() else ""}

    @torch.no_grad()
    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        height, width = images.shape[-2:]
        extra = (0, -width % self.multiple_of, 0, -height % self.multiple_of)
        filled = self._network(F.pad(images, extra, mode="reflect"), F.pad(holes, extra, mode="reflect"))
        return filled[..., :height, :width].clamp(0, 1)


@dataclass(eq=False)
class Command(Inpainter):
    """A program that reads a folder of pictures and a folder of masks, and writes a folder of results.

    It is started once per batch, without a shell. In its arguments ``{images}``, ``{masks}`` and ``{results}`` become folders, with PNG
    files of equal names (white = hole), and ``{list}`` a JSON file: a list of ``{"name", "seed", "prompt"}``, one for each picture.
    ``docs/examples/inpaint_command.py`` is such a program.

    Args:
        command: Program and arguments: ``/envs/mat/bin/python fill.py {images} {masks} {results}``.
        name: In tables.
        batch_size: Pictures per start.
        timeout: Seconds that a start may take; left out, as long as it likes.
        version: Change it when the program has changed: results are kept, and found again, by command and version.
    """

    command: str
    name: str
    batch_size: int = 64
    timeout: float | None = None
    version: str = ""
    same_anywhere: ClassVar[tuple[str, ...]] = (*Inpainter.same_anywhere, "timeout")

    def __post_init__(self) -> None:
        missing = [part for part in ("{images}", "{masks}", "{results}") if part not in self.command]
        if missing:
            raise UserError(f"Command {self.name}: {self.command!r} lacks {', '.join(missing)}, which stand for folders.")

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        with tempfile.TemporaryDirectory(prefix="genlab-inpaint-") as folder:
            places = {name: Path(folder) / name for name in ("images", "masks", "results")}
            for place in places.values():
                place.mkdir()
            names = [f"{number:05d}.png" for number in range(len(images))]
            masks = (holes[:, 0] > 0.5).cpu().numpy()
            for name, pixels, mask in zip(names, to_uint8(images), masks):
                Image.fromarray(pixels).save(places["images"] / name)
                Image.fromarray(mask).convert("L").save(places["masks"] / name)
            told = [{"name": n, "seed": s, "prompt": p} for n, s, p in zip(names, seeds, prompts or [""] * len(names))]
            places["list"] = Path(folder) / "list.json"
            places["list"].write_text(json.dumps(told))
            self._run({name: str(place) for name, place in places.items()})
            return self._results(places["results"], names, images)

    def _run(self, places: dict[str, str]) -> None:
        words = shlex.split(self.command)
        for name, place in places.items():
            words = [word.replace(f"{{{name}}}", place) for word in words]
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=self.timeout)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise UserError(f"Command {self.name}: {words[0]} could not be run to its end ({error}).") from error
        if done.returncode:
            said = "\n".join((done.stderr or done.stdout).strip().splitlines()[-10:])
            raise UserError(f"Command {self.name}: {words[0]} ended with exit code {done.returncode}:\n{said}")

    def _results(self, folder: Path, names: list[str], images: Tensor) -> Tensor:
        if missing := [name for name in names if not (folder / name).is_file()]:
            raise UserError(
                f"Command {self.name}: of {len(names)} pictures {len(missing)} were not written ({', '.join(missing[:NAMED])}); the "
                "program writes a PNG of the same name and size for each into {results}."
            )
        return torch.cat([read_finished(folder / name, images.shape[-2:]) for name in names]).to(images)


@dataclass(eq=False)
class Precomputed(Inpainter):
    """A folder of finished pictures, named as those that were to be filled: results of papers and services. It can be judged, not judge.

    Args:
        folder: With ``<name>.png`` (or JPEG, WebP) for ``images/<name>.jpg`` or ``<name>.jpg``; folders below likewise.
        resize: Bring pictures of another size to the working size instead of refusing them.
        name: In tables; left out, the folder's.
        batch_size: Pictures per call.
    """

    folder: str
    resize: bool = False
    name: str = ""
    batch_size: int = 32
    finds: ClassVar[bool] = True

    def __post_init__(self) -> None:
        self.name = self.name or Path(self.folder).name

    def load(self, device: torch.device) -> None:
        if not Path(self.folder).is_dir():
            raise MissingPath(f"Precomputed: {self.folder} is not a folder. Name the one that the finished pictures lie in.")
        self._files: dict[str, Path] = {}
        for path in sorted(Path(self.folder).rglob("*")):
            if path.suffix.lower() in SUFFIXES:
                self._files[path.relative_to(self.folder).with_suffix("").as_posix()] = path

    def check(self, ids: list[str]) -> None:
        if missing := [name for name in ids if self._find(name) is None]:
            more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
            raise UserError(
                f"Precomputed: {self.folder} has no picture for {', '.join(missing[:NAMED])}{more}. Bring them, or judge fewer pictures "
                "with --data.n_images: methods are compared on the same ones."
            )

    def _find(self, name: str) -> Path | None:
        whole = Path(name).with_suffix("").as_posix()
        candidates = [whole, whole.split("/", 1)[-1], whole.rsplit("/", 1)[-1]]  # with images/ in front, or folders
        return next((self._files[each] for each in candidates if each in self._files), None)

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        if ids is None:
            raise UserError(
                f"Precomputed: {self.folder} holds finished pictures, found by name; it can be judged (f1), but not judge (f2)."
            )
        self.check(ids)
        paths = [self._find(name) for name in ids]
        return torch.cat([read_finished(path, images.shape[-2:], self.resize) for path in paths if path is not None]).to(images)


def read_finished(path: Path, size: tuple[int, int] | torch.Size, resize: bool = False) -> Tensor:
    """A finished picture, (1, 3, H, W) in [0, 1].

    Raises:
        UserError: It cannot be read, or is of another size than (H, W).
    """
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: cannot be read as a picture ({error}).") from error
    height, width = size
    if picture.size != (width, height):
        if not resize:
            raise UserError(f"{path}: is {picture.width} x {picture.height}, the pictures are judged at {width} x {height} (data.size).")
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    return from_uint8(np.asarray(picture)[None])
