"""How fast an own corpus becomes token ids, and in how much memory."""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import report

from zoo.datamodules import TINY_SHAKESPEARE, Corpus

MEGABYTES = 1000
MODES = {
    "words": {"level": "word"},
    "words, Penn Treebank rules": {"level": "word", "normaliser": "penn_treebank"},
    "characters": {"level": "character"},
}


def measure(path: str, mode: str) -> None:
    """In a process of its own: reads, counts, encodes and opens one pass of training windows."""
    start = time.perf_counter()
    data = Corpus(path, **MODES[mode])  # type: ignore[arg-type]
    tokens = sum(len(data.ids(split)) for split in ("train", "validation", "test"))
    seconds = time.perf_counter() - start
    for _ in data.train_dataloader():
        pass
    print(tokens, seconds, anonymous_peak())


def anonymous_peak() -> int:
    """Peak resident memory in MB, without the pages of mapped files that are still resident."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status = Path("/proc/self/status").read_text()
    mapped = int(status.split("RssFile:")[1].split()[0])
    return round((peak - mapped) / 1e3)


def main() -> None:
    """Writes a corpus of the shipped text, numbered words in it so that the vocabulary grows, and measures each mode."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=MEGABYTES)
    parser.add_argument("--measure", nargs=2, metavar=("PATH", "MODE"))
    arguments = parser.parse_args()
    if arguments.measure:
        return measure(*arguments.measure)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.txt")
        shipped = TINY_SHAKESPEARE.read_text(encoding="utf-8")
        with corpus.open("w", encoding="utf-8") as file:
            for copy in range(arguments.megabytes * 1_000_000 // len(shipped) + 1):
                file.write(shipped.replace(" the ", f" the{copy} "))
        size = corpus.stat().st_size / 1e6
        for mode in MODES:
            done = subprocess.run(
                [sys.executable, __file__, "--measure", str(corpus), mode],
                env={"HF_HOME": f"{folder}/{mode}", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "PATH": "/usr/bin"},
                capture_output=True,
                text=True,
                check=True,
            )
            tokens, seconds, peak = done.stdout.split()
            rows.append([mode, f"{int(tokens):,}", f"{size / float(seconds):.1f}", peak])
    report.write(
        __file__,
        f"A corpus of {size:.0f} MB becomes token ids",
        ["level", "tokens", "MB/s", "peak anonymous memory, MB"],
        rows,
        "From the text file to memory-mapped ids: copied by `datasets`, hashed, counted, encoded; then one pass over the "
        "training windows. A process each, an empty cache each.",
    )


if __name__ == "__main__":
    main()
