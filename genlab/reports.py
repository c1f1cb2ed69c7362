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

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL.Image import Image

Row = Mapping[str, Any]

STYLE = """
:root{color-scheme:light dark;--page:#f5f6f8;--card:#fff;--ink:#1c2129;--quiet:#5d6675;--line:#e2e6eb;
--accent:#2f6db5;--tint:#2f6db51c;--bar:#2f6db570;--best:#18794e}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--card:#1d2127;--ink:#e4e8ee;--quiet:#98a2b1;--line:#30363f;
--accent:#7fb2ee;--tint:#7fb2ee26;--bar:#7fb2ee80;--best:#5fd09b}img{filter:brightness(.88)}}
*{box-sizing:border-box}
html{font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","DejaVu Sans",sans-serif;background:var(--page);color:var(--ink)}
body{margin:0 auto;max-width:1120px;padding:2.2rem clamp(1rem,4vw,2.5rem) 3rem}
header{margin-bottom:1.6rem}
h1{font-size:1.9rem;line-height:1.2;margin:0;letter-spacing:-.015em;overflow-wrap:anywhere}
header p{margin:.4rem 0 0;color:var(--quiet);overflow-wrap:anywhere}
nav{display:flex;flex-wrap:wrap;gap:.3rem 1.1rem;margin-top:.9rem;font-size:.9rem}
nav a{color:var(--accent);text-decoration:none}nav a:hover{text-decoration:underline}
main{display:grid;grid-template-columns:repeat(2,minmax(0,1fr));gap:1.1rem}
main>*{grid-column:1/-1;min-width:0;margin:0}
main>.half{grid-column:span 1}
main>h2{font-size:1.25rem;margin:1.3rem 0 -.2rem;letter-spacing:-.01em}
h3{font-size:1.02rem;margin:.9em 0 .2em}
.text{max-width:76ch;overflow-wrap:anywhere}
.text p,.text ul{margin:.55em 0}
.text>:first-child{margin-top:0}.text>:last-child{margin-bottom:0}
.text ul{padding-left:1.3em}
code,pre{font-family:ui-monospace,"SF Mono",Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:.86em}
code{background:var(--tint);border-radius:4px;padding:.1em .35em}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(135px,1fr));gap:.8rem}
.tile{padding:.8rem 1rem}
dt{color:var(--quiet);font-size:.85rem}
dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.tile dd{font-size:1.55rem;font-weight:650;line-height:1.3}
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(230px,1fr));gap:.65rem 1.6rem;padding:1rem 1.2rem}
figure{padding:1rem;display:flex;flex-direction:column;justify-content:space-between}
figure.table{padding:.3rem 0 .4rem}
figcaption{color:var(--quiet);font-size:.88rem;overflow-wrap:anywhere;margin-top:.7rem}
.table figcaption{margin:0;padding:.6rem 1.1rem .4rem}
img{display:block;max-width:100%;height:auto;margin:auto;border-radius:6px;background:#fff}
.scroll{overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.42rem 1.1rem;text-align:left;border-top:1px solid var(--line);min-width:9rem;max-width:28rem;overflow-wrap:anywhere}
.search{margin:0 1.1rem .5rem;padding:.3rem .6rem;width:min(22rem,calc(100% - 2.2rem));font:inherit;font-size:.9rem;color:inherit;
background:var(--page);border:1px solid var(--line);border-radius:6px;display:none}
.js .search{display:block}
button.enlarge{all:unset;display:block}
.js button.enlarge{cursor:zoom-in}
figure.large{position:fixed;inset:0;z-index:9;border-radius:0;overflow:auto;justify-content:center}
figure.large img{width:100%;image-rendering:pixelated}
.js figure.large button.enlarge{cursor:zoom-out}
thead th{padding-block:.5rem;white-space:nowrap;font-weight:600;border-top:0}
th.num,td.num{text-align:right;min-width:5.5rem;white-space:nowrap}
thead button{all:unset;color:var(--quiet)}
.js thead button{cursor:pointer}
.js thead button:hover,th[aria-sort] button{color:var(--ink)}
thead button:focus-visible,button.enlarge:focus-visible,summary:focus-visible{
outline:2px solid var(--accent);outline-offset:3px;border-radius:3px}
th[aria-sort] button::before{font-size:.8em;margin-right:.3em}
th[aria-sort=ascending] button::before{content:"▲"}
th[aria-sort=descending] button::before{content:"▼"}
tbody tr:hover td{background-color:var(--tint)}
td.share{background-image:linear-gradient(to right,var(--bar) calc(var(--v)*1%),var(--tint) 0);background-repeat:no-repeat;
background-size:calc(100% - 2.2rem) 3px;background-position:1.1rem calc(100% - 3px)}
td.best{font-weight:700;color:var(--best)}
tfoot td{font-weight:650;border-top:2px solid var(--line)}
details{padding:.7rem 1.1rem}
summary{cursor:pointer;font-weight:600}
pre{margin:.8rem 0 .3rem;line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere}
footer{margin-top:2.4rem;color:var(--quiet);font-size:.83rem}
@media (max-width:720px){main>.half{grid-column:1/-1}}
@media print{:root{color-scheme:light;--page:#fff;--card:#fff;--ink:#000;--quiet:#444;--line:#ccc;--accent:#000;--tint:#0001;--best:#000}
img{filter:none}nav{display:none}body{max-width:none;padding:0}figure,tr,.tile{break-inside:avoid}h2{break-after:avoid}}
"""

