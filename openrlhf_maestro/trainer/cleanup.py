"""What a run's processes leave in shared memory when they are ended before they could remove it themselves."""

from __future__ import annotations

from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
# Semaphores and segments of Python's multiprocessing. Nothing else is touched: people keep models in shared memory.
PREFIXES = ("sem.mp-", "psm_")


def shared_memory_in_use() -> set[Path]:
    """Multiprocessing's files in shared memory that the descendants of this process have mapped."""
    found: set[Path] = set()
    for process in psutil.Process().children(recursive=True):
        try:
            paths = {Path(mapped.path) for mapped in process.memory_maps()}
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
        found |= {path for path in paths if path.parent == SHARED_MEMORY and path.name.startswith(PREFIXES)}
    return found
