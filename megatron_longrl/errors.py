"""Errors that a user can act on."""

from __future__ import annotations


class UserError(Exception):
    """A mistake in flags, recipes, files or layouts: one line with what, where and a remedy.

    Entry points print the line without a traceback and exit with status 2.
    """
