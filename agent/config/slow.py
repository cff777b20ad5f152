"""The level trigger for slow slides and debris flows; ``agent.dsp.slow`` applies it."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from agent.config.section import Disagreement, Section


class SlowTriggerConfig(Section):
    """Events that swell over minutes: the median power of the last minute over that of the last hours."""

    enabled: bool = Field(default=True, description="whether slow events are looked for")
    on: float = Field(
        default=4.0,
        ge=1.5,
        le=10_000,
        description="ratio of the last minute's power to the background's at which one begins",
    )
    off: float = Field(default=2.0, ge=1.1, le=10_000, description="ratio below which it ends")
    min_duration_s: float = Field(default=60.0, ge=30, le=3_600, description="shorter ones are not reported, seconds")
    min_rise_s: float = Field(
        default=20.0, ge=0, le=1_800,
        description="from its begin to its loudest ten seconds, at least: earthquakes and blasts are loudest at once, "
        "seconds",
    )  # fmt: skip
    max_duration_s: float = Field(
        default=3_600.0, ge=120, le=86_400,
        description="it is then ended, and none begins before the ratio has fallen below off: rain, a river, seconds",
    )  # fmt: skip
    background_s: float = Field(
        default=21_600.0, ge=1_800, le=86_400,
        description="the background is the median of so much before; of which half an hour must be known, seconds",
    )  # fmt: skip

    def disagreements(self) -> Iterator[Disagreement]:
        if self.off >= self.on:
            yield Disagreement(("off", "on"), f"must be below on ({self.on:g}), or an event would end as it begins")
        if self.min_duration_s >= self.max_duration_s:
            reason = f"must be shorter than max_duration_s ({self.max_duration_s:g})"
            yield Disagreement(("min_duration_s", "max_duration_s"), reason)
