"""Style, script and templates of the pages that :mod:`genlab.reports` fills: no markup is anywhere else, and all values are escaped."""

from __future__ import annotations

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
