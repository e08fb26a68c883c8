"""A pretrained model made one's own: `zoo.finetune`, `zoo.finetune_classifier` and the command `finetune`.

Howard and Ruder 2018, "Universal language model fine-tuning for text classification", arXiv 1801.06146: discriminative
learning rates along a slanted triangle, gradual unfreezing. A model keeps its own noise.
"""

import hashlib
import inspect
import json
import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import torch
import yaml
from lightning import Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, RichProgressBar

from zoo import bundle, card, hub, runs
from zoo.arguments import check_choice, check_counts, check_positive
from zoo.callbacks import BestWeights, GradualUnfreezing, LastCheckpoint, LearningCurve, Patience, run_folder
from zoo.datamodules import Corpus, LabelledText
from zoo.errors import UserError
from zoo.files import RECIPE, SUMS, TOKENIZER
from zoo.models import TextClassifier
from zoo.models.text_classifier import WEIGHT_DECAY
from zoo.optim import DiscriminativeAdam
from zoo.provenance import commit
from zoo.tasks import LanguageModel, Task
from zoo.tokenizer import Normaliser, Tokenizer
from zoo.transfer import origins, resized, transfer

Vocabulary = Literal["transfer", "keep", "new"]
Unfreezing = Literal["gradual", "none"]
Precision = Literal["32-true", "bf16-mixed", "16-mixed"]

BPTT = 70

_OF_THE_CALL = {"overwrite", "resume", "progress"}
"""Options that say nothing of the model."""


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
    """The same of the stored model."""

    def __str__(self) -> str:
        return "\n".join([*self.comparison("over {:,} predictions of {}"), f"the model lies in {self.folder}"])

    def comparison(self, of: str) -> list[str]:
        """A line a split; `of` has places for its number of predictions and its name."""
        was = {result.split: f"{card.number(result.value)} before, " for result in self.before}
        return [
            f"{self.metric} {of.format(now.predictions, now.split)}: {was.get(now.split, '')}{card.number(now.value)} after"
            for now in self.after
        ]


