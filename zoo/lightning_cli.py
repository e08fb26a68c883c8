"""fit, validate, test and predict: LightningCLI over recipes and names."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import yaml
from lightning import Callback, LightningDataModule, LightningModule, Trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import RichModelSummary, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

import zoo.models  # noqa: F401  # its classes are those that --model may name
from zoo import bundle, card, hub, runs
from zoo.callbacks import BestWeights, LastCheckpoint, LearningCurve, PredictionFile, run_folder
from zoo.datamodules import LabelledText
from zoo.datamodules.stream import Stream
from zoo.datamodules.text import Split, TextDataModule
from zoo.errors import UserError
from zoo.evaluation import Evaluation
from zoo.files import RECIPE, has_weights
from zoo.provenance import commit
from zoo.runs import LOGS, hush, last_checkpoint, loggers, new_run, trainer_defaults
from zoo.tasks import LanguageModel, Task

CHANGED = "Trained with options beside the recipe; `config.yaml` here holds what was used."

# The options that leave a recipe as it is: they change nothing, or the card says beside it what they were.
_INCIDENTAL = re.compile(
    r"--(config|name|ckpt_path|checkpoint\..*|trainer\."
    r"(logger.*|enable_progress_bar|enable_model_summary|log_every_n_steps|profiler.*|accelerator|precision))"
)

# A training that was cut short says nothing of how much text is to be scored.
_CUT = re.compile("limit_.*|overfit_batches")


def run(command: str, arguments: list[str]) -> None:
    """Runs one command of the trainer, names expanded to what they stand for."""
    hush()
    # Lightning starts further processes with sys.argv, which must therefore hold the expanded arguments.
    sys.argv[1:] = [command, *expand(command, arguments)]
    ZooCLI(command)


def expand(command: str, arguments: list[str]) -> list[str]:
    """Puts recipes and weights in the place of names.

    `fit NAME` and `--config NAME` take the recipe; `test NAME` (validate, predict) the recipe and the weights.
    """
    expanded: list[str] = []
    given = {argument.partition("=")[0] for argument in arguments}
    nameless = {"-h", "--help", "--print_config", "-c", "--config", "--model"}
    if not any(option in nameless or option.endswith(".help") for option in given) and (
        not arguments or arguments[0].startswith("-")
    ):
        raise UserError(
            f"{command} wants a model's name before its options: {command} NAME ...; or --config or --model"
        )
    if arguments and not arguments[0].startswith("-"):
        found = hub.find(arguments[0])
        expanded = _recipe(found, as_it_stands=command == "fit")
        if command != "fit" and (has_weights(found.folder) or "--ckpt_path" not in given):
            expanded += ["--weights", str(found.folder)]
        arguments = arguments[1:]
    remaining, takes_value = iter(arguments), False
    for argument in remaining:
        if not (takes_value or argument.startswith("-")):
            raise UserError(f"{argument} follows no option; a model's name comes first: {command} {argument} ...")
        option, equals, value = argument.partition("=")
        takes_value = option.startswith("--") and not equals
        if option not in ("-c", "--config"):
            expanded.append(argument)
            continue
        value, takes_value = value if equals else next(remaining, ""), False
        is_text = value.startswith("{")
        is_name = not is_text and "://" not in value and not os.path.isfile(value)
        expanded += _recipe(hub.find(value), as_it_stands=True) if is_name else ["--config", value]
    return expanded


def _recipe(found: hub.Found, as_it_stands: bool) -> list[str]:
    """The options for a model's recipe: as it stands to train one of our own, else only what may run from anywhere."""
    if as_it_stands and found.repository is None:
        return ["--config", str(found.folder / RECIPE)]
    recipe = bundle.read_recipe(found.folder)
    if not as_it_stands:
        recipe["trainer"] = {name: value for name, value in recipe["trainer"].items() if not _CUT.fullmatch(name)}
    return ["--name", found.name, "--config", json.dumps(recipe)]


