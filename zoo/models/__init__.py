"""The models, one file a paper."""

from zoo.models.awd_lstm import AWDLSTM as AWDLSTM
from zoo.models.fraternal import FraternalLanguageModel as FraternalLanguageModel
from zoo.models.recurrent import OneHotLanguageModel as OneHotLanguageModel
from zoo.models.recurrent import RecurrentClassifier as RecurrentClassifier
from zoo.models.recurrent import RecurrentLanguageModel as RecurrentLanguageModel
from zoo.models.recurrent_batch_norm import RecurrentBatchNormClassifier as RecurrentBatchNormClassifier
from zoo.models.recurrent_batch_norm import RecurrentBatchNormLanguageModel as RecurrentBatchNormLanguageModel
from zoo.models.recurrent_dropout import RecurrentDropoutLanguageModel as RecurrentDropoutLanguageModel
from zoo.models.recurrent_dropout import RNNDrop as RNNDrop
from zoo.models.sequence_to_sequence import EncoderDecoder as EncoderDecoder
from zoo.models.text_classifier import TextClassifier as TextClassifier
from zoo.models.variational import VariationalLSTM as VariationalLSTM
from zoo.models.zaremba import Zaremba as Zaremba
from zoo.models.zoneout import ZoneoutClassifier as ZoneoutClassifier
from zoo.models.zoneout import ZoneoutLanguageModel as ZoneoutLanguageModel
