"""What every benchmark writes: a table with the date, the hardware and the versions it was measured on."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from zoo.provenance import commit, hardware

_BEGUN_AT = commit()
"""Before the measuring, which writes files."""


def _short(commit: str) -> str:
    return re.sub(r"\b([0-9a-f]{9})[0-9a-f]{31}\b", r"\1", commit)


def write(
    script: str,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    notes: str,
    device: torch.device | None = None,
) -> None:
    """Prints the table and writes it beside the script, as `<script>.md` (a GPU's `<script>_cuda.md`), with its picture."""
    table = [header, ["---"] * len(header), *rows]
    lines = "\n".join("| " + " | ".join(row) + " |" for row in table)
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' if count > 1 else ''}"
    machine = hardware(device or torch.device("cpu"))
    where = f"{datetime.date.today()}; {machine}; {threads}; torch {torch.__version__}; commit {_short(_BEGUN_AT)}."
    path = Path(script)
    name = path.stem if device is None or device.type == "cpu" else f"{path.stem}_{device.type}"
    picture = f"\n\n![{title}]({name}.png)" if path.with_name(f"{name}.png").exists() else ""
    text = f"# {title}\n\n{lines}\n\n{notes}{picture}\n\nMeasured {where}\n"
    print(text)
    path.with_name(f"{name}.md").write_text(text, encoding="utf-8")
