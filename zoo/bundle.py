"""The published folder of a model: written whole or not at all, read strictly and safely.

`config.yaml` (the recipe), `README.md` (the card), `model.safetensors` (float16; shards with an index above 90 MB),
`tokenizer.json`, of a classifier of texts `labels.json`, `curve.csv`, `curve.png`, and `SHA256SUMS` over all but card and
curve.
"""

import hashlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from jsonargparse import ArgumentError, ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError, in_one_line, suggestion
from zoo.files import CARD, INDEX, LABELS, RECIPE, SHARDS, SUMS, TOKENIZER, WEIGHTS, has_weights
from zoo.tasks import Task
from zoo.tokenizer import Tokenizer

SHARD_BYTES = 90_000_000

_NO_OPTION = re.compile(r"class_path '([\w.]+)':\s*(?:- )?Option '(\w+)' is not accepted")
"""The parser says so in the midst of nine lines."""


def read_recipe(folder: Path) -> dict[str, Any]:
    """What of the recipe may run wherever the folder comes from.

    The model, of classes of `zoo` and of such as extend them in modules imported before; the data, of `zoo.datamodules`
    alone; of the trainer its numbers, switches and precision; seed and card. Raises `UserError` where the recipe names
    another class.
    """
    recipe = _read(folder)
    trainer = recipe.get("trainer") or {}
    if "data" in recipe:
        _check_class(recipe["data"], "zoo.datamodules", folder / RECIPE)
    plain = {key: value for key, value in trainer.items() if isinstance(value, int | float) or key == "precision"}
    kept = [key for key in ("seed_everything", "model", "data", "card") if key in recipe]
    return {**{key: recipe[key] for key in kept}, "trainer": plain}


def _read(folder: Path) -> dict[str, Any]:
    """The recipe, its model section checked: importing a foreign module runs its code, so names are checked first."""
    file = folder / RECIPE
    try:
        recipe: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
        _check_class(recipe["model"], "zoo", file)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no model: it has no {RECIPE}") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{file} is no recipe: {in_one_line(error)}") from error
    return recipe


def _check_class(section: Any, package: str, file: Path) -> None:
    """`section` must be a class of `package` with its arguments, in full: a mere name may stand for a file or a class."""
    if not isinstance(section, Mapping) or not section.keys() <= {"class_path", "init_args"}:
        raise UserError(f"{file}: expected class_path and init_args alone, found {section!r}")
    path = str(section["class_path"])
    if not path.startswith(f"{package}.") and not (package == "zoo" and _extends_ours(path)):
        ours = " and, of modules imported before, such as extend them" if package == "zoo" else ""
        raise UserError(f"{file} names {path!r}; it may name classes of {package} alone{ours}")
    _check_is_class(path, file)
    for name, value in (section.get("init_args") or {}).items():
        if name in ("device", "dtype") and value is not None:
            raise UserError(f"{file} sets {name} of {section['class_path']}; where a model runs is no part of a recipe")
        _check_value(value, package, file)


def _extends_ours(path: str) -> bool:
    """Whether a class that is imported already, and so is trusted, extends one of this package."""
    module, _, name = path.rpartition(".")
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return isinstance(found, type) and any(base.__module__.startswith("zoo.") for base in found.__mro__)


def _check_is_class(path: str, file: Path) -> None:
    """A function that returns a model would be called just the same."""
    module, _, name = path.rpartition(".")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{file} names {path!r}, and there is no such class: {error}") from error
    if not isinstance(found, type):
        raise UserError(f"{file} names {path!r}, which is no class")


def _check_value(value: Any, package: str, file: Path) -> None:
    if isinstance(value, list):
        for item in value:
            _check_value(item, package, file)
    elif isinstance(value, Mapping):
        _check_class(value, package, file)
    elif package == "zoo" and isinstance(value, str) and not re.fullmatch(r"[\w-]*", value):
        raise UserError(f"{file}: {value!r} is no plain word; a class is named by class_path")


def build(folder: Path) -> Task:
    """The recipe's model with fresh weights.

    Reads the `model` section alone. Raises `UserError` for a class outside this package, but for one that extends a class of
    it in a module imported before, or an argument that the class does not take.
    """
    file = folder / RECIPE
    model = instantiate(_read(folder)["model"], file)
    load_vocabulary(model, folder)
    return model


def load_vocabulary(model: Task, folder: Path) -> None:
    """Gives the model the folder's tokenizer and the names of its classes, where it has them."""
    tokenizer, labels = folder / TOKENIZER, folder / LABELS
    if tokenizer.exists():
        model.tokenizer = Tokenizer.from_file(tokenizer)
        if model.tokenizer.vocab_size != model.vocab_size:
            raise UserError(
                f"{tokenizer} has {model.tokenizer.vocab_size:,} types and {folder / RECIPE} builds a model for "
                f"{model.vocab_size:,}"
            )
    if labels.exists():
        model.labels = _labels(labels)


def _labels(file: Path) -> list[str]:
    try:
        labels = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is no list of names: {error}") from error
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise UserError(f"{file} is no list of names: {labels!r}")
    return labels


