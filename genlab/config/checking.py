"""Every mistake in a composed configuration at once, with file and line and the nearest right spelling, before torch is imported."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence

from genlab.config.composing import Composed
from genlab.config.fields import SUBCOMMANDS, Field, Fields, fields_at, root_fields
from genlab.config.interpolation import interpolation_problems
from genlab.config.reading import Node, Problem, shown
from genlab.config.values import is_interpolated, key_problems, unknown_key


def check(composed: Composed, subcommand: str, extra_keys: Collection[str] = (), given: Collection[str] = ()) -> list[Problem]:
    """What ``python -m genlab SUBCOMMAND`` would refuse, in the order of the configuration.

    Args:
        subcommand: ``fit``, ``validate``, ``test`` or ``predict``; other verbs are checked as ``fit``.
        extra_keys: Further top-level keys that are allowed, unchecked.
        given: Dotted keys (``model.init_args.num_classes``) that are filled elsewhere, for instance linked from the data.
    """
    known = root_fields(subcommand if subcommand in SUBCOMMANDS else "fit")
    problems: list[Problem] = []
    for key, node in composed.root.value.items():
        if key in known:
            section = Fields("", {key: known[key]})
            problems += key_problems(Node({key: node}, node.where), section, "", given)
        elif key not in extra_keys:
            problems.append(Problem(node.where, _unknown_section(str(key), known)))
    if composed.root.value.get("model") is None and "model" not in given:
        where = shown(composed.files[0]) if composed.files else "command line"
        problems.append(Problem(where, "there is no model: name one in the file, or with --model CLASS_PATH"))
    return [*problems, *_interpolation_problems(composed)]


def explain(problems: Sequence[Problem]) -> str:
    """The one message that a user reads: all problems, a line each."""
    count = f"{len(problems)} problems" if len(problems) > 1 else "1 problem"
    lines = dict.fromkeys(f"  {problem}" for problem in problems)
    return "\n".join([f"{count} in the configuration; nothing was started.", *lines])


def _unknown_section(key: str, known: dict[str, Field]) -> str:
    for section in ("trainer", "run"):
        fields = fields_at(known[section].kind)
        if fields and key in fields.named:
            return f"{key!r} belongs below {section}: write {section}.{key}"
    return unknown_key(key, Fields("the configuration", known), "")


def _interpolation_problems(composed: Composed) -> Iterator[Problem]:
    for path, node in composed.root.walk():
        if is_interpolated(node.value):
            for message in interpolation_problems(node.value, composed, path):
                yield Problem(node.where, f"{'.'.join(map(str, path))}: {message}")
