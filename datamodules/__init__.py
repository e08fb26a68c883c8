"""Data modules: where the text comes from and how it is cut into streams."""

from datamodules.corpus import TINY_SHAKESPEARE as TINY_SHAKESPEARE
from datamodules.corpus import Corpus as Corpus
from datamodules.penn_treebank import PennTreebank as PennTreebank
from datamodules.wikitext import WikiText2 as WikiText2
from datamodules.wikitext import WikiText103 as WikiText103
