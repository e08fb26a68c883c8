"""Every folder under checkpoints/: built at full size, and run for real at a small one."""

import csv
import json
from pathlib import Path

import pytest
import torch
import yaml
from torch.optim import Adam

import zoo
from tests.conftest import ROOT
from zoo import bundle, card
from zoo.cli import main
from zoo.datamodules import PennTreebank
from zoo.files import has_weights
from zoo.optim import ClippedUpdateAdam
from zoo.tasks import LanguageModel

RECIPES = sorted(file.parent for file in (ROOT / "checkpoints").glob("*/config.yaml"))
PARAMETERS = {
    "awd-lstm-char-ptb": 13_787_650,
    "awd-lstm-mos-ptb": 21_500_620,
    "awd-lstm-mos-ptb-finetuned": 21_500_620,
    "awd-lstm-ptb": 24_221_600,
    "awd-lstm-ptb-1cycle": 24_221_600,
    "awd-lstm-ptb-finetuned": 24_221_600,
    "awd-lstm-wikitext2": 33_556_078,
    "awd-lstm-wikitext2-finetuned": 33_556_078,
    "awd-lstm-wikitext2-1cycle": 33_556_078,
    "fraternal-awd-lstm-ptb": 24_221_600,
    "fraternal-awd-lstm-ptb-finetuned": 24_221_600,
    "fraternal-lstm-ptb": 9_997_440,
    "lstm-char-ptb": 4_256_050,
    "lstm-large-ptb": 66_034_000,
    "lstm-medium-ptb": 19_780_400,
    "lstm-mnist": 42_010,
    "lstm-pmnist": 42_010,
    "lstm-text8": 16_282_027,
    "norm-stabiliser-char-ptb": 4_256_050,
    "rbn-char-ptb": 4_266_050,
    "rbn-mnist": 43_010,
    "rbn-pmnist": 43_010,
    "rbn-text8": 16_302_027,
    "recurrent-dropout-char-ptb": 4_256_050,
    "recurrent-dropout-gru-ptb": 5_523_984,
    "recurrent-dropout-pmnist": 42_010,
    "recurrent-dropout-ptb": 5_655_312,
    "rnndrop-ptb": 5_655_312,
    "stochastic-depth-char-ptb": 4_256_050,
    "variational-large-ptb": 66_034_000,
    "variational-medium-ptb": 19_780_400,
    "variational-untied-large-ptb": 66_034_000,
    "variational-untied-medium-ptb": 19_780_400,
    "weight-noise-char-ptb": 4_256_050,
    "zaremba-large-ptb": 66_034_000,
    "zaremba-medium-ptb": 19_780_400,
    "zaremba-small-ptb": 4_653_200,
    "zoneout-addition": 410_253,
    "zoneout-char-ptb": 4_256_050,
    "zoneout-gru-char-ptb": 3_204_050,
    "zoneout-pmnist": 42_010,
    "zoneout-ptb": 66_034_000,
    "zoneout-rbn-pmnist": 43_010,
    "zoneout-rnn-char-ptb": 1_102_050,
    "zoneout-text8": 16_282_027,
}
SMALL = {
    **dict.fromkeys(("hidden_size", "embedding_size", "output_size"), 8),
    "softmaxes": 3,
    "batch_size": 20,
    "bptt": 10,
    "max_bptt": 15,
}
SMALL_DATA = {"zoo.datamodules.SequentialMNIST": {"max_steps": 16}}
EVERY_STEP = "--trainer.log_every_n_steps=1"

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda folder: folder.name)


def test_every_recipe_has_its_parameter_count_here():
    assert PARAMETERS.keys() == {folder.name for folder in RECIPES}


def small_options(section, arguments, sizes):
    """The command-line options that give a section, and the models within it, these sizes."""
    for name, value in arguments.items():
        if isinstance(value, dict):
            yield from small_options(f"{section}.{name}.init_args", value["init_args"], sizes)
        elif name in sizes and value is not None:
            yield f"--{section}.{name}={sizes[name]}"


def small(sections):
    """What makes a recipe small and fit the test's data."""
    data, model = sections["data"]["init_args"], sections["model"]["init_args"]
    sizes = SMALL | SMALL_DATA.get(sections["data"]["class_path"], {})
    if sections["data"]["class_path"] == "zoo.datamodules.SequentialMNIST":
        options = ["--data.downsample=7"]
    elif sections["data"]["class_path"] == "zoo.datamodules.Addition":
        options = ["--data.batches=5"]
    else:
        read = {name: data[name] for name in ("level", "text") if name in data}
        module = getattr(zoo.datamodules, sections["data"]["class_path"].split(".")[-1])
        types = module(**read).tokenizer.vocab_size
        sizes |= {"vocab_size": types, "input_size": types}
        if data.get("batching") == "pieces":
            sizes |= {"bptt": 50, "max_steps": 50}
        if model.get("initialisation") == "block_orthogonal":
            sizes["hidden_size"] = types
        options = []
    for section in ("model", "data"):
        options += small_options(f"{section}.init_args", sections[section]["init_args"], sizes)
    return options


