"""text8: the beginning of Wikipedia, letters alone."""

from collections.abc import Iterator
from functools import cached_property

import datasets

from zoo.datamodules import source
from zoo.datamodules.text import Batching, Split, TextDataModule
from zoo.errors import UserError
from zoo.tokenizer import Tokenizer, character_vocabulary

TEXT8 = "afmck/text8"


class Text8(TextDataModule):
    """The first 100 million characters of a cleaned Wikipedia: the letters a to z and the blank.

    90,000,000 / 5,000,000 / 5,000,000 symbols of 27 types, in the text's order.

    Mahoney 2011, "Large text compression benchmark", http://mattmahoney.net/dc/textdata.html; cut by Mikolov et al. 2012,
    "Subword language modeling with neural networks". The text comes from `afmck/text8` on the Hub (column `text`, one row a
    split), or from `root` (else `$ZOO_DATASETS`), a folder laid out as on the Hub. `dataset_id` reads another data set of
    that layout in its place, whose numbers are its own.
    """

    def __init__(
        self,
        dataset_id: str = TEXT8,
        batching: Batching = "stream",
        batch_size: int = 128,
        bptt: int = 180,
        drop_last: bool = False,
        random_bptt: bool = False,
        max_bptt: int | None = None,
        evaluation: Batching | None = None,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, bptt, drop_last, random_bptt, max_bptt, tokenizer, batching, evaluation)
        if not source.is_dataset_id(dataset_id):
            raise UserError(f"dataset_id is {dataset_id!r}; it must be the data set's name on the Hub, owner/name")
        self.dataset_id = dataset_id
        self.dataset_name = "text8" if dataset_id == TEXT8 else f"{dataset_id} (not text8)"
        self.root = root

    @cached_property
    def _rows(self) -> datasets.DatasetDict:
        return source.load(self.dataset_id, root=self.root)

    def text(self, split: Split) -> Iterator[str]:
        """The text of a split, which has no lines."""
        for row in source.blocks(self._rows[split], "text", separator=""):
            for start in range(0, len(row), source.BLOCK):
                yield row[start : start + source.BLOCK]

    def vocabulary(self) -> list[str]:
        """The characters of the training text."""
        return character_vocabulary(self.text("train"))

    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """Characters as they stand."""
        return Tokenizer.characters(vocabulary)
