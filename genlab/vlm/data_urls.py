"""Picture files as data URLs, and back."""

from __future__ import annotations

import base64
import io
import re
from functools import lru_cache

from PIL import Image

DATA_URL = re.compile(r"data:[^;,]*;base64,", re.I)


@lru_cache(maxsize=32)  # several prompts show the same picture in a row
def data_url(image: bytes) -> str:
    """A file's bytes as a data URL with the MIME type that its content shows."""
    with Image.open(io.BytesIO(image)) as picture:
        kind = Image.MIME.get(picture.format or "", "application/octet-stream")
    return f"data:{kind};base64,{base64.b64encode(image).decode()}"


def from_data_url(url: str) -> bytes:
    return base64.b64decode(url.split(",", 1)[1])
