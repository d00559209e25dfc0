"""How OpenRLHF's Ray actors are subclassed, and what every worker process does first."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any


def plain_class(actor_class: Any) -> type:
    """The undecorated class of a Ray actor class.

    Ray refuses to subclass the decorated one; `modified_class` itself would be pickled by value, with a copy of its
    module's globals that patches do not reach.
    """
    return actor_class.__ray_metadata__.modified_class.__ray_actor_class__


def log_to_file(name: str) -> None:
    """Send this process's output, and that of the processes it starts, to `<run>/logs/<name>.log`."""
    folder = os.environ.get("MAESTRO_LOG_DIR")
    if folder is None:
        return
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    file = os.open(path / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    sys.stdout.flush()
    sys.stderr.flush()
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
