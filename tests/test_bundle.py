import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import zoo
from tests.conftest import ROOT
from zoo import bundle
from zoo.errors import UserError
from zoo.models import Zaremba
from zoo.tokenizer import EOS, UNK, Tokenizer

RECIPE = """\
seed_everything: 1
model:
  class_path: zoo.models.Zaremba
  init_args: {vocab_size: 5, hidden_size: 6}
"""


class OwnModel(Zaremba):
    """What a user writes."""


class NotOurs(torch.nn.Module):
    """What has nothing to do with the zoo."""


def make(folder: Path, recipe: str = RECIPE, seed: int = 0) -> Zaremba:
    torch.manual_seed(seed)
    model = Zaremba(5, hidden_size=6)
    tokenizer = Tokenizer.words([EOS, UNK, "a", "b", "c"])
    curve = folder.parent / "curve.csv"
    curve.write_text("epoch\n1\n")
    weights = bundle.stored_weights(model)
    bundle.write(folder, weights, recipe=recipe, card="# a card\n", tokenizer=tokenizer, curve=[curve])
    model.load_state_dict(weights)
    return model.eval()


@pytest.fixture
def folder(tmp_path):
    make(tmp_path / "model")
    return tmp_path / "model"


def seal(folder):
    """Writes SHA256SUMS anew, as one who altered a bundle on purpose would."""
    names = [line.split()[1] for line in (folder / "SHA256SUMS").read_text().splitlines()]
    (folder / "SHA256SUMS").write_text("".join(f"{bundle._sha256(folder / name)}  {name}\n" for name in names))


def test_what_is_written_is_what_is_loaded(tmp_path):
    model = make(tmp_path / "model")
    loaded = zoo.load(str(tmp_path / "model"))
    assert not loaded.training
    assert type(loaded) is Zaremba
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
        assert loaded.state_dict()[name].dtype == torch.float32
    assert loaded.score("a b c").nats == model_score(model, loaded.tokenizer)
    assert sorted(file.name for file in (tmp_path / "model").iterdir()) == [
        "README.md",
        "SHA256SUMS",
        "config.yaml",
        "curve.csv",
        "model.safetensors",
        "tokenizer.json",
    ]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float16}


def model_score(model, tokenizer):
    model.tokenizer = tokenizer
    return model.score("a b c").nats


def test_a_class_of_ones_own_is_loaded_where_it_is_imported(tmp_path):
    make(tmp_path / "model", RECIPE.replace("zoo.models.Zaremba", f"{__name__}.OwnModel"))
    assert type(zoo.load(tmp_path / "model")) is OwnModel
    code = f"import zoo; zoo.load({str(tmp_path / 'model')!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert f"names '{__name__}.OwnModel'; it may name classes of zoo alone" in done.stderr


@pytest.mark.parametrize("name", [f"{__name__}.NotOurs", f"{__name__}.make", "subprocess.Popen", "torch.nn.LSTM"])
def test_what_does_not_extend_ours_is_refused_though_imported(tmp_path, name):
    make(tmp_path / "model", RECIPE.replace("zoo.models.Zaremba", name))
    with pytest.raises(UserError, match="it may name classes of zoo alone"):
        zoo.load(tmp_path / "model")


def test_the_data_of_ones_own_is_refused_though_imported(tmp_path):
    make(tmp_path / "model", RECIPE + f"data: {{class_path: {__name__}.OwnModel}}\n")
    with pytest.raises(UserError, match=r"it may name classes of zoo\.datamodules alone$"):
        bundle.read_recipe(tmp_path / "model")


