"""The settings of remote orders: what may be changed, and the Ed25519 keys of those who may change it.

The half of a key that signs is the operator's (`desk/push/signing.py`). A key is named by the first 16 hex digits of
the SHA-256 of its public half. ``cryptography`` is imported only where a key is used: an agent that trusts nobody never
loads it.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from agent.config.section import Disagreement, Section

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
MAX_KEYS = 16


class TrustedKey(Section):
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
        hint = "copy what `talus config keygen` printed"
        try:
            raw = self.raw
        except ValueError:
            yield Disagreement(("public",), f"is no public key: not base64; {hint}")
            return
        if len(raw) != PUBLIC_BYTES:
            yield Disagreement(("public",), f"is no public key: it has {len(raw)} bytes, not {PUBLIC_BYTES}; {hint}")
        elif raw[:-1] + bytes([raw[-1] & 0x7F]) in _WEAK:
            yield Disagreement(("public",), f"is no public key: anyone can sign for this one; {hint}")

    @property
    def raw(self) -> bytes:
        """The key itself."""
        return base64.b64decode(self.public, validate=True)

    @property
    def id(self) -> str:
        """16 hex digits."""
        return hashlib.sha256(self.raw).hexdigest()[:16]

    def verifies(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of this key signed ``message``."""
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


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

    keys: tuple[TrustedKey, ...] = Field(
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
