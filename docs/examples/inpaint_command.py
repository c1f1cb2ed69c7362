"""An inpainter as a program of its own: fills each hole with what lies mirrored beside it. It knows nothing of GenLab.

Your program runs in an environment of its own; what matters is that it reads two folders and writes a third, under equal names.
With GenLab it is a ``genlab.models.inpainters_external.Command``, whose command is
``python docs/examples/inpaint_command.py {images} {masks} {results}``.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image


def fill(image: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """Every hidden pixel becomes the nearest known one of its row, seen in a mirror at the edge of the hole; (H, W, 3), (H, W)."""
    filled = image.copy()
    for row, hidden in enumerate(hole):
        known = np.flatnonzero(~hidden)
        for column in np.flatnonzero(hidden):
            if len(known):
                edge = known[np.abs(known - column).argmin()]
                mirrored = 2 * edge - column
                inside = 0 <= mirrored < len(hidden) and not hidden[mirrored]
                filled[row, column] = image[row, mirrored if inside else edge]
    return filled


def main(images: Path, masks: Path, results: Path) -> None:
    for path in sorted(images.glob("*.png")):
        image = np.asarray(Image.open(path).convert("RGB"))
        hole = np.asarray(Image.open(masks / path.name).convert("L")) > 127  # white = hole
        Image.fromarray(fill(image, hole)).save(results / path.name)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
