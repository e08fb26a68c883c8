"""`finetune`: from a pretrained model and a text of one's own to a bundle."""

import json
import random
import re
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from lightning import Trainer

import zoo
from tests.conftest import sentences
from zoo import bundle, card
from zoo.callbacks import GradualUnfreezing, LastCheckpoint, Patience
from zoo.cli import main
from zoo.errors import UserError
from zoo.finetuning import finetune, finetune_classifier
from zoo.models.text_classifier import WEIGHT_DECAY
from zoo.tokenizer import EOS, UNK, Tokenizer

WORDS = [EOS, UNK, "the", "N", "points", "bank", "rose", "fell", "nowhere"]
CALM = dict.fromkeys(("embedding_dropout", "input_dropout", "hidden_dropout", "output_dropout", "weight_drop"), 0.1)
RECIPES = {
    "words": {
        "class_path": "zoo.models.AWDLSTM",
        "init_args": {"vocab_size": 9, "embedding_size": 6, "hidden_size": 7, "num_layers": 2, **CALM},
    },
    "letters": {"class_path": "zoo.models.Zaremba", "init_args": {"vocab_size": 7, "hidden_size": 6}},
    "pieces": {
        "class_path": "zoo.models.RecurrentBatchNormLanguageModel",
        "init_args": {"vocab_size": 7, "hidden_size": 6, "max_steps": 9},
    },
}
TOKENIZERS = {
    "words": Tokenizer.words(WORDS, "penn_treebank"),
    "letters": Tokenizer.characters([*"\n theN", UNK]),
    "pieces": Tokenizer.characters([*"\n theN", UNK]),
}
QUIET = {"progress": False, "batch_size": 4, "bptt": 9, "min_count": 1}


