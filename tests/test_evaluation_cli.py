"""Evaluations from the command line, on the smallest model."""

from pathlib import Path

import pytest

from tests.conftest import quiet_trainer
from tests.test_bundle import make, seal
from tests.test_cli import fails, home_of_models
from zoo import load
from zoo.cli import main
from zoo.datamodules import Corpus
from zoo.datamodules.stream import Stream
from zoo.evaluation import Cache, DynamicEvaluation, Ensemble, Plain, Temperature

DATA = ["--data=zoo.datamodules.Corpus", "--data.path=mine.txt"]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


@pytest.fixture
def home(tmp_path, monkeypatch):
    home = home_of_models(tmp_path, monkeypatch)
    make(home / "other", seed=1)
    Path("mine.txt").write_text("a b c\nb c a a\n" * 300)
    return home


def said(capsys, *arguments):
    """The line that a command ends with."""
    capsys.readouterr()
    main([arguments[0], "tiny", *DATA, *QUIET, *arguments[1:]])
    return capsys.readouterr().out.splitlines()[-1]


def measured(evaluation, split="test"):
    """The same from Python: metric and predictions."""
    model = load("tiny")
    data = Corpus(path="mine.txt", tokenizer="../home/tiny")
    if evaluation.training_windows:
        evaluation.prepare(model, Stream(data.ids("train"), *evaluation.training_windows))
    model.evaluation = evaluation
    run = quiet_trainer()
    (run.test if split == "test" else run.validate)(model, datamodule=data, verbose=False)
    value, predictions = model.measured[split]
    return f"tiny: perplexity per word {value:.6g} over {predictions:,} predictions of the {split} text"


def test_a_text_that_was_trained_on_in_pieces_is_read_as_a_stream(home, capsys):
    pieces = ["--data.batching=pieces", "--data.bptt=10"]
    cached = "--evaluation=zoo.evaluation.Cache"
    of_pieces, of_stream = (said(capsys, "validate", *each, cached, "--evaluation.window=20") for each in (pieces, []))
    assert of_pieces == f"{of_stream}, the text read as one stream"
    assert said(capsys, "validate", *pieces) != said(capsys, "validate")
    error = fails(capsys, "validate", "tiny", *DATA, *QUIET, *pieces, "--data.evaluation=pieces", cached)
    assert "--evaluation reads the text as a stream" in error


def test_without_one_nothing_is_said_of_it(home, capsys):
    assert said(capsys, "test") == measured(Plain())


def test_the_line_names_it_with_its_arguments(home, capsys):
    expected = f"{measured(Cache(window=20))}, by Cache(window=20, theta=1.0, weight=0.1, wait=False)"
    assert said(capsys, "test", "--evaluation", "zoo.evaluation.Cache", "--evaluation.window", "20") == expected
    assert said(capsys, "test", "--evaluation=Cache", "--evaluation.init_args.window=20") == expected
    whole = '--evaluation={"class_path": "zoo.evaluation.Cache", "init_args": {"window": 20}}'
    assert said(capsys, "test", whole) == expected
    assert expected.split()[4] != measured(Plain()).split()[4]


def test_validate(home, capsys):
    expected = f"{measured(Temperature(1.5), 'validation')}, by Temperature(temperature=1.5)"
    assert said(capsys, "validate", "--evaluation=Temperature", "--evaluation.temperature=1.5") == expected


def test_predict_writes_its_surprisals(home, capsys):
    def bits(*options):
        return Path(said(capsys, "predict", *options).split()[-1]).read_text().splitlines()[1:]

    plain, hot = bits(), bits("--evaluation=Temperature", "--evaluation.temperature=1e9")
    assert len(hot) == len(plain) > 100
    assert {row.split("\t")[1] for row in hot} == {"2.3219"}  # log2 of 5 types
    assert "by Temperature(temperature=2.0)" in said(
        capsys, "predict", "--evaluation=Temperature", "--evaluation.temperature=2"
    )