def test_the_sums_are_those_of_sha256sum(folder):
    done = subprocess.run(["sha256sum", "--check", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert done.stdout.count(": OK") == 3


def test_large_weights_are_cut_into_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "SHARD_BYTES", 300)
    model = make(tmp_path / "model")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert (tmp_path / "model" / "model.safetensors.index.json").exists()
    loaded = zoo.load(str(tmp_path / "model"))
    assert all(torch.equal(loaded.state_dict()[name], value) for name, value in model.state_dict().items())
    shards[1].unlink()
    with pytest.raises(UserError, match=f"{shards[1].name} is missing"):
        zoo.load(str(tmp_path / "model"))


def test_building_gives_fresh_weights_in_training_mode_and_loading_draws_nothing(folder):
    torch.manual_seed(0)
    first = torch.rand(1)
    torch.manual_seed(0)
    zoo.load(str(folder))
    assert torch.equal(torch.rand(1), first)
    built = zoo.build(str(folder))
    assert built.training
    assert not torch.equal(built.softmax.weight, zoo.load(str(folder)).softmax.weight)
    assert built.tokenizer.vocab_size == 5


@pytest.mark.parametrize("name", ["config.yaml", "tokenizer.json", "model.safetensors"])
def test_an_altered_file_is_named_with_both_sums(folder, name):
    before = bundle._sha256(folder / name)
    with (folder / name).open("ab") as file:
        file.write(b" ")
    with pytest.raises(
        UserError, match=rf"{name} was changed: its sha256 is {bundle._sha256(folder / name)}.*{before}"
    ):
        zoo.load(str(folder))


@pytest.mark.parametrize("name", ["tokenizer.json", "model.safetensors", "SHA256SUMS"])
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(UserError, match=f"{name} is missing"):
        zoo.load(str(folder))


def test_weights_that_no_sum_covers_are_refused(folder):
    sums = folder / "SHA256SUMS"
    sums.write_text("".join(line + "\n" for line in sums.read_text().splitlines() if "safetensors" not in line))
    with pytest.raises(UserError, match="model.safetensors is not listed in SHA256SUMS"):
        zoo.load(str(folder))


def test_truncated_weights_are_named(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="model.safetensors was changed"):
        zoo.load(str(folder))
    seal(folder)
    with pytest.raises(UserError, match="model.safetensors cannot be read"):
        zoo.load(str(folder))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: {k: v for k, v in w.items() if k != "softmax.bias"}, r"missing \['softmax.bias'\], unknown \[\]"),
        (lambda w: {**w, "extra": torch.zeros(1)}, r"missing \[\], unknown \['extra'\]"),
        (lambda w: {**w, "softmax.bias": torch.zeros(6)}, r"softmax.bias has shape \(6,\), the recipe builds \(5,\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(folder, change, message):
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors")
    seal(folder)
    with pytest.raises(UserError, match=message):
        zoo.load(str(folder))


def test_a_tokenizer_of_another_size_is_refused(folder):
    (folder / "tokenizer.json").write_text(Tokenizer.words([EOS, UNK, "a"]).to_json())
    seal(folder)
    with pytest.raises(UserError, match="tokenizer.json has 3 types and .*config.yaml builds a model for 5"):
        zoo.load(str(folder))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("model: {class_path: os.system, init_args: {command: touch owned}}", "names 'os.system'"),
        ("model: hostile.Model", "expected class_path and init_args alone, found 'hostile.Model'"),
        ("model: hostile.yaml", "expected class_path and init_args alone, found 'hostile.yaml'"),
        ("model: {class_path: hostile.Model}", "names 'hostile.Model'"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: hostile.Model}}", "is no plain word"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: [hostile.Model]}}", "is no plain word"),
        (
            "model: {class_path: zoo.models.Zaremba, dict_kwargs: {vocab_size: 5}}",
            "expected class_path and init_args alone",
        ),
        ("model: &a {class_path: zoo.models.Zaremba, init_args: {x: *a}}", "is no recipe: RecursionError"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5, hidden_size: 0}}", "hidden_size is 0"),
        (
            "model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5, hidden_size: 6, dropout: 1.0}}",
            "p is 1.0",
        ),
        (
            "model: {class_path: torch.nn.Linear, init_args: {in_features: 1, out_features: 1}}",
            "names 'torch.nn.Linear'",
        ),
        (
            "model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: {class_path: subprocess.Popen}}}",
            "names 'subprocess.Popen'",
        ),
        ("model: {class_path: zoo.layers.LSTM, init_args: {input_size: 1, hidden_size: 1}}", "zoo.layers.LSTM"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5, hiden_size: 6}}", "hiden_size"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5, hidden_size: six}}", "hidden_size"),
        ("model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5}}", "hidden_size"),
        ("model: {class_path: zoo.models.Nothing}", "there is no such class: .*Nothing"),
        (
            "model: {class_path: zoo.hub.load, init_args: {name: zaremba-small-ptb}}",
            "'zoo.hub.load', which is no class",
        ),
        (
            "model: {class_path: zoo.models.Zaremba, init_args: {vocab_size: 5, hidden_size: 6, device: meta}}",
            "where a model runs is no part of a recipe",
        ),
        ("trainer: {}", "is no recipe: KeyError"),
        ("model: [unclosed", "is no recipe"),
        ("", "is no recipe"),
        ("model: !!python/object/apply:os.system ['touch owned']", "is no recipe"),
    ],
)
def test_a_recipe_that_builds_something_else_is_refused(folder, recipe, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("hostile.py").write_text("from pathlib import Path\nPath('owned').touch()\n")
    Path("hostile.yaml").write_text("class_path: zoo.models.Zaremba\ninit_args: {vocab_size: 5, hidden_size: 6}\n")
    (folder / "config.yaml").write_text(recipe)
    with pytest.raises(UserError, match=message):
        zoo.build(str(folder))
    assert not Path("owned").exists()
    assert "hostile" not in sys.modules


def test_only_the_model_section_is_read(folder):
    with (folder / "config.yaml").open("a") as file:
        file.write("trainer: {callbacks: {class_path: os.system}}\ndata: {class_path: nothing.there}\n")
    assert zoo.build(str(folder)).vocab_size == 5


def test_weights_without_a_float16_are_refused():
    model = Zaremba(5, hidden_size=6)
    with torch.no_grad():
        model.softmax.bias[0] = 1e6
    with pytest.raises(UserError, match=r"softmax\.bias holds values that are not finite in torch.float16"):
        bundle.stored_weights(model)


def contents(folder):
    return {file.name: file.read_bytes() for file in sorted(folder.iterdir())}


def test_a_failed_write_leaves_the_old_folder_whole(folder, monkeypatch):
    before = contents(folder)

    def no_space(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    for step in ("zoo.bundle.save_torch_state_dict", "zoo.bundle.shutil.copyfile", "zoo.bundle.os.fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(step, no_space)
            with pytest.raises(
                UserError, match="model was not written, what stood there is untouched: .*No space left"
            ):
                make(folder, seed=1)
        assert contents(folder) == before
        assert sorted(path.name for path in folder.parent.iterdir()) == ["curve.csv", "model"]
    make(folder, seed=1)
    assert contents(folder) != before


@pytest.mark.parametrize("stop", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_write_that_stops_between_the_two_renames_puts_the_old_folder_back(folder, monkeypatch, stop):
    before, rename, calls = contents(folder), os.rename, []

    def second_fails(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise stop
        rename(source, target)

    monkeypatch.setattr("zoo.bundle.os.rename", second_fails)
    with pytest.raises((UserError, KeyboardInterrupt)):
        make(folder, seed=1)
    assert len(calls) == 3
    assert contents(folder) == before
    assert not list(folder.parent.glob(".model-*"))


def test_every_file_may_be_read_by_all(folder):
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {0o644}


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"zzz  config.yaml\n", b"\xff\xfe", b"0" * 64 + b"  ../../etc/passwd\n"]
)
def test_damaged_sums_are_named(folder, content):
    (folder / "SHA256SUMS").write_bytes(content)
    with pytest.raises(UserError, match="SHA256SUMS"):
        zoo.load(str(folder))


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"weight_map": 3}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    with pytest.raises(UserError, match="is no index of weights"):
        zoo.load(str(folder))


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from tests.test_bundle import make
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
make(Path(sys.argv[1]), seed=1)
"""


def test_a_disk_that_is_full_leaves_the_old_folder_whole(folder):
    before = contents(folder)
    done = subprocess.run([sys.executable, "-c", FULL_DISK, folder], cwd=ROOT, capture_output=True, text=True)
    assert "was not written, what stood there is untouched" in done.stderr
    assert contents(folder) == before
    assert not list(folder.parent.glob(".model-*"))
    zoo.load(str(folder))


def test_an_index_cannot_point_outside_the_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(bundle, "SHARD_BYTES", 300)
    make(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    listed = json.loads(index.read_text())
    listed["weight_map"] = {name: "../../etc/passwd" for name in listed["weight_map"]}
    index.write_text(json.dumps(listed))
    seal(tmp_path / "model")
    with pytest.raises(UserError, match="passwd"):
        zoo.load(str(tmp_path / "model"))


def test_a_recipe_alone_says_how_to_train_it(tmp_path):
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.yaml").write_text(RECIPE)
    with pytest.raises(UserError, match="alone is a recipe without weights: train it with 'python cli.py fit .*alone'"):
        zoo.load(str(tmp_path / "alone"))
    assert zoo.build(str(tmp_path / "alone")).vocab_size == 5
