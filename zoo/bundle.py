"""The published folder of a model: written whole or not at all, read strictly and safely.

`config.yaml` (the recipe), `README.md` (the card), `model.safetensors` (float16; shards with an index above 90 MB),
`tokenizer.json`, `curve.csv`, `curve.png`, and `SHA256SUMS` over recipe, tokenizer and weights.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub import save_torch_state_dict
from jsonargparse import ArgumentError, ArgumentParser
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from zoo.errors import UserError
from zoo.tasks import LanguageModel, Task
from zoo.tokenizer import Tokenizer

RECIPE, CARD, TOKENIZER, SUMS = "config.yaml", "README.md", "tokenizer.json", "SHA256SUMS"
WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
PATTERNS = [RECIPE, CARD, TOKENIZER, SUMS, "model*.safetensors", INDEX, "curve.csv", "curve.png"]

SHARD_BYTES = 90_000_000
_PACKAGE = "zoo"


def build(folder: Path) -> Task:
    """The recipe's model with fresh weights.

    Reads the `model` section alone, and builds classes of this package alone. Raises `UserError` for another class, or a
    key that the class does not take.
    """
    file = folder / RECIPE
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
        section = recipe["model"]
        _check_classes(section, file)
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no model: it has no {RECIPE}") from error
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no recipe: {error!r}") from error
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Task, "model", required=True)
    try:
        model: Task = parser.instantiate(parser.parse_object({"model": section})).model
    except ArgumentError as error:
        raise UserError(f"{file}: {error}") from error
    tokenizer = folder / TOKENIZER
    if isinstance(model, LanguageModel) and tokenizer.exists():
        model.tokenizer = Tokenizer.from_file(tokenizer)
        if model.tokenizer.vocab_size != model.vocab_size:
            raise UserError(
                f"{tokenizer} has {model.tokenizer.vocab_size:,} types and {file} builds a model for {model.vocab_size:,}"
            )
    return model


def _check_classes(section: Any, file: Path) -> None:
    """Importing a foreign module runs its code, so names are checked before anything resolves them."""
    if isinstance(section, Mapping):
        name = section.get("class_path")
        if name is not None and not str(name).startswith(f"{_PACKAGE}."):
            raise UserError(f"{file} names {name!r}; a model is built from classes of {_PACKAGE} alone")
        section = list(section.values())
    if isinstance(section, list):
        for value in section:
            _check_classes(value, file)


def load(folder: Path) -> Task:
    """The trained model in evaluation mode, its files verified."""
    require_weights(folder)
    verify(folder)
    with torch.random.fork_rng(devices=[]):  # building draws an initialisation that is thrown away
        model = build(folder)
    load_weights(model, folder)
    return model.eval()


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a trained model, and not a recipe alone."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()


def require_weights(folder: Path) -> None:
    """Raises `UserError` where the folder holds a recipe alone."""
    if has_weights(folder):
        return
    if (folder / SUMS).exists() or not (folder / RECIPE).exists():
        raise UserError(f"{folder} is incomplete: {WEIGHTS} is missing")
    raise UserError(
        f"{folder.name} is a recipe without weights: train it with 'fit --config {folder / RECIPE}', or take it with "
        "fresh weights, zoo.build"
    )


def verify(folder: Path) -> None:
    """Compares every file that `SHA256SUMS` lists, and that all weights are listed."""
    file = folder / SUMS
    if not file.exists():
        raise UserError(f"{folder} is incomplete: {SUMS} is missing")
    expected = {name: digest for digest, name in (line.split(maxsplit=1) for line in file.read_text().splitlines())}
    for name in {RECIPE, TOKENIZER, *(path.name for path in _weight_files(folder))} - expected.keys():
        if (folder / name).exists():
            raise UserError(f"{folder / name} is not listed in {SUMS}")
    for name, digest in expected.items():
        path = folder / Path(name).name
        if not path.exists():
            raise UserError(f"{folder} is incomplete: {name} is missing")
        if (found := _sha256(path)) != digest:
            raise UserError(f"{path} was changed: its sha256 is {found}, {SUMS} says {digest}")


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
    if not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    names = set(json.loads((folder / INDEX).read_text())["weight_map"].values())
    files = [folder / Path(name).name for name in sorted(names)]
    return [*files]


def stored_weights(model: Task) -> dict[str, Tensor]:
    """The model's state as it is stored: floating point numbers rounded to float16.

    Raises `UserError` where a number has no finite float16.
    """
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    state = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    for name, value in state.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise UserError(f"{name} holds values that are not finite in float16; it is not stored")
    return state


def write(
    folder: Path, weights: dict[str, Tensor], *, recipe: str, card: str, tokenizer: Tokenizer | None, curve: list[Path]
) -> None:
    """Writes the whole folder aside and then renames it; where that fails, what stood there stays as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        new = aside / "new"
        new.mkdir()
        save_torch_state_dict(weights, new, max_shard_size=SHARD_BYTES)
        (new / RECIPE).write_text(recipe, encoding="utf-8")
        (new / CARD).write_text(card, encoding="utf-8")
        if tokenizer is not None:
            (new / TOKENIZER).write_text(tokenizer.to_json(), encoding="utf-8")
        summed = [file for file in (RECIPE, TOKENIZER) if (new / file).exists()]
        summed += sorted(file.name for file in new.glob(f"{WEIGHTS.split('.')[0]}*"))
        (new / SUMS).write_text("".join(f"{_sha256(new / file)}  {file}\n" for file in summed))
        for file in curve:
            shutil.copyfile(file, new / file.name)
        _exchange(new, folder, aside / "old")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} was not written, what stood there is untouched: {error}") from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _exchange(new: Path, folder: Path, old: Path) -> None:
    if folder.exists():
        os.rename(folder, old)
    try:
        os.rename(new, folder)
    except OSError:
        if old.exists():
            os.rename(old, folder)
        raise


def _sha256(file: Path) -> str:
    with file.open("rb") as source:
        return hashlib.file_digest(source, "sha256").hexdigest()
