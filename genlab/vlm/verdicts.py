"""What a reply says of a picture: real, fake, or nothing that can be used, and then why not.

``official`` is the parser that the paper's results come from (Ji et al., arXiv 2504.14245, released code): the last substring wins, so a
refusal that mentions "real people" counts as real. ``strict`` reads negations, quoted questions, refusals, tags, JSON; its rules are ours.
"""

from __future__ import annotations

import json
import re
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

Word = Literal["real", "fake", "unknown"]
LEXICON = Path(__file__).with_name("parser_lexicon.json")
WORD = re.compile(r"[A-Za-z']+")
OFFICIAL_REAL, OFFICIAL_FAKE = ("real", " natural", "真实的"), ("fake", "generated", "生成的")


class Verdict(NamedTuple):
    """What a reply says.

    Args:
        verdict: The word.
        status: ``ok``, or why there is none: ``empty``, ``truncated``, ``refusal``, ``ambiguous``, ``no_verdict``.
        rule: The step that answered: ``tag``, ``boxed``, ``json``, ``keyword``, ``sentence``; else ``none``, ``empty``, ``think``.
    """

    verdict: Word
    status: str
    rule: str


def parse_official(reply: str | None) -> Word:
    """The released code's parser: whichever side's word begins last, as a substring."""
    text = (reply or "").lower().strip()
    real, fake = (max(text.rfind(word) for word in words) for words in (OFFICIAL_REAL, OFFICIAL_FAKE))
    if real == fake == -1:
        return "unknown"
    return "real" if real > fake else "fake"


def _bounded(words: list[str]) -> str:
    """A pattern of whole words, the longest first, letters neither before nor after."""
    return rf"(?<![^\W\d_])(?:{'|'.join(re.escape(word) for word in sorted(words, key=len, reverse=True))})(?![^\W\d_])"


