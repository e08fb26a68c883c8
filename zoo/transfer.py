"""A pretrained model on another vocabulary."""

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zoo import bundle
from zoo.errors import UserError
from zoo.files import RECIPE
from zoo.tasks import LanguageModel
from zoo.tokenizer import Tokenizer


def resized(section: Any, vocab_size: int) -> Any:
    """A recipe's `model` section for a vocabulary of another size; the section stays as it is."""
    if isinstance(section, list):
        return [resized(item, vocab_size) for item in section]
    if not isinstance(section, dict):
        return section
    if "class_path" not in section:
        return {name: resized(value, vocab_size) for name, value in section.items()}
    module, _, name = section["class_path"].rpartition(".")
    model = getattr(import_module(module), name)
    arguments = resized(section.get("init_args") or {}, vocab_size)
    if issubclass(model, LanguageModel):
        arguments = model.resized(arguments, vocab_size)
    return {**section, "init_args": arguments}


def origins(old: Tokenizer, new: Tokenizer) -> list[int | None]:
    """For each token of the new vocabulary, in order, the id of the old token that it is; None for a new one.

    It is what the old tokenizer reads it as, where that is one known token: itself, or its form by the old one's rules, as
    "the" for "The" in a lower-cased vocabulary.
    """
    return [_origin(old, token) for token in new.tokens(range(new.vocab_size))]


def _origin(old: Tokenizer, token: str) -> int | None:
    known = old.library.token_to_id(token)
    if known is not None:
        return known
    try:
        ids = old.encode(token).tolist()
    except UserError:  # a character outside a vocabulary without <unk>
        return None
    return ids[0] if len(ids) == 1 and ids[0] != old.unk_id else None


def transfer(folder: Path, tokenizer: Tokenizer, rows: list[int | None] | None) -> tuple[LanguageModel, dict[str, Any]]:
    """The folder's trained model on the vocabulary of `tokenizer`, and the `model` section of its recipe.

    Where a weight has a row (or a column) a word, token i takes row `rows[i]` of the old ones (`origins`), and one whose
    number is None the mean of all: the embedding, a tied or an own softmax and its bias alike. Where `rows` is None all of
    them start afresh. All other weights stay. Howard and Ruder 2018, arXiv 1801.06146, as fastai does it.

    Raises `UserError` where the folder is no trained language model, or shares no word with the vocabulary.
    """
    pretrained = bundle.load(folder)
    if not isinstance(pretrained, LanguageModel) or pretrained.tokenizer is None:
        raise UserError(f"{folder.name} is a {type(pretrained).__name__}, not a language model with a vocabulary")
    own, file = bundle.read_recipe(folder)["model"], folder / RECIPE
    section = resized(own, tokenizer.vocab_size)
    model = bundle.instantiate(section, file)
    with torch.device("meta"):
        other = bundle.instantiate(resized(own, pretrained.vocab_size + 1), file)
    assert isinstance(model, LanguageModel)
    shapes = {name: value.shape for name, value in other.state_dict().items()}
    state, start = pretrained.state_dict(), model.state_dict()
    of_words = [name for name, value in state.items() if value.shape != shapes[name]]
    if rows is not None:
        if all(row is None for token, row in enumerate(rows) if token not in tokenizer.markers):
            raise UserError(
                f"none of the {len(rows):,} types of the corpus is among the {pretrained.vocab_size:,} of {folder.name}: "
                "begin with rows of their own (vocabulary 'new'), or take another model"
            )
        moved = {name: _moved(state[name], shapes[name], rows) for name in of_words}
    else:
        moved = {name: start[name] for name in of_words}
    model.load_state_dict({**state, **moved})
    model.tokenizer = tokenizer
    return model, section


def _moved(weight: Tensor, other: Sequence[int], rows: list[int | None]) -> Tensor:
    """A weight's rows in the new order, along the one dimension that follows the size of the vocabulary."""
    (dimension,) = (d for d, (mine, its) in enumerate(zip(weight.shape, other, strict=True)) if mine != its)
    mean = weight.mean(dimension, keepdim=True)
    new = weight.shape[dimension]
    chosen = torch.tensor([new if row is None else row for row in rows])
    return torch.cat([weight, mean], dimension).index_select(dimension, chosen)
