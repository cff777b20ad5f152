"""The operator's half of a signed order: the private key, and the envelope that it seals."""

from __future__ import annotations

import base64
import json
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.config.remote import TrustedKey
from agent.errors import ControlError
from agent.messages.schema import EnvelopeMessage
from agent.remote.gate import MAX_BODY_BYTES, PREFIX, Body

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_MAX_FILE = 10_000


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key; never shown, not even by ``repr``."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """A new key in a new file (PEM, PKCS #8) that only its owner may read.

        Raises:
            ControlError: there is such a file already, or it cannot be written.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.generate()
        text = private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123 - mode
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            raise ControlError(
                "key", f"{path} is there already", "a key is never overwritten; choose another name"
            ) from None
        except OSError as error:
            raise ControlError("key", f"{path}: {error.strerror}", "name a file in a folder of your own") from None
        return cls(private)

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """
        Raises:
            ControlError: no such key, or others than its owner may read the file.
        """
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        try:
            with path.open("rb") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                text = file.read(_MAX_FILE)
        except OSError as error:
            raise ControlError("key", f"{path}: {error.strerror}", "`talus config keygen FILE` makes a key") from None
        if mode & (stat.S_IRWXG | stat.S_IRWXO):
            raise ControlError(
                "key", f"others than its owner may use {path} (mode {mode:04o})", f"chmod 600 {path}; was it copied?"
            )
        try:
            private = serialization.load_pem_private_key(text, password=None)
        except (ValueError, TypeError):
            private = None
        if not isinstance(private, Ed25519PrivateKey):
            raise ControlError("key", f"{path} holds no private Ed25519 key", "`talus config keygen FILE` makes one")
        return cls(private)

    def trusted(self, name: str) -> TrustedKey:
        """The public half."""
        public = base64.b64encode(self._private.public_key().public_bytes_raw())
        return TrustedKey(name=name, public=public.decode())

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._private.sign(message)


def seal(body: Body, key: SigningKey) -> bytes:
    """The envelope, ready to be published.

    Raises:
        ControlError: it would be too large.
    """
    raw = json.dumps(body.model_dump(by_alias=True, mode="json"), separators=(",", ":"), allow_nan=False).encode()
    if len(raw) > MAX_BODY_BYTES:
        raise ControlError("malformed", f"the order has {len(raw)} bytes, stations take {MAX_BODY_BYTES}")
    made = EnvelopeMessage(
        key=key.trusted("own").id,
        body=base64.b64encode(raw).decode(),
        signature=base64.b64encode(key.sign(PREFIX + raw)).decode(),
    )
    return made.model_dump_json().encode()
