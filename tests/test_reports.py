from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from genlab.errors import MissingPath, UserError
from genlab.reports import Report, console_table

HOSTILE = '<img src=x onerror="document.title=1">'
PICTURE = Image.new("RGB", (30, 20), "red")
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
needs_browser = pytest.mark.skipif(BROWSER is None, reason="no chromium, chromium-browser or google-chrome on PATH")


def report() -> Report:
    rows = [
        {"generator": HOSTILE, "n": 12, "ap": 0.5},
        {"generator": "Sora 10", "n": 7, "ap": np.float32(0.75)},
        {"generator": "Sora 9", "n": 100, "ap": float("nan")},
    ]
    return (
        Report(f"Report {HOSTILE}", subtitle=HOSTILE)
        .heading(HOSTILE)
        .text(f"**bold** and `code` {HOSTILE}\n- item {HOSTILE}\n- https://example.org/x.png\n\n### Small {HOSTILE}")
        .table(rows, caption=HOSTILE, highlight={"ap": "max"}, summary=[{"generator": f"mean {HOSTILE}", "ap": 0.625}])
        .picture(PICTURE, caption=HOSTILE)
        .keyvalues({HOSTILE: HOSTILE}, big=True)
        .keyvalues({"seed": 42, HOSTILE: None})
        .details(HOSTILE, f"</pre></details><script>document.title=1</script>{HOSTILE}")
    )


class Tags(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def references_nothing_outside(html: str) -> bool:
    attributes = [
        value or "" for _, attrs in Tags(html).found for name, value in attrs.items() if name in ("src", "href", "srcset", "data")
    ]
    return all(value.startswith(("data:image/", "#")) for value in attributes) and "@import" not in html and "url(" not in html


def test_everything_put_in_stays_text(tmp_path):
    html = report().write(tmp_path / "out" / "report.html").read_text("utf-8")
    tags = Tags(html).found
    assert [attrs["src"][:22] for tag, attrs in tags if tag == "img"] == ["data:image/png;base64,"]
    assert sum(tag == "script" for tag, _ in tags) == 1
    assert not [name for _, attrs in tags for name in attrs if name.startswith("on")]
    assert references_nothing_outside(html)
    assert "<strong>bold</strong> and <code>code</code>" in html
    assert html.count("<li>") == 2


def test_the_same_content_gives_the_same_file(tmp_path):
    assert report().write(tmp_path / "a.html").read_bytes() == report().write(tmp_path / "b.html").read_bytes()


def test_pictures_are_embedded_by_content(tmp_path):
    PICTURE.save(tmp_path / "named_wrongly.png", "JPEG")
    html = Report("x").picture(tmp_path / "named_wrongly.png").write(tmp_path / "x.html").read_text()
    assert "data:image/jpeg;base64," in html
    (tmp_path / "picture.svg").write_text("<svg><script>1</script></svg>")
    with pytest.raises(UserError, match=r"picture\.svg: not a PNG"):
        Report("x").picture(tmp_path / "picture.svg")
    with pytest.raises(MissingPath, match="gone"):
        Report("x").picture(tmp_path / "gone.png")


def test_best_values_and_missing_ones(tmp_path):
    html = report().write(tmp_path / "x.html").read_text()
    best = re.findall(r'<td class="[^"]*best[^"]*"[^>]*>([^<]*)</td>', html)
    assert best == ["0.7500"]
    assert '<td class="num" data-sort="">–</td>' in html


def test_a_name_that_is_no_unicode_does_not_stop_the_report(tmp_path):
    name = b"clip_\xff.mp4".decode("utf-8", "surrogateescape")
    assert Report("x").text(name).write(tmp_path / "x.html").read_text("utf-8").count("clip_") == 1


def test_console_table_is_plain_and_aligned():
    rows = [
        {"generator": "[red]Sora[/red] \x1b[31m", "ap": np.float64(0.97104), "n": 56},
        {"generator": "x" * 150, "ap": None, "n": 10_000, "note": "a\nb"},
    ]
    text = console_table(rows, "Test")
    lines = text.split("\n")
    assert lines[0] == "Test"
    assert "\x1b" not in text
    assert "[red]Sora[/red]" in text
    assert "x" * 150 in text  # never cut
    assert lines[-2].index("0.9710") + 6 == lines[-1].index("–") + 1  # numbers end in one column
    assert len(lines) == 6
    assert console_table([], "Test") == "Test\n(no rows)"


def dump(page: Path, profile: Path) -> str:
    assert BROWSER
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", f"--user-data-dir={profile}", "--dump-dom"]
    return subprocess.run([BROWSER, *options, page.as_uri()], capture_output=True, text=True, check=True, timeout=120).stdout


@pytest.mark.system
@needs_browser
def test_a_browser_shows_it_without_network_and_runs_nothing_foreign(tmp_path):
    page = report().write(tmp_path / "report.html")
    dom = dump(page, tmp_path / "profile")
    assert references_nothing_outside(dom)
    assert '<html lang="en" class="js">' in dom  # our script ran under its own content policy
    assert "<title>1</title>" not in dom  # nobody else's did
    assert len([tag for tag, _ in Tags(dom).found if tag == "img"]) == 1
    assert '&lt;img src=x onerror="document.title=1"&gt;' in dom


@pytest.mark.system
@needs_browser
def test_a_click_sorts_numbers_as_numbers_and_leaves_missing_ones_last(tmp_path):
    html = report().write(tmp_path / "report.html").read_text()
    without_policy = re.sub(r"<meta http-equiv[^>]*>", "", html)
    orders = {}
    for column, clicks in ((1, 1), (2, 2), (0, 1)):
        click = f"document.querySelectorAll('thead button')[{column}].click();" * clicks
        page = tmp_path / f"{column}.html"
        page.write_text(without_policy.replace("</body>", f"<script>{click}</script></body>"))
        body = dump(page, tmp_path / "profile").split("<tbody>")[1].split("</tbody>")[0]
        orders[column] = re.findall(r'<td class="num" data-sort="(\d+)"', body)
    assert orders == {1: ["100", "12", "7"], 2: ["12", "7", "100"], 0: ["12", "100", "7"]}  # names: 9 before 10


def test_console_table_prints_to_a_pipe():
    code = "from genlab.reports import console_table; print(console_table([{'a': 1, 'b': 0.5}], 'T'))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[1])
    assert [line.split() for line in io.StringIO(result.stdout.decode())][2] == ["a", "b"]
