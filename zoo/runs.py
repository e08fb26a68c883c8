"""Where a run logs, and what a fit leaves: the model that it keeps, as it is stored, measured, and written as a bundle."""

import logging
import re
import warnings
from pathlib import Path
from typing import Any, get_args

import torch
from lightning import LightningDataModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch import Tensor

from zoo import bundle, card
from zoo.callbacks import BestWeights, LearningCurve, write_curve
from zoo.datamodules.text import Batching, TextDataModule
from zoo.errors import UserError
from zoo.provenance import hardware
from zoo.tasks import LanguageModel, Task

LOGS = Path("logs")


def hush() -> None:
    """Keeps what Lightning says of itself, and nothing of the run, off the screen."""
    for speaker in ("utilities.rank_zero", "trainer.connectors.checkpoint_connector"):
        logging.getLogger(f"lightning.pytorch.{speaker}").addFilter(_worth_reading)
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)`", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Precision .* is not supported by the model summary")


def _worth_reading(record: logging.LogRecord) -> bool:
    return not re.search("Tip:|already configured with model summary|`weights_only` was not set", record.getMessage())


def trainer_defaults() -> dict[str, Any]:
    """What our runs set where nothing else is asked for."""
    metal = torch.backends.mps.is_available()  # which has no float64, and so no exact sums
    return {"default_root_dir": str(LOGS), "devices": 1, **({"accelerator": "cpu"} if metal else {})}


def loggers(name: str) -> list[Logger]:
    """Those of a fit, which share a folder of its own under `logs/<name>`."""
    board = TensorBoardLogger(LOGS, name)
    return [CSVLogger(LOGS, name, version=board.version), board]


def new_run(name: str) -> Path:
    """The next folder of a run called so, where no logger makes it."""
    return Path(TensorBoardLogger(LOGS, name).log_dir)


def last_checkpoints(name: str) -> list[Path]:
    """Those of the runs called so, the newest run's at the end."""
    found = {
        file.parts[-3].removeprefix("version_"): file for file in (LOGS / name).glob("version_*/checkpoints/last.ckpt")
    }
    return [found[version] for version in sorted(filter(str.isdecimal, found), key=int)]


def last_checkpoint(name: str, option: str, among: list[Path] | None = None) -> Path:
    """The newest checkpoint of the runs called so, or `among` some of them.

    `UserError` names the option that asks for it where there is none.
    """
    found = among or last_checkpoints(name)
    if not found:
        raise UserError(f"{option}: no run of {name} under {LOGS / name} has a checkpoint")
    print(f"going on from {found[-1]}")
    return found[-1]


def measure(
    trainer: Trainer,
    model: Task,
    data: LightningDataModule,
    curve: LearningCurve,
    best: BestWeights | None,
    facts: dict[str, Any],
    finished: bool,
) -> tuple[card.Measured, dict[str, Tensor]]:
    """The numbers of the model that the fit keeps, and its weights as they are stored, which the model then has.

    The best one, where there is a best; with population statistics of its final weights. Only a finished run is measured.
    """
    training = {
        "epochs": trainer.current_epoch,
        "updates": trainer.global_step,
        "seconds": round(curve.seconds),
        "hardware": hardware(trainer.strategy.root_device, trainer.world_size),
        "torch": str(torch.__version__),
        "precision": trainer.precision,
        **facts,
    }
    if best and best.weights:
        training["epoch_kept"] = best.epoch
        model.load_state_dict(best.weights)
    if finished:
        _estimate_population(trainer, model, data)
    weights = bundle.stored_weights(model)
    model.load_state_dict(weights)
    results, evaluations = _measure_all(trainer, model, data) if finished else ([], [])
    measured = card.Measured(
        dataset=getattr(data, "dataset_id", "own text"),
        dataset_name=getattr(data, "dataset_name", "own text"),
        metric=model.metric_unit,
        results=results,
        training=training,
        finished=finished,
        evaluations=evaluations,
        protocol=_protocol(model, data),
        material=model.material,
    )
    return measured, weights


def write(
    folder: Path,
    name: str,
    model: Task,
    weights: dict[str, Tensor],
    recipe: str,
    described: card.Card,
    measured: card.Measured,
    curve: LearningCurve,
    curve_folder: Path,
) -> None:
    """The bundle, by one process."""
    if curve.rows:  # again, for the run may have ended before and gone on in another folder
        write_curve(curve.rows, curve_folder)
    bundle.write(
        folder,
        weights,
        recipe=recipe,
        card=card.render(name, described, measured),
        tokenizer=model.tokenizer,
        labels=model.labels,
        curve=sorted(curve_folder.glob("curve.*")),
    )


def whole(limit: int | float | None) -> bool:
    """Whether a limit of the trainer leaves all batches: 1.0 is all of them, 1 is one."""
    return limit is None or (isinstance(limit, float) and limit == 1.0)


def measure_splits(trainer: Trainer, model: Task, data: LightningDataModule) -> list[card.Result]:
    """Validation and test as the model stands; those that the trainer's limits cut or leave out are left out."""
    measured = []
    for split, limit, evaluate in (
        ("validation", trainer.limit_val_batches, trainer.validate),
        ("test", trainer.limit_test_batches, trainer.test),
    ):
        if whole(limit):
            evaluate(model, datamodule=data, verbose=False)
            measured.append(card.Result(split, *model.measured[split]))
    return measured


def _measure_all(
    trainer: Trainer, model: Task, data: LightningDataModule
) -> tuple[list[card.Result], list[card.Evaluated]]:
    """Both splits as the data reads them; of a text that was trained on in pieces, both in pieces and as a stream."""
    if not isinstance(data, TextDataModule) or data.batching == "stream":
        return measure_splits(trainer, model, data), []
    own, readings = dict(zip(("validation", "test"), data.readings, strict=True)), []
    results: list[card.Result] = []
    asked = data.evaluation
    for way in get_args(Batching):
        data.evaluation = way
        measured = measure_splits(trainer, model, data)
        readings.append(card.Evaluated(_in_words(data, way), f"--data.evaluation {way}", measured))
        results += [result for result in measured if own[result.split] == way]
    data.evaluation = asked
    return sorted(results, key=lambda result: list(own).index(result.split)), readings


def _protocol(model: Task, data: LightningDataModule) -> str:
    """How the splits are read, in a card's words."""
    if not isinstance(model, LanguageModel):
        return f"over all {model.material} of a split"
    if not isinstance(data, TextDataModule) or set(data.readings) == {"stream"}:
        return card.STREAMED
    validation, test = (_in_words(data, way) for way in data.readings)
    return f"the validation text read {validation}, the test text {test}; {card.SUMMED}"


def _in_words(data: TextDataModule, way: Batching) -> str:
    if way == "stream":
        return "as one stream with the state carried through"
    return f"in pieces of {data.bptt + 1} tokens with the state starting anew in each"


def _estimate_population(trainer: Trainer, model: Task, data: LightningDataModule) -> None:
    """On the device of the training, from which Lightning has by now taken the model."""
    own = model.device
    model.to(trainer.strategy.root_device)
    model.estimate_population(data.train_dataloader())
    model.to(own)
