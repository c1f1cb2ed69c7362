"""What this machine has, and what to do about the rest. Nothing is downloaded, asked of a network, or left behind."""

from __future__ import annotations

import argparse
import configparser
import importlib
import importlib.metadata
import importlib.util
import netrc
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

import genlab

FREE_GB = 10  # below it a training with checkpoints soon fills the disk


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Args:
        check: What was looked at.
        status: ``ok``; ``warning``: works, but not well; ``missing``.
        found: What there is.
        remedy: What to do, or what one would gain and how.
        required: Whether GenLab cannot work without.
    """

    check: str
    status: Literal["ok", "warning", "missing"]
    found: str
    remedy: str = ""
    required: bool = False


def main(args: list[str]) -> int:
    """Prints the table and the remedies; exit code 1 if something required is missing."""
    argparse.ArgumentParser("python -m genlab doctor", description=__doc__).parse_args(args)
    findings = [finding for check in CHECKS for finding in check()]
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        print(f"{finding.check:<{width}}  {finding.status:<7}  {finding.found}")
    groups = {
        "Needed": [f for f in findings if f.status == "missing" and f.required],
        "Worth a look": [f for f in findings if f.status == "warning"],
        "Optional": [f for f in findings if f.status == "missing" and not f.required],
    }
    for title, group in groups.items():
        if group:
            print(f"\n{title}:\n" + "\n".join(f"  {finding.check}: {finding.remedy}" for finding in group))
    print("\n" + ("Something that GenLab needs is missing." if groups["Needed"] else "GenLab can run here."))
    return 1 if groups["Needed"] else 0


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def check_python() -> Iterator[Finding]:
    version = platform.python_version()
    good = sys.version_info >= (3, 11)
    yield Finding("python", "ok" if good else "missing", f"{version}, {sys.executable}", "Install Python 3.11 or later.", required=True)


def check_packages() -> Iterator[Finding]:
    """Each package that GenLab declares, against the declared range."""
    from packaging.requirements import Requirement

    wanted = [Requirement(line) for line in requirements()]
    good = 0
    for requirement in wanted:
        remedy = f"pip install '{requirement.name}{requirement.specifier}'"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding(requirement.name, "missing", f"not installed, needed {requirement.specifier}", remedy, required=True)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            good += 1
        else:
            yield Finding(requirement.name, "missing", f"{version}, needed {requirement.specifier}", remedy, required=True)
    status: Literal["ok", "warning"] = "ok" if good == len(wanted) else "warning"
    yield Finding("packages", status, f"{good} of {len(wanted)} in the declared range", "Install the others: see Needed.")


def requirements() -> list[str]:
    """What GenLab declares: in the ``setup.cfg`` of a checkout, else in the metadata of the installed package."""
    setup = Path(genlab.__file__).resolve().parents[1] / "setup.cfg"
    if setup.is_file():
        parser = configparser.ConfigParser()
        parser.read(setup, encoding="utf-8")
        return parser.get("options", "install_requires", fallback="").split("\n")[1:]
    return [line for line in importlib.metadata.requires("genlab") or [] if "extra ==" not in line]


def check_torch() -> Iterator[Finding]:
    """torch, and the GPUs it sees."""
    try:
        import torch
    except (ImportError, OSError) as error:
        remedy = "pip install --force-reinstall torch"
        yield Finding("torch", "missing", _line(error), remedy, required=True)
        return
    built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
    yield Finding("torch", "ok", f"{torch.__version__}, {built}")
    if not torch.cuda.is_available():
        remedy = "The tiny experiments run on the CPU; training on real data wants a GPU. "
        remedy += "Is there one? Look at nvidia-smi and the driver." if torch.version.cuda else "Install a torch that is built for CUDA."
        yield Finding("CUDA", "missing", "no GPU that torch can use", remedy)
        return
    for number in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(number)
        yield Finding(f"GPU {number}", "ok", f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GB, compute capability {gpu.major}.{gpu.minor}")
    bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    remedy = "Use --trainer.precision 16-mixed or 32-true."
    yield Finding("bf16", "ok" if bf16 else "warning", "supported" if bf16 else "not supported by this GPU", remedy)


def check_extras() -> Iterator[Finding]:
    """Packages that make something faster or possible."""
    scan = "The fused selective scan on CUDA. Needs a GPU and nvcc: pip install --no-build-isolation "
    zero = "ZeRO 1 to 3, for models larger than a GPU (experiments/trainer/deepspeed_*.yaml): pip install deepspeed"
    for package, module, brings in (
        ("mamba-ssm", "mamba_ssm", scan + "mamba-ssm"),
        ("causal-conv1d", "causal_conv1d", scan + "causal-conv1d"),
        ("deepspeed", "deepspeed", zero),
    ):
        if importlib.util.find_spec(module) is None:
            yield Finding(package, "missing", "not installed", brings)
            continue
        version = importlib.metadata.version(package)
        try:
            if package != "deepspeed":  # seconds to import, and it writes to the terminal
                importlib.import_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # compiled for another torch or CUDA, or no GPU
            found = f"{version}, does not load: {_line(error)}"
            remedy = f"Build it for this torch: pip install --no-build-isolation --force-reinstall --no-deps {package}"
            yield Finding(package, "warning", found, remedy)
        else:
            yield Finding(package, "ok", version)


def check_decoders() -> Iterator[Finding]:
    """Writes a small H.264 clip, and reads it with both decoders."""
    try:
        import av
        import numpy as np
    except (ImportError, OSError) as error:
        yield Finding("PyAV", "missing", _line(error), "pip install --force-reinstall av", True)
        return
    from datamodules.video import Decoder, UnreadableVideo, open_video

    with tempfile.TemporaryDirectory() as folder:
        clip = Path(folder) / "clip.mp4"
        try:
            with av.open(str(clip), "w") as container:
                stream = container.add_stream("libx264", rate=8)
                stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
                for level in range(0, 160, 10):
                    container.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((64, 64, 3), level, np.uint8), format="rgb24")))
                container.mux(stream.encode())
        except (av.FFmpegError, ValueError) as error:
            remedy = "The tiny world and the H.264 degradation write it. pip install --force-reinstall --only-binary av av"
            yield Finding("libx264 in PyAV", "missing", _line(error), remedy, required=True)
            return
        yield Finding("libx264 in PyAV", "ok", "encodes H.264")
        decoders: tuple[tuple[str, Decoder, str], ...] = (("decord", "decord", "decord2"), ("PyAV", "pyav", "av"))
        for name, decoder, package in decoders:
            try:
                with open_video(clip, decoder) as video:
                    count, middle = len(video), int(video.frames([8])[0, 32, 32, 0])
            except (UnreadableVideo, ImportError, OSError) as error:
                yield Finding(name, "missing", _line(error), f"pip install --force-reinstall {package}", True)
                continue
            good = count == 16 and abs(middle - 80) < 8
            found = f"{importlib.metadata.version(package)}, " + ("decodes" if good else f"decodes wrongly: {count} frames, grey {middle}")
            yield Finding(name, "ok" if good else "missing", found, f"pip install --force-reinstall {package}", True)


def check_numba() -> Iterator[Finding]:
    """Compiles a function."""
    remedy = "pip install --force-reinstall numba"
    try:
        import numba
        import numpy as np

        result = numba.njit(_sum_of_squares)(np.arange(4.0))
    except Exception as error:  # a broken LLVM, a NumPy too new: it has no base class for these
        yield Finding("numba", "missing", f"{type(error).__name__}: {_line(error)}", remedy, True)
    else:
        yield Finding("numba", "ok" if result == 14.0 else "missing", f"{numba.__version__}, compiles", remedy, True)


def _sum_of_squares(values):  # type: ignore[no-untyped-def]  # numba finds the types
    total = 0.0
    for value in values:
        total += value * value
    return total


def check_folders() -> Iterator[Finding]:
    """Where GenLab writes, and where it reads from."""
    cache = Path(os.environ.get("GENLAB_CACHE") or "~/.cache/genlab").expanduser()
    hub = os.environ.get("HF_HUB_CACHE") or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub"
    for name, folder, remedy, required in (
        ("runs", Path("runs"), "Work in a folder that you may write to, or give --run.root DIR.", True),
        ("cache", cache, "Set GENLAB_CACHE to a folder that you may write to.", True),
        ("Hugging Face cache", Path(hub).expanduser(), "Set HF_HOME to a folder that you may write to: weights go there.", False),
    ):
        refusal = _refusal(folder)
        status: Literal["ok", "warning", "missing"] = "ok" if not refusal else "missing" if required else "warning"
        yield Finding(name, status, str(folder.absolute()) + (f": {refusal}" if refusal else ""), remedy, required)
    for name, what in (
        ("GENLAB_DATA", "datasets, as in $GENLAB_DATA/GenVideo"),
        ("GENLAB_WEIGHTS", "pretrained weights, as in $GENLAB_WEIGHTS/<hub id>"),
    ):
        value = os.environ.get(name)
        if not value:
            yield Finding(name, "missing", "not set", f"The folder of {what}; without it every path is given by hand: export {name}=DIR")
        elif not Path(value).is_dir():
            yield Finding(name, "warning", f"{value} is not a folder", f"Make it, or set {name} to the folder of {what}.")
        else:
            yield Finding(name, "ok", value)


def _refusal(folder: Path) -> str:
    """Why nothing can be written there; empty if it can. Tries it, in the folder or in the one it would be made in."""
    place = _existing(folder)
    try:
        with tempfile.TemporaryFile(dir=place):
            return ""
    except OSError as error:
        return f"{error.strerror} ({place})"


def _existing(folder: Path) -> Path:
    return next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())


def check_machine() -> Iterator[Finding]:
    free = shutil.disk_usage(_existing(Path("runs"))).free / 1e9
    status: Literal["ok", "warning"] = "ok" if free >= FREE_GB else "warning"
    remedy = "A checkpoint of X-CLIP with its optimizer takes 1.5 GB: give --run.root DIR on a larger disk."
    yield Finding("free disk", status, f"{free:.0f} GB for runs", remedy)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    remedy = "Videos are decoded on it beside all else: set --data.num_workers 0."
    yield Finding("CPU cores", "ok" if cores > 1 else "warning", str(cores), remedy)
    found = shutil.which("sbatch")
    yield Finding("SLURM", "ok" if found else "missing", found or "no sbatch", "Jobs are submitted where sbatch is; all else works here.")


def check_wandb() -> Iterator[Finding]:
    """Whether runs would be sent; only looks whether a key is there, never at it, and asks no server."""
    if importlib.util.find_spec("wandb") is None:
        yield Finding("W&B", "missing", "not installed", "Live curves: pip install wandb, then -c experiments/trainer/wandb.yaml")
        return
    mode = os.environ.get("WANDB_MODE", "online")
    if mode != "online":
        yield Finding("W&B", "ok", f"{mode} (WANDB_MODE)" + ("; send runs later with: wandb sync" if mode == "offline" else ""))
    elif os.environ.get("WANDB_API_KEY") or _in_netrc():
        yield Finding("W&B", "ok", "a key is set")
    else:
        remedy = "Only for -c experiments/trainer/wandb.yaml: wandb login, or WANDB_MODE=offline where there is no network."
        yield Finding("W&B", "missing", "not logged in", remedy)


def _in_netrc() -> bool:
    """Whether ``wandb login`` has been here."""
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        return path.is_file() and host in netrc.netrc(path).hosts
    except (netrc.NetrcParseError, OSError):
        return False


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python, check_packages, check_torch, check_extras, check_decoders, check_numba, check_folders, check_machine, check_wandb,
)  # fmt: skip
