"""Keys and tokens: in the environment, never in a configuration."""

from __future__ import annotations

import os

from openrlhf_maestro.errors import ConfigError


def read_secret(owner: str, variable: str) -> str | None:
    """The key or token in an environment variable, white space around it removed; None where there is none.

    Raises:
        ConfigError: it cannot stand in a header. The message names `owner` and the variable, and not the value.
    """
    value = os.environ.get(variable, "").strip()
    if not all(" " <= character <= "~" for character in value):
        raise ConfigError(
            f"{owner}: the environment variable {variable} holds something else than printable ASCII characters on one "
            "line, which no key or token can have. Set it anew."
        )
    return value or None
