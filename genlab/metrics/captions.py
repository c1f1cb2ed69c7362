"""How well a picture finds its caption, and how far apart a text tower keeps words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from genlab.training.randomness import keyed_rng


def is_part_of(words: Sequence[int], of: Sequence[int]) -> bool:
    """Whether ``words`` come in ``of``, in their order: then a text of these words says nothing that the other one does not say.

    No grammar is known here: "red ring" counts as part of "red star and blue ring" as well.
    """
    rest = iter(of)
    return len(words) <= len(of) and all(word in rest for word in words)


def true_captions(words: Sequence[Sequence[int]]) -> Tensor:
    """(B, B) bool, [i, j]: caption j is known to be true of sample i, since it is part of caption i. The diagonal is true.

    Args:
        words: Of each caption, as numbers, without those that say nothing ("a photo of").
    """
    sets = [frozenset(each) for each in words]
    found = torch.eye(len(words), dtype=torch.bool)
    for i, whole in enumerate(sets):
        for j, part in enumerate(sets):
            if part <= whole and is_part_of(words[j], words[i]):
                found[i, j] = True
    return found


class CaptionRetrieval(Metric):
    """Share of samples whose own caption is the most similar one among ``among``, in [0, 1]. NaN before the first update.

    The others are first all members of the sample's group, then samples drawn by a key; captions that are true of the sample as well are
    not among them.

    Args:
        among: Captions to choose from, the right one included; all where there are fewer.
        length: Words of a caption that are looked at.
    """

    full_state_update = False
    NAMES = ("samples", "texts", "words", "group", "index")

    samples: list[Tensor]
    texts: list[Tensor]
    words: list[Tensor]
    group: list[Tensor]
    index: list[Tensor]

    def __init__(self, among: int = 100, length: int = 32) -> None:
        super().__init__()
        self.among, self.length = among, length
        for name in self.NAMES:
            self.add_state(name, [], dist_reduce_fx="cat")

    def update(self, samples: Tensor, texts: Tensor, words: Sequence[Sequence[int]], group: Tensor, index: Tensor) -> None:
        """Embeddings (B, E) of samples and of their captions, the captions' words, groups (B,) and positions in the split (B,)."""
        padded = [list(each[: self.length]) + [-1] * (self.length - len(each)) for each in words]
        numbers = torch.tensor(padded, dtype=torch.int64, device=group.device)
        given = (samples.detach().float(), texts.detach().float(), numbers, group, index)
        for name, value in zip(self.NAMES, given):
            getattr(self, name).append(value.flatten())  # (B * E,), (B * length,): a rank without samples need not know E

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gathers the states of all ranks; a rank that saw no sample takes part with empty ones of the right type."""
        if not len(self.index):
            for name in self.NAMES:
                dtype = torch.float32 if name in ("samples", "texts") else torch.int64
                setattr(self, name, [torch.empty(0, dtype=dtype, device=self.device)])
        super().sync(*args, **kwargs)

    def compute(self) -> Tensor:
        held = (getattr(self, name) for name in self.NAMES)
        joined = [torch.cat(each).cpu() if isinstance(each, list) else each.cpu() for each in held]
        count = len(joined[-1])
        if not count:
            return torch.tensor(torch.nan)
        order = joined[-1].argsort()
        samples, texts, padded, group, _ = (each.reshape(count, -1)[order] for each in joined)
        group = group.flatten()
        similar = F.normalize(samples, dim=-1) @ F.normalize(texts, dim=-1).T
        words = [[word for word in row if word >= 0] for row in padded.tolist()]
        right = sum(self._finds_its_own(i, similar[i], words, group) for i in range(len(words)))
        return torch.tensor(right / len(words))

    def _finds_its_own(self, i: int, similar: Tensor, words: list[list[int]], group: Tensor) -> bool:
        same = torch.nonzero(group == group[i]).flatten().tolist()
        members = set(same)
        others = [j for j in keyed_rng("retrieval", i).permutation(len(words)).tolist() if j not in members]
        chosen = [i]
        for j in [*same, *others]:
            if len(chosen) == self.among:
                break
            if j != i and not is_part_of(words[j], words[i]):
                chosen.append(j)
        return len(chosen) == 1 or bool(similar[i] > similar[chosen[1:]].max())


class StateSpread(Metric):
    """How much a word changes a text tower's hidden states, in [0, 1]: their deviation between words over their deviation at all.

    Texts of a set differ in one word. Between words: the variance of the states at one place of a set, averaged over places and sets. At
    all: the variance of the states of all texts and places together. Both are summed over channels. 0 says that the tower is blind to
    the word. NaN before the first update.

    Args:
        width: D, channels of the states.
    """

    full_state_update = False
    between: Tensor
    squares: Tensor
    sums: Tensor
    count: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        for name, size in {"between": 1, "squares": 1, "sums": width, "count": 1}.items():
            self.add_state(name, torch.zeros(size, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, states: Tensor) -> None:
        """(S, L, D): states of S texts that differ in one word, at L places from that word to the end token."""
        states = states.to(self.sums.dtype)
        self.between += (states - states.mean(0)).pow(2).sum()
        self.squares += states.pow(2).sum()
        self.sums += states.sum((0, 1))
        self.count += states.shape[0] * states.shape[1]

    def compute(self) -> Tensor:
        total = self.squares / self.count - (self.sums / self.count).pow(2).sum()
        return (self.between / self.count / total).sqrt().squeeze()
