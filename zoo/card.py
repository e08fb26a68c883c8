"""The card of a model: what its recipe says, what was measured, and how to use it. Imports neither torch nor Lightning.

Measured numbers live in one place, the front matter of the bundle's README.md (as the Hub's `model-index`); the rest of
the card, and the table of models, are written from there and from the recipe.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from zoo.errors import UserError, in_one_line
from zoo.files import CARD, RECIPE, SUMS, has_weights

ARXIV = "https://arxiv.org/abs/"
DATASETS = "https://huggingface.co/datasets/"

SUMMED = "the negative log-likelihood is summed in float64 over every predicted token and divided once"
STREAMED = f"each split read as one stream with the state carried through; {SUMMED}"


@dataclass
class Kind:
    """What a card says of all models of a task."""

    tags: tuple[str, ...]
    pipeline: str
    """The Hub's name of the task."""

    task: str
    use: str
    """Lines of Python with a loaded `model`, which was called NAME."""


_TEXT = Kind(
    ("language-modeling",),
    "text-generation",
    "Language modelling",
    'print(model.score("the company said it expects a profit"))\n'
    'print(model.generate("the company said", tokens=30, seed=1))',
)
_OF_ANY_LANGUAGE = "text = model.generate(tokens=30, seed=1)\nprint(text)\nprint(model.score(text))"
_KINDS = {
    "texts": Kind(
        ("text-classification",),
        "text-classification",
        "Text classification",
        'print(model.classify("a film to remember"))',
    ),
    "accuracy": Kind(
        ("image-classification", "sequential-mnist"),
        "image-classification",
        "Sequence classification",
        'recipe = zoo.bundle.read_recipe(zoo.hub.find("NAME").folder)\n'
        'data = zoo.datamodules.SequentialMNIST(**recipe["data"]["init_args"])\n'
        "pixels, labels = next(iter(data.test_dataloader()))  # (T, B, 1), (B,)\n"
        "print(model.classify(pixels).argmax(-1), labels)",
    ),
    "exact_match": Kind(
        ("sequence-to-sequence", "addition"),
        "text-generation",
        "Addition",
        'print(model.answer("12+34"))',
    ),
}
"""By the material, else by the metric, where it is not a language model's."""

_ENGLISH = {"ptb-text-only/ptb_text_only", "Salesforce/wikitext", "afmck/text8"}
"""Data sets of English text."""


def _kind(card: "Card", measured: "Measured | None") -> Kind:
    by_metric = _KINDS.get(_metric_name(measured.metric if measured else card.metric), _TEXT)
    kind = _KINDS.get(measured.material, by_metric) if measured else by_metric
    if kind is _TEXT and measured and measured.dataset not in _ENGLISH:
        return replace(_TEXT, use=_OF_ANY_LANGUAGE)
    return kind


def _metric_name(metric: str) -> str:
    return metric.split(" per ")[0].split(" in ")[0].replace(" ", "_")


@dataclass
class Card:
    """The `card` section of a recipe: what was published, and what was chosen where sources differ."""

    title: str = ""
    """What the model is, in a few words."""

    paper: str = ""
    """Authors, year and title."""

    arxiv: str = ""
    """The paper's arXiv number."""

    metric: str = "perplexity per word"
    """What the numbers are, with their unit."""

    published: dict[str, float] = field(default_factory=dict)
    """The numbers to compare with, by split."""

    source: str = ""
    """Where in the paper they stand, or where else."""

    source_link: str = ""
    """The page that has them, where that is not the paper."""

    goes_on_from: str = ""
    """The recipe whose finished model this one begins with."""

    notes: list[str] = field(default_factory=list)
    """Choices and remarks, one a bullet."""

    license: str = ""
    """The licence of the weights, as the Hub abbreviates it."""


@dataclass
class Result:
    """A number measured on the stored weights."""

    split: str
    value: float
    predictions: int
    """Over how many tokens."""


@dataclass
class Evaluated:
    """Numbers of another way to score the stored weights (`zoo.evaluation`), its constants chosen on the validation text."""

    title: str
    options: str
    """What `validate` and `test` are given for it."""

    results: list[Result]
    note: str = ""
    repeatable: bool = True
    """False where it takes weights that are stored nowhere."""


@dataclass
class Measured:
    """What a training left behind."""

    dataset: str
    """The data set's id on the Hub."""

    dataset_name: str
    metric: str
    results: list[Result] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    """Seed, epochs, updates, wall time, hardware, versions and commit."""

    finished: bool = True
    """False where the run stopped before its schedule ended: such weights are no published model."""

    evaluations: list[Evaluated] = field(default_factory=list)

    notes: list[str] = field(default_factory=list)
    """What else was measured, one a bullet."""

    command: str = ""
    """What was called to train it, where that is not `fit` with its recipe."""

    protocol: str = STREAMED
    """How the results were measured."""

    material: str = ""
    """What was predicted, where the metric does not tell."""


