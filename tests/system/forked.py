"""The command line on several processes that are forked off one which has imported everything: they start in a moment.

Lightning takes them for processes that a launcher like torchrun has started; all else is as from a shell.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import sys
import time
from pathlib import Path

IMPORTED = [
    "genlab.lightning_cli", "torch.distributed.nn.functional", "torch.utils.tensorboard", "deepspeed", "datamodules.genvideo",
    "transformers.models.clip.modeling_clip", "transformers.models.clip.tokenization_clip",
    "transformers.models.qwen2_vl.modeling_qwen2_vl", "transformers.models.qwen2_vl.processing_qwen2_vl",
    "diffusers.models.autoencoders.autoencoder_kl", "diffusers.models.unets.unet_2d_condition",
]  # fmt: skip
"""What methods need; a module that is not here is imported by every process by itself."""


def run_forked(*arguments: str, processes: int, cwd: Path, expect: int = 0, stop_at: Path | None = None, timeout: float = 900) -> str:
    """Runs a verb on so many processes to the end, and returns their output; fails when an exit code is another.

    Args:
        arguments: Of the command line.
        stop_at: The processes get USR1 once this file or folder is there.
        expect, cwd, timeout: As of :func:`tests.system.programs.run`.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(IMPORTED)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    outputs = [cwd / f".rank{rank}.log" for rank in range(processes)]
    ranks = [context.Process(target=_rank, args=(arguments, rank, port, cwd, outputs[rank])) for rank in range(processes)]
    for process in ranks:
        process.start()
    try:
        if stop_at is not None:
            while not stop_at.exists() and all(process.is_alive() for process in ranks):
                time.sleep(0.002)
            for process in ranks:
                os.kill(process.pid or 0, signal.SIGUSR1)
        for process in ranks:
            process.join(timeout)
    finally:
        codes = [process.exitcode for process in ranks]  # None: still at it
        for process in ranks:
            process.kill()
    output = "\n".join(path.read_text() for path in outputs if path.exists())
    assert codes == [expect] * processes, f"genlab {' '.join(arguments)}: exit codes {codes}, expected {expect}\n{output}"
    return output


def _rank(arguments: tuple[str, ...], rank: int, port: str, cwd: Path, output: Path) -> None:
    with output.open("w") as file:
        for descriptor in (1, 2):
            os.dup2(file.fileno(), descriptor)
    os.chdir(cwd)
    os.environ |= {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    from lightning_utilities.core.rank_zero import rank_zero_only

    rank_zero_only.rank = rank  # which it takes from the environment when it is imported

    from genlab.cli import main

    sys.exit(main(list(arguments)))
