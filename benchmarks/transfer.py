"""What pretraining is worth: a fine-tuned model beside the same network from scratch, on WikiText-2 and on film reviews.

A row is appended to `transfer.csv` when it ends, and is not repeated; an interrupted one goes on from its last checkpoint.
The table is made of that file alone.
"""

import argparse
import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import report
import torch

from zoo.datamodules import LabelledText
from zoo.finetuning import FineTuned, finetune, finetune_classifier
from zoo.provenance import hardware
from zoo.runs import hush, last_checkpoints

NAME = "zaremba-small-ptb"
VOCABULARY, EPOCHS = 10_000, 3
REVIEWS, LABEL = "local/movie_ratings", "label3"
"""Pang and Lee's scale data v1.0 (www.cs.cornell.edu/people/pabo/movie-review-data): a table with this column and `text`."""
MAX_TOKENS, CLASSIFIER_EPOCHS = 400, 8
COLUMNS = ("task", "begins with", "metric", "before", "validation", "test", "epochs", "seconds", "hardware")

NOTES = f"""\
{NAME}, two layers of 200 units without dropout, {EPOCHS} epochs on WikiText-2 (its {VOCABULARY:,} most frequent words, by
the Penn Treebank's rules): `zoo.finetune` and the same with `pretrained=False`, fresh weights and all layers at one rate,
by the same optimiser. Perplexities are of all predictions of a split, with the same vocabulary in both rows.

Film reviews (Pang and Lee's scale data, three classes), 80/10/10 % drawn once for all, the last {MAX_TOKENS} tokens of a
review: `zoo.finetune_classifier` on the language model as it is; on the same after `zoo.finetune` on the training reviews,
without their labels; and from scratch, with the vocabulary of the second. Accuracy in % of the held-out reviews, 501 and
497 of them: a standard error of 2.2 points. The network from scratch named one class for all until its rate had fallen.

On one thread each, beside other work, which the seconds show.
"""


class Row(NamedTuple):
    """One training."""

    task: str
    start: str

    def folder(self, home: Path) -> Path:
        """Where its bundle goes."""
        return home / f"{self.task} {self.start}".replace(" ", "-").replace("'", "")

    def place(self, home: Path) -> dict[str, Any]:
        """The options that say so, and whether it goes on."""
        folder = self.folder(home)
        return {"output": str(folder), "overwrite": True, "resume": bool(last_checkpoints(folder.name))}


def wikitext(row: Row, home: Path) -> FineTuned:
    """A language model of WikiText-2."""
    return finetune(
        NAME,
        corpus="Salesforce/wikitext",
        config="wikitext-2-v1",
        max_vocabulary=VOCABULARY,
        epochs=EPOCHS,
        pretrained=row.start != "nothing",
        **row.place(home),
    )


def language_of_reviews(row: Row, home: Path) -> FineTuned:
    """A language model of the training reviews."""
    reviews = home / "reviews.jsonl"
    texts = LabelledText(REVIEWS, LABEL).texts("train")
    reviews.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return finetune(
        NAME,
        corpus=str(reviews),
        document="file",
        max_vocabulary=VOCABULARY,
        epochs=EPOCHS,
        **row.place(home),
    )


def classes_of_reviews(row: Row, home: Path) -> FineTuned:
    """A classifier of reviews."""
    tuned = str(TUNED.folder(home))
    return finetune_classifier(
        NAME if row.start == "Penn Treebank" else tuned,
        corpus=REVIEWS,
        label=LABEL,
        epochs=CLASSIFIER_EPOCHS,
        max_tokens=MAX_TOKENS,
        pretrained=row.start != "nothing",
        **row.place(home),
    )


TUNED = Row("reviews", "Penn Treebank")
ROWS: dict[Row, Callable[[Row, Path], FineTuned]] = {
    Row("WikiText-2", "Penn Treebank"): wikitext,
    Row("WikiText-2", "nothing"): wikitext,
    TUNED: language_of_reviews,
    Row("classes of reviews", "nothing"): classes_of_reviews,
    Row("classes of reviews", "Penn Treebank"): classes_of_reviews,
    Row("classes of reviews", "Penn Treebank, then the reviews"): classes_of_reviews,
}


def measure(row: Row, home: Path) -> dict[str, str]:
    """Trains a row."""
    done = ROWS[row](row, home)
    before = [f"{result.value:.2f}" for result in done.before if result.split == "test"] or [""]
    with (done.folder / "curve.csv").open() as file:
        *_, last = csv.DictReader(file)
    numbers = before + [f"{result.value:.2f}" for result in done.after]
    values = [row.task, row.start, done.metric, *numbers, last["epoch"], last["seconds"], hardware(torch.device("cpu"))]
    return dict(zip(COLUMNS, values, strict=True))


def main() -> None:
    """Those rows that are not there yet, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="where csv and md are")
    parser.add_argument("--models", type=Path, default=Path("logs", "transfer"), help="where the bundles go")
    arguments = parser.parse_args()
    hush()
    arguments.models.mkdir(parents=True, exist_ok=True)
    file = arguments.output / "transfer.csv"
    if not file.exists():
        file.write_text(",".join(COLUMNS) + "\n")
    with file.open() as source:
        done = list(csv.DictReader(source))
    there = {(found["task"], found["begins with"]) for found in done}
    for row in ROWS:
        if row not in there:
            done.append(measure(row, arguments.models))
            with file.open("a", newline="") as target:
                csv.DictWriter(target, COLUMNS).writerow(done[-1])
    table = [[found[column] for column in COLUMNS[:-1]] for found in done]
    report.write(str(arguments.output / Path(__file__).name), "What pretraining is worth", COLUMNS[:-1], table, NOTES)


if __name__ == "__main__":
    main()
