"""The exception that a user is meant to read, and its kinds."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user can mend. Its text is one line that names the file or field and says what to do.

    The command line prints the text and exits with status 2; nothing half-written is left behind.
    """


class RefusedError(UserError):
    """A source of images is itself wrong: reading it once more would not help."""


class StoppedError(UserError):
    """The user interrupted a job; its state is saved, and the same command resumes. Exit status 130."""


class UnavailableError(UserError):
    """A service, or the way to it, was away: the same may succeed later. Flows try again (``flows.shell.phase``)."""


class NoClusterError(UnavailableError):
    """No Ray cluster at the given address: a wrong address, unless one was there before."""


class ToldError(UserError):
    """Another process of the same run shows this error; who shows errors shows nothing here. Exit status 2."""


def lines_of(error: BaseException) -> list[str]:
    """Return the lines of an error's text, at least one: the name of its kind if it says nothing.

    >>> lines_of(ValueError("one\\n\\n  two"))
    ['one', 'two']
    """
    return [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest of the known words, or an empty string.

    >>> did_you_mean("resnt50", ["resnet18", "resnet50"])
    "; did you mean 'resnet50'?"
    """
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""
