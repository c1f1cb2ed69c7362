"""What ``data check`` finds out about a picture."""

from __future__ import annotations

from PIL import Image, UnidentifiedImageError

from datamodules.checks import Facts, Item


def read_facts(item: Item, whole: bool) -> Facts:
    """Whether a picture can be read: all of it, or (not ``whole``) as an evaluation would, which is the same."""
    try:
        with Image.open(item.path) as picture:
            picture.load()
    except (UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return Facts("unreadable", str(error).replace(str(item.path), item.path.name)[:120])
    except OSError as error:
        return Facts("truncated" if "truncated" in str(error) else "unreadable", str(error)[:120])
    return Facts()