@dataclass(frozen=True)
class _Fit:
    """What the two kinds of fine-tuning share."""

    asked: dict[str, Any]
    """All options of the call; those that follow are among them."""

    command: str
    """The command line that asks for the same."""

    found: hub.Found
    """The model that it begins with."""

    output: str
    overwrite: bool
    pretrained: bool
    epochs: int
    patience: int | None
    learning_rate: float
    unfreezing: Unfreezing
    max_norm: float
    precision: Precision
    seed: int
    resume: bool
    progress: bool

    @classmethod
    def of(cls, function: Callable[..., FineTuned], asked: dict[str, Any]) -> "_Fit":
        """From a call of the function with these options, seeded; `UserError` where one of those shared cannot be."""
        shared = {each.name: asked[each.name] for each in fields(cls) if each.name in asked}
        fit = cls(dict(asked), _command(function, asked), hub.find(asked["name"]), **shared)
        seed_everything(fit.seed, verbose=False)
        return fit

    def __post_init__(self) -> None:
        check_counts(epochs=self.epochs, patience=self.patience)
        check_positive(max_norm=self.max_norm)
        check_choice("unfreezing", self.unfreezing, get_args(Unfreezing))
        check_choice("precision", self.precision, get_args(Precision))
        if not 0 <= self.seed < 2**32:
            raise UserError(f"seed is {self.seed}; it must lie in [0, 2**32)")
        _check_output(self.folder, self.overwrite)

    @property
    def folder(self) -> Path:
        """Where the bundle goes."""
        return Path(self.output).expanduser()

    @property
    def tokenizer(self) -> Tokenizer:
        """Its vocabulary; `UserError` where it reads no text."""
        file = self.found.folder / TOKENIZER
        if not file.exists():
            bundle.verify(self.found.folder)  # says so where it is a recipe alone
            raise UserError(f"{self.found.name} reads no text: fine-tuning begins with a language model")
        return Tokenizer.from_file(file)

    def run(
        self, model: Task, section: dict[str, Any], data: Corpus | LabelledText, options: dict[str, Any], met: str
    ) -> FineTuned:
        """Measures, fits, measures and writes; `section` and `options` are the recipe's of the model and the data."""
        runs.hush()
        name, began, base = self.folder.name, commit(), card.read(self.found.folder).card
        norm = self.max_norm * data.bptt if isinstance(data, Corpus) and model.sums_steps else self.max_norm
        rate = self.learning_rate
        changed: dict[str, Any] = {} if self.pretrained else {"factor": 1.0}
        if isinstance(model, TextClassifier):
            changed["weight_decay"] = WEIGHT_DECAY
        model.optimization = DiscriminativeAdam(rate, **changed)
        print(met)
        curve, best = LearningCurve(), BestWeights()
        terms = _Terms(self._terms(data.tokenizer))
        checkpoint = terms.checkpoint(name) if self.resume else None
        callbacks: list[Callback] = [LastCheckpoint(), curve, best, terms]
        if self.patience is not None:
            metric = model.metric_type
            mode = "max" if metric.higher_is_better else "min"
            callbacks.append(Patience(f"validation/{metric.name}", patience=self.patience, mode=mode))
        if self.unfreezing == "gradual" and self.pretrained:
            callbacks.append(GradualUnfreezing())
        trainer = Trainer(
            max_epochs=self.epochs,
            gradient_clip_val=norm,
            precision=self.precision,
            callbacks=[*callbacks, *([RichProgressBar()] if self.progress else [])],
            logger=runs.loggers(name),
            log_every_n_steps=1,
            enable_progress_bar=self.progress,
            enable_model_summary=False,
            **runs.trainer_defaults(),
        )
        before = runs.measure_splits(trainer, model, data) if isinstance(model, LanguageModel) else []
        if before and self.pretrained:
            best.take(model, epoch=0)
        try:
            trainer.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True if checkpoint else None)
        except (KeyboardInterrupt, SystemExit):
            print(f"interrupted; --resume true goes on from what {run_folder(trainer)} has", file=sys.stderr)
            raise
        facts = {"seed": self.seed, "commit": began}
        if self.pretrained:
            facts["started_from"] = self.found.origin
        measured, weights = runs.measure(trainer, model, data, curve, best, facts, finished=True)
        done = FineTuned(self.folder, met, model.metric_unit, before, measured.results)
        measured.command, measured.notes = self.command, [met, *_notes(done, model)]
        if trainer.current_epoch < self.epochs:
            ended = f"stopped after {trainer.current_epoch} of {self.epochs} epochs"
            measured.notes.append(f"{ended}, {self.patience} of them without improvement")
        described = self._card(base, measured)
        recipe = {
            "seed_everything": self.seed,
            "trainer": {"max_epochs": self.epochs, "gradient_clip_val": norm, "precision": trainer.precision},
            "model": section,
            "data": {"class_path": f"zoo.datamodules.{type(data).__name__}", "init_args": options},
            "card": {key: value for key, value in vars(described).items() if value},
        }
        text = yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True, width=120)
        runs.write(self.folder, name, model, weights, text, described, measured, curve, run_folder(trainer))
        return done

    def _card(self, base: card.Card, measured: card.Measured) -> card.Card:
        title = "{}, fine-tuned on {}" if self.pretrained else "The network of {}, trained on {}"
        return card.Card(
            title=title.format(self.found.name, measured.dataset_name),
            paper=base.paper,
            arxiv=base.arxiv,
            metric=measured.metric,
            license=base.license,
        )

    def _terms(self, tokenizer: Tokenizer) -> dict[str, Any]:
        """What a run must share with the one that it goes on from."""
        terms = {option: value for option, value in self.asked.items() if option not in _OF_THE_CALL}
        sums = (self.found.folder / SUMS).read_bytes() if self.pretrained else b""
        return {
            **terms,
            "output": str(self.folder.resolve()),
            "vocabulary of the corpus": tokenizer.fingerprint,
            "pretrained weights": hashlib.sha256(sums).hexdigest(),
        }


class _Terms(Callback):
    """Keeps what a run was begun with in its checkpoints."""

    def __init__(self, terms: dict[str, Any]) -> None:
        self.terms: dict[str, Any] = json.loads(json.dumps(terms, default=str))

    def state_dict(self) -> dict[str, Any]:
        return self.terms

    def checkpoint(self, name: str) -> Path:
        """The newest with this output of the runs called so; `UserError` where that was begun with something else."""
        begun = {file: self._terms_in(file) for file in runs.last_checkpoints(name)}
        own = [file for file, terms in begun.items() if terms.get("output") == self.terms["output"]]
        file = runs.last_checkpoint(name, "--resume", own)
        there = begun[file]
        other = [f"{term} {there.get(term)}, not {now}" for term, now in self.terms.items() if there.get(term) != now]
        if other:
            began = "; ".join(other) if there else "another command"
            raise UserError(f"--resume: {file} was begun with {began}; ask for the same, or leave out --resume")
        return file

    def _terms_in(self, file: Path) -> dict[str, Any]:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        terms: dict[str, Any] = checkpoint["callbacks"].get(self.state_key, {})
        return terms


def _notes(done: FineTuned, model: Task) -> list[str]:
    """The bullets of the card on what was measured."""
    if isinstance(model, TextClassifier):
        return [f"{split}: mean F1 of the classes {value:.2f} %" for split, value in model.macro_f1.items()]
    return [f"{line}, with the same vocabulary and text" for line in done.comparison("of the {1} split")]


