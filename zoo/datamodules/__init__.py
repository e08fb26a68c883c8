"""Data modules: where the data come from, and how they are cut into batches."""

from zoo.datamodules.addition import Addition as Addition
from zoo.datamodules.corpus import TINY_SHAKESPEARE as TINY_SHAKESPEARE
from zoo.datamodules.corpus import Corpus as Corpus
from zoo.datamodules.labelled_text import LabelledText as LabelledText
from zoo.datamodules.mnist import SequentialMNIST as SequentialMNIST
from zoo.datamodules.penn_treebank import PennTreebank as PennTreebank
from zoo.datamodules.text8 import Text8 as Text8
from zoo.datamodules.wikitext import WikiText2 as WikiText2
from zoo.datamodules.wikitext import WikiText103 as WikiText103
