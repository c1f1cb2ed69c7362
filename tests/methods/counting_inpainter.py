"""An inpainter that writes down what it has filled, and can kill its process: for tests of what a stopped study repeats and loses."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from genlab.models.inpainters import Inpainter, Noise


@dataclass(eq=False)
class Counting(Inpainter):
    """Noise. Each filled picture is a line in ``log``; before picture number ``kill_at`` of all starts together the process is killed."""

    log: str
    kill_at: int = 0
    name: str = "counting"
    batch_size: int = 2
    same_anywhere: ClassVar[tuple[str, ...]] = (*Inpainter.same_anywhere, "log", "kill_at")

    @property
    def filled(self) -> list[str]:
        return Path(self.log).read_text().splitlines() if Path(self.log).is_file() else []

    def fill(
        self, images: Tensor, holes: Tensor, *, seeds: list[int], prompts: list[str] | None = None, ids: list[str] | None = None
    ) -> Tensor:
        if self.kill_at and len(self.filled) + len(images) > self.kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = Noise().fill(images, holes, seeds=seeds)
        with Path(self.log).open("a") as file:
            file.writelines(f"{self.name} {seed}\n" for seed in seeds)
        return found
