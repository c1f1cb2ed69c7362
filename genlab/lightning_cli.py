"""LightningCLI with the house's equipment: run folder, checkpoints, records, loggers. Imported once the configuration is right."""

from __future__ import annotations

import logging
import pickle
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentError, set_parsing_settings
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import Logger, TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from callbacks.environment import RunRecord
from callbacks.evaluation import EvaluationState
from callbacks.media import Media
from callbacks.metrics_csv import MetricsCSV
from callbacks.predictions import Predictions
from callbacks.preemption import LastCheckpoint
from callbacks.throughput import Throughput
from callbacks.tracker import Tracker
from genlab.errors import CONTINUE_ME, FAILED, UNREADABLE, UserError
from genlab.results import RunFolder, RunSettings, is_first_process
from genlab.training.resume import ExactResume

log = logging.getLogger(__name__)

QUIET = (  # Lightning's advice on what is decided here on purpose
    ".*does not have many workers.*",
    ".*The number of training batches.*",
    ".*args parameter is intended to run from within Python.*",
    ".*in eval mode at the start of training.*",
    ".*exists and is not empty.*",
    ".*isinstance.treespec, LeafSpec.*",
    ".*callbacks used to create the checkpoint need to be provided.*",
    ".*It is recommended to use .self.log.*sync_dist=True.*",  # what is logged over an epoch comes from metric objects, which do that
    ".*`srun` command is available on your system but is not used.*",
)