@dataclass(frozen=True)
class StrictParser:
    """Reads a reply as a person would, by rules that can be looked up; word lists are data.

    Args:
        lexicon: What ``parser_lexicon.json`` holds.
    """

    lexicon: dict[str, Any]

    @classmethod
    def load(cls, path: Path = LEXICON) -> StrictParser:
        return cls(json.loads(path.read_text(encoding="utf-8")))

    def __call__(self, reply: str | None) -> Verdict:
        """The first step that answers wins: tag, boxed, JSON, keyword, one of the last sentences."""
        if not (reply or "").strip():
            return Verdict("unknown", "empty", "empty")
        text = re.split(r"</think>", str(reply), flags=re.I)[-1]
        if re.search(r"<think>", text, re.I) or not text.strip():
            return Verdict("unknown", "truncated", "think")
        for rule, step in (("tag", self._tag), ("boxed", self._boxed)):
            if (content := step(text)) is not None:
                found = self.phrase(self.normalised(content))
                return Verdict(found, "ok", rule) if found else Verdict("unknown", "ambiguous", rule)
        if word := self._json(text):
            return Verdict(word, "ok", "json")
        norm = self.normalised(text)
        if word := self._keyword(norm):
            return Verdict(word, "ok", "keyword")
        sentences = [piece for piece in re.split(r"(?<=[.!?])\s+|[。！？\n]", norm) if re.search(r"\w", piece)]
        kept = [piece for piece in sentences if not self._refuses(piece)]
        for piece in reversed(kept[-self.lexicon["last_sentences"] :]):
            if word := self.phrase(piece):
                return Verdict(word, "ok", "sentence")
        if len(kept) < len(sentences):
            return Verdict("unknown", "refusal", "none")
        return Verdict("unknown", "ambiguous" if self._echo.search(norm) else "no_verdict", "none")

    # ---- steps

    def _tag(self, text: str) -> str | None:
        for tag in self.lexicon["tags"]:
            if found := re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.I | re.S):
                return str(found[-1])
        return None

    def _boxed(self, text: str) -> str | None:
        found = re.findall(r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}", text)
        return re.sub(r"\\text\{([^{}]*)\}", r"\1", found[-1]) if found else None

    def _json(self, text: str) -> Word | None:
        for piece in reversed(re.findall(r"\{[^{}]*\}", text)):
            try:
                record = {str(key).lower(): value for key, value in json.loads(piece).items()}
            except ValueError:
                continue
            for key in self.lexicon["json_string_keys"]:
                if isinstance(record.get(key), str) and (word := self.phrase(self.normalised(record[key]))):
                    return word
            for key, polarity in self.lexicon["json_bool_keys"]:
                if isinstance(record.get(key), bool):
                    side: Word = polarity
                    return side if record[key] else _other(side)
        return None

    def _keyword(self, norm: str) -> Word | None:
        for match in reversed(list(self._keywords.finditer(norm))):
            end = re.search(r"[\n.!?。！？]", norm[match.end() :])
            if word := self.phrase(norm[match.end() :][: end.start() if end else None]):
                return word
        return None

    def _refuses(self, sentence: str) -> bool:
        return bool(self._refusal.search(sentence)) or any(item in sentence for item in self.lexicon["refusal_cn"])

    # ---- phrases

    def normalised(self, text: str) -> str:
        """NFKC, casefolded, straight quotes, without marks of Markdown."""
        norm = unicodedata.normalize("NFKC", text).casefold()
        norm = norm.translate(str.maketrans("‘’“”_", "''\"\" "))
        return re.sub(r"[*`#~>]", "", norm)

    def phrase(self, text: str) -> Word | None:
        """The value of the last clause that has one, subordinate clauses last; the text is normalised."""
        text = self._echo.sub(" ", text)
        for old, new in self.lexicon["pre_substitutions"]:
            text = re.sub(_bounded([old]), new, text)
        text = re.sub(_bounded(self.lexicon["excluded_phrases"]), " ", text)
        values: list[tuple[bool, Word]] = []
        subordinate = False
        for index, piece in enumerate(self._clause_marks.split(text)):
            if index % 2:  # what separates
                subordinate = piece.strip() in self.lexicon["subordinators"]
            elif value := self._clause(piece):
                values.append((subordinate, value))
        main = [value for below, value in values if not below] or [value for _, value in values]
        return main[-1] if main else None

    def _clause(self, clause: str) -> Word | None:
        hits: list[tuple[int, Word]] = []
        found = [(match.start(), match.group().strip("'")) for match in WORD.finditer(clause)]
        found = [(at, word) for at, word in found if word]
        words = [word for _, word in found]
        for i, (at, word) in enumerate(found):
            side: Word | None = "real" if word in self.lexicon["real_words"] else "fake" if word in self.lexicon["fake_words"] else None
            if word == "natural" and (len(words) == 1 or (words[i + 1 : i + 2] and words[i + 1] in self.lexicon["natural_needs"])):
                side = "real"
            if side:
                before = words[max(0, i - self.lexicon["negation_window_words"]) : i]
                flips = sum(item in self.lexicon["negators"] for item in before) % 2
                hits.append((at, _other(side) if flips else side))
        chinese: list[tuple[Word, list[str]]] = [("real", self.lexicon["cn_real"]), ("fake", self.lexicon["cn_fake"])]
        for value, items in chinese:
            for item in items:
                for match in re.finditer(re.escape(item), clause):
                    near = clause[max(0, match.start() - self.lexicon["cn_negation_window_chars"]) : match.start()]
                    negated = any(negator in near for negator in self.lexicon["cn_negators"])
                    hits.append((match.start(), _other(value) if negated else value))
        return max(hits)[1] if hits else None

    # ---- patterns

    @cached_property
    def _echo(self) -> re.Pattern[str]:
        joiners = "|".join(re.escape(item) for item in sorted(self.lexicon["echo_joiners"], key=len, reverse=True))
        real, fake = (
            "(?:" + "|".join(re.escape(item) for item in sorted(self.lexicon[key], key=len, reverse=True)) + ")"
            for key in ("echo_real", "echo_fake")
        )
        gap = r"[\s\"'()]*"
        letter = r"[^\W\d_]"
        pairs = "|".join(rf"{a}{gap}(?:{joiners}){gap}(?:an? )?{gap}{b}" for a, b in ((real, fake), (fake, real)))
        chinese = "|".join(re.escape(item) for item in self.lexicon["echo_cn"])
        return re.compile(rf"(?<!{letter})(?:{pairs})(?!{letter})|{chinese}")

    @cached_property
    def _keywords(self) -> re.Pattern[str]:
        keywords = "|".join(_bounded([item]) if item.isascii() else re.escape(item) for item in self.lexicon["keywords"])
        links = "|".join(rf"{item}\b" if item.isascii() and item.isalpha() else re.escape(item) for item in self.lexicon["keyword_links"])
        return re.compile(rf"(?:{keywords}) *(?:(?:{links})\s*)+")

    @cached_property
    def _refusal(self) -> re.Pattern[str]:
        between = rf"(?:\W+[\w']+){{0,{self.lexicon['refusal_max_words_between']}}}?\W+"
        modal, verb = _bounded(self.lexicon["refusal_modals"]), _bounded(self.lexicon["refusal_verbs"])
        return re.compile(rf"{modal}{between}{verb}|{_bounded(self.lexicon['refusal_phrases'])}")

    @cached_property
    def _clause_marks(self) -> re.Pattern[str]:
        marks = "|".join(re.escape(item) for item in self.lexicon["clause_marks"])
        chinese = "|".join(re.escape(item) for item in sorted(self.lexicon["clause_words_cn"], key=len, reverse=True))
        return re.compile(rf"({marks}|\s[-–—]+\s|{_bounded(self.lexicon['clause_words'])}|{chinese})")


def _other(word: Word) -> Word:
    return "fake" if word == "real" else "real"
