"""Memory that is kept for reuse, and given back."""

import platform
import subprocess
import sys

import pytest

FRAGMENTED = """
import ctypes, os
from run_core.hardware import keep_freed_memory, release_freed_memory

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

keep_freed_memory()
before = resident()
libc = ctypes.CDLL("libc.so.6")
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
blocks = []
for _ in range(64):
    blocks.append(libc.malloc(1 << 20))
    ctypes.memset(blocks[-1], 1, 1 << 20)
    libc.malloc(100)  # stays, so that the block before it cannot be cut off the heap's end
for block in blocks:
    libc.free(block)
kept = resident() - before
release_freed_memory()
print(kept, resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc alone keeps freed memory")
def test_freed_memory_is_kept_until_it_is_released() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FRAGMENTED], capture_output=True, text=True, check=True
    )
    kept, released = map(int, done.stdout.split())
    assert kept > 60e6
    assert released < 10e6
