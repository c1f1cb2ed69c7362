"""``genlab data prepare descriptions --classes FILE --out FILE.json``: sentences about classes by a language model, in CuPL's form.

CuPL (Pratt et al., ICCV 2023) asks a language model what things look like. Every answer is kept, so that a stopped run goes on; classes
that the file has already, written by hand or before, are left as they are.

``--actions N`` writes two files instead, N spatial and N temporal sentences of each class, in the forms of the files that MSTA's authors
published (arXiv 2411.11223; their prompts are not known, these are ours).
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING

from genlab.errors import MissingPath, UserError
from genlab.files import cache_folder, read_json, write_json
from genlab.store import RowStore, content_key

if TYPE_CHECKING:
    from genlab.vlm.text import TextEngine

PROMPTS = (
    "Describe what {} looks like.",
    "How can you identify {}?",
    "What does {} look like?",
    "Describe a photo of {} from the internet.",
    "Write a caption for a photo of {}.",
)
SPATIAL = "Name one thing, place or person that is typically seen in a video of {}. Answer with a short phrase, nothing else."
TEMPORAL = "Think of {0} as {2} steps. What is step {1}? Answer with a short phrase, nothing else."
SPATIAL_FORM = "A video about {1}."
TEMPORAL_FORM = "A video of {0} generally involves the following step: {1}, which is a sub-step."
PHRASE = 120  # most characters of a phrase
LEAST, MOST = 15, 400  # characters of a sentence worth having
HELP = "Sentences about one's own classes, for --data.descriptions: class name -> list of sentences, a JSON file to be edited by hand."


def main(args: list[str]) -> int:
    """Asks for what is missing and writes the file.

    Raises:
        UserError: No engine, no classes, or the engine fails.
    """
    parser = argparse.ArgumentParser("python -m genlab data prepare descriptions", description=HELP, allow_abbrev=False)
    parser.add_argument("--classes", type=Path, required=True, help="text file with a class name a line")
    parser.add_argument("--out", type=Path, required=True, help="JSON file; classes that it has already are left alone")
    parser.add_argument("--endpoint", metavar="URL", help="OpenAI-compatible server, such as http://localhost:8000/v1")
    parser.add_argument("--model", help="what the endpoint calls the model; without an endpoint, hub id or folder of a local one")
    parser.add_argument("--kind", default="", help="what the classes are kinds of ('pet'), for the prompts")
    parser.add_argument("--answers", type=int, default=2, help="answers to each of the five prompts (default 2)")
    parser.add_argument("--actions", type=int, metavar="N", help="classes are actions: OUT.spatial.json and OUT.temporal.json for MSTA")
    given = parser.parse_args(args)
    if given.actions is not None and given.actions < 1:
        raise UserError(f"data prepare descriptions: --actions {given.actions} is too few; use 2, as the paper, or more.")
    if given.model is None:
        raise UserError("data prepare descriptions: name a model: --endpoint URL --model NAME, or --model FOLDER for a local one.")
    if given.answers < 1:
        raise UserError(f"data prepare descriptions: --answers {given.answers} is too few; use 1 or more.")
    if not given.classes.is_file():
        raise MissingPath(f"data prepare descriptions: {given.classes} is not a file. It has a class name a line.")
    names = [line.strip().replace("_", " ") for line in given.classes.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not names:
        raise UserError(f"data prepare descriptions: {given.classes} is empty; write a class name a line.")
    if given.actions is not None:
        return _actions(names, given)
    known: dict[str, list[str]] = read_json(given.out)
    todo = [name for name in dict.fromkeys(names) if not known.get(name)]

    from tqdm import tqdm

    from genlab.vlm.text import Endpoint, LocalText

    store = RowStore(cache_folder() / "descriptions.sqlite")
    if todo:
        engine: TextEngine = Endpoint(given.endpoint, given.model) if given.endpoint else LocalText(given.model)
        for name in tqdm(todo, desc="descriptions", unit="class"):
            known[name] = sentences_about(name, given.kind, given.answers, engine, store)
            write_json(given.out, {each: known[each] for each in [*names, *known] if each in known})
    store.close()
    print(f"{given.out}: {len(todo)} classes asked about now, {len(known)} in all. Use it with --data.descriptions {given.out}")
    return 0


def _actions(names: list[str], given: argparse.Namespace) -> int:
    """Spatial and temporal sentences of actions; writes after each class."""
    from tqdm import tqdm

    from genlab.vlm.text import Endpoint, LocalText

    out = given.out.with_suffix("") if given.out.suffix == ".json" else given.out
    files = {kind: out.with_name(f"{out.name}.{kind}.json") for kind in ("spatial", "temporal")}
    known: dict[str, dict[str, list[str]]] = {kind: read_json(path) for kind, path in files.items()}
    todo = [name for name in dict.fromkeys(names) if not all(known[kind].get(name) for kind in files)]
    store = RowStore(cache_folder() / "descriptions.sqlite")
    engine: TextEngine | None = (Endpoint(given.endpoint, given.model) if given.endpoint else LocalText(given.model)) if todo else None
    for name in tqdm(todo, desc="descriptions", unit="class"):
        assert engine is not None
        for kind, form in (("spatial", SPATIAL_FORM), ("temporal", TEMPORAL_FORM)):
            asked = [
                SPATIAL.format(name) if kind == "spatial" else TEMPORAL.format(name, i + 1, given.actions) for i in range(given.actions)
            ]
            known[kind][name] = [form.format(name, phrase_of(engine, store, each, seed, name)) for seed, each in enumerate(asked)]
            write_json(files[kind], {each: known[kind][each] for each in [*names, *known[kind]] if each in known[kind]})
    store.close()
    print(f"{len(todo)} classes asked about now. Use them with --data.descriptions '[{files['spatial']}, {files['temporal']}]'")
    return 0


def phrase_of(engine: TextEngine, store: RowStore, prompt: str, seed: int, name: str) -> str:
    """The first line of an answer as a phrase: no list marks, no full stop; answers are asked for once.

    Raises:
        UserError: There is nothing in it.
    """
    key = content_key(engine.name, prompt, seed)
    row = store.get(key)
    if row is None:
        row = {"answer": engine.complete(prompt, seed)}
        store.put(key, row)
    lines = [re.sub(r"^\s*(?:[-•]|\d+[.)])\s*", "", re.sub(r"[*_`#>]+", "", line)).strip() for line in row["answer"].splitlines()]
    phrase = next((line.rstrip(".!").strip()[:PHRASE] for line in lines if line.rstrip(".!").strip()), "")
    if not phrase:
        raise UserError(f"data prepare descriptions: the model says nothing usable about {name!r}. Use a larger one, or write by hand.")
    return phrase


def sentences_about(name: str, kind: str, answers: int, engine: TextEngine, store: RowStore) -> list[str]:
    """What the engine says about a class, sentence by sentence; answers are asked for once.

    Raises:
        UserError: Nothing of it is usable.
    """
    thing = f"a {name}, a type of {kind}" if kind else f"a {name}"
    found: list[str] = []
    for prompt in PROMPTS:
        for seed in range(answers):
            asked = prompt.format(thing)
            key = content_key(engine.name, asked, seed)
            row = store.get(key)
            if row is None:
                row = {"answer": engine.complete(asked, seed)}
                store.put(key, row)
            found += split_sentences(row["answer"])
    if not found:
        raise UserError(f"data prepare descriptions: the model says nothing usable about {name!r}. Use a larger one, or write by hand.")
    return found


def split_sentences(text: str) -> list[str]:
    """Whole sentences of an answer, without list marks and markup."""
    plain = re.sub(r"[*_`#>]+", "", text)
    parts: list[str] = []
    for line in plain.splitlines():
        line = re.sub(r"^\s*(?:[-•]|\d+[.)])\s*", "", line).strip()
        parts += re.split(r"(?<=[.!?])\s+(?=[A-Z0-9\"'])", line)
    return [part.strip() for part in parts if LEAST <= len(part.strip()) <= MOST and part.strip()[-1] in ".!?"]
