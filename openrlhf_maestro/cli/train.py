"""`maestro train`: a configuration in, a run directory out."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_maestro.config.load import load_config
from openrlhf_maestro.config.schema import MaestroConfig


def run(argv: Sequence[str]) -> int:
    config = load_config(MaestroConfig, argv)
    for note in config.notes():
        print(f"note: {note}", file=sys.stderr)
    from openrlhf_maestro.trainer.run import train

    train(config)
    return 0
