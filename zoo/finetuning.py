"""A pretrained model made one's own: `zoo.finetune`, `zoo.finetune_classifier` and the command `finetune`.

Howard and Ruder 2018, "Universal language model fine-tuning for text classification", arXiv 1801.06146: discriminative
learning rates along a slanted triangle, gradual unfreezing. A model keeps its own noise.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, RichProgressBar

from datamodules import Corpus, LabelledText
from zoo import bundle, card, hub, runs
from zoo.callbacks import BestWeights, GradualUnfreezing, LastCheckpoint, LearningCurve, run_folder
from zoo.errors import UserError
from zoo.files import RECIPE, TOKENIZER
from zoo.models import TextClassifier
from zoo.optim import DiscriminativeAdam
from zoo.provenance import commit
from zoo.tasks import LanguageModel, Task
from zoo.tokenizer import Normaliser, Tokenizer
from zoo.transfer import origins, resized, transfer

Vocabulary = Literal["transfer", "keep", "new"]
Unfreezing = Literal["gradual", "none"]

BPTT = 70


@dataclass(frozen=True)
class FineTuned:
    """What a fine-tuning did."""

    folder: Path
    """The bundle: what `zoo.load` and `publish` take."""

    met: str
    """How the model and the data met, in a sentence."""

    metric: str
    before: list[card.Result]
    """Validation and test before the first update, with the vocabulary of `after`."""

    after: list[card.Result]
    """The same of the stored model; empty where the run was cut short."""

    def __str__(self) -> str:
        lines = []
        for was, now in zip(self.before, self.after, strict=False):
            of = f"{was.predictions:,} predictions of {was.split}"
            lines.append(f"{self.metric} over {of}: {card.number(was.value)} before, {card.number(now.value)} after")
        return "\n".join([*lines, f"the model lies in {self.folder}"])


@dataclass(frozen=True)
class _Fit:
    """What the two kinds of fine-tuning share."""

    started_from: str
    found: hub.Found
    folder: Path
    epochs: int
    patience: int | None
    unfreezing: Unfreezing
    max_norm: float
    seed: int
    resume: bool
    progress: bool

    def run(
        self, model: Task, section: dict[str, Any], data: Corpus | LabelledText, options: dict[str, Any], met: str
    ) -> FineTuned:
        """Measures, fits, measures and writes; `section` and `options` are the recipe's of the model and the data."""
        name, base, began = self.folder.name, card.read(self.found.folder), commit()
        checkpoint = runs.last_checkpoint(name) if self.resume else None
        print(met)
        curve, best = LearningCurve(), BestWeights()
        callbacks: list[Callback] = [LastCheckpoint(), curve, best]
        if self.patience is not None:
            metric = model.metric_type
            mode = "max" if metric.higher_is_better else "min"
            callbacks.append(EarlyStopping(f"validation/{metric.name}", patience=self.patience, mode=mode))
        if self.unfreezing == "gradual":
            callbacks.append(GradualUnfreezing())
        trainer = Trainer(
            max_epochs=self.epochs,
            gradient_clip_val=self.max_norm,
            callbacks=[*callbacks, *([RichProgressBar()] if self.progress else [])],
            logger=runs.loggers(name),
            log_every_n_steps=1,
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            **runs.trainer_defaults(),
        )
        before = runs.measure_splits(trainer, model, data)
        best.take(model, epoch=0)
        trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        finished = trainer.state.finished
        facts = {"seed": self.seed, "commit": began, "started_from": self.started_from}
        measured, weights = runs.measure(trainer, model, data, curve, best, facts, finished)
        done = FineTuned(self.folder, met, model.metric_unit, before, measured.results)
        described = card.Card(
            title=f"{self.found.name}, fine-tuned on {measured.dataset_name}",
            paper=base.card.paper,
            arxiv=base.card.arxiv,
            metric=model.metric_unit,
            notes=_notes(done, model),
            license=base.card.license,
        )
        recipe = {
            "seed_everything": self.seed,
            "trainer": {"max_epochs": self.epochs, "gradient_clip_val": self.max_norm},
            "model": section,
            "data": {"class_path": f"datamodules.{type(data).__name__}", "init_args": options},
            "card": {key: value for key, value in vars(described).items() if value},
        }
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)
        runs.write(self.folder, name, model, weights, text, described, measured, curve, run_folder(trainer))
        return done


