"""``genlab mllm dry-run -c ...``: the calls that a test with this configuration would make, and their cost. Nothing is sent or written."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any

from genlab.errors import UserError

if TYPE_CHECKING:
    from lightning import LightningDataModule

HELP = """usage: python -m genlab mllm dry-run -c FILE [--KEY VALUE ...] [FILE_OR_FOLDER...]

Takes what `test` takes (with files or folders: what `predict` takes), looks at every picture, and prints how many calls there would be,
those whose replies are kept already left out, and about how many tokens; with prices, --model.engine.budget.prices FILE, the cost.
Replies are not known before: each is taken to be --model.engine.max_tokens long at most, and a quarter of that likely."""
LIKELY = 0.25  # of max_tokens, that a reply has


def main(args: list[str]) -> int:
    """Prints the estimate.

    Raises:
        UserError: The configuration is wrong, or none of this method.
    """
    from genlab.cli import prepare, take_apart
    from genlab.config import check, explain, interpolate

    given = take_apart(args)
    if given.asks_help or not given.configs:
        print(HELP)
        return 0 if given.asks_help else 2
    verb = "predict" if given.positionals else "test"
    if given.positionals:
        given.overrides.append(("data.predict_paths", str(given.positionals)))
    prepared = prepare(given)
    if problems := check(prepared.composed, verb):
        raise UserError(explain(problems))
    sections = [interpolate(prepared.composed.get(name), prepared.composed, (name,)) for name in ("model", "data")]

    from genlab.lightning_cli import build_parts
    from genlab.methods.mllm_defake import MllmDefake
    from genlab.reports import console_table

    model, data = build_parts(*sections)
    if not isinstance(model, MllmDefake) or data is None:
        raise UserError(f"mllm dry-run: the configuration's model is {type(model).__name__}; it estimates what MllmDefake would ask.")
    data.prepare_data()
    data.setup(verb)
    name = getattr(data, "data_name", "data")
    kept = Path(model.replies) if model.replies else prepared.run.path / f"{verb}-{name}" / "replies.sqlite"
    found = asyncio.run(estimate(model, data, kept))
    print(console_table([{"": key, "count": value} for key, value in found.items()], "Dry run: nothing was sent"))
    return 0


async def estimate(model: Any, data: LightningDataModule, kept: Path) -> dict[str, Any]:
    """Calls, tokens, and with prices dollars, of judging all pictures of the data.

    Args:
        model: An ``MllmDefake``.
        kept: The file of replies; what it holds is not asked again.
    """
    from genlab.store import RowStore
    from genlab.vlm.asking import Engine, Reply
    from genlab.vlm.budget import tokens_about, tokens_at_most
    from genlab.vlm.judging import Judge

    engine = model.engine
    price = engine.budget.price(engine.model) if engine.budget is not None else None
    image_tokens = price.image_tokens if price is not None else None
    store = RowStore(kept) if kept.is_file() else None
    counted: dict[str, tuple[int, int]] = {}
    known: set[str] = set()

    class Pretended(Engine):
        """Replies by itself; every question has a reply of its own, so that none is taken for another."""

        async def ask(self, messages: list[Any], sample: int = 0, temperature: float | None = None) -> Reply:
            key, sent, _ = engine.question(messages, sample, temperature)
            if store is not None and (row := store.get(key)):
                known.add(key)
                return Reply(**row)
            if key not in counted:
                counted[key] = tokens_about(sent, image_tokens), tokens_at_most(sent, image_tokens)
            return Reply(f"{key[:16]}: real")

    pretended = Pretended(engine.model, engine.params, 1)
    judge = Judge(pretended, model.prompts, model.reader, model.fusion, model.samples, model.sampling_temperature, model.allow_label)
    loader = data.predict_dataloader() if data.hparams.get("predict_paths") else data.test_dataloader()
    pictures = unreadable = 0
    for batch in loader:
        for name, label, file in zip(batch["id"], batch["label"], batch["file"]):
            pictures, unreadable = pictures + 1, unreadable + (file is None)
            if file is not None:
                await judge(file, name, label)
    if store is not None:
        store.close()
    calls, longest = len(counted), engine.params["max_tokens"]
    about, most = (sum(each[i] for each in counted.values()) for i in (0, 1))
    found: dict[str, Any] = {"pictures": pictures, "pictures, unreadable": unreadable, "calls": calls, "calls, answered before": len(known)}
    found |= {"tokens sent, about": about, "tokens sent, at most": most}
    found |= {"tokens received, about": int(LIKELY * calls * longest), "tokens received, at most": calls * longest}
    if price is not None:
        found["dollars, about"] = round(price.cost(about, int(LIKELY * calls * longest)), 4)
        found["dollars, at most"] = round(price.cost(most, calls * longest), 4)
    return found
