"""The one exception that means "the user can mend this": the door prints its message alone and exits with code 2. And the exit codes."""

from __future__ import annotations

FINISHED = 0
FAILED = 1  # a bug, or a check that found what it looked for
USER_ERROR = 2
UNREADABLE = 3  # finished, but samples could not be read
CONTINUE_ME = 75  # stopped by a signal (EX_TEMPFAIL): job scripts put the job back into the queue
INTERRUPTED = 130  # Ctrl-C, where there was nothing to stop in order


class UserError(ValueError):
    """Something a user can cause and mend. The message says what is wrong, where, and what to do."""


class MissingPath(UserError, FileNotFoundError):
    """A file or folder that the user named, or forgot to name, is not there."""

    def __str__(self) -> str:  # FileNotFoundError would print its errno form
        return str(self.args[0]) if self.args else ""
