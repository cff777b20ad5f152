"""The link in a notification that acknowledges without a login: signed, for one alert and one target, and expiring."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from agent.errors import ConfigError, DataError

LASTS_NS = 86_400 * 10**9
_BYTES = 32


@dataclass(frozen=True, slots=True)
class Claim:
    """What a link stands for. ``revision``: of the alert, as the message with the link tells it."""

    alert: str
    target: str
    until_ns: int
    revision: int = 0


class Links:
    """Makes and checks links; safe to use from any thread."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    @classmethod
    def of(cls, folder: Path) -> Links:
        """With the secret of a folder, which is made where there is none.

        Raises:
            ConfigError: the file cannot be read or written.
        """
        path = folder / "link.secret"
        try:
            if not path.exists():
                folder.mkdir(parents=True, exist_ok=True)
                with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
                    file.write(secrets.token_bytes(_BYTES))
            secret = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror}", "the desk's folder must be its user's own") from None
        if len(secret) < _BYTES:
            raise ConfigError(f"{path} is damaged", "delete it; links that were sent before will no longer work")
        return cls(secret)

    def token(self, claim: Claim) -> str:
        """The part of an address that stands for a claim."""
        body = json.dumps([claim.alert, claim.target, claim.until_ns, claim.revision], separators=(",", ":")).encode()
        return f"{_text(body)}.{_text(self._sign(body))}"

    def claim(self, token: str, now_ns: int) -> Claim:
        """What a token stands for.

        Raises:
            DataError: it was not made here, or its time is over.
        """
        body_text, _, signature = token.partition(".")
        try:
            body = _bytes(body_text)
            good = hmac.compare_digest(self._sign(body), _bytes(signature))
            alert, target, until_ns, revision = json.loads(body) if good else ("", "", 0, 0)
        except ValueError:
            good = False
        if not good:
            raise DataError("this link is not one of this desk's", "log in and acknowledge on the page")
        if now_ns > until_ns:
            raise DataError("this link is too old", "log in and acknowledge on the page")
        return Claim(str(alert), str(target), int(until_ns), int(revision))

    def _sign(self, body: bytes) -> bytes:
        return hmac.digest(self._secret, b"acknowledge\0" + body, hashlib.sha256)


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def _bytes(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
