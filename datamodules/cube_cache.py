"""Decoded spectral cubes on the disk: ``.mat`` files take long to read, so each is read once and then mapped into memory."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from datamodules.hyspefas_index import Sample, UnreadableCube, load_cube
from datamodules.processes import in_processes, worth_starting
from genlab.files import cache_folder, write_bytes
from genlab.store import content_key

log = logging.getLogger(__name__)

LAYOUT = "bands first"  # part of the key: cubes of another layout are not found


@dataclass(frozen=True)
class CubeCache:
    """Cubes as float16 (bands, H, W), about 3 digits, and pictures as uint8 (H, W, 3) RGB of the cube's size; a file each, written whole
    or not at all. Keyed by path, size and time of the sources, so a changed file is read anew.

    Args:
        folder: Where they lie; ``None`` reads the sources every time.
        root: Of the dataset: ids are relative to it, so that a moved dataset is not converted again.
    """

    folder: Path | None
    root: Path

    @staticmethod
    def default(root: Path) -> CubeCache:
        return CubeCache(cache_folder() / "cubes", root)

    def read(self, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Cube (bands, H, W) and picture (H, W, 3) of a sample; converted now if that was not done before.

        Raises:
            UnreadableCube: One of the two cannot be read, or they are not there.
        """
        if self.folder is None:
            spectra, colours = decode(sample)
            return spectra.transpose(2, 0, 1), colours
        cube, picture = self._paths(sample)
        try:
            return np.load(cube, mmap_mode="r"), np.load(picture, mmap_mode="r")
        except (FileNotFoundError, ValueError):
            self._convert(sample, cube, picture)
            return np.load(cube, mmap_mode="r"), np.load(picture, mmap_mode="r")

    def has(self, sample: Sample) -> bool:
        """Whether it is converted."""
        return self.folder is None or all(path.is_file() for path in self._paths(sample))

    def fill(self, samples: Sequence[Sample], workers: int | None = None) -> dict[str, str]:
        """Converts what is missing, in processes of their own; stopped and called again, it goes on.

        Returns:
            Samples that cannot be read, and why.
        """
        unread: dict[str, str] = {}
        todo = {sample.id: (self, sample) for sample in samples if self.has_sources(sample, unread) and not self.has(sample)}
        bar = tqdm(desc="converting cubes", total=len(todo), unit="cube", disable=not todo)
        with bar:
            for name, problem in in_processes(_fill_one, todo, worth_starting(workers, len(todo))):
                bar.update()
                if problem is None or problem:
                    unread[name] = problem or "kills the process that reads it"
        return unread

    def has_sources(self, sample: Sample, unread: dict[str, str]) -> bool:
        """Whether both files are there; what is not is noted."""
        for path in (sample.cube, sample.colour):
            if not path.is_file():
                unread[sample.id] = f"{path} is not there"
                return False
        return True

    def _paths(self, sample: Sample) -> tuple[Path, Path]:
        assert self.folder is not None
        try:
            states = [(path.stat().st_size, path.stat().st_mtime_ns) for path in (sample.cube, sample.colour)]
        except OSError as error:
            raise UnreadableCube(Path(str(error.filename)), "not there") from error
        key = content_key(LAYOUT, sample.cube.relative_to(self.root).as_posix(), states)
        return self.folder / key[:2] / f"{key}.cube.npy", self.folder / key[:2] / f"{key}.rgb.npy"

    @staticmethod
    def _convert(sample: Sample, cube: Path, picture: Path) -> None:
        spectra, colours = decode(sample)
        for path, array in ((picture, colours), (cube, np.ascontiguousarray(spectra.transpose(2, 0, 1), np.float16))):
            buffer = io.BytesIO()
            np.save(buffer, array)
            write_bytes(path, buffer.getvalue(), sync=False)


def _fill_one(task: tuple[CubeCache, Sample]) -> str:
    cache, sample = task
    try:
        cache.read(sample)
    except UnreadableCube as error:
        return str(error)
    return ""


def decode(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Cube (H, W, bands) float32 and picture (H, W, 3) uint8 RGB of the same size.

    Raises:
        UnreadableCube: One of them cannot be read.
    """
    cube = load_cube(sample.cube)
    try:
        with Image.open(sample.colour) as opened:
            picture = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableCube(sample.colour, f"not a picture that can be read ({error})") from error
    size = (cube.shape[1], cube.shape[0])
    if picture.size != size:
        picture = picture.resize(size, Image.Resampling.BILINEAR)
    return cube, np.asarray(picture)