class GenLabCLI(LightningCLI):
    """Parses what the door has checked, and equips the Trainer.

    Args:
        verb: ``fit``, ``validate``, ``test`` or ``predict``.
        run: The run's own folder.
        settings: The resolved ``run`` group.
        checkpoint: File to continue from, or to evaluate.
        **options: Of LightningCLI.
    """

    def __init__(self, verb: str, run: RunFolder, settings: RunSettings, checkpoint: Path | None, **options: Any) -> None:
        self.verb, self.run_folder, self.settings, self.checkpoint = verb, run, settings, checkpoint
        self.existed = run.path.exists()
        super().__init__(
            save_config_callback=None,  # config.yaml is written below, atomically
            seed_everything_default=0,
            parser_kwargs={"parser_mode": "omegaconf+", "exit_on_error": False}
            | {name: {"parser_mode": "omegaconf+", "exit_on_error": False} for name in self.subcommands()},
            auto_configure_optimizers=False,
            **options,
        )

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_class_arguments(RunSettings, "run")
        parser.set_defaults({"trainer.use_distributed_sampler": False, "trainer.inference_mode": False})

    def _parse_ckpt_path(self) -> None:
        """Lightning would let the checkpoint's hyperparameters win over explicit ones, in silence. Here explicit ones win, and
        :class:`genlab.training.resume.ExactResume` says what differs."""

    @property
    def unreadable(self) -> int:
        """Samples of the evaluation that have no score."""
        counts = self.predictions.counts
        return counts["n_expected"] - counts["n_scored"]

    @property
    def settings_dict(self) -> dict[str, Any]:
        """The whole configuration as plain values."""
        text = self.parser.dump(self.config, skip_none=False, format="yaml")
        return yaml.safe_load(text)[self.verb]

    def folder(self) -> RunFolder:
        """Where this verb writes: ``fit`` the run folder itself, evaluations ``<run>/<stage>-<data>``."""
        if self.verb == "fit":
            return self.run_folder
        run = self.run_folder.path
        if self.checkpoint is not None and (self.checkpoint.parent.parent / "run.json").is_file():
            run = self.checkpoint.parent.parent
        return RunFolder(run / f"{self.verb}-{getattr(self.datamodule, 'data_name', 'data')}")

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        folder, config, settings = self.folder(), self.settings_dict, self.settings
        if self.verb != "fit":
            self.existed = folder.path.exists()
        self.predictions = Predictions(folder.path)
        self.record = RunRecord(
            folder, config, str(settings.experiment), self.predictions, str(self.checkpoint) if self.checkpoint else None
        )
        self.last = LastCheckpoint(folder.last_checkpoint, settings.checkpoint_minutes, settings.checkpoint_steps)
        media = Media(folder.media)
        callbacks: list[Callback] = [
            self.predictions,
            media,
            Throughput(),
            self.last,
            self.record,
            Tracker(folder),
        ]
        if self.verb == "fit":
            callbacks.append(ExactResume())
        else:  # after the callbacks whose state it saves
            seconds = min(30.0, 60 * settings.checkpoint_minutes)
            callbacks.append(EvaluationState(folder.path, config, self.checkpoint, self.predictions, media, seconds))
        trainer_config = self._get(self.config_init, "trainer")
        kwargs["default_root_dir"] = str(folder.path)
        kwargs["logger"] = self._loggers(folder, trainer_config.get("logger"))
        kwargs["callbacks"] = [*(trainer_config.get("callbacks") or []), *callbacks]
        if SLURMEnvironment.detect():  # elsewhere DDP would look for SLURM's variables in vain; requeueing is ours
            kwargs["plugins"] = [*(trainer_config.get("plugins") or []), SLURMEnvironment(auto_requeue=False)]
        return self.trainer_class(**{**trainer_config, **kwargs})

    def _loggers(self, folder: RunFolder, chosen: Any) -> list[Logger]:
        """``metrics.csv`` always; beside it the configured loggers, or TensorBoard where none is named."""
        others: list[Logger]
        if chosen is None or chosen is True:
            others = [TensorBoardLogger(folder.path, name="tensorboard", version="", default_hp_metric=False)] if self.verb == "fit" else []
        else:
            others = [] if chosen is False else chosen if isinstance(chosen, list) else [chosen]
        return [MetricsCSV(folder.path), *others]

    def before_instantiate_classes(self) -> None:
        """Gives a W&B logger the run folder, and the id under which the run was logged before."""
        config = self.config[self.verb]
        config.run = {**config.run.as_dict(), "experiment": self.settings.experiment, "name": self.settings.name}
        config.ckpt_path = None
        loggers = config.trainer.logger
        for logger in loggers if isinstance(loggers, list) else [loggers]:
            if hasattr(logger, "class_path") and logger.class_path.endswith("WandbLogger"):
                known = self.run_folder.record.get("wandb", {}) if self.verb == "fit" else {}
                self.run_folder.path.mkdir(parents=True, exist_ok=True)
                logger.init_args.save_dir = str(self.run_folder.path)
                logger.init_args.name = logger.init_args.name or f"{self.settings.experiment}/{self.settings.name}"
                logger.init_args.id = logger.init_args.id or known.get("id")
                logger.dict_kwargs = {**(logger.get("dict_kwargs") or {}), "resume": "allow"}

    def after_instantiate_classes(self) -> None:
        """Everything could be built; nothing is written before data and weights have been found as well."""
        if self.verb != "fit" and self.checkpoint is None and getattr(self.model, "needs_checkpoint", True):
            raise UserError(
                f"{self.verb}: {self.run_folder.path} holds no checkpoint, and an untrained {type(self.model).__name__} only guesses. "
                "Train it first (python -m genlab fit ...), or give --ckpt_path FILE."
            )
        self.held = {}
        if self.checkpoint is not None:
            log.info("checkpoint: %s", self.checkpoint)
            if self.checkpoint.is_dir() and not isinstance(self.trainer.strategy, DeepSpeedStrategy | FSDPStrategy):
                raise UserError(
                    f"ckpt_path: {self.checkpoint} is sharded, which only the strategy that wrote it reads. Make one file of it "
                    f"with python -m genlab convert consolidate {self.checkpoint}"
                )
            self.held = read_checkpoint(self.checkpoint)

    def fit(self, model: LightningModule, **options: Any) -> None:
        if self.checkpoint is not None and self.checkpoint.is_file() and "optimizer_states" not in self.held:
            log.info("%s holds weights alone: training starts from them, at step 0", self.checkpoint)
            model.configure_model()
            model.on_load_checkpoint(self.held)
            model.load_state_dict(self.held["state_dict"], strict=False)  # on_load_checkpoint has looked for what is missing
            self.checkpoint = None
        self.held = {}
        self._guarded(self.trainer.fit, model, datamodule=options.get("datamodule"))

    def validate(self, model: LightningModule, **options: Any) -> None:
        self._guarded(self.trainer.validate, model, datamodule=options.get("datamodule"), verbose=False)

    def test(self, model: LightningModule, **options: Any) -> None:
        self._guarded(self.trainer.test, model, datamodule=options.get("datamodule"), verbose=False)

    def predict(self, model: LightningModule, **options: Any) -> None:
        self._guarded(self.trainer.predict, model, datamodule=options.get("datamodule"), return_predictions=False)

    def _guarded(self, run: Callable[..., Any], *args: Any, **options: Any) -> None:
        """Runs the Trainer and writes into ``run.json`` how it ended."""
        state, folder, mistaken = "failed", self.record.folder, False
        try:
            # Our checkpoints hold tensors and plain values; nothing in a stranger's file gets to run.
            run(*args, ckpt_path=str(self.checkpoint) if self.checkpoint else None, weights_only=True, **options)
            state = "finished"
        except SystemExit as stop:
            state = "preempted" if stop.code == CONTINUE_ME else "failed"
            raise
        except MisconfigurationException as error:
            mistaken = True
            raise UserError(f"trainer: {error}") from error
        except UserError:
            mistaken = True
            raise
        except Exception as error:
            if not self.last.signalled:
                raise
            # A scheduler's TERM reaches every process of the job: what the run needs, such as W&B's service or another rank, may be gone.
            state = "preempted"
            log.warning("stopped by a signal, before it could save: %s. The last checkpoint is from before.", error)
            raise SystemExit(CONTINUE_ME) from error
        finally:
            if is_first_process():
                if mistaken and not self.existed and not folder.has_results:
                    shutil.rmtree(folder.path, ignore_errors=True)
                elif self.record.started:
                    folder.finish(state, step=self.trainer.global_step)