def instantiate(section: dict[str, Any], file: Path) -> Task:
    """The model of a recipe's `model` section, which stands in `file`, with fresh weights."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "model", required=True)
    try:
        model: Task = parser.instantiate(parser.parse_object({"model": section})).model
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{file}: {in_brief(str(error))}") from error
    return model


def in_brief(message: str) -> str:
    """What the parser says; of an option that a class does not have, in one line."""
    found = _NO_OPTION.search(message)
    if found is None:
        return message
    path, option = found.groups()
    module, _, name = path.rpartition(".")
    known = inspect.signature(getattr(import_module(module), name)).parameters
    return f"{path} has no option {option!r}: {suggestion(option, list(known), 1, 0.6)}"


def load(folder: Path) -> Task:
    """The trained model in evaluation mode, its files verified."""
    verify(folder)
    with torch.random.fork_rng(devices=[]):  # building draws an initialisation that is thrown away
        model = build(folder)
    load_weights(model, folder)
    return model.eval()


def verify(folder: Path) -> None:
    """Checks that the folder is a trained model, and each file against its line in `SHA256SUMS`."""
    file = folder / SUMS
    if not has_weights(folder) and not file.exists() and (folder / RECIPE).exists():
        raise UserError(
            f"{folder.name} is a recipe without weights: train it with 'python cli.py fit {folder}', take it with fresh "
            "weights, zoo.build, or name a folder of trained models in $ZOO_CHECKPOINTS"
        )
    if not file.exists():
        raise UserError(f"{folder} is incomplete: {SUMS} is missing")
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    expected = {}
    for line in lines:
        if not (match := re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)", line)):
            raise UserError(f"{file} has a line that is no checksum: {line!r}")
        expected[match[2]] = match[1]
    for name, digest in expected.items():
        if not (folder / name).exists():
            raise UserError(f"{folder} is incomplete: {name} is missing")
        if (found := _sha256(folder / name)) != digest:
            raise UserError(f"{folder / name} was changed: its sha256 is {found}, {SUMS} says {digest}")
    needed = {name for name in (RECIPE, TOKENIZER, LABELS, INDEX) if (folder / name).exists()}
    for name in sorted(needed | {path.name for path in _weight_files(folder)} - expected.keys()):
        if name not in expected:
            what = "is not listed in" if (folder / name).exists() else "is missing, and not listed in"
            raise UserError(f"{folder / name} {what} {SUMS}")


def load_weights(model: Task, folder: Path) -> None:
    """Puts the folder's weights into the model; every name and shape must agree."""
    stored: dict[str, Tensor] = {}
    for file in _weight_files(folder):
        try:
            stored |= load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file} cannot be read: {error}") from error
    expected = model.state_dict()
    missing, unknown = sorted(expected.keys() - stored.keys()), sorted(stored.keys() - expected.keys())
    if missing or unknown:
        raise UserError(f"the weights in {folder} do not fit the recipe: missing {missing}, unknown {unknown}")
    for name, value in stored.items():
        if value.shape != expected[name].shape:
            raise UserError(
                f"{folder}: {name} has shape {tuple(value.shape)}, the recipe builds {tuple(expected[name].shape)}"
            )
    model.load_state_dict(stored)


def _weight_files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if not index.exists():
        return [folder / WEIGHTS]
    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return [folder / Path(shard).name for shard in sorted(shards)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index} is no index of weights: {in_one_line(error)}") from error


def stored_weights(model: Task) -> dict[str, Tensor]:
    """The model's state as it is stored: its parameters rounded to float16, its statistics as they are.

    Raises `UserError` where a parameter has no finite float16.
    """
    parameters = {name for name, _ in model.named_parameters()}
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    state = {name: value.half() if name in parameters else value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} holds values that are not finite in {value.dtype}; it is not stored")
    return state


def write(
    folder: Path,
    weights: dict[str, Tensor],
    *,
    recipe: str,
    card: str,
    tokenizer: Tokenizer | None,
    curve: list[Path],
    labels: list[str] | None = None,
) -> None:
    """Writes the whole folder aside and then renames it; where that fails, what stood there stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    new, old = aside / "new", aside / "old"
    try:
        new.mkdir()
        save_torch_state_dict(weights, new, max_shard_size=SHARD_BYTES)
        (new / RECIPE).write_text(recipe, encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        if tokenizer is not None:
            (new / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        if labels is not None:
            (new / LABELS).write_text(json.dumps(labels, ensure_ascii=False), encoding="utf-8")
        summed = [RECIPE, TOKENIZER, LABELS, INDEX, *sorted(file.name for file in new.glob(SHARDS))]
        lines = [f"{_sha256(new / name)}  {name}\n" for name in summed if (new / name).exists()]
        (new / SUMS).write_text("".join(lines), encoding="utf-8")
        for file in curve:
            shutil.copyfile(file, new / file.name)
        for file in new.iterdir():
            file.chmod(0o644)  # the weights come from a private temporary file
            with file.open("rb") as written:
                os.fsync(written.fileno())
        if folder.exists():
            os.rename(folder, old)
        os.rename(new, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} was not written, what stood there is untouched: {error}") from error
    finally:
        if old.exists() and not folder.exists():
            os.rename(old, folder)
        shutil.rmtree(aside, ignore_errors=True)


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