def test_dynamic_evaluation_sees_the_training_text_first(home, capsys):
    line = said(capsys, "test", "--evaluation=DynamicEvaluation", "--evaluation.learning_rate=0.01")
    assert line.startswith(f"{measured(DynamicEvaluation(learning_rate=0.01))}, by DynamicEvaluation(")
    assert line.split()[4] != measured(Plain()).split()[4]


def test_dynamic_evaluation_of_a_checkpoint_adapts_its_weights(home, capsys):
    # They arrive when the trainer runs, after the classes were built.
    run = quiet_trainer()
    run.test(load("other"), datamodule=Corpus(path="mine.txt", tokenizer=str(home / "tiny")), verbose=False)
    run.save_checkpoint("other.ckpt")
    given = ["--config", "tiny", "--name", "tiny", *DATA, f"--data.tokenizer={home / 'tiny'}", *QUIET]
    options = [*given, "--evaluation=DynamicEvaluation", "--evaluation.learning_rate=0.01"]
    lines = []
    for weights in ("--weights=other", "--ckpt_path=other.ckpt", "--weights=tiny"):
        main(["test", *options, weights])
        lines.append(capsys.readouterr().out.splitlines()[-1])
    assert lines[0] == lines[1] != lines[2]


def test_an_ensemble_of_names(home, capsys):
    expected = f"{measured(Ensemble(['other']))}, by Ensemble(members=['other'])"
    assert said(capsys, "test", "--evaluation=Ensemble", "--evaluation.members=[other]") == expected
    assert said(capsys, "test", "--evaluation=Ensemble", "--evaluation.members+=other") == expected


def test_monte_carlo_with_a_seed_repeats(home, capsys):
    options = ["--evaluation=MonteCarlo", "--evaluation.samples=2", "--evaluation.seed=1"]
    first = said(capsys, "test", "--model.init_args.dropout=0.5", *options)
    assert first == said(capsys, "test", "--model.init_args.dropout=0.5", *options)
    assert first.endswith("by MonteCarlo(samples=2, seed=1)")
    assert first.split()[4] != measured(Plain()).split()[4]


class TestBadInput:
    def test_a_cache_longer_than_the_text(self, home, capsys):
        error = fails(capsys, "test", "tiny", *DATA, *QUIET, "--evaluation=Cache", "--evaluation.wait=true")
        assert "window is 500, and the text has 134 predictions" in error

    def test_other_vocabularies_in_an_ensemble(self, home, capsys):
        file = home / "other" / "tokenizer.json"
        file.write_text(file.read_text().replace('"b": 3', '"d": 3'))
        seal(home / "other")
        error = fails(capsys, "test", "tiny", *DATA, *QUIET, "--evaluation=Ensemble", "--evaluation.members=[other]")
        assert "other has another vocabulary (5 types" in error

    def test_an_unknown_member(self, home, capsys):
        error = fails(capsys, "test", "tiny", *DATA, *QUIET, "--evaluation=Ensemble", "--evaluation.members=[othr]")
        assert "no model 'othr': did you mean other" in error

    def test_a_value_that_it_does_not_take(self, home, capsys):
        error = fails(capsys, "test", "tiny", *DATA, *QUIET, "--evaluation=Cache", "--evaluation.weight=1.5")
        assert error == "error: tiny: weight is 1.5; it must lie between 0 and 1\n"

    @pytest.mark.parametrize(
        ("option", "named"),
        [("--evaluation=torch.nn.Linear", "torch.nn.Linear"), ("--evaluation=Temperature", "temperature")],
    )
    def test_a_class_or_an_argument_that_is_not_one(self, home, option, named, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["test", "tiny", *DATA, option])
        assert stop.value.code == 2
        assert named in capsys.readouterr().err

    def test_fit_takes_none(self, home, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "tiny", *DATA, "--evaluation=Cache"])
        assert stop.value.code == 2
        assert "evaluation" in capsys.readouterr().err
