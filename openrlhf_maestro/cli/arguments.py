"""argparse with this project's errors."""

from __future__ import annotations

import argparse
from typing import NoReturn

from openrlhf_maestro.errors import UserError

HELP = ("-h", "--help")


class ArgumentParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage and leaving."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}. `{self.prog} --help` says how it is called.")
