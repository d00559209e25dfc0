"""Errors a user is meant to read: one short paragraph each, shown without a traceback."""

from __future__ import annotations


class MaestroError(Exception):
    """Base of the errors the command line shows as their message alone."""

    exit_code = 1


class UserError(MaestroError):
    """The configuration, the data or the command line cannot work; found before anything is loaded."""

    exit_code = 2


class ConfigError(UserError):
    """The configuration cannot be read or used."""


class DataError(UserError):
    """A data set cannot be read or used."""


class RunError(MaestroError):
    """A failure while running."""
