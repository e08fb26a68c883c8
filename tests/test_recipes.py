"""Every folder under checkpoints/: built at full size, and run for real at a small one."""

from pathlib import Path

import pytest
import torch
import yaml

import zoo
from datamodules import PennTreebank
from tests.conftest import ROOT
from zoo import bundle, card
from zoo.cli import main

RECIPES = sorted(file.parent for file in (ROOT / "checkpoints").glob("*/config.yaml"))
PARAMETERS = {
    "zaremba-small-ptb": 4_653_200,
    "zaremba-medium-ptb": 19_780_400,
    "zaremba-large-ptb": 66_034_000,
}
EVERY_STEP = "--trainer.log_every_n_steps=1"
SMALL = {"hidden_size": 8, "batch_size": 4, "bptt": 10}

each_recipe = pytest.mark.parametrize("recipe", RECIPES, ids=lambda folder: folder.name)


def test_every_recipe_has_its_parameter_count_here():
    assert PARAMETERS.keys() == {folder.name for folder in RECIPES}


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
    level = sections["data"]["init_args"].get("level", "word")
    sizes = SMALL | {"vocab_size": PennTreebank(level=level).tokenizer.vocab_size}
    options = [
        f"--{section}.init_args.{name}={size}"
        for section in ("model", "data")
        for name, size in sizes.items()
        if name in sections[section]["init_args"]
    ]
    main(["fit", recipe.name, *options, "--trainer.max_epochs=1", "--trainer.limit_train_batches=3", EVERY_STEP])
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
    assert entry.measured.finished
    model = zoo.load(str(finished))
    assert model.score("the bank rose").total > 0

    main(["test", str(finished)])
    (result,) = (result for result in entry.measured.results if result.split == "test")
    assert f"{recipe.name}: {model.metric_unit} {result.value:.6g} over {result.predictions:,} predictions" in (
        capsys.readouterr().out
    )
    # The recipe that a changed run leaves behind builds and trains the changed model.
    assert zoo.build(str(finished)).vocab_size == sizes["vocab_size"]
    main(["fit", "--config", str(finished), "--trainer.max_steps=1", "--trainer.limit_val_batches=1", EVERY_STEP])


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe", [folder for folder in RECIPES if bundle.has_weights(folder)], ids=lambda folder: folder.name
)
def test_committed_weights_have_the_cards_numbers(recipe, real_datasets, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for result in card.read(recipe).measured.results:
        main(["test" if result.split == "test" else "validate", recipe.name, "--trainer.enable_progress_bar=false"])
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{recipe.name}: "))
        assert f"over {result.predictions:,} predictions of the {result.split} text" in line
        value = float(line.split(" over ")[0].rsplit(maxsplit=1)[1])
        assert value == pytest.approx(result.value, rel=1e-4)
