"""The settings of remote orders: what may be changed, and the Ed25519 keys of those who may change it.

The half of a key that signs is the operator's (`desk/push/signing.py`). A key is named by the first 16 hex digits of
the SHA-256 of its public half. ``cryptography`` is imported only where a key is used: an agent that trusts nobody never
loads it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from agent.config.section import Disagreement, Section
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
MAX_KEYS = 16


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


class KeyConfig(Section):
    """A public key that this station obeys."""

    name: str = Field(min_length=1, max_length=40, examples=["control-room"], description="whose key it is")
    public: str = Field(
        max_length=44,
        examples=["11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo="],
        description="the public key in base64, as `talus config keygen` prints it",
    )

    may: tuple[Literal["config", "model", "evidence", "test_alarm"], ...] = Field(
        default=("config", "model", "evidence", "test_alarm"),
        strict=False,
        min_length=1,
        description="what the key may order; the desk's needs `evidence` alone",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        try:
            self.trusted()
        except ControlError as error:
            yield Disagreement(("public",), f"is no public key: {error.message}; {error.hint}")

    def trusted(self) -> TrustedKey:
        """
        Raises:
            ControlError: not such a key.
        """
        return TrustedKey.parse(self.name, self.public, self.may)


class ModelsConfig(Section):
    """The conditions for taking a remote model."""

    shadow_windows: int = Field(
        default=20, ge=1, le=10_000, description="windows that it answers beside the live one before it is judged"
    )
    shadow_s: float = Field(
        default=21_600.0, ge=1, le=2_592_000, description="after so long with fewer windows it waits for a command"
    )
    agreement_share: float = Field(
        default=0.8, ge=0, le=1, description="share of those windows on which both must say the same"
    )


class ControlConfig(Section):
    """The signed remote changes that the station accepts."""

    keys: tuple[KeyConfig, ...] = Field(
        default=(), strict=False, max_length=MAX_KEYS, description="who may change the tunables; without a key, nobody"
    )
    probation_s: float = Field(
        default=600.0, ge=1, le=86_400, description="how long a change is on trial before it is kept, seconds"
    )
    max_events_per_min: float = Field(
        default=5.0, gt=0, le=1_000,
        description="events a minute of a trial above which it is rolled back (or five times as many as before it)",
    )  # fmt: skip
    max_trigger_share: float = Field(
        default=0.5, gt=0, le=1, description="share of a trial's time that a station may be triggered"
    )
    max_lost_share: float = Field(
        default=0.2, ge=0, le=1,
        description="share of the recorded events (the newest 20 records) that a change of the trigger may lose",
    )  # fmt: skip

    models: ModelsConfig = Field(default=ModelsConfig(), description="remote models")
    commands: tuple[Literal["evidence", "test_alarm", "self_test", "promote_model", "roll_back_model"], ...] = Field(
        default=("evidence", "test_alarm", "self_test", "promote_model", "roll_back_model"),
        strict=False,
        description="commands that are obeyed",
    )
    commands_per_min: int = Field(default=6, ge=1, le=600, description="commands a minute; more are refused")

    def trusted(self) -> tuple[TrustedKey, ...]:
        """The keys, ready for use."""
        return tuple(key.trusted() for key in self.keys)