@each_recipe
def test_full_size(recipe):
    with torch.device("meta"):
        model = bundle.build(recipe)
    assert sum(parameter.numel() for parameter in model.parameters()) == PARAMETERS[recipe.name]


@each_recipe
def test_fits_tests_and_loads_at_a_small_size(recipe, data_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    sections = yaml.safe_load((recipe / "config.yaml").read_text())
    options, begins = [*small(sections), "--trainer.max_epochs=1", EVERY_STEP], []
    if first := sections["card"].get("goes_on_from"):
        main(["fit", first, *options])
        begins = ["--weights", f"logs/{first}/version_0/{first}"]
    main(["fit", recipe.name, *options, *begins])
    run = Path("logs") / recipe.name / "version_0"
    finished = run / recipe.name
    assert f"the model lies in {finished}" in capsys.readouterr().out
    assert {file.name for file in run.iterdir()} >= {
        "metrics.csv",
        "config.yaml",
        "curve.csv",
        "curve.png",
        "checkpoints",
    }
    assert sorted(path.name for path in tmp_path.iterdir()) == ["logs"]

    entry = card.read(finished)
    assert entry.weights
    assert entry.card.published == card.read(recipe).card.published
    assert "Trained with options beside the recipe" in (finished / "README.md").read_text()
    assert entry.measured.finished
    model = zoo.load(str(finished))
    if isinstance(model, LanguageModel):
        assert model.score("the bank rose").total > 0

    splits = {result.split: result for result in entry.measured.results}
    for command, split in (("validate", "validation"), ("test", "test")):
        main([command, str(finished)])
        line = f"{recipe.name}: {model.metric_unit} {splits[split].value:.6g} over {splits[split].predictions:,} predictions"
        assert line in capsys.readouterr().out
    for reading in entry.measured.evaluations:
        for result in reading.results:
            main(["test" if result.split == "test" else "validate", str(finished), *reading.options.split()])
            assert f" {result.value:.6g} over {result.predictions:,} predictions" in capsys.readouterr().out
    # The recipe that a changed run leaves behind builds and trains the changed model.
    weights = {name: value.shape for name, value in model.state_dict().items()}
    assert {name: value.shape for name, value in zoo.build(str(finished)).state_dict().items()} == weights
    brief = ["--trainer.max_steps=1", "--trainer.limit_val_batches=1", EVERY_STEP]
    main(["fit", "--config", str(finished), *brief, *begins])
    again = run.parent / "version_1" / recipe.name
    assert not card.read(again).measured.finished
    assert (again / "README.md").read_text().count("Trained with options beside the recipe") == 1


@pytest.mark.parametrize(
    "name",
    [name for name in PARAMETERS if name.endswith(("-mnist", "-pmnist", "-char-ptb")) and not name.startswith("awd")],
)
def test_how_the_models_on_pixels_and_characters_start(name):
    model = zoo.build(name)
    layer = model.layer
    weights, size = layer.weights(0), layer.hidden_size
    assert layer.initial_state == "learned"
    if name.endswith("-char-ptb"):
        blocks = len(weights.hidden) // size if name != "rbn-char-ptb" else 1
        for columns in weights.hidden.chunk(blocks):
            torch.testing.assert_close(columns.T @ columns, torch.eye(size), atol=1e-4, rtol=0)
        ((optimizer,), _) = model.configure_optimizers()
        assert type(optimizer) is (Adam if name == "rbn-char-ptb" else ClippedUpdateAdam)
        assert getattr(optimizer, "max_update_norm", None) == (None if name == "rbn-char-ptb" else 1.0)
        assert model.max_norm == (1.0 if name == "rbn-char-ptb" else None)
    if layer.cell == "lstm":
        assert weights.bias_input.tolist() == [0] * size + [1] * size + [0] * 2 * size
        identity = torch.equal(weights.hidden[2 * size : 3 * size], torch.eye(size))
        assert identity == (name in ("lstm-mnist", "rbn-mnist", "rbn-pmnist"))
    else:
        assert not weights.bias_input.any()


def test_noise_on_the_initial_state_where_the_paper_has_it():
    noise = {name: zoo.build(name).initial_noise for name in PARAMETERS if name.endswith(("-mnist", "-pmnist"))}
    assert {name for name, value in noise.items() if value} == {"rbn-mnist"}
    assert noise["rbn-mnist"] == 0.1


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_recipe_as_it_stands_is_kept_comments_and_all(data_tree, tmp_path, monkeypatch, capsys, precision):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    text = (ROOT / "checkpoints/zaremba-small-ptb/config.yaml").read_text()
    text = text.replace("vocab_size: 10000", f"vocab_size: {PennTreebank().tokenizer.vocab_size}")
    text = text.replace("hidden_size: 200", "hidden_size: 8").replace("max_epochs: 13", "max_epochs: 2")
    Path("mine").mkdir()
    Path("mine/config.yaml").write_text(text)
    quiet = "--trainer.enable_progress_bar=false"
    main(["fit", "-c", "mine/config.yaml", EVERY_STEP, quiet, f"--trainer.precision={precision}"])
    folder = Path("logs/mine/version_0/mine")
    assert (folder / "config.yaml").read_text() == text
    assert "Trained with options" not in (folder / "README.md").read_text()
    measured = card.read(folder).measured
    assert "commit" in measured.training
    assert measured.training["precision"] == precision
    capsys.readouterr()
    main(["test", str(folder), quiet])
    results = {result.split: result.value for result in measured.results}
    assert f" {results['test']:.6g} over " in capsys.readouterr().out


def test_a_recipe_given_as_text_as_that_of_the_hub_is_kept(data_tree, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    arguments = {"vocab_size": PennTreebank().tokenizer.vocab_size, "hidden_size": 8}
    recipe = {
        "trainer": {"max_epochs": 1},
        "model": {"class_path": "zoo.models.Zaremba", "init_args": arguments},
        "data": {"class_path": "zoo.datamodules.PennTreebank", "init_args": {"batch_size": 8}},
    }
    main(["fit", "--name", "theirs", "--config", json.dumps(recipe), EVERY_STEP])
    folder = Path("logs/theirs/version_0/theirs")
    assert yaml.safe_load((folder / "config.yaml").read_text()) == recipe
    assert "Trained with options" not in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("options", "columns"),
    [
        (["--trainer.check_val_every_n_epoch=2"], {"train/perplexity", "validation/perplexity"}),
        (["--trainer.limit_val_batches=0"], {"train/perplexity"}),
    ],
)
def test_the_curve_stands_with_and_without_validations(data_tree, tmp_path, monkeypatch, options, columns):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    size = PennTreebank().tokenizer.vocab_size
    small = [
        f"--model.vocab_size={size}",
        "--model.hidden_size=8",
        "--model.constant_epochs=1",
        "--trainer.max_epochs=4",
    ]
    main(["fit", "zaremba-small-ptb", *small, *options, EVERY_STEP])
    with Path("logs/zaremba-small-ptb/version_0/curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["learning_rate"]) for row in rows] == [1, 1, 0.5, 0.25]
    assert {name for name in rows[0] if "/" in name} == columns
    if "validation/perplexity" in columns:
        assert [bool(row["validation/perplexity"]) for row in rows] == [False, True, False, True]
    results = card.read(Path("logs/zaremba-small-ptb/version_0/zaremba-small-ptb")).measured.results
    assert (
        [result.split for result in results] == ["test"]
        if "validation/perplexity" not in columns
        else len(results) == 2
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [folder for folder in RECIPES if has_weights(folder)], ids=lambda folder: folder.name
)
def test_committed_weights_have_the_cards_numbers(recipe, real_datasets, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    measured = card.read(recipe).measured
    for result in measured.results:
        main(["test" if result.split == "test" else "validate", recipe.name, "--trainer.enable_progress_bar=false"])
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{recipe.name}: "))
        assert f"over {result.predictions:,} predictions of the {result.split} " in line
        value = float(line.split(" over ")[0].rsplit(maxsplit=1)[1])
        assert value == pytest.approx(result.value, rel=1e-4)
    for evaluated in measured.evaluations:
        if not evaluated.repeatable:
            continue
        for result in evaluated.results:
            command = "test" if result.split == "test" else "validate"
            main([command, recipe.name, *evaluated.options.split(), "--trainer.enable_progress_bar=false"])
            line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(recipe.name))
            value = float(line.split(" over ")[0].rsplit(maxsplit=1)[1])
            assert value == pytest.approx(result.value, rel=1e-3)
            assert f" over {result.predictions:,} predictions" in line
