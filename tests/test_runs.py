"""What a run sets up for itself."""

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from zoo.runs import keep_freed_memory

FAULTS = """
import resource, torch
from zoo.runs import keep_freed_memory

keep_freed_memory()
for turn in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(2**24).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another allocator")
def test_a_freed_buffer_is_there_for_the_next_update():
    own = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True, env=own)
    assert int(done.stdout) < 2**26 / os.sysconf("SC_PAGE_SIZE") / 10


def test_who_has_set_the_allocator_is_left_alone(monkeypatch):
    def never(name):
        raise AssertionError("changed")

    monkeypatch.setattr(ctypes, "CDLL", never)
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "131072")
    keep_freed_memory()
