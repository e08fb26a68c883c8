"""Learning curves of the character models on Penn Treebank, beside the log that the zoneout authors published."""

from curves import Curves

from zoo.metrics import BitsPerCharacter

LOG = {
    1: 1.733,
    2: 1.602,
    5: 1.488,
    10: 1.438,
    20: 1.402,
    40: 1.378,
    60: 1.370,
    80: 1.366,
    82: 1.3645,
    107: 1.3644,
    110: 1.367,
}
"""By epoch, validation bits per character of zoneout: github.com/teganmaharaj/zoneout,
drop_prob_cells=0.5_drop_prob_states=0.95.4/log.txt."""

CURVES = Curves(
    __file__,
    "Characters of Penn Treebank",
    models=(
        "zoneout-char-ptb",
        "lstm-char-ptb",
        "weight-noise-char-ptb",
        "norm-stabiliser-char-ptb",
        "stochastic-depth-char-ptb",
        "recurrent-dropout-char-ptb",
        "rbn-char-ptb",
    ),
    metric=BitsPerCharacter,
    epochs=(1, 2, 5, 10, 20, 40, 60, 80),
    limits=(1.25, 1.95),
    digits=3,
    notes="""\
Bits per character of the validation text after so many epochs, read in pieces of 100 symbols as the authors' log has it, and
at best.""",
    published=("zoneout, the authors' log", LOG),
)

if __name__ == "__main__":
    CURVES.main()