def store(name, section, tokenizer):
    """A model as if trained."""
    torch.manual_seed(0)
    model = bundle.instantiate(section, Path("config.yaml"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # its outputs tell the words apart
    data = {"class_path": "zoo.datamodules.Corpus", "init_args": {"path": "x", "batching": "pieces", "bptt": 9}}
    recipe = {"model": section, **({"data": data} if name == "pieces" else {}), "card": {"license": "mit"}}
    measured = card.Measured("own text", "own text", "perplexity per word")
    bundle.write(
        Path("checkpoints") / name,
        bundle.stored_weights(model),
        recipe=yaml.safe_dump(recipe),
        card=card.render(name, card.Card(license="mit"), measured),
        tokenizer=tokenizer,
        curve=[],
    )


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working folder with a text, and models in its `checkpoints`."""
    monkeypatch.chdir(tmp_path)
    Path("mine.txt").write_text("\n".join(sentences(80, seed=1)) + "\n")
    for name, section in RECIPES.items():
        store(name, section, TOKENIZERS[name])
    return tmp_path


def tune(name="words", output="out", **options):
    return finetune(name, output=output, **{"corpus": "mine.txt", "epochs": 2} | QUIET | options)


def weights(folder):
    return {name: value for name, value in zoo.load(str(folder)).state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


class TestLanguageModel:
    def test_its_precision_is_that_of_the_training(self, here):
        tune(precision="bf16-mixed", epochs=1)
        assert card.read(Path("out")).measured.training["precision"] == "bf16-mixed"
        assert "precision: bf16-mixed" in Path("out/config.yaml").read_text()
        with pytest.raises(UserError, match="precision is"):
            tune(precision="half")

    def test_the_command_leaves_a_bundle_that_says_what_it_did(self, here, capsys):
        main(["finetune", "words", "--corpus", "mine.txt", "--output", "out", "--epochs=3", "--batch_size=4", "--bptt=9",
              "--min_count=1", "--progress=false"])  # fmt: skip
        out = capsys.readouterr().out
        assert "vocabulary: 17 types of the corpus, 7 of them the model's words too, 64.1% of the training text" in out
        assert "<unk> is 13.5% of the training text, 35.9% by the model's words" in out
        numbers = re.findall(r"perplexity per word over (\d+) predictions of (\w+): (\S+) before, (\S+) after", out)
        assert [split for _, split, _, _ in numbers] == ["validation", "test"]
        assert all(float(after) < float(before) for _, _, before, after in numbers)
        entry = card.read(Path("out"))
        assert entry.measured.finished
        assert entry.measured.training["started_from"] == "words"
        assert card.number(entry.ours()) == numbers[1][3]
        assert f"of the test split: {numbers[1][2]} before, {numbers[1][3]} after" in " ".join(entry.measured.notes)
        assert entry.card.license == "mit"
        text = Path("out/README.md").read_text()
        asked = "finetune words --corpus mine.txt --output out --min_count 1 --epochs 3 --batch_size 4 --bptt 9\n"
        assert asked in text
        assert "cli.py fit" not in text
        rates = [float(line.split(",")[2]) for line in Path("out/curve.csv").read_text().splitlines()[1:]]
        assert max(rates) > 1e-2 / 2.6  # the last group's

        main(["test", "out"])
        assert f"perplexity per word {entry.ours():.6g} over {numbers[1][0]} predictions" in capsys.readouterr().out
        text = "".join(line + "\n" for line in Path("mine.txt").read_text().splitlines()[-4:])
        assert len(zoo.load("out").score(text).tokens) == int(numbers[1][0]) + 1

    def test_before_is_the_model_with_its_words_moved(self, here):
        """A run at no rate leaves the transferred model, whose numbers are those before."""
        done = tune(epochs=1, learning_rate=1e-12)
        for before, after in zip(done.before, done.after, strict=True):
            assert after.value == pytest.approx(before.value, rel=1e-3)  # rounded to float16
        old, new = weights("checkpoints/words"), weights("out")
        for name in ("layers.0.weight_hh_l0", "layers.1.weight_ih_l0"):
            assert torch.equal(old[name], new[name])
        moved = zoo.load("out").tokenizer
        the = moved.library.token_to_id("the")
        assert torch.equal(new["embedding.weight"][the], old["embedding.weight"][WORDS.index("the")])

    def test_vocabulary_kept(self, here):
        done = tune(vocabulary="keep")
        assert done.met.startswith(
            "vocabulary: the model's own 9 types; <unk> is 35.9% of the training text; 532 / 34 / 30"
        )
        assert zoo.load("out").tokenizer.fingerprint == TOKENIZERS["words"].fingerprint

    def test_vocabulary_new_and_fresh_weights(self, here):
        still = {"epochs": 1, "learning_rate": 1e-12}
        tune(vocabulary="new", **still)
        tune(output="fresh", pretrained=False, **still)
        old, new, fresh = weights("checkpoints/words"), weights("out"), weights("fresh")
        assert torch.equal(old["layers.0.weight_hh_l0"], new["layers.0.weight_hh_l0"])
        assert not torch.equal(old["layers.0.weight_hh_l0"], fresh["layers.0.weight_hh_l0"])
        the = zoo.load("out").tokenizer.library.token_to_id("the")
        assert not torch.equal(old["embedding.weight"][WORDS.index("the")], new["embedding.weight"][the])

    @pytest.mark.parametrize("name", ["letters", "pieces"])
    def test_characters(self, here, name):
        done = tune(name)
        assert done.metric == "bits per character"
        assert done.after[0].value < done.before[0].value
        data = yaml.safe_load(Path("out/config.yaml").read_text())["data"]["init_args"]
        assert data["batching"] == ("pieces" if name == "pieces" else "stream")
        assert data["level"] == "character"

    def test_it_is_repeatable_and_a_fine_tuned_model_is_tuned_on(self, here):
        tune(), tune(output="again")
        assert same(weights("out"), weights("again"))
        done = tune("out", output="further")
        assert "16 of them the model's words too, 86.5%" in done.met

    def test_killed_and_resumed(self, here, monkeypatch):
        tune(epochs=3)

        class Killed(LastCheckpoint):
            def __init__(self):
                super().__init__(every_n_train_steps=1)

            def on_train_batch_end(self, trainer, *_):
                super().on_train_batch_end(trainer)
                if trainer.global_step == 14:
                    raise InterruptedError

        monkeypatch.setattr("zoo.finetuning.LastCheckpoint", Killed)
        with pytest.raises(InterruptedError):
            tune(output="cut", epochs=3)
        monkeypatch.undo()
        monkeypatch.chdir(here)
        assert not Path("cut").exists()
        tune(output="cut", epochs=3, resume=True)
        assert same(weights("out"), weights("cut"))

    def test_it_stops_when_validation_does_not_improve_and_has_then_ended(self, here):
        still = {"epochs": 9, "learning_rate": 1e-12, "patience": 1}
        measured = card.read(tune(**still).folder).measured
        assert (epochs := measured.training["epochs"]) < 9
        assert f"stopped after {epochs} of 9 epochs" in " ".join(measured.notes)
        shutil.rmtree("out")
        assert card.read(tune(**still, resume=True).folder).measured.training["epochs"] == epochs

    def test_it_is_resumed_by_its_output(self, here):
        Path("other").mkdir()
        tune(epochs=1)
        tune(output="other/out", epochs=1)
        first = weights("out")
        tune(epochs=1, resume=True, overwrite=True)
        assert same(first, weights("out"))
        assert len(list(Path("logs/out").iterdir())) == 3

    def test_paths_need_not_be_text(self, here):
        Path("held.txt").write_text("the bank rose\n" * 9)
        tune(epochs=1, corpus=Path("mine.txt"), validation=Path("held.txt"), output=Path("out"))
        assert yaml.safe_load(Path("out/config.yaml").read_text())["data"]["init_args"]["validation"] == "held.txt"

    @pytest.mark.parametrize("unfreezing", ["gradual", "none"])
    def test_lower_layers_wait_where_they_are_asked_to(self, here, unfreezing):
        tune(epochs=1, unfreezing=unfreezing)
        layers = ("layers.0.weight_ih_l0", "layers.1.weight_ih_l0")
        old, new = weights("checkpoints/words"), weights("out")
        assert all(torch.equal(old[name], new[name]) for name in layers) == (unfreezing == "gradual")

    def test_fresh_layers_learn_at_one_rate(self, here, monkeypatch):
        groups = []
        monkeypatch.setattr(
            LastCheckpoint, "on_train_start", lambda _, trainer, __: groups.append(trainer.optimizers[0].param_groups)
        )
        tune(epochs=1), tune(output="fresh", epochs=1, pretrained=False)
        tuned, fresh = ([group["initial_lr"] for group in each] for each in groups)
        assert tuned == pytest.approx([1e-2 / 2.6**2, 1e-2 / 2.6, 1e-2])
        assert fresh == [1e-2] * 3

    def test_fresh_weights_are_called_so(self, here):
        tune(epochs=1, pretrained=False)
        entry = card.read(Path("out"))
        assert entry.card.title == "The network of words, trained on mine.txt"
        assert "started_from" not in entry.measured.training
        assert "fresh weights" in entry.measured.notes[0]

    def test_characters_that_are_rare_are_unknown(self, here):
        tune("letters", epochs=1, min_count=2, max_vocabulary=9)
        assert zoo.load("out").tokenizer.vocab_size == 9
        with pytest.raises(UserError, match="letters reads characters: normaliser and document"):
            tune("letters", output="other", document="file")

    def test_the_best_model_is_kept_even_the_first(self, here):
        tune(epochs=1)
        done = tune("out", output="worse", epochs=1, learning_rate=500.0)
        assert card.read(done.folder).measured.training["epoch_kept"] == 0
        assert done.after[0].value == pytest.approx(done.before[0].value, rel=1e-3)


class BegunError(Exception):
    """A fit would now begin."""


@pytest.fixture
def begins(here, monkeypatch):
    """What a fine-tuning hands to its trainer, and the model and data that it would fit."""

    def of(function, **options):
        seen = {}

        class Caught(Trainer):
            def __init__(self, **given):
                seen.update(given)
                super().__init__(**given)

            def fit(self, model, datamodule, **_):
                seen.update(model=model, data=datamodule)
                raise BegunError

        monkeypatch.setattr("zoo.finetuning.Trainer", Caught)
        with pytest.raises(BegunError):
            function(overwrite=True, **options)
        return seen

    return of


def test_options_of_the_training_arrive(begins):
    seen = begins(tune, max_norm=0.7, patience=3, epochs=4, learning_rate=0.3, unfreezing="gradual")
    assert (seen["gradient_clip_val"], seen["max_epochs"]) == (0.7, 4)
    (patience,) = (each for each in seen["callbacks"] if isinstance(each, Patience))
    assert (patience.monitor, patience.mode, patience.patience) == ("validation/perplexity", "min", 3)
    assert any(isinstance(each, GradualUnfreezing) for each in seen["callbacks"])
    optimization = seen["model"].optimization
    assert (optimization.learning_rate, optimization.factor, optimization.weight_decay) == (0.3, 2.6, 1e-7)

    seen = begins(tune, unfreezing="gradual", pretrained=False)
    assert not any(isinstance(each, GradualUnfreezing) for each in seen["callbacks"])
    assert seen["model"].optimization.factor == 1

    seen = begins(tune, name="letters", max_norm=0.7)
    sums = 9 if seen["model"].sums_steps else 1  # the loss is a sum over so many steps
    assert seen["gradient_clip_val"] == pytest.approx(0.7 * sums)
    assert sums == 9


def test_other_texts_of_validation_and_test_are_read(begins):
    Path("valid.txt").write_text("the bank rose\n")
    Path("last.txt").write_text("the bank fell\nN points\n")
    data = begins(tune, validation="valid.txt", test="last.txt")["data"]
    assert ["".join(data.text(split)) for split in ("validation", "test")] == [
        "the bank rose\n",
        "the bank fell\nN points\n",
    ]

    for file, rows in (("mine.jsonl", 40), ("valid.jsonl", 7), ("last.jsonl", 5)):
        TestClassifier().table(rows, file)
    seen = begins(
        TestClassifier().tune, validation="valid.jsonl", test="last.jsonl", max_tokens=3, patience=2, max_norm=0.7
    )
    data = seen["data"]
    assert "40 / 7 / 5 texts" in data.sizes
    assert {tokens.shape[0] for (tokens, *_), *_ in data.train_dataloader()} == {3}
    assert seen["model"].max_tokens == 3
    (patience,) = (each for each in seen["callbacks"] if isinstance(each, Patience))
    assert (patience.monitor, patience.mode) == ("validation/accuracy", "max")
    assert seen["model"].optimization.weight_decay == WEIGHT_DECAY
    assert seen["gradient_clip_val"] == 0.7


def test_an_interruption_says_how_it_goes_on(here, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("zoo.finetuning.Trainer.fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tune()
    assert "interrupted; --resume true goes on from what logs/out/version_0 has" in capsys.readouterr().err


class TestClassifier:
    def table(self, rows=120, file="mine.jsonl"):
        draw = random.Random(1)
        lines = []
        for _ in range(rows):
            good = draw.random() < 0.5
            words = " ".join(draw.choice(["the", "bank", "N", "points"]) for _ in range(draw.randint(1, 12)))
            lines.append(
                json.dumps({"words": f"{words} {'rose' if good else 'fell'}", "mood": "good" if good else "bad"})
            )
        Path(file).write_text("\n".join(lines) + "\n")

    def tune(self, output="out", name="words", **options):
        given = {"label": "mood", "text": "words", "epochs": 12, "batch_size": 8, "progress": False}
        return finetune_classifier(name, corpus="mine.jsonl", output=output, **given | options)

    def test_it_learns_is_loaded_and_tested(self, here, capsys):
        self.table()
        options = [
            "--label=mood",
            "--text=words",
            "--epochs=12",
            "--learning_rate=0.05",
            "--batch_size=8",
        ]
        given = ["words", "--task=classification", "--corpus=mine.jsonl", "--output=out"]
        main(["finetune", *given, *options, "--progress=false"])
        out = capsys.readouterr().out
        assert "2 classes: bad, good; 98 / 11 / 11 texts" in out
        entry = card.read(Path("out"))
        assert entry.ours() > 90
        assert "test: mean F1 of the classes 100.00 %" in " ".join(entry.measured.notes)
        model = zoo.load("out")
        assert model.labels == ["bad", "good"]
        up, down = model.classify(["the bank rose", "N points fell"])
        assert up["good"] > 0.5 > down["good"]
        assert up["good"] + up["bad"] == pytest.approx(1)
        assert model.classify("the bank rose") == pytest.approx(up)
        main(["test", "out"])
        assert f"accuracy in % {entry.ours():.6g} over 11 predictions of the test texts" in capsys.readouterr().out
        main(["predict", "out"])
        label, predicted, probability = Path("logs/out/predictions.tsv").read_text().splitlines()[1].split("\t")
        assert {label, predicted} <= {"bad", "good"}
        assert 0.5 <= float(probability) <= 1

    def test_the_encoder_is_the_pretrained_one(self, here):
        self.table()
        self.tune(epochs=1, learning_rate=1e-12)
        self.tune(output="fresh", epochs=1, learning_rate=1e-12, pretrained=False)
        old = weights("checkpoints/words")["layers.0.weight_hh_l0"]
        assert torch.equal(weights("out")["encoder.layers.0.weight_hh_l0"], old)
        assert not torch.equal(weights("fresh")["encoder.layers.0.weight_hh_l0"], old)
        assert not [name for name in weights("out") if "softmax" in name]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"label": "missing"}, "no column 'missing'; its columns are words, mood"),
            ({"text": "missing"}, "no column 'missing'"),
            ({"label": "words"}, "holds 92 classes in 98 training texts; .* is it another column"),
            ({"batch_size": 2}, "batch_size is 2; it must be 3 or more"),
        ],
    )
    def test_columns_that_cannot_be(self, here, options, message):
        self.table()
        with pytest.raises(UserError, match=message):
            self.tune(**options)

    def test_one_class(self, here):
        Path("mine.jsonl").write_text('{"words": "the bank", "mood": "good"}\n' * 40)
        with pytest.raises(UserError, match="one class, good"):
            self.tune()

    def test_an_encoder_that_cannot_be(self, here):
        self.table()
        self.tune(epochs=1)
        with pytest.raises(UserError, match="out is a TextClassifier, not a language model"):
            self.tune("other", "out")
        with pytest.raises(UserError, match="recurrent batch norm reads pieces"):
            self.tune("other", "pieces")

    def test_what_wraps_a_model_is_left_out_with_its_softmax(self, here):
        inner = RECIPES["words"]
        section = {"class_path": "zoo.models.FraternalLanguageModel", "init_args": {"model": inner}}
        store("wrapped", section, TOKENIZERS["words"])
        self.table()
        self.tune(name="wrapped", epochs=1)
        assert not [name for name in weights("out") if "softmax" in name or "model" in name]

    def test_a_head_that_has_learnt_nothing_is_not_kept(self, here):
        self.table()
        self.tune(epochs=1, learning_rate=1e-12)
        measured = card.read(Path("out")).measured
        assert measured.training["epoch_kept"] == 1
        assert "before" not in " ".join(measured.notes)


class TestBadInput:
    def test_an_output_that_exists(self, here):
        tune(epochs=1)
        before = weights("out")
        with pytest.raises(UserError, match="output out exists"):
            tune(epochs=1)
        tune(epochs=1, seed=2, overwrite=True)
        assert not same(before, weights("out"))
        Path("folder").mkdir()
        Path("folder/thesis.txt").write_text("a year's work")
        with pytest.raises(UserError, match="is no model, so it is not overwritten"):
            tune(output="folder", overwrite=True)
        assert Path("folder/thesis.txt").exists()

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "no types but line ends by the rules 'penn_treebank'"),
            ({"normaliser": "none"}, "none of the 5 types of the corpus is among the 9 of words"),
            ({"vocabulary": "keep"}, "none of the corpus's types is among the 9 of words"),
            (
                {"vocabulary": "new", "normaliser": "none", "min_count": 99},
                "no types but line ends .* with min_count 99",
            ),
        ],
    )
    def test_no_word_in_common(self, here, options, message):
        Path("mine.txt").write_text("слово за словом\n" * 40)
        with pytest.raises(UserError, match=message):
            tune(**options)
        assert not Path("out").exists()
        assert tune(vocabulary="new", normaliser="none", epochs=1).after

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"vocabulary": "transferr"}, "vocabulary is 'transferr'; it must be one of 'transfer', 'keep', 'new'"),
            ({"normaliser": "ptb"}, "normaliser is 'ptb'"),
            ({"unfreezing": "gradually"}, "unfreezing is 'gradually'"),
            ({"epochs": 0}, "epochs is 0"),
            ({"patience": 0}, "patience is 0"),
            ({"bptt": 0}, "bptt is 0"),
            ({"max_norm": -1.0}, r"max_norm is -1\.0"),
            ({"max_vocabulary": 0}, "max_vocabulary is 0"),
            ({"seed": -1}, "seed is -1"),
            ({"output": "mine.txt/model"}, "mine.txt/model cannot be written: .*mine.txt is no folder"),
        ],
    )
    def test_values_that_cannot_be(self, here, options, message):
        with pytest.raises(UserError, match=message):
            tune(**options)

    def test_what_is_no_language_model(self, here):
        with pytest.raises(UserError, match="zoneout-addition reads no text"):
            tune("zoneout-addition")
        with pytest.raises(UserError, match="awd-lstm-ptb is a recipe without weights"):
            tune("awd-lstm-ptb")

    def test_nothing_to_resume(self, here):
        with pytest.raises(UserError, match="^--resume: no run of out"):
            tune(resume=True)

    def test_a_run_of_other_options_is_not_gone_on_with(self, here):
        tune(epochs=1)
        Path("other").mkdir()
        with pytest.raises(
            UserError, match=r"was begun with output .*out, not .*other/out; seed 1, not 7; ask for the same"
        ):
            tune(output="other/out", epochs=1, seed=7, resume=True)
        with pytest.raises(UserError, match="pretrained True, not False"):
            tune(overwrite=True, epochs=1, pretrained=False, resume=True)
        Path("mine.txt").write_text("the bank rose\n" * 40)
        with pytest.raises(UserError, match="vocabulary of the corpus"):
            tune(overwrite=True, epochs=1, resume=True)

    def test_a_changed_bundle(self, here):
        shutil.copy("checkpoints/letters/model.safetensors", "checkpoints/words/model.safetensors")
        with pytest.raises(UserError, match="model.safetensors was changed"):
            tune()
