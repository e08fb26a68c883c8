"""The models, one file a paper."""

from zoo.models.zaremba import Zaremba as Zaremba
