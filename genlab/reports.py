"""Results to look at: one self-contained HTML page, and plain tables for the terminal.

A page holds its pictures, style and script; it loads nothing, and its content policy forbids the browser to. Whatever is put in is text
and stays text, names of strangers' files included.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import genlab
from genlab.errors import MissingPath, UserError
from genlab.files import write_bytes
from genlab.report_page import DETAILS, PAGE, PAIRS, PICTURE, SCRIPT, STYLE, TABLE

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

Row = Mapping[str, Any]


class Report:
    """A page that is filled from top to bottom and written once; every method but `write` returns the report, so that calls chain.

    Args:
        title: Headline of the page.
        subtitle: One line under it, e.g. the run, its date and data.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._headings: list[str] = []
        self._blocks: list[Markup] = []
        self._styles, self._scripts = [STYLE], [SCRIPT]

    def heading(self, text: str) -> Self:
        """Starts a section; pages with more than two get links to them on top."""
        self._headings.append(text)
        return self._add('<h2 id="s{{ number }}">{{ text }}</h2>', number=len(self._headings), text=text)

    def text(self, text: str) -> Self:
        """Paragraphs split by empty lines; ``- `` starts an item, ``### `` a small heading; **bold** and `code` work."""
        return self._add('<div class="text">{{ text }}</div>', text=_marked_up(text))

    def table(
        self,
        rows: Sequence[Row],
        caption: str = "",
        highlight: Mapping[str, Literal["max", "min"]] | None = None,
        summary: Sequence[Row] = (),
        search: bool = False,
    ) -> Self:
        """A table that sorts by a click on a column's name; columns in the order in which rows first name them.

        Args:
            rows: Values by column. Numbers are set right; fractions within [0, 1] get a thin bar; None and NaN are a dash.
            caption: Line above.
            highlight: Columns whose best value is marked, and which one is best.
            summary: Rows that stay at the bottom, e.g. the average; a column that they do not name stays empty.
            search: A field above that hides the rows without the words typed into it.
        """
        rows, summary = _plain(rows), _plain(summary)
        columns = _columns([*rows, *summary])
        numbers = {name: _is_numeric(name, rows or summary) for name in columns}
        best = {name: _best(name, rows, kind) for name, kind in (highlight or {}).items()}
        shares = {name for name in columns if numbers[name] and _is_share(name, rows)}

        def cells(row: Row, missing: str | None) -> list[dict[str, Any]]:
            return [
                {
                    "text": formatted(value := row.get(name, missing)),
                    "sort": "" if _absent(value) else value if numbers[name] else str(value),
                    "share": round(100 * value, 1) if name in shares and isinstance(value, float) and not _absent(value) else None,
                    "css": " ".join(
                        css
                        for css, applies in (
                            ("num", numbers[name]),
                            ("share", name in shares and not _absent(value)),
                            ("best", not _absent(value) and name in best and value == best[name]),
                        )
                        if applies
                    ),
                }
                for name in columns
            ]

        heads = [{"name": name, "number": numbers[name]} for name in columns]
        body, foot = [cells(row, None) for row in rows], [cells(row, "") for row in summary]
        return self._add(TABLE, caption=caption, columns=heads, body=body, foot=foot, search=search)

    def picture(self, picture: Path | str | Image, caption: str = "", half: bool = False, enlarge: bool = False) -> Self:
        """A PIL image or a PNG, JPEG, GIF or WebP file, embedded; `half` puts two side by side where the window is wide, `enlarge` lets a
        click fill the window with it.

        Raises:
            MissingPath: No such file.
            UserError: The file is no picture of these kinds.
        """
        data, kind, (width, height) = _embedded(picture)
        shown = {"mime": kind, "width": width, "height": height, "caption": caption, "half": half, "enlarge": enlarge}
        return self._add(PICTURE, data=base64.b64encode(data).decode(), **shown)

    def keyvalues(self, values: Mapping[str, Any], big: bool = False) -> Self:
        """Facts by name; `big` sets a few headline numbers as tiles."""
        return self._add(PAIRS, big=big, pairs=[(key, formatted(value)) for key, value in values.items()])

    def details(self, title: str, text: str) -> Self:
        """Long plain text (a configuration, a log), folded until it is asked for; printed unfolded."""
        return self._add(DETAILS, title=title, text=text)

    def block(self, template: str, style: str = "", script: str = "", **values: Any) -> Self:
        """A part of its own kind: a jinja2 template, whose values are escaped, with the style and script that it needs."""
        if style and style not in self._styles:
            self._styles.append(style)
        if script and script not in self._scripts:
            self._scripts.append(script)
        return self._add(template, **values)

    def page(self) -> bytes:
        """The page as a file's content."""
        from markupsafe import Markup

        ours = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(each.encode()).digest()).decode()}'" for each in self._scripts)
        policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {ours}"
        page = _render(
            PAGE,
            title=self.title,
            subtitle=self.subtitle,
            headings=self._headings,
            blocks=self._blocks,
            style=Markup("".join(self._styles)),
            scripts=[Markup(each) for each in self._scripts],
            policy=policy,
            version=genlab.__version__,
        )
        return page.encode("utf-8", "replace")  # names of files may hold what is no Unicode

    def write(self, path: Path | str) -> Path:
        """Writes the page atomically and returns its path."""
        return write_bytes(path, self.page())

    def _add(self, template: str, **values: Any) -> Self:
        self._blocks.append(_render(template, **values))
        return self


