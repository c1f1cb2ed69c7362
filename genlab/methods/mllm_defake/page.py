"""The report: tables of the judges, and every sample with its picture, regions, replies and verdicts. What strangers wrote stays text."""

from __future__ import annotations

import base64
import html
import io
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from genlab import figures
from genlab.methods.mllm_defake.records import judges_of
from genlab.metrics.judges import comparison, generator_rows, risk_coverage
from genlab.reports import Report, formatted
from genlab.vlm.budget import Ledger
from genlab.vlm.conversations import Prompt
from genlab.vlm.judging import Judgement

SIDE = 256  # pixels of a thumbnail's longer side
PER_PAGE, LARGEST_PAGE = 500, 14_000_000  # pictures, bytes
LARGEST_PICTURE = 16_000  # bytes of a thumbnail, where a lower quality can do that
KNOWN, CUT = (214, 40, 40), (20, 120, 220)
WORDS = {0: "real", 1: "fake"}


@dataclass(frozen=True)
class Sample:
    """What is known of a picture: id, label (1 = fake; None for one's own), generator, thumbnail as JPEG."""

    id: str
    label: int | None
    generator: str
    picture: bytes = b""

    def with_picture(self, picture: bytes) -> Sample:
        return replace(self, picture=picture)


def thumbnail(file: bytes, regions: Sequence[Sequence[float]], judgement: Judgement | None) -> bytes:
    """The picture as JPEG, at most 256 pixels a side: red boxes around known flaws, a blue one around what was cut out for a prompt."""
    with Image.open(io.BytesIO(file)) as opened:
        picture = opened.convert("RGB")
        held = ImageOps.exif_transpose(opened).size != opened.size  # boxes of flaws count in the picture as it is held
    scale = SIDE / max(picture.size)
    size = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    shown = picture.resize(size, Image.Resampling.BICUBIC if scale < 1 else Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(shown)
    cut = [each.region for each in (judgement.answers if judgement else ()) if each.region]
    for color, boxes in ((KNOWN, () if held else regions), (CUT, cut)):
        for box in boxes:
            left, top, right, bottom = (value * scale for value in box)
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=2)
    content = b""
    for quality in (82, 60, 40):
        buffer = io.BytesIO()
        shown.save(buffer, "JPEG", quality=quality)
        content = buffer.getvalue()
        if len(content) <= LARGEST_PICTURE:
            break
    return content


STYLE = """
.samples{display:grid;gap:1rem}
.filters{display:flex;flex-wrap:wrap;gap:.6rem 1.2rem;padding:.8rem 1.1rem;font-size:.9rem}
.filters label{display:flex;gap:.4rem;align-items:center}
.filters select,.filters input{font:inherit;color:inherit;background:var(--page);
border:1px solid var(--line);border-radius:6px;padding:.25rem .5rem}
.sample{display:grid;grid-template-columns:minmax(0,272px) minmax(0,1fr);gap:1.1rem;padding:1rem}
.sample[hidden]{display:none}
.sample h3{margin:0;overflow-wrap:anywhere}
.sample p{margin:.2rem 0 .5rem}
.badge{display:inline-block;border-radius:999px;padding:.05rem .6rem;margin-right:.35rem;font-size:.85rem;border:1px solid var(--line)}
.badge.right{border-color:#18794e;color:var(--best)}.badge.wrong{border-color:#d0453f;color:#d0453f}
.reply{border-top:1px solid var(--line);padding:.3rem 0}
.reply summary{cursor:pointer;overflow-wrap:anywhere}
.reply pre{white-space:pre-wrap;overflow-wrap:anywhere;background:var(--page);border-radius:6px;
padding:.5rem .7rem;margin:.4rem 0;max-height:26rem;overflow:auto}
@media (max-width:720px){.sample{grid-template-columns:1fr}}
"""