class _Parser(LightningArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        super().error(bundle.in_brief(message), ex)


class ZooCLI(LightningCLI):
    """LightningCLI whose recipes also carry a card, whose runs log under `logs/<name>`, and whose fit ends in a bundle."""

    def __init__(self, command: str) -> None:
        self._command = command
        self.best: BestWeights | None = None
        super().__init__(
            Task,
            LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_kwargs={"overwrite": True},
            trainer_defaults=trainer_defaults(),
            parser_class=_Parser,
            parser_kwargs={"allow_abbrev": False},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # a static method there
        """The one command that was called: building the parsers of all four takes four times as long."""
        return {self._command: LightningCLI.subcommands()[self._command]}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.usage = (
            f"{Path(sys.argv[0]).name} {self._command} NAME [options]; without NAME --config FILE or --model CLASS"
        )
        parser.add_argument("--name", type=str | None, help="What the run is called (default: the recipe's folder).")
        parser.add_argument("--weights", type=str | None, help="A model's name or folder to take the weights from.")
        parser.add_class_arguments(card.Card, "card")
        if self._command == "fit":
            parser.add_lightning_class_args(LastCheckpoint, "checkpoint")
        else:
            parser.add_subclass_arguments(
                Evaluation,
                "evaluation",
                required=False,
                help="How the text is scored, a class of zoo.evaluation (default: by the model's own probabilities).",
            )

    def before_instantiate_classes(self) -> None:
        config = self.config[self._command]
        self.name = config.name or _run_name(config)
        if self._command == "fit":
            # Now: the checkout and its files may have moved on when the run ends.
            self.commit = commit()
            self.recipe = self._recipe_text()
        checkpoint = config.get("ckpt_path")
        if checkpoint == "last":
            config.ckpt_path = str(last_checkpoint(self.name, "--ckpt_path last"))
        elif checkpoint is not None and not os.path.isfile(checkpoint):
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

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except (ValueError, MisconfigurationException) as error:
            cause: BaseException = error  # the parser wraps what a constructor said of its argument
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise UserError(f"{self.name}: {cause}") from error

    def after_instantiate_classes(self) -> None:
        weights = self._get(self.config, "weights")
        self.started_from = None if weights is None else hub.find(weights)
        if self.started_from is not None:
            self._take_weights(self.started_from.folder)
        elif self._command != "fit" and self._get(self.config, "ckpt_path") is None:
            raise UserError(f"{self._command} needs trained weights: give a model's name, --weights or --ckpt_path")
        if self._command == "fit" and self.model.optimization.fine_tuning:
            self._check_fine_tuning()
        if self._command != "fit" and (evaluation := self._get(self.config_init, "evaluation")) is not None:
            if not isinstance(self.model, LanguageModel) or not isinstance(self.datamodule, TextDataModule):
                raise UserError(
                    "--evaluation is for a language model on a text; this is a "
                    f"{type(self.model).__name__} on {type(self.datamodule).__name__}"
                )
            if self.datamodule.evaluation == "pieces":
                raise UserError(
                    "--evaluation reads the text as a stream, and --data.evaluation is 'pieces': leave out one of the two"
                )
            self.datamodule.evaluation = "stream"
            self.model.evaluation = evaluation

    def _check_fine_tuning(self) -> None:
        """Raises `UserError` where there is no finished model to go on from, or no validation to end by."""
        if self._get(self.config, "trainer").limit_val_batches == 0:
            raise UserError("fine-tuning ends by its validations, and trainer.limit_val_batches is 0: leave it out")
        if self.started_from is None:
            if self._get(self.config, "ckpt_path") is None:
                first = self._get(self.config, "card").goes_on_from
                of = f", that of {first}" if first else ""
                raise UserError(f"fine-tuning goes on from a finished model{of}: name it with --weights")
            return
        measured = card.read(self.started_from.folder).measured
        if measured is None or not measured.finished:
            weights = self._get(self.config, "weights")
            raise UserError(
                f"{weights} was cut short; fine-tuning goes on from a finished model: let its run end first"
            )

    def _take_weights(self, folder: Path) -> None:
        bundle.verify(folder)
        bundle.load_weights(self.model, folder)
        bundle.load_vocabulary(self.model, folder)
        if isinstance(self.datamodule, TextDataModule | LabelledText) and not self.datamodule.given_tokenizer:
            self.datamodule.tokenizer = self.model.tokenizer

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        callbacks = list(trainer.callbacks or [])
        if trainer.enable_progress_bar is not False:
            callbacks.append(RichProgressBar())
        if trainer.enable_model_summary is not False:
            callbacks.append(RichModelSummary())
        if self._command != "fit" and self._get(self.config_init, "evaluation") is not None:
            callbacks.append(Preparation())
        if self._command == "predict":
            callbacks.append(PredictionFile(LOGS / self.name / "predictions.tsv"))
        if self._command == "fit":
            self.curve = LearningCurve()
            if not trainer.fast_dev_run:
                callbacks.append(self.curve)
            if self.model.optimization.keeps_best:
                self.best = BestWeights()
                callbacks.append(self.best)
            if trainer.fast_dev_run:  # leaves nothing behind
                kwargs["logger"], self.save_config_callback = False, None
            elif trainer.logger in (None, True):
                kwargs["logger"] = loggers(self.name)
            elif trainer.logger is False:
                kwargs["default_root_dir"] = new_run(self.name)
            if trainer.enable_checkpointing is False or trainer.fast_dev_run:
                self._parser(self._command).callback_keys.remove("checkpoint")
        else:
            self.save_config_callback = None
            if trainer.logger is None:
                kwargs["logger"] = False
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

    def before_fit(self) -> None:
        """Where fine-tuning begins, the model to beat is the one that it begins with."""
        if self.best and self.model.optimization.fine_tuning and self._get(self.config, "ckpt_path") is None:
            self.trainer.validate(self.model, datamodule=self.datamodule, verbose=False)
            self.best.take(self.model, epoch=0)

    def after_fit(self) -> None:
        """Leaves the run's model as a bundle; where the schedule came to its end, measured on what is stored."""
        trainer, options = self.trainer, self._get(self.config, "trainer")
        if options.fast_dev_run:
            return
        stopped = any(each.stopped_epoch for each in trainer.early_stopping_callbacks)
        uncut = runs.whole(options.limit_train_batches) and not options.overfit_batches and trainer.max_steps == -1
        facts = {"seed": self._get(self.config, "seed_everything"), "commit": self.commit}
        if self.started_from is not None:
            facts["started_from"] = self.started_from.origin
        described = card.Card(**self._get(self.config, "card").as_dict())
        measured, weights = runs.measure(
            trainer,
            self.model,
            self.datamodule,
            self.curve,
            self.best,
            facts,
            finished=uncut and (trainer.current_epoch == trainer.max_epochs or self.model.ended or stopped),
        )
        folder = run_folder(trainer)
        if trainer.is_global_zero:
            runs.write(
                folder / self.name, self.name, self.model, weights, self.recipe, described, measured, self.curve, folder
            )
            then = (
                f"score {folder / self.name} FILE"
                if isinstance(self.model, LanguageModel)
                else f"test {folder / self.name}"
            )
            short = "" if measured.finished else ", cut short and so not measured"
            print(f"the model lies in {folder / self.name}{short}; next: python cli.py {then}")

    def after_validate(self) -> None:
        self._report("validation")

    def after_test(self) -> None:
        self._report("test")

    def after_predict(self) -> None:
        """Says where the predictions lie."""
        if self.trainer.is_global_zero:
            print(f"{self.model.predicted}{self._evaluation()}: {LOGS / self.name / 'predictions.tsv'}")

    def _report(self, split: str) -> None:
        if self.trainer.is_global_zero:
            model = self.model
            value, predictions = model.measured[split]
            of = f"{predictions:,} predictions of the {split} {model.material}"
            print(f"{self.name}: {model.metric_unit} {value:.6g} over {of}{self._evaluation()}")

    def _evaluation(self) -> str:
        """What is printed of the evaluation, where there is one."""
        chosen = self._get(self.config_init, "evaluation")
        if chosen is None:
            return ""
        read = ", the text read as one stream" if self.datamodule.batching == "pieces" else ""
        return f", by {chosen!r}{read}"

    def _recipe_text(self) -> str:
        """The recipe as it was given, comments and all; where options changed what it says, its settings, of which the card
        then has a note."""
        config = self.config[self._command]
        options = [argument.split("=")[0].rstrip("+") for argument in sys.argv[2:] if argument.startswith("-")]
        if options.count("--config") == 1 and all(map(_INCIDENTAL.fullmatch, options)):
            if config.config[0] is not None:
                return str(config.config[0].read_text())
            recipe = sys.argv[sys.argv.index("--config") + 1]  # of a model of the Hub, as `expand` gives it
            return yaml.safe_dump(json.loads(recipe), sort_keys=False)
        if CHANGED not in config.card.notes:
            config.card.notes = [*config.card.notes, CHANGED]
        parser = self._parser(self._command)
        dump = yaml.safe_load(parser.dump(config, skip_none=False))
        defaults = parser.get_defaults()["trainer"].as_dict()
        changed = {option: value for option, value in dump["trainer"].items() if value != defaults[option]}
        sections = {key: dump[key] for key in ("seed_everything", "model", "data", "card")}
        sections["trainer"] = {key: v for key, v in changed.items() if not _INCIDENTAL.fullmatch(f"--trainer.{key}")}
        return yaml.safe_dump(sections, sort_keys=False)


class Preparation(Callback):
    """Checks the evaluation of a language model against the text, and lets it see the training text, before it begins.

    In the trainer's hooks, where the weights of a checkpoint are in their places.
    """

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module, "validation")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module, "test")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._prepare(trainer, pl_module, "test")

    def _prepare(self, trainer: Trainer, model: LightningModule, split: Split) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(model, LanguageModel)
        model.evaluation.check(len(data.ids(split)) - 1)
        if model.evaluation.training_windows is not None:
            if trainer.is_global_zero:
                print(f"{type(model.evaluation).__name__} reads the training text first")
            columns, steps = model.evaluation.training_windows
            model.evaluation.prepare(model, Stream(data.ids("train"), columns, steps, name="training text"))


def _run_name(config: Any) -> str:
    """The recipe's folder, else its file, else the model's class."""
    files = [Path(str(file)) for file in config.get("config") or [] if file is not None]
    if files:
        return files[0].resolve().parent.name if files[0].name == RECIPE else files[0].stem
    return str(config.model.class_path).rsplit(".", 1)[-1].lower()
