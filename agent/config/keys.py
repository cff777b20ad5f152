"""Ed25519 keys: the operator's, which signs, and the station's list of those that it trusts.

A key is named by the first 16 hex digits of the SHA-256 of its public half. ``cryptography`` is imported only where a
key is used: an agent that trusts nobody never loads it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from agent.errors import ControlError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_BYTES = 32
_MAX_FILE = 10_000

_WEAK = frozenset(
    bytes.fromhex(text)
    for text in (
        "0000000000000000000000000000000000000000000000000000000000000000",
        "0100000000000000000000000000000000000000000000000000000000000000",
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
        "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    )
)
"""Points of small order, sign aside: anyone can sign for such a "key", and a row of zeros is one."""


SCOPES = ("config", "model", "evidence", "test_alarm")
"""What a key can be trusted with. A self-test, which changes nothing, is for every trusted key."""


@dataclass(frozen=True, slots=True)
class TrustedKey:
    """A public key, what the station's operator calls its owner, and what it may order."""

    name: str
    public: bytes
    may: tuple[str, ...] = SCOPES

    def __post_init__(self) -> None:
        if len(self.public) != PUBLIC_BYTES:
            raise ControlError("key", f"a public key has {PUBLIC_BYTES} bytes, this one {len(self.public)}")
        if self.public[:-1] + bytes([self.public[-1] & 0x7F]) in _WEAK:
            raise ControlError("key", "anyone can sign for this public key", "copy what `talus config keygen` printed")

    @classmethod
    def parse(cls, name: str, text: str, may: tuple[str, ...] = SCOPES) -> TrustedKey:
        """From base64, as ``talus config keygen`` prints it.

        Raises:
            ControlError: not such a key.
        """
        try:
            return cls(name, base64.b64decode(text, validate=True), may)
        except (binascii.Error, ValueError):
            raise ControlError("key", "not base64", "copy what `talus config keygen` printed") from None

    @property
    def id(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(self.public).hexdigest()[:16]

    @property
    def text(self) -> str:
        """The public key in base64."""
        return base64.b64encode(self.public).decode()

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of this key signed ``message``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.public).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


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
        return TrustedKey(name, self._private.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """The signature, 64 bytes."""
        return self._private.sign(message)