SCRIPT = """
document.querySelectorAll(".filters").forEach(bar => {
  const box = bar.parentElement, cards = [...box.querySelectorAll(".sample")], shown = bar.querySelector("output");
  const get = name => bar.querySelector(`[name=${name}]`).value;
  const update = () => {
    const state = get("state"), generator = get("generator"), prompt = get("prompt");
    const words = get("words").toLocaleLowerCase().split(/\\s+/);
    let count = 0;
    for (const card of cards) {
      const replies = [...card.querySelectorAll(".reply")];
      replies.forEach(reply => reply.hidden = prompt !== "" && reply.dataset.prompt !== prompt);
      const states = prompt === "" ? [card.dataset.state] : replies.filter(reply => !reply.hidden).map(reply => reply.dataset.state);
      const text = card.textContent.toLocaleLowerCase();
      card.hidden = !((state === "" || states.includes(state)) && (generator === "" || card.dataset.generator === generator)
        && words.every(word => text.includes(word)));
      count += !card.hidden;
    }
    shown.textContent = `${count} of ${cards.length}`;
  };
  bar.addEventListener("input", update);
  update();
});
"""

SAMPLES = """
<section class="samples">
<div class="filters card">
<label>Show <select name="state"><option value="">all</option>
{% for state in states %}<option>{{ state }}</option>{% endfor %}</select></label>
<label>of generator <select name="generator"><option value="">all</option>
{% for each in generators %}<option value="{{ each }}">{{ each }}</option>{% endfor %}</select></label>
<label>prompt <select name="prompt"><option value="">all</option>
{% for each in prompts %}<option value="{{ each }}">{{ each }}</option>{% endfor %}</select></label>
<label>with the words <input type="search" name="words"></label>
<output></output>
</div>
{% for one in samples %}
<article class="sample card" data-state="{{ one.state }}" data-generator="{{ one.generator }}">
<div>{% if one.picture %}<img src="data:image/jpeg;base64,{{ one.picture }}" alt="{{ one.id }}" loading="lazy">{% endif %}</div>
<div>
<h3>{{ one.id }}</h3>
<p><span class="badge {{ one.state }}">{{ one.verdict }}{% if one.p %} · P(fake) {{ one.p }}{% endif %}</span>
{% if one.truth %}is {{ one.truth }}{% if one.generator and one.generator != one.truth %} ({{ one.generator }}){% endif %}{% endif %}
{% if one.why %}· {{ one.why }}{% endif %}</p>
{% for reply in one.replies %}
<details class="reply" data-prompt="{{ reply.prompt }}" data-state="{{ reply.state }}"{% if loop.first %} open{% endif %}>
<summary><strong>{{ reply.prompt }}</strong>: {{ reply.verdict }}{% if reply.why %} ({{ reply.why }}){% endif %}
{% if reply.p %} · P(fake) {{ reply.p }} from {{ reply.source }}{% endif %}</summary>
{% for call in reply.calls %}{% if reply.calls|length > 1 %}<div>{{ call.id }}</div>{% endif %}
<pre>{{ call.reply }}</pre>{% endfor %}
</details>
{% endfor %}
</div>
</article>
{% endfor %}
</section>
"""


def _state(verdict: str, failed: bool, label: int | None) -> str:
    if failed:
        return "failed"
    if verdict == "unknown":
        return "refused"
    return "judged" if label is None else "right" if verdict == WORDS[label] else "wrong"


def _card(sample: Sample, judgement: Judgement | None) -> dict[str, Any]:
    truth = "" if sample.label is None else WORDS[sample.label]
    card: dict[str, Any] = {"id": figures.short(sample.id, 300), "generator": sample.generator, "truth": truth, "replies": []}
    card |= {"picture": base64.b64encode(sample.picture).decode(), "state": "failed", "verdict": "unreadable", "p": "", "why": ""}
    if judgement is None:
        return card
    fused = judgement.fused
    failed = judgement.status != "ok"
    card |= {"verdict": judgement.status if failed else fused.verdict, "state": _state(fused.verdict, failed, sample.label)}
    card |= {"p": "" if fused.p_fake is None or failed else f"{fused.p_fake:.2f}", "why": "" if fused.reason == "ok" else fused.reason}
    for each in (*([judgement.fusing] if judgement.fusing else []), *judgement.answers):
        reply: dict[str, Any] = {"prompt": each.prompt, "verdict": each.verdict, "calls": each.calls, "source": each.p_source}
        reply |= {"state": _state(each.verdict, each.failed, sample.label)}
        reply |= {"why": "" if each.status == "ok" else each.status, "p": "" if each.p_fake is None else f"{each.p_fake:.2f}"}
        card["replies"].append(reply)
    return card


