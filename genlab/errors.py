"""The one exception that means "the user can mend this": the door prints its message alone and exits with code 2."""

from __future__ import annotations


class UserError(ValueError):
    """Something a user can cause and mend. The message says what is wrong, where, and what to do."""


class MissingPath(UserError, FileNotFoundError):
    """A file or folder that the user named, or forgot to name, is not there."""

    def __str__(self) -> str:  # FileNotFoundError would print its errno form
        return str(self.args[0]) if self.args else ""