def finetune(
    name: str,
    *,
    corpus: str,
    output: str,
    validation: str | None = None,
    test: str | None = None,
    config: str | None = None,
    text: str = "text",
    document: Literal["line", "file"] = "line",
    vocabulary: Vocabulary = "transfer",
    normaliser: Normaliser | None = None,
    min_count: int = 2,
    max_vocabulary: int = 30_000,
    pretrained: bool = True,
    epochs: int = 5,
    patience: int | None = 2,
    learning_rate: float = 1e-2,
    unfreezing: Unfreezing = "none",
    batch_size: int = 20,
    bptt: int | None = None,
    max_norm: float = 0.3,
    seed: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> FineTuned:
    """Trains a pretrained language model on a text of one's own, and leaves it as a bundle.

    Logs and checkpoints go to `logs/<the output's name>`.

    Args:
        name: A model's name, folder or Hub repository.
        corpus: A file of text, JSON lines or a table, a folder or pattern of such, or a data set of the Hub
            (`datamodules.Corpus`).
        output: The folder to write.
        validation: Another text to choose the epoch by (default: a twentieth of the corpus).
        test: Another text to measure on (default: the last twentieth of the corpus).
        config: Which configuration of a data set of the Hub.
        text: The column of a table that holds the text.
        document: Where an end of line is read at word level: after every line, or after every file or row.
        vocabulary: The corpus's words, those that the model knows with their weights (transfer) or all afresh (new), or the
            model's own words (keep).
        normaliser: How the text is rewritten before it is cut into words (default: as for the model).
        min_count: How often a word must stand in the training text; the others are <unk>, which needs some to be learnt.
        max_vocabulary: How many words there may be.
        pretrained: False begins with fresh weights and all layers at the full rate: what the pretraining was worth.
        epochs: How often the training text is read.
        patience: Stop after so many epochs without improvement on the validation text.
        learning_rate: Adam's highest, of the embedding and the softmax; each layer below has that of the one above / 2.6.
        unfreezing: All layers at once (none), as in the authors' code for this stage, or embedding and softmax alone in the
            first epoch and one layer more in each (gradual).
        batch_size: How many parts of the text are read side by side.
        bptt: How many tokens of each make an update (default: 70; of a model of pieces, their length).
        max_norm: The norm of the gradient of a token's mean loss is clipped to this.
        seed: Makes the run repeatable.
        overwrite: Replace the output folder if it exists.
        resume: Go on from the newest checkpoint of a run with this output.
        progress: Show a progress bar.
    """
    folder, found = _output(output, overwrite), hub.find(name)
    seed_everything(seed, verbose=False)
    own = _tokenizer(found)
    trained_on = (bundle.read_recipe(found.folder).get("data") or {}).get("init_args") or {}
    batching = trained_on.get("batching", "stream")
    options: dict[str, Any] = {
        "path": corpus,
        "validation": validation,
        "test": test,
        "config": config,
        "column": text,
        "level": own.level,
        "document": document,
        "normaliser": normaliser or own.normaliser,
        "min_count": min_count,
        "max_vocabulary": max_vocabulary,
        "batching": batching,
        "batch_size": batch_size,
        "bptt": bptt or (trained_on.get("bptt", BPTT) if batching == "pieces" else BPTT),
    }
    options = {option: value for option, value in options.items() if value is not None}
    data = Corpus(**options)
    model, section, met = _language_model(found, own, data, vocabulary, pretrained)
    model.optimization = _optimization(learning_rate, pretrained)
    model.bptt = None
    how = unfreezing if pretrained else "none"
    norm = max_norm * data.bptt if model.sums_steps else max_norm
    fit = _Fit(name, found, folder, epochs, patience, how, norm, seed, resume, progress)
    return fit.run(model, section, data, options, met)


def finetune_classifier(
    name: str,
    *,
    corpus: str,
    output: str,
    label: str,
    text: str = "text",
    validation: str | None = None,
    test: str | None = None,
    config: str | None = None,
    pretrained: bool = True,
    epochs: int = 10,
    patience: int | None = 3,
    learning_rate: float = 1e-2,
    unfreezing: Unfreezing = "gradual",
    batch_size: int = 32,
    max_tokens: int = 1400,
    max_norm: float = 25.0,
    seed: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> FineTuned:
    """Trains a pretrained language model's layers to name the class of a text, and leaves the classifier as a bundle.

    It reads by the language model's vocabulary: make that the texts' own first (`finetune` on the same corpus). Logs and
    checkpoints go to `logs/<the output's name>`.

    Args:
        name: A language model's name, folder or Hub repository.
        corpus: A table (JSON lines, Parquet, CSV), a folder or pattern of such, or a data set of the Hub.
        output: The folder to write.
        label: The column that holds the classes, names or numbers.
        text: The column that holds the texts.
        validation: Another table to choose the epoch by (default: a tenth of the corpus, drawn once for all).
        test: Another table to measure on (default: another tenth).
        config: Which configuration of a data set of the Hub.
        pretrained: False begins with fresh weights and all layers at the full rate: what the pretraining was worth.
        epochs: How often the training texts are read.
        patience: Stop after so many epochs without improvement on the validation texts.
        learning_rate: Adam's highest, of the head; each layer below has that of the one above / 2.6.
        unfreezing: The head alone in the first epoch and one layer more in each (gradual), or all at once (none).
        batch_size: How many texts make an update.
        max_tokens: Of a longer text so many of its last tokens are read.
        max_norm: The gradient's norm is clipped to this.
        seed: Makes the run repeatable.
        overwrite: Replace the output folder if it exists.
        resume: Go on from the newest checkpoint of a run with this output.
        progress: Show a progress bar.
    """
    folder, found = _output(output, overwrite), hub.find(name)
    seed_everything(seed, verbose=False)
    own = _tokenizer(found)
    options: dict[str, Any] = {
        "path": corpus,
        "validation": validation,
        "test": test,
        "config": config,
        "text": text,
        "label": label,
        "batch_size": batch_size,
        "max_tokens": max_tokens,
    }
    options = {option: value for option, value in options.items() if value is not None}
    data = LabelledText(**options)
    data.tokenizer = own
    encoder = hub.load(str(found.folder)) if pretrained else hub.build(str(found.folder))
    assert isinstance(encoder, LanguageModel)
    classes = data.labels
    model = TextClassifier(encoder, len(classes)).train()
    model.tokenizer = own
    model.optimization = _optimization(learning_rate, pretrained)
    section = {
        "class_path": "zoo.models.TextClassifier",
        "init_args": {"encoder": bundle.read_recipe(found.folder)["model"], "num_classes": len(classes)},
    }
    how = unfreezing if pretrained else "none"
    fit = _Fit(name, found, folder, epochs, patience, how, max_norm, seed, resume, progress)
    return fit.run(model, section, data, options, f"{len(classes)} classes: {', '.join(classes)}; {data.sizes}")


def _output(output: str, overwrite: bool) -> Path:
    folder = Path(output).expanduser()
    if folder.exists() and not overwrite:
        raise UserError(f"output {folder} exists: name another folder, or give --overwrite=true")
    if folder.exists() and not (folder / RECIPE).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder} exists and is no model, so it is not overwritten: name another folder")
    return folder


def _optimization(learning_rate: float, pretrained: bool) -> DiscriminativeAdam:
    return DiscriminativeAdam(learning_rate) if pretrained else DiscriminativeAdam(learning_rate, factor=1.0)


def _tokenizer(found: hub.Found) -> Tokenizer:
    if not (found.folder / TOKENIZER).exists():
        bundle.verify(found.folder)  # says so where it is a recipe alone
        raise UserError(f"{found.name} reads no text: fine-tuning begins with a language model")
    return Tokenizer.from_file(found.folder / TOKENIZER)


def _language_model(
    found: hub.Found, own: Tokenizer, data: Corpus, vocabulary: Vocabulary, pretrained: bool
) -> tuple[LanguageModel, dict[str, Any], str]:
    """The model on its vocabulary, which the data then has too; its section of the recipe; and how the words met."""
    of_corpus, data.tokenizer = (own if vocabulary == "keep" else data.tokenizer), own
    before = _unknown(data)
    data.tokenizer = of_corpus
    unknown = f"<unk> is {_unknown(data):.1%} of the training text"
    rows = origins(own, of_corpus)
    if vocabulary == "keep":
        met = f"vocabulary: the model's own {own.vocab_size:,} types; {unknown}"
    else:
        known = np.array([row is not None and new != of_corpus.unk_id for new, row in enumerate(rows)])
        counts = np.bincount(data.ids("train"), minlength=len(known))
        share = counts[known].sum() / counts.sum()
        met = (
            f"vocabulary: {len(known):,} types of the corpus, {known.sum():,} of them the model's words too, {share:.1%} of "
            f"the training text; {unknown}, {before:.1%} by the model's words"
        )
    if not pretrained or vocabulary == "keep":
        section = resized(bundle.read_recipe(found.folder)["model"], of_corpus.vocab_size)
        model = bundle.instantiate(section, found.folder / RECIPE)
        model.tokenizer = of_corpus
        if pretrained:
            bundle.verify(found.folder)
            bundle.load_weights(model, found.folder)
        else:
            met += "; fresh weights"
    else:
        model, section = transfer(found.folder, of_corpus, rows if vocabulary == "transfer" else None)
        met += "; all of them begin afresh" if vocabulary == "new" else ""
    if not isinstance(model, LanguageModel):
        raise UserError(f"{found.name} is a {type(model).__name__}, not a language model")
    return model, section, met


def _unknown(data: Corpus) -> float:
    """The share of the training text that is <unk>."""
    unknown = data.tokenizer.unk_id
    return 0.0 if unknown is None else float(np.mean(data.ids("train") == unknown))


def _notes(done: FineTuned, model: Task) -> list[str]:
    notes = [done.met]
    for was, now in zip(done.before, done.after, strict=False):
        values = f"{card.number(was.value)} before fine-tuning and {card.number(now.value)} after"
        notes.append(f"{was.split}: {done.metric} {values}, with the same vocabulary and text.")
    if isinstance(model, TextClassifier):
        notes += [f"{split}: mean F1 of the classes {value:.2f} %." for split, value in model.macro_f1.items()]
    return notes
