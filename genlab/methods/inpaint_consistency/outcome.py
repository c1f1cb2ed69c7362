"""What came out: scores per picture and repeat as arrays, and the tables made of them. Better scores come first everywhere."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from genlab.errors import MissingPath, UserError
from genlab.files import read_csv
from genlab.metrics.agreement import agreement, disagreeing_pairs, interval, kendall, pairwise_accuracy, resampled_means, two_sided_p
from genlab.metrics.consistency import higher_is_better

Array = NDArray[np.float64]
Table = list[dict[str, Any]]

BASELINES = ("Constant", "Mean", "Noise")
"""Classes that no inpainter should be worse than."""
BUCKETS = ((0.0, 0.2), (0.2, 0.4), (0.4, 0.6), (0.6, 1.0))  # shares of the first hole (paper: tables are split by it)
SAME = 1e-3  # relative spread of D below which an F2 tells the F1 apart no more
FLAT = 0.3  # of the liveliness around a hole, below which what fills it is called flat


class Human(TypedDict):
    """Scores that people gave, higher = better."""

    methods: dict[str, float]
    images: dict[str, dict[str, float]]
    """By picture and method; empty where the file has none."""


@dataclass
class Outcome:
    """Scores of N pictures by M inpainters, each filled again K times by every F2. NaN where a repeat had nothing to hide.

    Args:
        ids, groups, pictures: N names, groups and keys.
        shares: (N,) share of the first hole.
        f1, f2: Names.
        columns: Distances, the first one leads.
        second: (f1, f2) -> distance -> (N, K), d(X1, X2_k).
        original: Likewise, d(X, X2_k).
        first: f1 -> distance -> (N,), d(X, X1); and ``leak``, ``seconds``, ``detail``.
        facts: (f1, f2) -> ``hole2``, ``leak``, ``seconds`` -> (N, K).
        heat: (f1, f2) -> N maps (2, H, W): sums over the repeats of change and cover.
        skipped: Pictures that were left out because of their holes.
        baselines: Names of lower bounds among f1.
        spoiled: Name of a spoiled result -> name of what it is made of.
    """

    ids: list[str]
    groups: list[str]
    pictures: list[str]
    shares: Array
    f1: list[str]
    f2: list[str]
    columns: list[str]
    second: dict[tuple[str, str], dict[str, Array]]
    original: dict[tuple[str, str], dict[str, Array]]
    first: dict[str, dict[str, Array]]
    facts: dict[tuple[str, str], dict[str, Array]]
    heat: dict[tuple[str, str], list[Array]]
    skipped: int = 0
    baselines: list[str] = field(default_factory=list)
    spoiled: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[dict[str, Any]], f1: list[str], f2: list[str], k: int, skipped: int = 0) -> Outcome:
        """Puts rows, as the method stores them, into arrays."""
        places = {row["index"]: row for row in rows}
        order = {index: n for n, index in enumerate(sorted(places))}
        known = [places[index] for index in order]
        columns = list(next((row["d"] for row in rows if "d" in row), {}))
        pairs, n = [(a, b) for a in f1 for b in f2], len(order)

        def empty(names: Sequence[str], *shape: int) -> dict[str, Array]:
            return {name: np.full((n, *shape), np.nan) for name in names}

        found = cls(
            [row["id"] for row in known], [row["group"] for row in known], [row["picture"] for row in known],
            np.array([row["hole1"] for row in known]), f1, f2, columns,
            {pair: empty(columns, k) for pair in pairs}, {pair: empty(columns, k) for pair in pairs},
            {name: empty([*columns, "leak", "seconds", "detail"]) for name in f1},
            {pair: empty(("hole2", "leak", "seconds"), k) for pair in pairs},
            {pair: [np.zeros((2, 1, 1))] * n for pair in pairs}, skipped,
        )  # fmt: skip
        for row in rows:
            at = order[row["index"]]
            if row["pass"] == 1:
                values = {**row["d"], **{name: row[name] for name in ("leak", "seconds", "detail")}}
                for name, value in values.items():
                    found.first[row["f1"]][name][at] = _number(value)
            elif row["valid"]:
                pair = (row["f1"], row["f2"])
                for name in columns:
                    found.second[pair][name][at, row["k"]] = _number(row["d"][name])
                    found.original[pair][name][at, row["k"]] = _number(row["original"][name])
                for name in ("hole2", "leak", "seconds"):
                    found.facts[pair][name][at, row["k"]] = row[name]
                maps = np.frombuffer(base64.b64decode(row["heat"]), np.float16).astype(np.float64)
                side = math.isqrt(len(maps) // 2)
                found.heat[pair][at] = found.heat[pair][at] + maps.reshape(2, side, side)
        return found

    @property
    def main(self) -> str:
        """The distance that tables are ordered by."""
        return self.columns[0]

    def per_picture(self, f1: str, f2: str, column: str | None = None) -> Array:
        """D of each picture, (N,): mean over the repeats."""
        return _mean(self.second[f1, f2][column or self.main], 1)

    def score(self, f1: str, f2: str, column: str | None = None) -> float:
        """D: mean over the repeats, then over the pictures."""
        return float(_mean(self.per_picture(f1, f2, column), 0))

    def matrix(self, f2: str, column: str, names: Sequence[str] | None = None) -> Array:
        """(N, M): D of each picture and F1."""
        return np.stack([self.per_picture(f1, f2, column) for f1 in names or self.f1], 1)

    def reference(self, column: str, names: Sequence[str] | None = None) -> Array:
        """(N, M): distance of each first result from the picture itself."""
        return np.stack([self.first[f1][column] for f1 in names or self.f1], 1)

    def ranked(self, f2: str, names: Sequence[str] | None = None) -> list[str]:
        """F1 by their scores, the best one first."""
        return sorted(names or self.f1, key=lambda f1: _worse(self.main, self.score(f1, f2)))

    @property
    def honest(self) -> list[str]:
        """F1 without the spoiled ones."""
        return [name for name in self.f1 if name not in self.spoiled]

    def summary(self) -> dict[str, float]:
        """``<f1>><f2>/<name>`` -> number, for logs; spoiled results are in the report alone."""
        found: dict[str, float] = {}
        for f1, f2 in ((f1, f2) for f1 in self.honest for f2 in self.f2):
            pairs = self.second[f1, f2][self.main]
            found |= {f"{f1}>{f2}/{name}": self.score(f1, f2, name) for name in self.columns}
            found |= {f"{f1}>{f2}/n": float((~np.isnan(pairs).all(1)).sum()), f"{f1}>{f2}/n_pairs": float((~np.isnan(pairs)).sum())}
        return found

    # Tables

    def leaderboard(self, f2: str, names: Sequence[str] | None = None) -> Table:
        """A row per F1: D with its 95 % interval over pictures, and what helps to read it."""
        table, main = [], self.main
        for f1 in self.ranked(f2, names):
            pairs = self.second[f1, f2][main]
            low, high = interval(resampled_means(self.per_picture(f1, f2)[:, None])[:, 0])
            row: dict[str, Any] = {"inpainter": f1, f"D {main}": self.score(f1, f2), "low": low, "high": high}
            row |= {f"D {name}": self.score(f1, f2, name) for name in self.columns[1:]}
            row |= {"std over k": float(_mean(_std(pairs), 0))}
            row |= {f"first {main}": _overall(self.first[f1][main]), f"second {main}": _overall(self.original[f1, f2][main])}
            row |= {"detail": _overall(self.first[f1]["detail"]), "leak": _overall(self.first[f1]["leak"])}
            row |= {"second hole": _overall(self.facts[f1, f2]["hole2"]), "s a filling": _overall(self.first[f1]["seconds"])}
            table.append(row | {"pictures": int((~np.isnan(pairs).all(1)).sum()), "invalid": int(np.isnan(pairs).sum())})
        return table

    def paired(self, f2: str, names: Sequence[str]) -> Table:
        """Differences to the best F1 on the same pictures and holes, with interval and bootstrap p-value."""
        order = self.ranked(f2, names)
        values = self.matrix(f2, self.main, order)
        samples = resampled_means(values - values[:, :1])
        table = []
        for n, f1 in enumerate(order[1:], 1):
            low, high = interval(samples[:, n])
            difference = float(_mean(values[:, n] - values[:, 0], 0))
            table.append(
                {"inpainter": f1, "minus": order[0], "difference": difference, "low": low, "high": high, "p": two_sided_p(samples[:, n])}
            )
        return table

    def split(self, f2: str, names: Sequence[str], labels: Sequence[str]) -> Table:
        """D by a label of each picture; a column per label."""
        table = []
        for f1 in self.ranked(f2, names):
            values = self.per_picture(f1, f2)
            there = {name: np.array([label == name for label in labels]) for name in sorted(set(labels))}
            table.append({"inpainter": f1} | {f"{name} (n {int(at.sum())})": float(_mean(values[at], 0)) for name, at in there.items()})
        return table

    @property
    def buckets(self) -> list[str]:
        """For each picture, in which range the share of its first hole lies."""
        names = [f"{100 * low:.0f}-{100 * high:.0f} %" for low, high in BUCKETS]
        return [next(name for name, (_, high) in zip(names, BUCKETS) if share <= high) for share in self.shares]

    def rank_agreement(self, names: Sequence[str]) -> Table:
        """For each F2 and distance: does self-consistency order the F1 as the distance from the picture itself does?"""
        table = []
        for f2 in self.f2:
            for column in self.columns:
                if column.endswith("_hole"):  # the reference has no second hole
                    continue
                ours, truth = (_better(column, values) for values in (self.matrix(f2, column, names), self.reference(column, names)))
                a, b = _mean(ours, 0), _mean(truth, 0)
                taus = np.array([kendall(x, y) for x, y in zip(resampled_means(ours), resampled_means(truth))])
                low, high = interval(taus)
                pairs = disagreeing_pairs(names, a, b)
                told = "; ".join(f"{first} above {second}" for first, second in pairs)
                row = {"F2": f2, "distance": column, "tau": kendall(a, b), "low": low, "high": high}
                table.append(
                    row | {"pairs alike": pairwise_accuracy(a, b), "ordered otherwise than by the pictures themselves": told or "none"}
                )
        return table

    def between_judges(self, names: Sequence[str]) -> Table:
        """Do two F2 order the F1 alike?"""
        table = []
        for n, one in enumerate(self.f2):
            for other in self.f2[n + 1 :]:
                for column in self.columns:
                    a, b = (_better(column, _mean(self.matrix(f2, column, names), 0)) for f2 in (one, other))
                    told = "; ".join(f"{x} above {y}" for x, y in disagreeing_pairs(names, a, b)) or "none"
                    table.append({"F2": one, "other F2": other, "distance": column, "tau": kendall(a, b), "other order": told})
        return table

    def sanity(self, f2: str) -> Table:
        """Spoiled results against what they were made of: D should get worse."""
        table = []
        for name, whole in self.spoiled.items():
            for column in self.columns:
                worse = -(_better(column, self.per_picture(name, f2, column)) - _better(column, self.per_picture(whole, f2, column)))
                low, high = interval(resampled_means(worse[:, None])[:, 0])
                verdict = "yes" if low > 0 else "no" if high < 0 else "not shown"
                table.append(
                    {"result": whole, "spoiled by": name.removeprefix(f"{whole}+"), "distance": column, "worse by": float(_mean(worse, 0))}
                    | {"low": low, "high": high, "noticed": verdict}
                )
        return table

    def convergence(self, f2: str, names: Sequence[str]) -> Table:
        """D of the first j repeats, and how far it is from that of all K on average over pictures."""
        table = []
        count = self.second[names[0], f2][self.main].shape[1]
        for j in sorted({j for j in (1, 2, 3, 5, 10, 20, 50, 100, count) if j <= count}):
            row: dict[str, Any] = {"repeats": j}
            for f1 in names:
                row[f1] = float(_mean(_mean(self.second[f1, f2][self.main][:, :j], 1), 0))
            table.append(row)
        return table

    def human_agreement(self, human: Human) -> Table:
        """Agreement of -D with people's scores; of methods that both know."""
        table = []
        names = [name for name in self.f1 if name in human["methods"]]
        people = np.array([human["methods"][name] for name in names])
        for f2 in self.f2:
            for column in self.columns:
                matrix = _better(column, self.matrix(f2, column, names))
                row: dict[str, Any] = {"F2": f2, "distance": column, "methods": len(names)} | agreement(_mean(matrix, 0), people)
                shares = []
                for picture, scores in human["images"].items():
                    known = [n for n, name in enumerate(names) if name in scores]
                    if picture in self.ids and len(known) > 1:
                        ours = matrix[self.ids.index(picture), known]
                        shares.append(pairwise_accuracy(ours, [scores[names[n]] for n in known]))
                if shares:
                    row |= {"pairs alike within a picture": float(_mean(np.array(shares), 0)), "pictures": len(shares)}
                table.append(row)
        return table

    def warnings(self, f2: str) -> list[str]:
        """What must be known before the ranking is believed."""
        said = []
        names = self.honest
        values = np.array([self.score(name, f2) for name in names])
        spread = float(np.ptp(values) / max(abs(values.mean()), 1e-12))
        if len(names) > 1 and spread < SAME:
            said.append(
                f"{f2} as F2 does not tell the inpainters apart: D {self.main} differs by {100 * spread:.2g} % at most. An F2 that ignores "
                "what it is shown gives everyone the same score. Use another F2."
            )
        for column in self.columns:
            for baseline in self.baselines:
                best = _worse(column, self.score(baseline, f2, column))
                beaten = [name for name in names if name not in self.baselines and _worse(column, self.score(name, f2, column)) > best]
                if beaten:
                    said.append(
                        f"Degenerate winner with {f2}: the baseline {baseline} has a better D {column} than {', '.join(beaten)}. A "
                        f"better score is not thereby a better filling: compare the columns `first {self.main}` and `detail`."
                    )
        for name in self.ranked(f2, names)[:1]:
            lively = _overall(self.first[name]["detail"])
            if name not in self.baselines and lively < FLAT:
                said.append(
                    f"{name}, best with {f2}, fills nearly flatly: detail {lively:.2f}, where 1 is as lively as the rest of the picture."
                )
        return said

    def rows_per_picture(self, f2: str) -> Table:
        """A row per picture: D of every F1."""
        table = []
        for n, name in enumerate(self.ids):
            row: dict[str, Any] = {"picture": name, "group": self.groups[n], "hole": float(self.shares[n])}
            table.append(row | {f1: float(self.per_picture(f1, f2)[n]) for f1 in self.f1})
        return table


