"""Data modules: where the data come from, and how they are cut into batches."""

from datamodules.addition import Addition as Addition
from datamodules.corpus import TINY_SHAKESPEARE as TINY_SHAKESPEARE
from datamodules.corpus import Corpus as Corpus
from datamodules.labelled_text import LabelledText as LabelledText
from datamodules.mnist import SequentialMNIST as SequentialMNIST
from datamodules.penn_treebank import PennTreebank as PennTreebank
from datamodules.text8 import Text8 as Text8
from datamodules.wikitext import WikiText2 as WikiText2
from datamodules.wikitext import WikiText103 as WikiText103