def add_samples(report: Report, judged: Sequence[tuple[Sample, Judgement | None]]) -> None:
    """A card per picture, with what narrows them down."""
    cards = [_card(sample, judgement) for sample, judgement in judged]
    report.block(
        SAMPLES,
        STYLE,
        SCRIPT,
        samples=cards,
        states=sorted({card["state"] for card in cards} | {reply["state"] for card in cards for reply in card["replies"]}),
        generators=sorted({card["generator"] for card in cards if card["generator"]}),
        prompts=list(dict.fromkeys(reply["prompt"] for card in cards for reply in card["replies"])),
    )


def in_pages(judged: Sequence[tuple[Sample, Judgement | None]]) -> list[list[tuple[Sample, Judgement | None]]]:
    """Samples in parts that a page each holds: 500 at most, and 14 MB; one empty part where there are none."""
    parts: list[list[tuple[Sample, Judgement | None]]] = [[]]
    size = 0
    for sample, judgement in judged:
        answers = [*judgement.answers, *([judgement.fusing] if judgement.fusing else [])] if judgement else []
        own = 4 * len(sample.picture) // 3 + sum(200 + len(str(call["reply"]).encode()) for each in answers for call in each.calls) + 800
        if parts[-1] and (len(parts[-1]) == PER_PAGE or size + own > LARGEST_PAGE):
            parts.append([])
            size = 0
        parts[-1].append((sample, judgement))
        size += own
    return parts


def sample_page(title: str, judged: Sequence[tuple[Sample, Judgement | None]]) -> bytes:
    """A page of samples alone."""
    report = Report(title)
    add_samples(report, judged)
    return report.page()


def fill_page(
    report: Report, judged: Sequence[tuple[Sample, Judgement | None]], prompts: Sequence[Prompt], warnings: Sequence[str], ledger: Ledger
) -> None:
    """Everything that the report of a test or prediction has beside the run's facts."""
    if warnings:
        report.text("\n".join(f"- **Take care**: {each}" for each in warnings))
    known = [(sample, judgement) for sample, judgement in judged if judgement is not None]
    labels = {sample.id: sample.label for sample, _ in known if sample.label is not None}
    if labels:
        _tables(report, known, labels)
    states = Counter(judgement.status for _, judgement in known)
    cost = {} if ledger.price is None else {"dollars": f"{ledger.spent:.4f}"}
    facts = {"pictures": len(judged), **{f"pictures, {key}": count for key, count in states.items() if key != "ok"}}
    tokens = {"calls sent": ledger.calls, "tokens sent": ledger.prompt_tokens, "tokens received": ledger.completion_tokens}
    report.heading("Calls").keyvalues({**facts, **tokens, **cost})
    report.heading("Samples")
    first, *others = in_pages(judged)
    more = f" The first {len(first)}; the others: " + ", ".join(f"samples-{i}.html" for i in range(2, len(others) + 2)) if others else ""
    report.text(f"Blue boxes: what was cut out for a prompt. Red boxes: known flaws, where the data names them.{more}")
    add_samples(report, first)
    report.heading("Prompts")
    for prompt in prompts:
        text = "\n\n".join(f"[{role}]\n" + "\n".join(rest) for each in prompt.conversations for role, *rest in each.payload)
        report.details(prompt.name, text)


