"""Penn Treebank in Mikolov's form."""

from collections.abc import Iterator
from functools import cached_property

import datasets

from datamodules import source
from datamodules.text import Split, TextDataModule
from zoo.tokenizer import Level, Tokenizer, character_vocabulary, count_words, word_vocabulary


class PennTreebank(TextDataModule):
    """Penn Treebank as cut and cleaned by Mikolov: 10,000 words, or 50 characters.

    - `level="word"`: one `<eos>` a line; 929,589 / 73,760 / 82,430 tokens of 10,000 types.
    - `level="character"`: the words of a line joined by "_", one end of line; 5,017,482 / 393,042 / 442,423 symbols of 50
      types: the `ptb.char.*.txt` files, as AWD-LSTM reads them.

    Mikolov, Deoras, Kombrink, Burget and Cernocky 2011, "Empirical evaluation and combination of advanced language
    modeling techniques". The text is the LDC's and is not shipped: it comes from `ptb-text-only/ptb_text_only` on the Hub,
    or from `root` (else `$ZOO_DATASETS`), a folder laid out as on the Hub.
    """

    dataset_id = "ptb-text-only/ptb_text_only"
    dataset_name = "Penn Treebank"

    def __init__(
        self,
        level: Level = "word",
        batch_size: int = 20,
        bptt: int = 35,
        drop_last: bool = False,
        random_bptt: bool = False,
        max_bptt: int | None = None,
        root: str | None = None,
        tokenizer: str | None = None,
    ) -> None:
        super().__init__(batch_size, bptt, drop_last, random_bptt, max_bptt, tokenizer)
        self.level: Level = level
        self.root = root

    @cached_property
    def _rows(self) -> datasets.DatasetDict:
        # The Hub's main branch is a loading script, which datasets >= 4 refuses; this branch is its Parquet twin, and
        # has no configurations, hence the file names.
        return source.load(
            self.dataset_id,
            data_files={split: f"penn_treebank/{split}/*.parquet" for split in ("train", "validation", "test")},
            revision="refs/convert/parquet",
            root=self.root,
        )

    def text(self, split: Split) -> Iterator[str]:
        """The lines of a split."""
        blocks = source.blocks(self._rows[split], "sentence")
        return blocks if self.level == "word" else (block.replace(" ", "_") for block in blocks)

    def vocabulary(self) -> list[str]:
        """10,000 words or 50 characters."""
        if self.level == "word":
            return word_vocabulary(count_words(self.text("train")))
        return character_vocabulary(self.text("train"))

    def tokenizer_of(self, vocabulary: list[str]) -> Tokenizer:
        """Words by the rules that turn running English into this corpus's form; characters with "_" for a blank."""
        if self.level == "word":
            return Tokenizer.words(vocabulary, normaliser="penn_treebank")
        return Tokenizer.characters(vocabulary, blank="_")