def _render(template: str, **values: Any) -> Markup:
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    return Markup(Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True).from_string(template).render(**values))


def _marked_up(text: str) -> Markup:
    from markupsafe import Markup, escape

    def inline(line: str) -> Markup:  # escaped first; the marks are no HTML characters and survive that
        return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", str(escape(line)))))

    def kind(line: str) -> str:
        return "item" if line.startswith("- ") else f"heading {line}" if line.startswith("### ") else "text" if line.strip() else "space"

    html = Markup("")
    for name, group in groupby(text.splitlines(), kind):
        lines = list(group)
        if name == "item":
            html += Markup("<ul>{}</ul>").format(Markup("").join(Markup("<li>{}</li>").format(inline(line[2:])) for line in lines))
        elif name == "text":
            html += Markup("<p>{}</p>").format(inline(" ".join(lines)))
        elif name != "space":
            html += Markup("<h3>{}</h3>").format(inline(lines[0][4:]))
    return html


def _embedded(picture: Path | str | Image) -> tuple[bytes, str, tuple[int, int]]:
    from PIL import Image, UnidentifiedImageError

    if isinstance(picture, Image.Image):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG", optimize=True)
        return buffer.getvalue(), "image/png", picture.size
    path = Path(picture)
    if not path.is_file():
        raise MissingPath(f"{path}: no such picture.")
    try:
        with Image.open(path, formats=("PNG", "JPEG", "GIF", "WEBP")) as image:
            return path.read_bytes(), f"image/{str(image.format).lower()}", image.size
    except UnidentifiedImageError:
        raise UserError(f"{path}: not a PNG, JPEG, GIF or WebP picture; a report embeds no others.") from None


def _plain(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows with the scalars of NumPy and torch turned into Python's."""
    return [{name: value.item() if hasattr(value, "item") else value for name, value in row.items()} for row in rows]


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def _present(name: str, rows: Sequence[Row]) -> list[Any]:
    return [value for row in rows if not _absent(value := row.get(name))]


def _is_numeric(name: str, rows: Sequence[Row]) -> bool:
    values = _present(name, rows)
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _is_share(name: str, rows: Sequence[Row]) -> bool:
    values = _present(name, rows)
    return bool(values) and all(isinstance(value, float) and 0 <= value <= 1 for value in values)


def _best(name: str, rows: Sequence[Row], kind: Literal["max", "min"]) -> Any:
    values = _present(name, rows)
    return (max if kind == "max" else min)(values) if values else None


def formatted(value: Any) -> str:
    """A value as reports and tables show it: four decimals, thousands apart, a dash for None and NaN, control characters visible."""
    (value,) = _plain([{"": value}])[0].values()
    if _absent(value):
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}".replace(",", "\u202f") if abs(value) >= 10_000 else str(value)
    if isinstance(value, float):
        small_or_large = value != 0 and not 1e-3 <= abs(value) < 1e5
        return f"{value:.3g}" if small_or_large else f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"
    return "".join(character if character.isprintable() else "�" for character in str(value))


def console_table(rows: Sequence[Row], title: str = "") -> str:
    """The rows as plain text, ready to print: no colours, no markup, no line cut, whatever the terminal. Ends without a newline."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        return f"{title}\n(no rows)".strip()
    rows = _plain(rows)
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    columns = _columns(rows)
    for name in columns:
        table.add_column(Text(formatted(name)), justify="right" if _is_numeric(name, rows) else "left", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(formatted(row.get(name))) for name in columns))
    console = Console(file=io.StringIO(), width=100_000, color_system=None, force_terminal=False, legacy_windows=False)
    with console.capture() as capture:
        console.print(table)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join([formatted(title), "", *lines] if title else lines).rstrip()
