"""The settings of the remote configuration: what may be changed, and by whom."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from agent.config.section import Disagreement, Section
from agent.errors import ControlError

if TYPE_CHECKING:
    from agent.config.keys import TrustedKey

MAX_KEYS = 16


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
        from agent.config.keys import TrustedKey

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
