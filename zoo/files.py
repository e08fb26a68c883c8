"""What lies in a model's folder."""

from pathlib import Path

RECIPE, CARD, TOKENIZER, SUMS = "config.yaml", "README.md", "tokenizer.json", "SHA256SUMS"
LABELS = "labels.json"
"""What the classes of a classifier are called, by number."""

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Names the shards, where the weights are too large for one file."""

SHARDS = "model*.safetensors"
PATTERNS = [RECIPE, CARD, TOKENIZER, LABELS, SUMS, SHARDS, INDEX, "curve.csv", "curve.png"]


def has_weights(folder: Path) -> bool:
    """Whether the folder holds a trained model, and not a recipe alone."""
    return (folder / WEIGHTS).exists() or (folder / INDEX).exists()
