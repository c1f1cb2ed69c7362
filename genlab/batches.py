"""What datamodules hand to methods. Every batch is a dict; these TypedDicts say which keys it has, in which shape, dtype and range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, NotRequired, TypedDict

import numpy as np
from torch import Tensor


class VideoBatch(TypedDict):
    """Clips with a label. ``on_after_batch_transfer`` of the datamodule turns ``video`` from uint8 into normalised float32.

    B videos give W >= B clips: one each in training; in evaluation a video may have several windows, which lie together.
    """

    video: NotRequired[Tensor]
    """(W, T, 3, H, W): uint8 0..255 RGB from the loader, float32 normalised on the device. Frames from ``num_frames[w]`` on are zero
    after normalisation."""
    tokens: NotRequired[Tensor]
    """(W, T', G, G, C): in place of ``video``, what a frozen backbone made of it; fp16 from the loader, float32 on the device."""
    global_vector: NotRequired[Tensor]
    """(W, C) float32, together with ``tokens``."""
    num_frames: Tensor
    """(W,) int64, how many of the T frames are real."""
    windows: Tensor
    """(B,) int64, clips of each video; sums to W."""
    start: Tensor
    """(W,) float64, when the clip begins in its video, in seconds; NaN where that is not known."""
    pixels: NotRequired[Tensor]
    """(W, T, 3, H, W) uint8, what ``video`` was before normalisation; on the device only, for pictures."""
    label: Tensor
    """(B,) int64, 1 = what the paper detects (DeMamba: 1 = fake)."""
    generator: list[str]
    """Who made the video; ``real`` for label 0."""
    id: list[str]
    """Names the sample within its dataset: the path below the root, with forward slashes."""
    index: Tensor
    """(B,) int64, position in the evaluated list; names a sample across ranks."""
    readable: Tensor
    """(B,) bool. In evaluation an unreadable sample has zeros for frames and False here; in training, it is True and the sample is a
    substitute where ``substituted`` says so."""
    substituted: Tensor
    """(B,) bool, training only: the sample drawn could not be read and the next readable one of its class stands here."""


class CaptionedBatch(TypedDict):
    """Pictures, or clips, with captions. The method normalises them as its network wants."""

    image: NotRequired[Tensor]
    """(B, 3, H, W) RGB: uint8 from the loader, float32 in [0, 1] on the device."""
    video: NotRequired[Tensor]
    """(B, T, 3, H, W), likewise."""
    caption: list[str]
    labels: dict[str, Tensor]
    """Column -> (B,) int64, position in the datamodule's ``classes[column]``; -1 where the sample has no such column."""
    group: Tensor
    """(B,) int64; samples of one group are hard to tell apart. Without groups all differ."""
    id: list[str]
    index: Tensor
    """(B,) int64, position in the split; names a sample across ranks."""
    occurrence: Tensor
    """(B,) int64, how often the sample has come before within the epoch."""


class QuestionBatch(TypedDict):
    """Pictures with questions and answers; of a picture's questions, each has its answer and its kind at the same place."""

    image: list[Tensor]
    """B times (3, H, W) uint8 RGB, of any sizes: processors of vision-language models take them so."""
    question: list[list[str]]
    answer: list[list[str]]
    kind: list[list[str]]
    """What is asked about, for counts; empty where the data does not say."""
    id: list[str]
    index: Tensor
    """(B,) int64, position in the split."""


class GroundedBatch(TypedDict):
    """Pictures with a chat about each: is it real, what is wrong with it, and where. Label 1 = generated."""

    image: list[Tensor]
    """B times (3, H, W) uint8 RGB, of any sizes; unreadable ones are a single black pixel."""
    turns: list[list[tuple[str, str]]]
    """Roles and texts before the answer; ``<image>`` stands where the picture goes, once."""
    target: list[str]
    """The answer; ``<ref-object>`` and ``<bbox>`` stand for the regions from left to right."""
    refs: list[list[str]]
    """What the regions are called."""
    boxes: list[list[tuple[float, float, float, float]]]
    """Left, top, right, bottom in pixels of ``image``."""
    label: Tensor
    """(B,) int64; -1 where it is not known."""
    id: list[str]
    """The path below the folder of pictures; of one's own pictures, as given."""
    index: Tensor
    """(B,) int64, position in the split."""
    readable: Tensor
    """(B,) bool."""
    substituted: Tensor
    """(B,) bool, training only: the next readable sample of the same label stands here."""


class InpaintingBatch(TypedDict):
    """Pictures with the hole that is to be filled in each."""

    image: Tensor
    """(B, 3, H, W) RGB: uint8 from the loader, float32 in [0, 1] on the device. Unreadable pictures are zero."""
    hole: Tensor
    """(B, 1, H, W) bool, True = to be filled."""
    prompt: list[str]
    """What the picture shows; empty where the data does not say."""
    group: list[str]
    """What results are split by."""
    id: list[str]
    """Names the picture, or where it has several holes the mask, within its dataset."""
    index: Tensor
    """(B,) int64, position in the whole list, whatever part of it is evaluated: seeds count from it."""
    readable: Tensor
    """(B,) bool, whether picture and mask could be read."""
    usable: Tensor
    """(B,) bool, whether the hole leaves something to do, and something to see."""


@dataclass(frozen=True)
class ClassTexts:
    """What is known of the classes of a set besides pictures.

    Args:
        dataset: Its name.
        names: As prompts have them, by label.
        template: The one that zero-shot classification uses, with ``{}`` for the name.
        templates: Those that are averaged over; the same one where a dataset has no more.
        places: Of the classes among all of the dataset.
        of: How many that are.
    """

    dataset: str
    names: list[str]
    template: str
    templates: list[str]
    places: list[int]
    of: int


class FewShotBatch(TypedDict):
    """Pictures of a few-shot set: features of them where a frozen network has made them, else pixels."""

    feature: NotRequired[Tensor]
    """(B, D) float32, not normalised."""
    image: NotRequired[Tensor]
    """(B, 3, H, W): uint8 from the loader, float32 normalised on the device."""
    label: Tensor
    """(B,) int64; -1 where it is not known."""
    readable: Tensor
    """(B,) bool; unreadable pictures have zeros."""
    id: list[str]
    """The path below the dataset's folder; of one's own pictures, as given."""
    index: Tensor
    """(B,) int64, position in the set."""


class SpectralBatch(TypedDict):
    """Faces in colour and spectral channels. Label 1 = live."""

    image: Tensor
    """(B, C, H, W) float32 as stored, colours in [0, 1]; the method normalises. Unreadable ones are zero."""
    shown: Tensor
    """(B, 3, H, W) uint8 RGB, to look at; empty (B, 0) in training."""
    label: Tensor
    """(B,) int64, 1 = live, 0 = attack, -1 = unknown."""
    type: list[str]
    """``live``, ``print``, ``mask`` ..., or as the lists say."""
    factor: Tensor
    """(B,) float32, weight of the sample in the loss; 1 unless the datamodule re-balances so."""
    id: list[str]
    index: Tensor
    """(B,) int64, position in the split."""
    occurrence: Tensor
    """(B,) int64, how often the sample has come before within the epoch."""
    readable: Tensor
    """(B,) bool."""
    substituted: Tensor
    """(B,) bool, training only: the next readable sample of the same class stands here."""


class Strip(TypedDict):
    """Something to look at: a clip in frames, and which places spoke for the positive label."""

    id: str
    caption: str
    frames: np.ndarray
    """(T, H, W, 3) uint8 RGB."""
    heat: np.ndarray | None
    """(T, h, w) float32, positive where the place speaks for label 1; any scale."""
    sides: NotRequired[tuple[str, str]]
    """What blue and red of the heat mean, left out: real and generated. Without blue, an empty word: how much, never below 0."""


class Shown(NamedTuple):
    """How plots show the scores of a method that tells two classes apart."""

    kept: str = "real"
    """The class in blue."""
    found: str = "generated"
    """The class in red, which comes in kinds."""
    kinds: str = "generator"
    """Column of the rows that names the kind."""
    flipped: bool = False
    """Whether the score is the probability of the class in blue, and label 1 means that one."""


class Evaluated(TypedDict):
    """What validation, test and prediction steps return."""

    rows: list[dict[str, Any]]
    """One per sample: ``id, label, score, status`` (``ok`` or ``unreadable``; then the score is empty) and the method's own columns."""
    strips: NotRequired[list[Strip]]


class ActionBatch(TypedDict):
    """Clips with the class of their action; in evaluation a clip may be seen in several views."""

    video: Tensor
    """(B, V, T, 3, H, W) uint8 RGB; V = 1 in training. The method normalises. Unreadable clips are zero."""
    label: Tensor
    """(B,) int64, position among the set's classes; -1 where it is not known."""
    id: list[str]
    """The path below the root; of one's own clips, as given."""
    index: Tensor
    """(B,) int64, position in the set; names a sample across ranks."""
    readable: Tensor
    """(B,) bool; in training True, and where ``substituted`` says so another clip of the class stands here."""
    substituted: Tensor
    """(B,) bool, training only."""


class DomainBatch(TypedDict):
    """Pictures of a domain, and as many that the plain model made of the same category."""

    target: Tensor
    """(B, 3, H, W) RGB: uint8 from the loader, float32 in [0, 1] on the device."""
    source: NotRequired[Tensor]
    """(B, 3, H, W), likewise; where there are such pictures."""
    subject: NotRequired[Tensor]
    """(B, 3, H, W), likewise, of a subject that is learned beside the domain."""
    subject_source: NotRequired[Tensor]
    """(B, 3, H, W), likewise, of the subject's plain category."""
    target_id: list[str]
    source_id: NotRequired[list[str]]
    subject_id: NotRequired[list[str]]
    subject_source_id: NotRequired[list[str]]
    index: Tensor
    """(B,) int64, position in the epoch; names a pair across ranks."""


class PromptBatch(TypedDict):
    """Prompts to draw pictures of."""

    prompt: list[str]
    number: Tensor
    """(B,) int64, counts the pictures of a prompt: keys their noise."""
    id: list[str]
    index: Tensor
    """(B,) int64, position in the list."""


class SceneBatch(DomainBatch):
    """Pictures of a subject, and as many of its class in scenes, as the plain model made them."""

    scene: Tensor
    """(B,) int64, number of the scene that ``source`` shows; 0 where there are none."""
    picture: Tensor
    """(B,) int64, which of the subject's pictures ``target`` is."""


class ScenePromptBatch(PromptBatch):
    """Prompts to draw pictures of, in scenes."""

    scene: Tensor
    """(B,) int64, number of the scene; -1 where the prompt is of none."""


class ConceptBatch(DomainBatch):
    """Pictures of concepts, and where there are such as many that the plain model made of their descriptions."""

    concept: Tensor
    """(B,) int64, number of the concept."""
    mask: NotRequired[Tensor]
    """(B, 1, h, w) float32, latents that count, where pictures are jittered in scale."""
    prefix: list[str]
    """What stands before the prompt, empty or with a blank at its end."""