@dataclass
class Entry:
    """What is known of a model without loading it."""

    name: str
    card: Card
    measured: Measured | None
    weights: bool

    def ours(self, split: str = "test") -> float | None:
        """Our number, where there is one."""
        results = self.measured.results if self.measured else []
        return next((result.value for result in results if result.split == split), None)


def read(folder: Path) -> Entry:
    """Reads a folder's recipe and card; `UserError` names the file that is none."""
    file = folder / RECIPE
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        card = Card(**recipe.get("card") or {})
    except (OSError, yaml.YAMLError, TypeError, AttributeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no recipe: {in_one_line(error)}") from error
    return Entry(folder.name, card, _measured(folder / CARD), has_weights(folder))


def _measured(file: Path) -> Measured | None:
    if not file.exists():
        return None
    try:
        matter = front_matter(file.read_text(encoding="utf-8"))
        if "measured" not in matter:
            return None
        (model,) = matter["model-index"]
        results = [
            Result(r["dataset"]["split"], r["metrics"][0]["value"], r["metrics"][0]["args"]["predictions"])
            for r in model["results"]
        ]
        evaluations = [
            Evaluated(**each | {"results": [Result(**result) for result in each["results"]]})
            for each in matter["measured"].pop("evaluations", [])
        ]
        return Measured(results=results, evaluations=evaluations, **matter["measured"])
    except (OSError, yaml.YAMLError, KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{file}: the front matter is not a card's: {in_one_line(error)}") from error


def front_matter(text: str) -> dict[str, Any]:
    """The YAML between the leading `---` lines; empty where there is none."""
    parts = text.split("---\n", 2)
    return yaml.safe_load(parts[1]) or {} if len(parts) == 3 and not parts[0] else {}


def render(
    name: str,
    card: Card,
    measured: Measured | None,
    *,
    repo_id: str | None = None,
    base_model: str | None = None,
    picture: bool = True,
) -> str:
    """The text of README.md, for the model's folder here or for the Hub repository `repo_id`.

    `base_model` is the repository of the model that the training started from; `picture` says whether there is one of the
    learning curve.
    """
    matter = _front_matter(name, card, measured, base_model)
    return f"---\n{matter}---\n\n{_body(name, card, measured, repo_id, picture)}"


def _front_matter(name: str, card: Card, measured: Measured | None, base_model: str | None) -> str:
    kind = _kind(card, measured)
    matter: dict[str, Any] = {
        "library_name": "recurrent-zoo",
        **({"license": card.license} if card.license else {}),
        "tags": [*kind.tags, "recurrent-neural-network", *([f"arxiv:{card.arxiv}"] if card.arxiv else [])],
    }
    if measured:
        results = [
            {
                "task": {"type": kind.pipeline, "name": kind.task},
                "dataset": {"type": measured.dataset, "name": measured.dataset_name, "split": result.split},
                "metrics": [
                    {
                        "type": _metric_name(measured.metric),
                        "name": f"{result.split} {measured.metric}",
                        "value": result.value,
                        "args": {"predictions": result.predictions},
                    }
                ],
            }
            for result in measured.results
        ]
        matter |= {
            **({"language": "en"} if measured.dataset in _ENGLISH else {}),
            **({"datasets": [measured.dataset]} if "/" in measured.dataset else {}),
            **({"base_model": base_model} if base_model else {}),
            "pipeline_tag": kind.pipeline,
            "model-index": [{"name": name, "results": results}],
            "measured": {
                "dataset": measured.dataset,
                "dataset_name": measured.dataset_name,
                "metric": measured.metric,
                **({"protocol": measured.protocol} if measured.protocol != STREAMED else {}),
                **({"material": measured.material} if measured.material in _KINDS else {}),
                "finished": measured.finished,
                "training": measured.training,
                **({"command": measured.command} if measured.command else {}),
                **({"notes": measured.notes} if measured.notes else {}),
                **({"evaluations": [asdict(each) for each in measured.evaluations]} if measured.evaluations else {}),
            },
        }
    return yaml.safe_dump(matter, sort_keys=False, allow_unicode=True)


def _body(name: str, card: Card, measured: Measured | None, repo_id: str | None, picture: bool) -> str:
    model = repo_id or name
    paragraphs = [f"# {name}", f"{card.title}."] if card.title else [f"# {name}"]
    if card.paper:
        link = f", [arXiv {card.arxiv}]({ARXIV}{card.arxiv})" if card.arxiv else ""
        paragraphs.append(f"Paper: {card.paper}{link}.")
    if measured is None:
        paragraphs.append("**A recipe without weights: not trained yet.**")
    elif not measured.finished:
        whose = "the paper's model" if card.paper else "a finished model"
        paragraphs.append(f"**Cut short: the run stopped before its schedule ended; these weights are not {whose}.**")
    if measured and measured.command and not repo_id:
        model = f"path/to/{name}"  # it lies where the user put it, under no name
    if measured or card.published:
        paragraphs.append(_numbers(model, card, measured))
    if measured and measured.notes:
        paragraphs.append("\n".join(f"- {note}" for note in measured.notes))
    if measured and measured.evaluations:
        paragraphs += ["## Scored in other ways", _evaluations(model, measured)]
    if card.notes:
        paragraphs += ["## Choices", "\n".join(f"- {note}" for note in card.notes)]
    paragraphs.append("## Use")
    if repo_id:
        paragraphs.append("In a checkout of Recurrent Zoo, recurrent networks of 2014 to 2018 in PyTorch Lightning:")
    first = card.goes_on_from
    begins = f" --weights logs/{first}/version_0/{first}" if first else ""
    again = measured.command if measured and measured.command else f"python cli.py fit {model}{begins}"
    paragraphs.append(_use(model, _kind(card, measured), measured is not None, again))
    if measured:
        data = f"[{measured.dataset_name}]({DATASETS}{measured.dataset})"
        facts = {"data": data if "/" in measured.dataset else measured.dataset_name, **measured.training}
        bullets = "\n".join(f"- {fact.replace('_', ' ')}: {value}" for fact, value in facts.items())
        paragraphs += ["## Training", bullets, *(["![learning curve](curve.png)"] if picture else [])]
    return "\n\n".join(paragraphs) + "\n"


def _numbers(model: str, card: Card, measured: Measured | None) -> str:
    ours = {result.split: result for result in measured.results} if measured else {}
    metric = measured.metric if measured else card.metric
    decimals = 3 if metric.startswith("bits") else 2
    columns = ("published", "this file", "difference", "predictions") if measured else ("published",)
    rows = [f"| {metric} | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for split in ("validation", "test"):
        published, here = card.published.get(split), ours.get(split)
        difference = f"{here.value - published:+.{decimals}f}" if here and published else ""
        cells = (
            as_published(published),
            number(here.value if here else None),
            difference,
            f"{here.predictions:,}" if here else "",
        )
        rows.append(f"| {split} | {' | '.join(cells[: len(columns)])} |")
    lines = ["\n".join(rows)]
    if card.source:
        page = f", [{card.source_link.split('://')[-1]}]({card.source_link})" if card.source_link else ""
        lines.append(f"The published numbers{page}: {card.source}.")
    if measured and measured.results:
        lines.append(
            f"This file: measured on the stored float16 weights, {measured.protocol}. "
            f"`python cli.py test {model}` repeats the test number."
        )
    return "\n\n".join(lines)


def _evaluations(model: str, measured: Measured) -> str:
    rows = [f"| {measured.metric} | validation | test |", "|---|---|---|"]
    commands = []
    for each in measured.evaluations:
        values = {result.split: result.value for result in each.results}
        rows.append(f"| {each.title} | {number(values.get('validation'))} | {number(values.get('test'))} |")
        if each.repeatable:
            commands.append(f"python cli.py test {model} {each.options}")
    chosen = any("--evaluation" in each.options for each in measured.evaluations)
    text = "The constants were chosen on the validation text alone." if chosen else ""
    notes = "\n".join(f"- {each.title}: {each.note}" for each in measured.evaluations if each.note)
    repeated = "```\n" + "\n".join(commands) + "\n```" if commands else ""
    return "\n\n".join(filter(None, ["\n".join(rows), text, notes, repeated]))


def _use(model: str, kind: Kind, weights: bool, again: str) -> str:
    if not weights:
        return f"```\n{again}\n```"
    return (
        f'```python\nimport zoo\n\nmodel = zoo.load("{model}")\n{kind.use.replace("NAME", model)}\n```\n\n'
        f"```\npython cli.py test {model}\n{again}\n```"
    )


def number(value: float | None) -> str:
    """One of our numbers to four significant digits or, from 1,000 on, in whole numbers; or nothing."""
    return "" if value is None else f"{value:#.4g}" if value < 999.95 else f"{value:.0f}"


def as_published(value: float | None) -> str:
    """A published number as it stands there, or nothing."""
    return "" if value is None else f"{value:g}"


def table(entries: Iterable[Entry]) -> str:
    """The table of models in Markdown, those without weights in one of their own that a reader opens."""
    lines = ["| model | what it is | metric (test) | published | ours | weights |", "|---|---|---|---|---|---|"]
    entries = sorted(entries, key=lambda entry: not entry.weights)
    untrained = [_row(entry) for entry in entries if not entry.weights]
    summary = f"<details><summary>{len(untrained)} recipes whose weights are not trained yet</summary>"
    trained = [_row(entry) for entry in entries if entry.weights]
    return "\n".join([*lines, *trained, "", summary, "", *lines, *untrained, "", "</details>"])


def _row(entry: Entry) -> str:
    link = f"[{entry.name}](checkpoints/{entry.name})"
    published = as_published(entry.card.published.get("test"))
    page = entry.card.source_link or (f"{ARXIV}{entry.card.arxiv}" if entry.card.arxiv else "")
    published = f"[{published}]({page})" if published and page else published
    weights = "yes" if entry.weights else "not yet"
    return f"| {link} | {entry.card.title} | {entry.card.metric} | {published} | {number(entry.ours())} | {weights} |"


def training_times(entries: Iterable[Entry]) -> str:
    """The text of `benchmarks/training.md`: how long the trained models took, and on what."""
    lines = [
        "# How long the models trained",
        "",
        "| model | hardware | torch | precision | epochs | seconds an epoch | ms an update |",
        "|---|---|---|---|---|---|---|",
    ]
    for entry in entries:
        if entry.weights and entry.measured:
            run = entry.measured.training
            pace = f"{run['seconds'] / run['epochs']:,.1f} | {1000 * run['seconds'] / run['updates']:,.1f}"
            how = f"{run['hardware']} | {run['torch']} | {run.get('precision', '32-true')}"
            lines.append(f"| {entry.name} | {how} | {run['epochs']} | {pace} |")
    remark = (
        "Wall time, with validation after each epoch and whatever else the machine did; `update.md` has updates alone."
    )
    lines += ["", remark, "", "Written by `make cards` from the cards.", ""]
    return "\n".join(lines)


MODELS = "<!-- models: written by `make cards` -->\n", "\n<!-- end of models -->"
SPEEDS = "<!-- speeds: written by `make cards` from benchmarks/recurrent.md -->\n", "\n<!-- end of speeds -->"


def speeds(measured: str) -> str:
    """The README's excerpt of `benchmarks/recurrent.md`: the layer with zoneout beside the eager loop and torch's."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in measured.splitlines() if line.startswith("| ")]
    lines = [
        "| size | eager loop / ours | torch.nn.LSTM / ours | the same, both in bfloat16 | ours / ours in bfloat16 |",
        "|---|---|---|---|---|",
    ]
    kinds = ("zoo.LSTM, zoneout", "zoo.LSTM, zoneout, bfloat16", "torch.nn.LSTM, bfloat16")
    for ours, rounded, theirs in zip(*([row for row in rows if row[1] == kind] for kind in kinds), strict=True):
        own, half, vendor = (float(row[2]) for row in (ours, rounded, theirs))
        lines.append(f"| {' | '.join([*ours[:1], *ours[3:5], f'{vendor / half:.2f}', f'{own / half:.2f}'])} |")
    where = next(line for line in measured.splitlines() if line.startswith("Measured "))
    return "\n".join([*lines, "", where])


def _between(text: str, marks: tuple[str, str], new: str) -> str:
    before, rest = text.split(marks[0])
    _, after = rest.split(marks[1])
    return f"{before}{marks[0]}{new}{marks[1]}{after}"


def written(root: Path) -> dict[Path, str]:
    """Every generated text of the source checkout `root` as it should stand.

    The cards, the README with its tables, and the recipes' lines in `SHA256SUMS`: a remark in a recipe may be mended after
    the training, its model section may not.
    """
    folders = sorted(file.parent for file in (root / "checkpoints").glob(f"*/{RECIPE}"))
    entries = [read(folder) for folder in folders]
    texts = {
        folder / CARD: render(entry.name, entry.card, entry.measured)
        for folder, entry in zip(folders, entries, strict=True)
    }
    for sums in (folder / SUMS for folder in folders if (folder / SUMS).exists()):
        lines = [line for line in sums.read_text().splitlines() if not line.endswith(f"  {RECIPE}")]
        recipe = hashlib.sha256((sums.parent / RECIPE).read_bytes()).hexdigest()
        texts[sums] = "\n".join([f"{recipe}  {RECIPE}", *lines, ""])
    readme = root / "README.md"
    text = _between(readme.read_text(encoding="utf-8"), MODELS, table(entries))
    measured = (root / "benchmarks" / "recurrent.md").read_text(encoding="utf-8")
    texts[readme] = _between(text, SPEEDS, speeds(measured))
    texts[root / "benchmarks" / "training.md"] = training_times(entries)
    return texts


if __name__ == "__main__":
    for file, text in written(Path(__file__).resolve().parent.parent).items():
        file.write_text(text, encoding="utf-8")