def _command(function: Callable[..., FineTuned], asked: dict[str, Any]) -> str:
    """The command line that does it: what differs from the defaults, and of paths their last parts alone."""
    task = ["--task", "classification"] if function is finetune_classifier else []
    shown = {option: str(value).lower() if isinstance(value, bool) else str(value) for option, value in asked.items()}
    for option in {"name", "corpus", "validation", "test", "output"}:
        if option == "output" or os.path.exists(shown[option]):
            shown[option] = Path(shown[option]).name
    words = ["python", "cli.py", "finetune", shown["name"], *task]
    for option, parameter in inspect.signature(function).parameters.items():
        if option != "name" and option not in _OF_THE_CALL and asked[option] != parameter.default:
            words += [f"--{option}", shown[option]]
    return shlex.join(words)


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
    precision: Precision = "32-true",
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
            (`zoo.datamodules.Corpus`).
        output: The folder to write.
        validation: Another text to choose the epoch by (default: a twentieth of the corpus).
        test: Another text to measure on (default: the last twentieth of the corpus).
        config: Which configuration of a data set of the Hub.
        text: The column of a table that holds the text.
        document: Where an end of line is read at word level: after every line, or after every file or row.
        vocabulary: The corpus's words, those that the model knows with their weights (transfer) or all afresh (new), or the
            model's own words (keep).
        normaliser: How the text is rewritten before it is cut into words (default: as for the model).
        min_count: How often a word must stand in the training text; the others are <unk>, learnt only if there are some.
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
        precision: That of the training, as Lightning's Trainer names it.
        seed: Makes the run repeatable.
        overwrite: Replace the output folder if it exists.
        resume: Go on from the newest checkpoint of a run with this output.
        progress: Show a progress bar.
    """
    fit = _Fit.of(finetune, locals())
    check_choice("vocabulary", vocabulary, get_args(Vocabulary))
    own = fit.tokenizer
    if own.level == "character" and (normaliser is not None or document != "line"):
        raise UserError(f"{name} reads characters: normaliser and document are for models of words, leave them out")
    trained_on = (bundle.read_recipe(fit.found.folder).get("data") or {}).get("init_args") or {}
    batching = trained_on.get("batching", "stream")
    options = _given(
        path=corpus,
        validation=validation,
        test=test,
        config=config,
        column=text,
        level=own.level,
        document=document,
        normaliser=own.normaliser if normaliser is None else normaliser,
        min_count=min_count,
        max_vocabulary=max_vocabulary,
        batching=batching,
        batch_size=batch_size,
        bptt=(trained_on.get("bptt", BPTT) if batching == "pieces" else BPTT) if bptt is None else bptt,
    )
    data = Corpus(**options)
    model, section, met = _language_model(fit.found, own, data, vocabulary, pretrained)
    model.bptt = None
    return fit.run(model, section, data, options, f"{met}; {data.sizes}")


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
    patience: int | None = None,
    learning_rate: float = 1e-2,
    unfreezing: Unfreezing = "gradual",
    batch_size: int = 32,
    max_tokens: int = 1400,
    max_norm: float = 25.0,
    precision: Precision = "32-true",
    seed: int = 1,
    overwrite: bool = False,
    resume: bool = False,
    progress: bool = True,
) -> FineTuned:
    """Trains a pretrained language model's layers to name the class of a text, and leaves the classifier as a bundle.

    It reads by the language model's vocabulary: make that the texts' own first (`finetune`), on the training texts alone, as
    it does where the corpus has splits (`train.jsonl`, `validation.jsonl`, `test.jsonl` in one folder). Logs and checkpoints
    go to `logs/<the output's name>`.

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
        patience: Stop after so many epochs without improvement on the validation texts, whose best epochs mostly come
            when the rate has fallen.
        learning_rate: Adam's highest, of the head; each layer below has that of the one above / 2.6.
        unfreezing: The head alone in the first epoch and one layer more in each (gradual), or all at once (none).
        batch_size: How many texts make an update.
        max_tokens: Of a longer text so many of its last tokens are read.
        max_norm: The gradient's norm is clipped to this.
        precision: That of the training, as Lightning's Trainer names it.
        seed: Makes the run repeatable.
        overwrite: Replace the output folder if it exists.
        resume: Go on from the newest checkpoint of a run with this output.
        progress: Show a progress bar.
    """
    fit = _Fit.of(finetune_classifier, locals())
    if batch_size < 3:
        raise UserError(f"batch_size is {batch_size}; it must be 3 or more, so that no batch has a single text")
    options = _given(
        path=corpus,
        validation=validation,
        test=test,
        config=config,
        text=text,
        label=label,
        batch_size=batch_size,
        max_tokens=max_tokens,
    )
    data = LabelledText(**options)
    folder = fit.found.folder
    data.tokenizer = fit.tokenizer
    encoder = bundle.load(folder) if pretrained else bundle.build(folder)
    if not isinstance(encoder, LanguageModel):
        raise UserError(f"{name} is a {type(encoder).__name__}, not a language model")
    classes = data.labels
    model = TextClassifier(encoder, len(classes), max_tokens=max_tokens).train()
    model.tokenizer = data.tokenizer
    section = {
        "class_path": "zoo.models.TextClassifier",
        "init_args": {
            "encoder": bundle.read_recipe(folder)["model"],
            "num_classes": len(classes),
            "max_tokens": max_tokens,
        },
    }
    met = f"{len(classes)} classes: {', '.join(classes)}; {data.sizes}"
    return fit.run(model, section, data, options, met if pretrained else f"{met}; fresh weights")


def _given(**options: Any) -> dict[str, Any]:
    """Those that are not None, paths as text, as a recipe has them."""
    given = ((option, value) for option, value in options.items() if value is not None)
    return {option: str(value) if isinstance(value, Path) else value for option, value in given}


def _check_output(folder: Path, overwrite: bool) -> None:
    """Before a training whose result could not be written."""
    there = os.path.exists(folder)  # Path.exists raises for a name too long
    if there and not overwrite:
        raise UserError(f"output {folder} exists: name another folder, or give overwrite=True (--overwrite true)")
    if there and not (folder / RECIPE).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"output {folder} exists and is no model, so it is not overwritten: name another folder")
    parent = next(parent for parent in folder.absolute().parents if os.path.exists(parent))
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"output {folder} cannot be written: {parent} is no folder in which you may write")


def _language_model(
    found: hub.Found, own: Tokenizer, data: Corpus, vocabulary: Vocabulary, pretrained: bool
) -> tuple[LanguageModel, dict[str, Any], str]:
    """The model on its vocabulary, which the data then has too; its section of the recipe; and how the words met."""
    of_corpus = own if vocabulary == "keep" else data.tokenizer
    data.tokenizer = own
    before = _unknown(data)
    data.tokenizer = of_corpus
    _check_words(found, of_corpus, data, vocabulary)
    unknown = f"<unk> is {_unknown(data):.1%} of the training text"
    rows = origins(own, of_corpus)
    if vocabulary == "keep":
        met = f"vocabulary: the model's own {own.vocab_size:,} types; {unknown}"
    else:
        known = np.array([row is not None and new != of_corpus.unk_id for new, row in enumerate(rows)])
        counts = _counts(data)
        share = counts[known].sum() / counts.sum()
        met = (
            f"vocabulary: {len(known):,} types of the corpus, {known.sum():,} of them the model's words too, {share:.1%} of "
            f"the training text; {unknown}, {before:.1%} by the model's words"
        )
    section = resized(bundle.read_recipe(found.folder)["model"], of_corpus.vocab_size)
    if not pretrained:
        model = bundle.instantiate(section, found.folder / RECIPE)
        model.tokenizer = of_corpus
        met += "; fresh weights"
    elif vocabulary == "keep":
        model = bundle.load(found.folder).train()
    else:
        model, section = transfer(found.folder, of_corpus, rows if vocabulary == "transfer" else None)
        met += "; all of them begin afresh" if vocabulary == "new" else ""
    if not isinstance(model, LanguageModel):
        raise UserError(f"{found.name} is a {type(model).__name__}, not a language model")
    return model, section, met


def _check_words(found: hub.Found, tokenizer: Tokenizer, data: Corpus, vocabulary: Vocabulary) -> None:
    """Raises `UserError` where the vocabulary has nothing of the training text but line ends."""
    counts = _counts(data)
    counts[list(tokenizer.markers)] = 0
    if counts.any():
        return
    if vocabulary == "keep":
        raise UserError(
            f"none of the corpus's types is among the {tokenizer.vocab_size:,} of {found.name}: begin with rows of "
            "their own (vocabulary 'new'), or take another model"
        )
    raise UserError(
        f"the training text has no types but line ends by the rules {data.normaliser!r} with min_count {data.min_count}: "
        "normaliser 'none' leaves its words as they stand, min_count 1 keeps the rare ones"
    )


def _counts(data: Corpus) -> npt.NDArray[np.int64]:
    """How often each type stands in the training text."""
    return np.bincount(data.ids("train"), minlength=data.tokenizer.vocab_size)


def _unknown(data: Corpus) -> float:
    """The share of the training text that is <unk>."""
    unknown = data.tokenizer.unk_id
    return 0.0 if unknown is None else float(np.mean(data.ids("train") == unknown))