def read_human_scores(path: Path, methods: Sequence[str]) -> Human:
    """``method[,image],score``, higher = better; several scores of the same are averaged.

    Raises:
        UserError: No such columns, a score that is no number, or fewer than two methods that are judged here.
    """
    if not path.is_file():
        raise MissingPath(f"model.human_scores: {path} is not there.")
    rows = read_csv(path)
    if not rows or not {"method", "score"} <= rows[0].keys():
        raise UserError(
            f"model.human_scores: {path} needs a header with method and score (and image, if scores are per picture), and rows."
        )
    values: dict[str, list[float]] = {}
    images: dict[str, dict[str, list[float]]] = {}
    for number, row in enumerate(rows, 2):
        try:
            score = float(row["score"])
        except (TypeError, ValueError):
            raise UserError(f"{path}:{number}: score is {row['score']!r}; it is a number, higher = better.") from None
        values.setdefault(row["method"], []).append(score)
        if row.get("image"):
            images.setdefault(row["image"], {}).setdefault(row["method"], []).append(score)
    known = [name for name in methods if name in values]
    if len(known) < 2:
        raise UserError(
            f"model.human_scores: {path} has scores of {', '.join(values)}; at least two of those judged are needed: {', '.join(methods)}."
        )
    per_image = {image: {name: float(np.mean(each)) for name, each in scores.items()} for image, scores in images.items()}
    return {"methods": {name: float(np.mean(values[name])) for name in known}, "images": per_image}


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: Array, axis: int) -> Any:
    """Mean of what is there; NaN where nothing is."""
    there = ~np.isnan(values)
    count = there.sum(axis)
    with np.errstate(invalid="ignore"):
        return np.where(there, values, 0.0).sum(axis) / np.where(count, count, math.nan)


def _std(values: Array) -> Array:
    """Standard deviation over the repeats (ddof 1), (N, K) -> (N,); NaN for fewer than two."""
    count = (~np.isnan(values)).sum(1)
    squares = np.where(np.isnan(values), 0.0, (values - _mean(values, 1)[:, None]) ** 2).sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(count > 1, np.sqrt(squares / (count - 1)), math.nan)


def _overall(values: Array) -> float:
    return float(_mean(values.ravel(), 0))


def _better(column: str, values: Array) -> Array:
    """Turned so that higher is better."""
    return values if higher_is_better(column) else -values


def _worse(column: str, value: float) -> float:
    """What to sort by, the best first; NaN last."""
    return math.inf if math.isnan(value) else -value if higher_is_better(column) else value
