"""Learning curves on permuted sequential MNIST: zoneout, recurrent batch norm, both, recurrent dropout, and none."""

from curves import Curves

from zoo.metrics import Accuracy

CURVES = Curves(
    __file__,
    "Permuted sequential MNIST",
    models=(
        "lstm-pmnist",
        "zoneout-pmnist",
        "recurrent-dropout-pmnist",
        "rbn-pmnist",
        "zoneout-rbn-pmnist",
    ),
    metric=Accuracy,
    epochs=(1, 2, 5, 10, 20, 50, 100, 150, 200),
    limits=(30, 100),
    digits=1,
    notes="""\
Accuracy in % on the 10,000 images of validation after so many epochs, and at best; the pixels in the papers' order.""",
)

if __name__ == "__main__":
    CURVES.main()
