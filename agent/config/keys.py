"""Ed25519 keys: those that a station trusts. The half that signs is the operator's (`desk/push/signing.py`).

A key is named by the first 16 hex digits of the SHA-256 of its public half. ``cryptography`` is imported only where a
key is used: an agent that trusts nobody never loads it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from dataclasses import dataclass

from agent.errors import ControlError

PUBLIC_BYTES = 32

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
