"""Every error Talus raises on purpose; each carries the operator's next step.

    TalusError
    ├── ConfigError      the configuration file, or a change to it
    ├── DataError        samples, records, identifiers, times
    │   └── SourceError  a source that cannot be opened or read
    ├── ModelError       a bundle, or a backend that cannot serve it
    │   ├── BundleError  hash, labels, shapes, manifest, signature
    │   └── BackendError the runtime failed or disagrees with the golden windows
    ├── DeliveryError    the outbox or the broker
    ├── ControlError     a remote order that is not obeyed
    └── UsageError       the command line (exit status 2)

Foreign exceptions are mapped to these where they first appear, and nowhere else.
"""

from __future__ import annotations

import signal

INTERRUPTED = 128 + signal.SIGINT
"""Exit status after Ctrl-C, as a shell has it."""


class TalusError(Exception):
    """``message`` says what is wrong, ``hint`` what to do about it."""

    exit_status = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  hint: {self.hint}" if self.hint else self.message


class ConfigError(TalusError):
    """The configuration cannot be used."""


class DataError(TalusError):
    """Data that cannot mean what it says."""


class SourceError(DataError):
    """A source that cannot be opened or read."""


class ModelError(TalusError):
    """No verdict can be had from the network."""


class BundleError(ModelError):
    """A model bundle that must not be used."""


class BackendError(ModelError):
    """A runtime that failed, or whose golden windows are off."""


class DeliveryError(TalusError):
    """The outbox or the broker cannot take a message."""


class ControlError(TalusError):
    """A remote order that is not obeyed, or a key that cannot be used. ``kind`` is one word for programs."""

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.kind = kind


class UsageError(TalusError):
    """The command line cannot be carried out as it is."""

    exit_status = 2


def in_words(error: object) -> str:
    """What an exception says: the operating system's words of an ``OSError``, else its text, else its type."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