def markdown(judged: Sequence[tuple[Sample, Judgement | None]]) -> bytes:
    """The judges' table, and the pictures that the fusion gets wrong, right, or does not judge, with what each prompt said."""
    known = [(sample, judgement) for sample, judgement in judged if judgement is not None]
    labels = {sample.id: sample.label for sample, _ in known if sample.label is not None}
    rows = comparison(judges_of([(sample.id, judgement) for sample, judgement in known]), labels, "fused") if labels else []
    parts = ["# Pictures and what was said of them", *([_lines(rows)] if rows else [])]
    cards: dict[str, list[dict[str, Any]]] = {}
    for sample, judgement in known:
        card = _card(replace(sample, picture=b""), judgement)
        said = [f"{each['prompt']}: {each['calls'][-1]['reply'] if each['calls'] else each['why']}" for each in card["replies"]]
        shown = {"picture": card["id"], "is": card["truth"], "called": card["verdict"], "replies": " / ".join(said)}
        cards.setdefault(card["state"], []).append(shown)
    for state in ("wrong", "right", "judged", "refused", "failed"):
        if state in cards:
            parts += [f"## {state.capitalize()}: {len(cards[state])}", _lines(cards[state])]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "replace")


def _lines(rows: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown; texts can neither end a cell nor be HTML."""
    columns = list(dict.fromkeys(name for row in rows for name in row))

    def cell(value: Any) -> str:
        shown = formatted(" ".join(value.split()) if isinstance(value, str) else value)
        return re.sub(r"([\\`*_\[\]|])", r"\\\1", html.escape(shown))

    def line(cells: Sequence[Any]) -> str:
        return "| " + " | ".join(map(cell, cells)) + " |"

    return "\n".join([line(columns), "|" + "---|" * len(columns), *(line([row.get(name, "") for name in columns]) for row in rows)])


def _tables(report: Report, known: Sequence[tuple[Sample, Judgement]], labels: dict[str, int]) -> None:
    judges = judges_of([(sample.id, judgement) for sample, judgement in known])
    groups = {sample.id: sample.generator for sample, _ in known}
    rows = comparison(judges, labels, "fused")
    best: dict[str, Any] = {"accuracy_strict": "max", "balanced_accuracy": "max", "macro_f1": "max", "mcc": "max"}
    report.heading("Prompts and their fusion")
    report.text(
        "accuracy_strict counts every picture without a verdict as wrong; accuracy_low and accuracy_high are Wilson's 95 % interval of "
        "accuracy_answered; kappa and McNemar's p compare with the fusion."
    )
    report.table(rows, highlight=best)
    report.table([row for judge in judges for row in generator_rows(judge, labels, groups)], caption="Per generator")
    fused = judges[-1]
    counts = Counter((WORDS[labels[i]], {0: "real", 1: "fake", None: "unknown"}[verdict]) for i, verdict in fused.verdicts.items())
    report.table(
        [{"is": truth, **{f"called {said}": counts[truth, said] for said in ("real", "fake", "unknown")}} for truth in ("real", "fake")],
        caption="Confusion of the fused verdict",
    )
    sure = {judge.name: [(judge.p_fake[i], judge.verdicts[i]) for i in judge.p_fake if judge.verdicts[i] is not None] for judge in judges}
    curves = {
        judge.name: (
            [max(p, 1 - p) for p, _ in sure[judge.name]],
            [judge.verdicts[i] == labels[i] for i in judge.p_fake if judge.verdicts[i] is not None],
        )
        for judge in judges
        if sure[judge.name]
    }
    if curves:
        report.picture(figures.reliability(curves), "How often verdicts are right, by how sure they are", half=True)
    if withheld := risk_coverage(fused, labels):
        shown = withheld[:: -(-len(withheld) // 20)]
        report.table(
            shown if shown[-1] == withheld[-1] else [*shown, withheld[-1]],
            caption="Withholding the least sure verdicts: |P(fake) - 0.5|, share judged, share wrong of these",
        )
