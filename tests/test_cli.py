import json
import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.conftest import ROOT
from tests.test_bundle import make
from zoo import hub
from zoo.cli import main
from zoo.lightning_cli import expand


def run(*arguments, **options):
    command = [sys.executable, str(ROOT / "cli.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


@pytest.fixture
def model(tmp_path, monkeypatch):
    return home_of_models(tmp_path, monkeypatch) / "tiny"


def home_of_models(tmp_path, monkeypatch):
    """A folder that names are looked for in, with one model in it; the working folder is another one."""
    home, work = tmp_path / "home", tmp_path / "work"
    home.mkdir(), work.mkdir()
    monkeypatch.setenv("ZOO_CHECKPOINTS", str(home))
    monkeypatch.chdir(work)
    make(home / "tiny")
    return home


def fails(capsys, *arguments):
    """The one line that bad input ends with."""
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    return error


def test_list_imports_neither_torch_nor_lightning():
    heavy = "{'torch', 'lightning', 'datasets'}"
    code = f"import sys; from zoo.cli import main; main(['list']); print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]"
    assert lines[0].split()[0] == "model"
    assert any(line.startswith("zaremba-small-ptb ") and "114.5" in line for line in lines)


FAULTS = """\
import resource, sys
import torch
from zoo.cli import main

faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
sys.argv[1:] and main(sys.argv[1:])
counts = []
for _ in range(30):
    before = faults()
    torch.ones(1 << 24)
    counts.append(faults() - before)
print(min(counts))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators keep what they like")
@pytest.mark.parametrize(("arguments", "kept"), [(["list"], True), ([], False)])
def test_a_command_keeps_freed_memory_for_the_next_update(arguments, kept):
    """64 MiB, taken again and again, come from the system each time where nothing was kept.

    Where it is kept, a dozen blocks may be new before one is used again: what was cut off a block to align it may go to the
    allocator's cache of small pieces, until that holds seven of its size; without it a block is too short for the next.
    """
    plain = {
        name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))
    }
    command = [sys.executable, "-c", FAULTS, *arguments]
    done = subprocess.run(command, cwd=ROOT, env=plain, capture_output=True, text=True)
    assert (int(done.stdout.splitlines()[-1]) < 10) == kept


def test_importing_the_package_does_not_import_torch():
    code = "import sys, zoo; print('torch' in sys.modules, zoo.names()[0] != '')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["False", "True"]


def test_help_names_every_command():
    done = run("--help")
    assert done.returncode == 0
    for command in ("fit", "validate", "test", "predict", "finetune", "list", "score", "generate", "publish", "demo"):
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize(
    ("task", "own", "other"), [([], "vocabulary", "classification"), (["--task=classification"], "label", "language")]
)
def test_help_of_fine_tuning_is_that_of_its_task_and_names_the_other(task, own, other, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["finetune", *task, "--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    assert f" --{own} " in said
    assert f"those of --task {other} have a --help of their own" in said
    assert "task is 'zebra'; it must be language or classification" in fails(capsys, "finetune", "x", "--task=zebra")


def test_what_was_published_and_is_not_here_is_listed(monkeypatch, capsys):
    monkeypatch.setattr(
        "zoo.hub.PUBLISHED", {"elsewhere": ("owner/elsewhere", "0" * 40), "zaremba-small-ptb": ("owner/z", "0" * 40)}
    )
    main(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if "on the Hub" in line] == [["elsewhere", "on", "the", "Hub"]]


@pytest.mark.parametrize("command", ["list", "score", "generate", "publish"])
def test_help_of_the_plain_commands(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_score_of_a_file_and_of_standard_input(model, capsys, monkeypatch):
    Path("text").write_text("a b\nc d\n")
    main(["score", "tiny", "text"])
    from_file = capsys.readouterr().out
    assert "over 6 tokens" in from_file
    assert run("score", "tiny", "-", input="a b\nc d\n").stdout == from_file
    main(["score", "tiny", "text", "--format", "table"])
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in table[:-1]] == ["a", "b", "<eos>", "c", "<unk>", "<eos>"]


def test_generate(model, capsys):
    main(
        ["generate", "tiny", "--prompt", "a b", "--tokens", "7", "--seed", "1", "--temperature", "0.5", "--top_k", "3"]
    )
    first = capsys.readouterr().out
    assert first.startswith("a b")
    main(
        [
            "generate",
            str(model),
            "--prompt",
            "a b",
            "--tokens",
            "7",
            "--seed",
            "1",
            "--temperature",
            "0.5",
            "--top_k",
            "3",
        ]
    )
    assert capsys.readouterr().out == first


def test_a_recipe_without_weights_takes_those_of_a_checkpoint(model):
    (model / "model.safetensors").unlink()
    assert "--weights" in expand("test", ["tiny"])
    assert "--weights" not in expand("test", ["tiny", "--ckpt_path=last"])


def test_what_cut_a_training_short_does_not_cut_the_scoring(model):
    recipe = model / "config.yaml"
    trainer = {"max_epochs": 2, "overfit_batches": 10, "limit_val_batches": 3}
    recipe.write_text(json.dumps({**yaml.safe_load(recipe.read_text()), "trainer": trainer}))
    assert json.loads(expand("test", ["tiny"])[3])["trainer"] == {"max_epochs": 2}


def test_names_stand_for_recipes_and_weights(model):
    recipe = str(model / "config.yaml")
    assert expand("fit", ["tiny", "--x=1"]) == ["--config", recipe, "--x=1"]
    assert expand("fit", ["--config", "tiny", "--config=tiny", "-c", recipe]) == 3 * ["--config", recipe]
    assert expand("fit", ["--model.help", "Zaremba"]) == ["--model.help", "Zaremba"]  # needs no model
    name, tiny, config, text, weights, folder = expand("test", ["tiny"])
    assert (name, tiny, config, weights, folder) == ("--name", "tiny", "--config", "--weights", str(model))
    assert json.loads(text)["model"]["init_args"] == {"vocab_size": 5, "hidden_size": 6}
    assert expand("test", ["--config", text]) == ["--config", text]  # as a further process of Lightning's gets it


HOSTILE = """
seed_everything: 1
trainer:
  max_epochs: 2
  callbacks: [{class_path: hostile.Callback}]
  logger: hostile.Logger
  precision: 32-true
model:
  class_path: zoo.models.Zaremba
  init_args: {vocab_size: 5, hidden_size: 6}
"""


def test_only_numbers_of_a_foreign_recipes_trainer_are_used(model, monkeypatch, capsys):
    Path("hostile.py").write_text("from pathlib import Path\nPath('owned').touch()\n")
    monkeypatch.syspath_prepend(str(Path.cwd()))
    Path("mine.txt").write_text("a b c\n" * 300)
    own_text = ["--data=zoo.datamodules.Corpus", "--data.path=mine.txt", f"--data.tokenizer={model}"]
    make(model, recipe=HOSTILE)
    main(["test", "tiny", *own_text])
    assert "over 59 predictions" in capsys.readouterr().out
    # A model from the Hub is not trusted to set up its own training either.
    found = hub.Found("tiny", model, "me/tiny")
    monkeypatch.setattr(hub, "find", lambda *_: found)
    main(["fit", "tiny", *own_text, "--trainer.log_every_n_steps=1"])
    assert "the model lies in logs/tiny/version_0/tiny" in capsys.readouterr().out
    recipe = Path("logs/tiny/version_0/config.yaml").read_text()
    assert "max_epochs: 2" in recipe
    assert "precision: 32-true" in recipe
    assert "hostile" not in recipe
    assert not Path("owned").exists()

    make(model, recipe=HOSTILE + "data: {class_path: hostile.Data}\n")
    assert "names 'hostile.Data'; it may name classes of zoo.datamodules alone" in fails(
        capsys, "test", "tiny", *own_text
    )
    assert not Path("owned").exists()


def test_a_damaged_folder_does_not_hide_the_others(model, capsys):
    broken = model.parent / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_text("card: {titel: x}\n")
    main(["list"])
    output = capsys.readouterr()
    assert "tiny" in output.out
    assert "broken: " in output.err
    assert "config.yaml is no recipe" in output.err


def test_a_reader_that_has_seen_enough(model):
    Path("text").write_text("a b c\n" * 5_000)
    score = shlex.join([sys.executable, str(ROOT / "cli.py"), "score", "tiny", "text", "--format", "table"])
    done = subprocess.run(f"{score} | head -n 1", shell=True, capture_output=True, text=True, timeout=120)
    assert done.stdout.split()[1] == "a"
    assert done.stderr == ""


class TestBadInput:
    def test_unknown_command(self, capsys):
        assert "no command 'tset'" in fails(capsys, "tset")

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["test"], "test wants a model's name before its options: test NAME ..."),
            (["fit", "--trainer.max_steps", "1", "tiny"], "fit wants a model's name before its options"),
            (["fit", "--config=tiny", "--trainer.max_steps", "1", "tiny"], "a model's name comes first: fit tiny ..."),
            (["score", "x" * 300, "mine.txt"], "no model 'xxx"),
            (["score", "tiny", "mine.txt", f"--output={'x' * 300}"], "cannot be written: File name too long"),
            (["score", "tiny", "mine.txt", "--evaluation=DynamicEvaluation"], "which score does not have: test NAME"),
        ],
    )
    def test_what_a_command_cannot_make_sense_of(self, model, arguments, said, capsys):
        Path("mine.txt").write_text("a b c\n")
        assert said in fails(capsys, *arguments)

    def test_unknown_name(self, model, capsys):
        assert "no model 'tiiny': did you mean tiny" in fails(capsys, "score", "tiiny", "-")
        assert "no model 'tiiny': did you mean tiny" in fails(capsys, "test", "tiiny")
        assert "there is no file or folder /nowhere/tiny" in fails(capsys, "test", "/nowhere/tiny")
        assert "there is no file or folder tiny.yaml" in fails(capsys, "fit", "--config", "tiny.yaml")

    def test_no_file_and_no_text(self, model, capsys):
        assert "nothing.txt cannot be read: No such file" in fails(capsys, "score", "tiny", "nothing.txt")
        Path("latin").write_bytes(b"caf\xe9")
        assert "latin is not UTF-8: byte 0xe9 at offset 3" in fails(capsys, "score", "tiny", "latin")

    def test_testing_without_weights(self, model, capsys, data_tree):
        data = ["--data=zoo.datamodules.PennTreebank", f"--data.init_args.root={data_tree}"]
        assert "test needs trained weights" in fails(capsys, "test", "--config", "tiny", *data)

    def test_a_checkpoint_that_is_not_there(self, model, capsys, data_tree):
        data = ["--data=zoo.datamodules.PennTreebank", f"--data.init_args.root={data_tree}"]
        assert "no run of tiny under logs/tiny has a checkpoint" in fails(
            capsys, "fit", "tiny", *data, "--ckpt_path", "last"
        )

    def test_no_data(self, model, capsys, tmp_path):
        data = ["--data=zoo.datamodules.PennTreebank", "--data.init_args.root=/nowhere"]
        error = fails(capsys, "test", "tiny", *data)
        assert "looked for /nowhere/ptb-text-only/ptb_text_only" in error
        assert "ZOO_DATASETS" in error

    @pytest.mark.parametrize(
        ("option", "named"),
        [
            (
                "--model.hiden_size=3",
                "error: zoo.models.Zaremba has no option 'hiden_size': did you mean hidden_size?\n",
            ),
            (
                "--model.init_args.zebra=3",
                "error: zoo.models.Zaremba has no option 'zebra': known are vocab_size, hidden_",
            ),
            ("--model=torch.nn.Linear", "torch.nn.Linear"),
            ("--trainer.maximum_epochs=3", "maximum_epochs"),
            ("--trainer.max_epoch=3", "error: unrecognized arguments: --trainer.max_epoch=3"),
        ],
    )
    def test_misspelt_options(self, model, option, named, capsys):
        with pytest.raises(SystemExit) as stop:
            main(["fit", "zaremba-small-ptb", option])
        assert stop.value.code == 2
        assert named in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "said"),
        [
            ("--model.init_args.dropout=1.5", "zaremba-small-ptb: p is 1.5; a dropout probability lies in [0, 1)"),
            ("--data.init_args.batch_size=0", "zaremba-small-ptb: batch_size is 0"),
            ("--trainer.max_epochs=-7", "zaremba-small-ptb: `max_epochs` must be"),
        ],
    )
    def test_values_that_no_model_takes(self, option, said, capsys):
        assert said in fails(capsys, "fit", "zaremba-small-ptb", option)

    def test_a_checkpoint_with_code_in_it_is_not_executed(self, model, data_tree, tmp_path):
        class Hostile:
            def __reduce__(self):
                return Path.touch, (tmp_path / "owned",)

        torch.save({"state_dict": Hostile()}, "hostile.ckpt")
        data = ["--data=zoo.datamodules.PennTreebank", f"--data.root={data_tree}", f"--data.tokenizer={model}"]
        done = run("fit", "tiny", *data, "--ckpt_path", "hostile.ckpt")
        assert done.returncode != 0
        assert "Weights only load failed" in done.stderr
        assert not (tmp_path / "owned").exists()


def test_predict_writes_the_surprisal_of_every_token(data_tree, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZOO_DATASETS", str(data_tree))
    from zoo.datamodules import PennTreebank

    size = PennTreebank().tokenizer.vocab_size
    small = [f"--model.init_args.vocab_size={size}", "--model.init_args.hidden_size=8"]
    main(["fit", "zaremba-small-ptb", *small, "--trainer.log_every_n_steps=1", "--trainer.max_steps=2"])
    capsys.readouterr()
    main(["predict", "logs/zaremba-small-ptb/version_0/zaremba-small-ptb"])
    file = Path(capsys.readouterr().out.split()[-1])
    rows = file.read_text().splitlines()
    assert rows[0] == "token\tbits"
    assert len(rows) == len(PennTreebank().ids("test"))  # a header more, a prediction less


def test_own_text_with_a_pretrained_model(model, capsys):
    Path("mine.txt").write_text("a b c\n" * 100)
    main(["test", "tiny", "--data=zoo.datamodules.Corpus", "--data.init_args.path=mine.txt"])
    assert "over 19 predictions of the test text" in capsys.readouterr().out


def test_logs_go_to_logs_alone(model):
    Path("mine.txt").write_text("a b c\n" * 300)
    main(
        [
            "fit", "tiny", "--data=zoo.datamodules.Corpus", "--data.init_args.path=mine.txt",
            "--trainer.logger=false", "--trainer.max_steps=1", f"--data.init_args.tokenizer={model}",
        ]
    )  # fmt: skip
    assert sorted(path.name for path in Path().iterdir()) == ["logs", "mine.txt"]
    run_folder = Path("logs", "tiny", "version_0")
    assert [path.name for path in Path("logs").iterdir()] == ["tiny"]
    assert sorted(path.name for path in run_folder.iterdir()) == ["checkpoints", "config.yaml", "tiny"]


def test_a_fast_development_run_leaves_nothing(model):
    Path("mine.txt").write_text("a b c\n" * 300)
    main(
        [
            "fit", "tiny", "--data=zoo.datamodules.Corpus", "--data.init_args.path=mine.txt",
            "--trainer.fast_dev_run=true", f"--data.init_args.tokenizer={model}",
        ]
    )  # fmt: skip
    assert [path.name for path in Path().iterdir()] == ["mine.txt"]


def test_a_name_stands_for_a_checkpoint_too(model, capsys):
    Path("mine.txt").write_text("a b c\n" * 100)
    own_text = ["--data=zoo.datamodules.Corpus", "--data.init_args.path=mine.txt"]
    main(["test", "--config", "tiny", "--ckpt_path", "tiny", *own_text])
    assert "over 19 predictions of the test text" in capsys.readouterr().out
    assert "--ckpt_path tiny: no such checkpoint" in fails(capsys, "fit", "tiny", "--ckpt_path", "tiny", *own_text)
