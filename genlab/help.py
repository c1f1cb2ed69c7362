"""What a LightningCLI verb takes, read from source: help must not cost the import of torch."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from genlab.signatures import Signature, signature

OPTIONS = """  -c, --config FILE      a configuration; several are laid over each other, later ones win
  --seed_everything N    seed of everything random
  --ckpt_path P          {checkpoint}
  --model.KEY VALUE      an argument of the method (short for --model.init_args.KEY)
  --data.KEY VALUE       an argument of the datamodule
  --trainer.KEY VALUE    an argument of Lightning's Trainer: max_epochs, devices, precision, ...
  --run.KEY VALUE        the run folder: root, experiment, name, ...
  --debug                show the traceback of an error
"""
CHECKPOINTS = {"fit": "last: continue this run; or a file to continue from"}
EVALUATED = "best (default) or last of this run; or a file"


def verb_help(verb: str, line: str, config: Mapping[str, Any] | None) -> str:
    """Help of a verb; with a configuration, also of its method and datamodule.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        line: What it does.
        config: The composed configuration, or ``None`` where no ``-c`` was given.
    """
    files = " FILE_OR_FOLDER..." if verb == "predict" else ""
    text = f"usage: python -m genlab {verb} -c FILE [-c OVERLAY] [--KEY VALUE]{files}\n\n{line}\n\n"
    text += OPTIONS.format(checkpoint=CHECKPOINTS.get(verb, EVALUATED))
    text += "\n" + class_help("genlab.results.RunSettings", "--run.")
    for key in ("model", "data"):
        if config is not None and isinstance(config.get(key), Mapping) and "class_path" in config[key]:
            text += "\n" + class_help(str(config[key]["class_path"]), f"--{key}.")
    if config is None:
        text += f"\nWith -c FILE also the arguments of its method and data: python -m genlab {verb} -c tiny/demamba --help\n"
    return text


def class_help(class_path: str, prefix: str) -> str:
    """The arguments of a class, with types, defaults and what its docstring says of them."""
    found: Signature = signature(class_path)
    lines = [f"{class_path}", *textwrap.wrap(found.help, 110, initial_indent="  ", subsequent_indent="  "), ""]
    for parameter in found.parameters.values():
        default = "required" if parameter.required else f"default {parameter.default}"
        lines.append(f"  {prefix}{parameter.name}  ({parameter.annotation or 'any'}, {default})")
        lines += textwrap.wrap(parameter.help, 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines) + "\n"
