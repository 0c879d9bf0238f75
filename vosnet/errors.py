"""Errors that end a command: what happened, to which value, what to do, and the exit code."""

from __future__ import annotations

import difflib
from collections.abc import Sequence


class VosnetError(Exception):
    """An expected failure; the command line prints it as one line and exits with `exit_code`.

    Args:
        code: stable identifier such as "E204", listed in docs/errors.md.
        message: what happened and to which file, key or value.
        hint: what the user can do about it, or empty.
    """

    exit_code = 1

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        end = "" if self.message.endswith((".", "!", "?")) or not self.hint else "."
        return f"{self.code} {self.message}{end} {self.hint}".rstrip()

    def __reduce__(self) -> tuple[type[VosnetError], tuple[str, str, str]]:
        return type(self), (self.code, self.message, self.hint)  # survives a process boundary


class UsageError(VosnetError):
    """A wrong option, recipe key or value (codes E1xx)."""

    exit_code = 2


class SettingError(ValueError):
    """A value of a recipe or a constructor is out of range; its place is a field, not a part of the text.

    Args:
        key: the argument's name; dots lead into nested ones, such as "clustering.num_clusters".
        message: what is wrong with which value, without the key in front.
    """

    def __init__(self, key: str, message: str) -> None:
        super().__init__(f"{key}: {message}")
        self.key = key
        self.message = message

    def __reduce__(self) -> tuple[type[SettingError], tuple[str, str]]:
        return type(self), (self.key, self.message)

    def under(self, prefix: str) -> SettingError:
        """The same error, seen from outside the section `prefix`."""
        return SettingError(f"{prefix}.{self.key}", self.message)


class PartialFailureError(VosnetError):
    """Some inputs failed, the others are done (codes E3xx)."""

    exit_code = 3


class InputError(VosnetError, ValueError):
    """An input is unreadable or does not fit the others (codes E2xx)."""

    exit_code = 4


class OutOfMemoryError(VosnetError):
    """Memory ran out even with the last fallback (codes E5xx)."""

    exit_code = 5


class StorageError(VosnetError):
    """Disk full, read-only, or not writable (codes E6xx)."""

    exit_code = 6


class DivergedError(VosnetError):
    """Training produced non-finite numbers and was stopped (codes E7xx)."""

    exit_code = 7


class LockedError(VosnetError):
    """Another process uses the same run folder (codes E8xx)."""

    exit_code = 8


def known_names_hint(name: str, known: Sequence[str]) -> str:
    """What to say about an unknown name: the nearest known one, or all of them."""
    near = difflib.get_close_matches(name, known, 1)
    return f"Did you mean {near[0]}?" if near else f"Known: {', '.join(known)}."
