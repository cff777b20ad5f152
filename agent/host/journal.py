"""The log of a service: plain lines, or lines for systemd's journal, each with its priority (sd-daemon(3))."""

from __future__ import annotations

import logging
import os
import sys
import time

ERROR = 3
"""Priority of syslog."""
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, ERROR), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7


def to_journal() -> bool:
    """Whether standard error is the journal: systemd names what it gave, which a shell in between may have replaced."""
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError, AttributeError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def prioritised(text: str, priority: int) -> str:
    """Every line of ``text`` with its priority in front, which the journal takes off."""
    return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))


class LogFormatter(logging.Formatter):
    """Lines in UTC; for the journal, which stamps its lines itself, lines without time and with their priority."""

    def __init__(self) -> None:
        self._journal = to_journal()
        stamp = "" if self._journal else "%(asctime)s.%(msecs)03dZ "
        super().__init__(f"{stamp}%(levelname)s %(name)s: %(message)s", "%Y-%m-%dT%H:%M:%S")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        """See ``logging.Formatter.format``."""
        text = super().format(record)
        if not self._journal:
            return text
        return prioritised(text, next((p for level, p in _PRIORITIES if record.levelno >= level), _DEBUG))


def log_to_stderr() -> None:
    """Log to standard error, from INFO on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.INFO, handlers=[handler])
