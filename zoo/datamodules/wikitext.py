"""WikiText: the good and featured articles of Wikipedia."""

from collections.abc import Iterator
from functools import cached_property

import datasets

from zoo.datamodules import source
from zoo.datamodules.text import Split, TextDataModule
from zoo.tokenizer import Tokenizer, count_words, word_vocabulary


class WikiText2(TextDataModule):
    """WikiText-2, as tokenised by its authors: 720 articles, rare words replaced by `<unk>`.

    One `<eos>` a line, empty lines included: 2,088,628 / 217,646 / 245,569 tokens of 33,278 types.

    Merity, Xiong, Bradbury and Socher 2017, "Pointer sentinel mixture models", arXiv 1609.07843, section 4.3. The text comes
    from `Salesforce/wikitext` on the Hub, or from `root` (else `$ZOO_DATASETS`), a folder laid out as on the Hub.
    """

    dataset_id = "Salesforce/wikitext"
    dataset_name = "WikiText-2"
    config = "wikitext-2-v1"

    def __init__(
        self,
        batch_size: int = 20,
        bptt: int = 35,
        drop_last: bool = False,
        random_bptt: bool = False,
        max_bptt: int | None = None,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, bptt, drop_last, random_bptt, max_bptt, tokenizer)
        self.root = root

    @cached_property
    def _rows(self) -> datasets.DatasetDict:
        return source.load(self.dataset_id, config=self.config, root=self.root)

    def text(self, split: Split) -> Iterator[str]:
        """The lines of a split."""
        # A row is a line with its line break, or the empty string for an empty line; either becomes one line.
        for block in source.blocks(self._rows[split], "text", separator="\0"):
            yield block.replace("\n\0", "\n").replace("\0", "\n")

    def vocabulary(self) -> list[str]:
        """The words of the training text, `<unk>` among them."""
        return word_vocabulary(count_words(self.text("train")))

    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """Words as they stand between blanks."""
        return Tokenizer.words(vocabulary)


class WikiText103(WikiText2):
    """WikiText-103: 28,475 articles to train on, validation and test those of WikiText-2.

    103,227,021 / 217,646 / 245,569 tokens of 267,735 types; paper and source as of WikiText-2.
    """

    dataset_name = "WikiText-103"
    config = "wikitext-103-v1"