SCRIPT = """
document.documentElement.classList.add("js");
document.querySelectorAll("thead button").forEach(button => button.addEventListener("click", () => {
  const head = button.closest("th"), body = button.closest("table").tBodies[0], number = head.classList.contains("num");
  const before = head.getAttribute("aria-sort"), up = before ? before === "descending" : !number; // numbers start with the largest
  const value = row => row.cells[head.cellIndex].dataset.sort;
  const order = (x, y) => number ? x - y : x.localeCompare(y, undefined, {numeric: true});
  head.parentNode.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  [...body.rows].sort((a, b) => {
    const x = value(a), y = value(b);
    return x === "" || y === "" ? (x === "") - (y === "") : (up ? 1 : -1) * order(x, y); // what is missing stays last
  }).forEach(row => body.append(row));
}));
document.querySelectorAll("input.search").forEach(input => input.addEventListener("input", () => {
  const words = input.value.toLocaleLowerCase().split(/\\s+/);
  for (const row of input.closest("figure").querySelector("tbody").rows)
    row.hidden = !words.every(word => row.textContent.toLocaleLowerCase().includes(word));
}));
document.querySelectorAll("button.enlarge").forEach(button => button.addEventListener("click", () => {
  button.closest("figure").classList.toggle("large");
}));
addEventListener("keydown", event => {
  if (event.key === "Escape") document.querySelectorAll("figure.large").forEach(one => one.classList.remove("large"));
});
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(one => one.open = true));
"""

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{{ policy }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
{% if subtitle %}<p>{{ subtitle }}</p>{% endif %}
{% if headings|length > 2 %}
<nav aria-label="Sections">{% for heading in headings %}<a href="#s{{ loop.index }}">{{ heading }}</a> {% endfor %}</nav>
{% endif %}
</header>
<main>
{% for block in blocks %}
{{ block }}
{% endfor %}
</main>
<footer>Written by GenLab {{ version }}. This page is one file and loads nothing from anywhere.</footer>
{% for script in scripts %}
<script>{{ script }}</script>
{% endfor %}
</body>
</html>
"""

TABLE = """
{% macro row_of(cells, sortable) %}
<tr>
{% for cell in cells %}
<td class="{{ cell.css }}"
{%- if sortable %} data-sort="{{ cell.sort }}"{% if cell.share is not none %} style="--v:{{ cell.share }}"{% endif %}{% endif %}>
{{- cell.text }}</td>
{% endfor %}
</tr>
{% endmacro %}
<figure class="table card">
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
{% if search %}
<input class="search" type="search" placeholder="Show rows with these words" aria-label="Show rows with these words">
{% endif %}
<div class="scroll"><table>
<thead><tr>
{% for column in columns %}
<th scope="col" class="{{ 'num' if column.number }}"><button type="button">{{ column.name }}</button></th>
{% endfor %}
</tr></thead>
<tbody>{% for cells in body %}{{ row_of(cells, true) }}{% endfor %}</tbody>
{% if foot %}<tfoot>{% for cells in foot %}{{ row_of(cells, false) }}{% endfor %}</tfoot>{% endif %}
</table></div>
</figure>
"""

PICTURE = """
<figure class="card{{ ' half' if half }}">
{% if enlarge %}<button type="button" class="enlarge" aria-label="Enlarge or reduce">{% endif %}
<img src="data:{{ mime }};base64,{{ data }}" width="{{ width }}" height="{{ height }}" alt="{{ caption }}">
{% if enlarge %}</button>{% endif %}
{% if caption %}<figcaption>{{ caption }}</figcaption>{% endif %}
</figure>
"""

PAIRS = """
<dl class="{{ 'tiles' if big else 'pairs card' }}">
{% for key, value in pairs %}
<div class="{{ 'tile card' if big }}"><dt>{{ key }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
"""

DETAILS = """<details class="card"><summary>{{ title }}</summary><pre>{{ text }}</pre></details>"""


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
