"""``genlab data prepare text_weights --dataset D --root DIR --backbone B --out FILE.pt``: text features in the official CPR form.

One half-precision tensor (D, C), a unit column for each of the dataset's classes in the order of their labels: the mean over its templates
and, where there are any, its sentences. ``--model.text_weights FILE.pt`` reads it back, and so does the official code.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path

from genlab.errors import UserError
from genlab.files import write_bytes

HELP = "Text features of all classes of a dataset, in the form of the official CPR code's text_weights_cupl_t.pt."


def main(args: list[str]) -> int:
    """Embeds the texts and writes the file.

    Raises:
        UserError: The file exists, or dataset, sentences or backbone are missing.
    """
    parser = argparse.ArgumentParser("python -m genlab data prepare text_weights", description=HELP, allow_abbrev=False)
    parser.add_argument("--dataset", required=True, help="one of the eleven few-shot datasets")
    parser.add_argument("--root", required=True, help="as of --data.root")
    parser.add_argument("--backbone", required=True, help="as of --model.backbone")
    parser.add_argument("--descriptions", default="cupl", help="cupl (default), a JSON file, or null for templates alone")
    parser.add_argument("--out", type=Path, required=True, help="the new file")
    given = parser.parse_args(args)
    if given.out.exists():
        raise UserError(f"data prepare text_weights: {given.out} exists already; name another file with --out, or remove it first.")
    import torch

    from datamodules.fewshot_images import FewShotImages
    from genlab.models.clip_loading import load_clip
    from genlab.models.prompts import class_texts, text_prototypes

    backbone = load_clip(given.backbone).eval()
    descriptions = None if given.descriptions == "null" else given.descriptions
    data = FewShotImages(root=given.root, dataset=given.dataset, descriptions=descriptions, image_size=backbone.image_size)
    data.setup("fit")
    known = data.classes("train")
    texts = class_texts(known.names, known.templates, data.descriptions("train"))
    columns = text_prototypes(backbone, texts).T.contiguous().half()
    buffer = io.BytesIO()
    torch.save(columns, buffer)
    write_bytes(given.out, buffer.getvalue())
    print(f"{given.out}: {tuple(columns.shape)}, {sum(map(len, texts))} texts of {len(texts)} classes.")
    print(f"Use it with --model.text_weights {given.out}")
    return 0
