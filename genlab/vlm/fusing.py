"""Fusion that asks or learns: the paper's seventh question, and a logistic regression fitted on pictures whose truth is known (ours)."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from genlab.errors import MissingPath, UserError
from genlab.files import write_json
from genlab.models.logistic import fit_logistic
from genlab.vlm.conversations import SIX, Conversation, Prompt, load_prompt
from genlab.vlm.fusion import NEAR, Fused, Fusion, Item, sigmoid

FORM = "genlab calibrated fusion 1"


@dataclass(frozen=True)
class FusingQuestion(Fusion):
    """The paper's fusion: a seventh question shows the model its six replies and the picture, and asks for the final word.

    Ours: a reply without a verdict is left out, and with fewer than ``quorum`` others the question is not asked.

    Args:
        quorum: Usable replies that it takes.
        prompt: Shipped name or file; it names the replies ``{a1}`` to ``{a6}`` in the paper's order of prompts.
    """

    quorum: int = 3
    prompt: str = "fusion"

    @cached_property
    def loaded(self) -> Prompt:
        return load_prompt(self.prompt)

    def about(self, replies: dict[str, str]) -> tuple[Prompt, dict[str, Any]]:
        """The prompt about these replies (by prompt name), and its variables; pairs of turns about others are left out."""
        known = {f"a{k}": replies[name] for k, name in enumerate(SIX, 1) if name in replies}
        absent = {f"a{k}" for k in range(1, len(SIX) + 1)} - known.keys()
        return replace(self.loaded, conversations=tuple(_without(each, absent) for each in self.loaded.conversations)), dict(known)


def _without(conversation: Conversation, absent: set[str]) -> Conversation:
    """Without lines that name an absent variable, and the user's turns just before them."""
    kept: list[tuple[str, ...]] = []
    for line in conversation.payload:
        if any(re.search(rf"(?<!{{){{{name}}}", slot) for name in absent for slot in line[1:3]):
            if kept and kept[-1][0] == "user" and line[0] == "assistant":
                kept.pop()
            continue
        kept.append(line)
    return replace(conversation, payload=tuple(kept))


@dataclass(frozen=True)
class CalibratedFusion(Fusion):
    """Logistic regression on the prompts' log-odds, from a file that ``genlab mllm calibrate`` wrote.

    Args:
        file: JSON; it knows the pictures that it was fitted on and refuses to judge them.
        quorum: Prompts with a verdict or a probability that it takes.
    """

    file: str
    quorum: int = 3

    @cached_property
    def fitted(self) -> Calibration:
        return Calibration.read(Path(self.file))


@dataclass(frozen=True)
class Calibration:
    """P(fake) = sigmoid(bias + sum_k w_k x_k + sum_k v_k missing_k), x_k = logit(p_k), 0 where prompt k says nothing.

    A verdict without a probability counts as ``default_conf``, as in the log-odds fusion.

    Args:
        prompts: Names, in the order of the weights.
        weights: w.
        missing: v.
        bias: Free of the penalty.
        eps: Probabilities are clipped to [eps, 1 - eps].
        default_conf: See above.
        fitted_on: SHA-256 of the pictures' files.
    """

    prompts: tuple[str, ...]
    weights: tuple[float, ...]
    missing: tuple[float, ...]
    bias: float
    eps: float = 1e-3
    default_conf: float = 0.8
    fitted_on: tuple[str, ...] = ()

    @classmethod
    def fit(
        cls, prompts: Sequence[str], items: Sequence[Sequence[Item]], labels: Sequence[int], digests: Sequence[str], eps: float = 1e-3
    ) -> Calibration:
        """Minimises the mean log-loss + |w|^2 / 2n by L-BFGS, in double precision.

        Args:
            items: Per picture, one of each prompt.
            labels: 1 = fake.
            digests: Of the pictures.

        Raises:
            UserError: Only one class is there.
        """
        if len(set(labels)) < 2:
            raise UserError("calibrate: it takes both real and generated pictures.")
        blank = cls(tuple(prompts), (0.0,) * len(prompts), (0.0,) * len(prompts), 0.0, eps)
        both = [blank.features(each) for each in items]
        fitted, bias = fit_logistic([[*x, *missing] for x, missing in both], labels)
        weights, absent = (tuple(float(value) for value in part) for part in (fitted[: len(prompts)], fitted[len(prompts) :]))
        return cls(tuple(prompts), weights, absent, bias, eps, fitted_on=tuple(sorted(set(digests))))

    def features(self, items: Sequence[Item]) -> tuple[list[float], list[float]]:
        """x and missing, one each a prompt."""
        x, missing = [], []
        for verdict, p in items:
            if p is None and verdict != "unknown":
                p = self.default_conf if verdict == "fake" else 1 - self.default_conf
            clipped = None if p is None else min(max(p, self.eps), 1 - self.eps)
            x.append(0.0 if clipped is None else math.log(clipped / (1 - clipped)))
            missing.append(float(clipped is None))
        return x, missing

    def __call__(self, items: Sequence[Item], quorum: int = 3) -> Fused:
        x, missing = self.features(items)
        if len(x) - sum(missing) < quorum:
            return Fused("unknown", None, "quorum")
        p = sigmoid(self.bias + sum(w * a + v * b for w, a, v, b in zip(self.weights, x, self.missing, missing)))
        return Fused("unknown" if abs(p - 0.5) <= NEAR else "fake" if p > 0.5 else "real", p, "tie" if abs(p - 0.5) <= NEAR else "ok")

    def check(self, prompts: Sequence[str]) -> None:
        """Raises UserError where other prompts are asked than those that were fitted."""
        if tuple(prompts) != self.prompts:
            raise UserError(f"fusion: the calibration is of {', '.join(self.prompts)}, asked are {', '.join(prompts)}; fit it anew.")

    def refuse(self, name: str, digest: str) -> None:
        """Raises UserError for a picture of the fit set."""
        if digest in self.fitted_on:
            raise UserError(f"fusion: the calibration was fitted on {name}; judge other pictures than it has seen (--data.split).")

    def write(self, path: Path) -> None:
        record = {name: getattr(self, name) for name in self.__dataclass_fields__}
        write_json(path, {"format": FORM, **record})

    @classmethod
    def read(cls, path: Path) -> Calibration:
        if not path.is_file():
            raise MissingPath(f"fusion.file: {path} is not there; python -m genlab mllm calibrate RUN --out FILE writes it.")
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record.pop("format", None) != FORM:
                raise ValueError
            read: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in record.items()}
            return cls(**read)
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(f"fusion.file: {path} is not what genlab mllm calibrate writes.") from None