def build_parts(model: Mapping[str, Any], data: Mapping[str, Any] | None) -> tuple[LightningModule, LightningDataModule | None]:
    """Method and datamodule of a checked configuration without interpolations, with no Trainer; the networks are not built yet.

    Raises:
        UserError: They do not take these arguments.
    """
    parser = LightningArgumentParser(exit_on_error=False, parser_mode="omegaconf+")
    parser.add_lightning_class_args(LightningModule, "model", subclass_mode=True)
    given = {"model": dict(model)}
    if data is not None:
        parser.add_lightning_class_args(LightningDataModule, "data", subclass_mode=True)
        given["data"] = dict(data)
    try:
        built = parser.instantiate_classes(parser.parse_object(given))
    except ArgumentError as error:
        raise UserError(f"configuration: {error}") from error
    return built.model, built.get("data")


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, its tensors still on disk. Nothing in the file is executed.

    Raises:
        UserError: It is damaged, or no checkpoint, or holds more than tensors and plain values.
    """
    if path.is_dir():  # sharded; its strategy reads it
        return {}
    try:
        held = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        said = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"ckpt_path: {path} cannot be read as a checkpoint of tensors and plain values ({said}). Is it whole, and GenLab's?"
        ) from error
    if not isinstance(held, dict) or "state_dict" not in held:
        raise UserError(f"ckpt_path: {path} holds no state_dict; official checkpoints are converted with python -m genlab convert.")
    return held


def run_verb(verb: str, config: str, run: RunFolder, settings: RunSettings, checkpoint: Path | None) -> int:
    """Runs ``fit``, ``validate``, ``test`` or ``predict`` and returns the exit code.

    Args:
        verb: Which.
        config: The composed and checked configuration, as YAML: what was checked is what runs.
        run: The run's own folder.
        settings: The resolved ``run`` group.
        checkpoint: File to continue from, or to evaluate; ``None`` for neither.

    Raises:
        UserError: Whatever the user can mend.
    """
    set_parsing_settings(omegaconf_absolute_to_relative_paths=True)
    for message in QUIET:
        warnings.filterwarnings("ignore", message=message)
    for name in ("lightning.pytorch", "lightning.fabric"):  # importing them sets INFO
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "config.yaml"
            path.write_text(config, encoding="utf-8")
            cli = GenLabCLI(verb, run, settings, checkpoint, args=[verb, "-c", str(path)])
    except (ArgumentError, ValueError) as error:
        if (said := _user_error_behind(error)) is not None:
            raise said from error
        if isinstance(error, ArgumentError):
            raise UserError(f"configuration: {error}") from error
        raise
    except MisconfigurationException as error:
        hint = (
            " Lay -c experiments/trainer/cpu.yaml over it to run on the CPU."
            if "backend" in str(error) or "accelerator" in str(error)
            else ""
        )
        raise UserError(f"trainer: {error}{hint}") from error
    if failed := getattr(cli.model, "failed_check", ""):
        if is_first_process():
            print(failed)
        return FAILED
    return UNREADABLE if is_first_process() and cli.unreadable and not settings.allow_unreadable else 0


def _user_error_behind(error: BaseException) -> UserError | None:
    """What a constructor refused: where a class is one of several types allowed, jsonargparse wraps it into a list of all of them."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__ or seen.__context__
    return seen
