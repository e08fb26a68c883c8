"""fit, validate, test and predict: LightningCLI over recipes and names."""

import logging
import os
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning import LightningDataModule, Trainer
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from datamodules.text import TextDataModule
from zoo import __version__, bundle, card, hub
from zoo.callbacks import LastCheckpoint, LearningCurve, SurprisalFile, run_folder
from zoo.errors import UserError
from zoo.tasks import LanguageModel, Task
from zoo.tokenizer import Tokenizer

LOGS = Path("logs")

# The options that change neither the model nor its numbers.
_INCIDENTAL = re.compile(
    r"--(config|ckpt_path|checkpoint\..*|trainer\."
    r"(logger.*|enable_progress_bar|enable_model_summary|log_every_n_steps|profiler.*))"
)


def run(command: str, arguments: list[str]) -> None:
    """Runs one command of the trainer, names expanded to the files they stand for."""
    hush()
    # Lightning starts further processes with sys.argv, which must therefore hold the expanded arguments.
    sys.argv[1:] = [command, *expand(command, arguments)]
    ZooCLI(command)


def hush() -> None:
    """Keeps what Lightning says of itself, and nothing of the run, off the screen."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_worth_reading)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)


def _worth_reading(record: logging.LogRecord) -> bool:
    return not re.search("Tip:|already configured with model summary|`weights_only` was not set", record.getMessage())


def expand(command: str, arguments: list[str]) -> list[str]:
    """Puts recipes and weights in the place of names.

    `test NAME` -> `test --config FOLDER/config.yaml --weights FOLDER`; `fit NAME` takes the recipe alone; `--config NAME`
    the recipe; `--ckpt_path last` the newest run's last checkpoint.
    """
    expanded = []
    if arguments and not arguments[0].startswith("-"):
        folder = hub.folder(arguments[0])
        expanded = ["--config", str(folder / bundle.RECIPE)]
        if command != "fit":
            expanded += ["--weights", str(folder)]
        arguments = arguments[1:]
    for position, argument in enumerate(arguments):
        option, equals, value = argument.partition("=")
        if not equals and position and arguments[position - 1] in ("-c", "--config"):
            expanded.append(_recipe(argument))
        elif equals and option == "--config":
            expanded.append(f"--config={_recipe(value)}")
        else:
            expanded.append(argument)
    return expanded


def _recipe(value: str) -> str:
    return value if Path(value).is_file() or "://" in value else str(hub.folder(value) / bundle.RECIPE)


class ZooCLI(LightningCLI):
    """LightningCLI whose recipes also carry a card, whose runs log under `logs/<name>`, and whose fit ends in a bundle."""

    def __init__(self, command: str) -> None:
        self._command = command
        super().__init__(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults={"default_root_dir": str(LOGS)},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """The one command that was called: building the parsers of all four takes four times as long."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--weights", type=str | None, help="A model's name or folder to take the weights from.")
        parser.add_class_arguments(card.Card, "card")
        if self._command == "fit":
            parser.add_lightning_class_args(LastCheckpoint, "checkpoint")

    def before_instantiate_classes(self) -> None:
        config = self.config[self._command]
        self.name = _run_name(config)
        checkpoint = config.get("ckpt_path")
        if checkpoint == "last":
            config.ckpt_path = str(_last_checkpoint(self.name))
        elif checkpoint is not None and not Path(checkpoint).is_file():
            if self._command == "fit":
                raise UserError(
                    f"--ckpt_path {checkpoint}: no such checkpoint to go on from; 'last' is the newest run's, and --weights "
                    "NAME starts a new run from a model's weights"
                )
            config.weights, config.ckpt_path = checkpoint, None
        if self._command == "predict":
            config.return_predictions = False
        if config.get("weights_only") is None:
            config.weights_only = True  # Lightning's default executes whatever code a checkpoint holds

    def after_instantiate_classes(self) -> None:
        weights = self._get(self.config, "weights")
        if weights is not None:
            self._take_weights(hub.folder(weights))
        elif self._command != "fit" and self._get(self.config, "ckpt_path") is None:
            raise UserError(f"{self._command} needs trained weights: give a model's name, --weights or --ckpt_path")

    def _take_weights(self, folder: Path) -> None:
        bundle.require_weights(folder)
        bundle.verify(folder)
        bundle.load_weights(self.model, folder)
        if isinstance(self.model, LanguageModel) and (folder / bundle.TOKENIZER).exists():
            self.model.tokenizer = Tokenizer.from_file(folder / bundle.TOKENIZER)
            if isinstance(self.datamodule, TextDataModule) and not self.datamodule.given_tokenizer:
                self.datamodule.tokenizer = self.model.tokenizer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        callbacks = list(trainer.callbacks or [])
        if trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if trainer.enable_model_summary is not False:
            callbacks.append(RichModelSummary())
        if self._command == "predict":
            callbacks.append(SurprisalFile(LOGS / self.name / "predictions.tsv"))
        if self._command != "fit":
            self.save_config_callback = None
            if trainer.logger is None:
                kwargs["logger"] = False
        else:
            self.curve = LearningCurve()
            self.commit = commit()  # now: the checkout may have moved on when the run ends
            callbacks.append(self.curve)
            if trainer.logger in (None, True):
                board = TensorBoardLogger(LOGS, self.name)
                kwargs["logger"] = [CSVLogger(LOGS, self.name, version=board.version), board]
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def after_fit(self) -> None:
        """Leaves the run's model as a bundle; where the schedule came to its end, measured on what is stored."""
        if self._get(self.config, "trainer").fast_dev_run or not isinstance(self.model, LanguageModel):
            return
        epochs, updates = self.trainer.current_epoch, self.trainer.global_step
        finished = self.trainer.max_steps == -1 and epochs == self.trainer.max_epochs
        recipe, changed = self._recipe_text()
        described = card.Card(**self._get(self.config, "card").as_dict())
        if changed:
            described.notes.append("Trained with options beside the recipe; `config.yaml` here holds what was used.")
        weights = bundle.stored_weights(self.model)
        self.model.load_state_dict(weights)
        measured = card.Measured(
            dataset=getattr(self.datamodule, "dataset_id", "own text"),
            dataset_name=getattr(self.datamodule, "dataset_name", "own text"),
            metric=self.model.metric_unit,
            results=self._measure() if finished else [],
            training={"epochs": epochs, "updates": updates, **self._circumstances()},
            finished=finished,
        )
        if not self.trainer.is_global_zero:
            return
        folder = run_folder(self.trainer)
        bundle.write(
            folder / self.name,
            weights,
            recipe=recipe,
            card=card.render(self.name, described, measured),
            tokenizer=self.model.tokenizer,
            curve=sorted(folder.glob("curve.*")),
        )
        print(f"the model lies in {folder / self.name}; next: python cli.py score {folder / self.name} FILE")

    def after_validate(self) -> None:
        self._report("validation")

    def after_test(self) -> None:
        self._report("test")

    def after_predict(self) -> None:
        """Says where the surprisals lie."""
        print(f"the surprisal of every token: {LOGS / self.name / 'predictions.tsv'}")

    def _report(self, split: str) -> None:
        if isinstance(self.model, LanguageModel):
            value, predictions = self.model.measured[split]
            print(
                f"{self.name}: {self.model.metric_unit} {value:.6g} over {predictions:,} predictions of the {split} text"
            )

    def _measure(self) -> list[card.Result]:
        self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
        self.trainer.test(self.model, datamodule=self.datamodule, verbose=False)
        return [card.Result(split, *self.model.measured[split]) for split in ("validation", "test")]

    def _circumstances(self) -> dict[str, Any]:
        seconds = self.curve.seconds
        return {
            "seed": self._get(self.config, "seed_everything"),
            "seconds": round(seconds),
            "hardware": hardware(),
            "torch": str(torch.__version__),
            "commit": self.commit,
        }

    def _recipe_text(self) -> tuple[str, bool]:
        """The recipe as it was given, comments and all; where options changed what it says, its settings, and True."""
        config = self.config[self._command]
        options = [argument.split("=")[0].rstrip("+") for argument in sys.argv[2:] if argument.startswith("-")]
        if options.count("--config") == 1 and all(map(_INCIDENTAL.fullmatch, options)):
            return Path(str(config.config[0])).read_text(encoding="utf-8"), False
        return yaml.safe_dump(self._essence(config), sort_keys=False), True

    def _essence(self, config: Any) -> dict[str, Any]:
        parser = self._parser(self._command)
        dump = yaml.safe_load(parser.dump(config, skip_none=False))
        defaults = parser.get_defaults()["trainer"].as_dict()
        trainer = {
            k: v for k, v in dump["trainer"].items() if not _INCIDENTAL.fullmatch(f"--trainer.{k}") and v != defaults[k]
        }
        return {
            "seed_everything": dump["seed_everything"],
            "trainer": trainer,
            "model": dump["model"],
            "data": dump["data"],
            "card": dump["card"],
        }


def _run_name(config: Any) -> str:
    """The recipe's folder, else its file, else the model's class."""
    files = [Path(str(file)) for file in config.get("config") or []]
    if files:
        return files[0].resolve().parent.name if files[0].name == bundle.RECIPE else files[0].stem
    return str(config.model.class_path).rsplit(".", 1)[-1].lower()


def _last_checkpoint(name: str) -> Path:
    versions = (LOGS / name).glob("version_*/checkpoints/last.ckpt")
    found = sorted(versions, key=lambda file: int(file.parts[-3].removeprefix("version_")))
    if not found:
        raise UserError(f"--ckpt_path last: no run of {name} under {LOGS / name} has a checkpoint")
    print(f"going on from {found[-1]}")
    return found[-1]


def hardware() -> str:
    """The accelerator, or the processor and how many of its cores are ours."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} cores, {models[0] if models else platform.processor() or platform.machine()}"


def commit() -> str:
    """The source checkout's commit, marked where files differ from it; the package's version where there is none."""
    source = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", source, *arguments], capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" and uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return f"recurrent-zoo {__version__}"
