"""Where and with what a number came about."""

import os
import platform
import subprocess
from pathlib import Path

import torch

from zoo import __version__

_SOURCE = Path(__file__).resolve().parent.parent


def hardware(device: torch.device, processes: int = 1) -> str:
    """The accelerators, one a process, or how many cores a process may use and of what processor."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        return name if processes == 1 else f"{processes} x {name}"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{cores} cores, {models[0] if models else platform.processor() or platform.machine()}"


def commit() -> str:
    """The source checkout's commit, marked where files differ from it; the package's version where there is none."""
    if not (_SOURCE / "pyproject.toml").exists():
        return f"recurrent-zoo {__version__}"

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(_SOURCE), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return git("rev-parse", "HEAD") + (" and uncommitted changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return f"recurrent-zoo {__version__}"
