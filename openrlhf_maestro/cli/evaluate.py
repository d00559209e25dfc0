"""`maestro evaluate`: a model's responses and verdicts on them; with --compare, finished evaluations side by side."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from openrlhf_maestro.config.evaluate import EvaluateConfig
from openrlhf_maestro.config.load import load_config

COMPARE = "--compare"


def run(argv: Sequence[str]) -> int:
    if COMPARE in argv:
        from openrlhf_maestro.cli import compare

        return compare.run(argv)
    config = load_config(EvaluateConfig, argv)
    for note in config.notes():
        print(f"note: {note}", file=sys.stderr)
    from openrlhf_maestro.trainer.evaluate import evaluate

    evaluate(config)
    return 0
