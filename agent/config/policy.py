"""Which events become alerts: a rule per label, and stations of one site that must agree before anyone is woken.

``agent.alert.policy`` and ``agent.alert.coincidence`` apply them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal, TypeAlias

from pydantic import AfterValidator, Field

from agent.config.section import Disagreement, Section, parse_code
from agent.types import POST_ONSET_S

Severity: TypeAlias = Literal["none", "minor", "moderate", "severe", "extreme"]
AlertSeverity: TypeAlias = Literal["minor", "moderate", "severe", "extreme"]
SEVERITIES: tuple[Severity, ...] = ("none", "minor", "moderate", "severe", "extreme")
"""CAP 1.2 severities from the least to the most, with ``none`` for no alert at all."""
MAX_VERDICTS = 20
"""Largest ``confirm.n``: what the policy keeps of one event."""
MAX_EVENTS = 100
"""Largest number of events that a rule may ask for: what the policy keeps of one station and label."""
MAX_STATIONS = 64
"""Most stations in one coincidence: a site's message names each with its vote."""


def rank(severity: str) -> int:
    """Place of a severity in ``SEVERITIES``, -1 for a word that is not there."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else -1


class ConfirmConfig(Section):
    """Verdicts of one event that must agree."""

    k: int = Field(default=2, ge=1, le=MAX_VERDICTS, description="verdicts of this event that must name the label")
    n: int = Field(default=3, ge=1, le=MAX_VERDICTS, description="newest verdicts that are looked at")

    def disagreements(self) -> Iterator[Disagreement]:
        if self.k > self.n:
            yield Disagreement(("k", "n"), f"must not exceed n ({self.n}): {self.k} of {self.n} verdicts cannot agree")


class ConfirmEventsConfig(Section):
    """Events of one label that must come together before the first alert."""

    k: int = Field(
        ge=2, le=MAX_EVENTS, examples=[3], description="events of the label at this station, the present one included"
    )
    within_s: float = Field(
        gt=0, le=86_400, examples=[600.0], description="time within which they must have begun, seconds"
    )


class EscalationConfig(Section):
    """A step to a higher severity; every condition given must hold."""

    severity: AlertSeverity = Field(examples=["extreme"], description="severity from this step on")
    min_probability: float | None = Field(default=None, gt=0, le=1, description="probability of the label, at least")
    min_duration_s: float | None = Field(
        default=None, gt=0, le=3_600, description="duration of the trigger so far, at least, seconds"
    )
    min_amplitude: float | None = Field(
        default=None, gt=0, le=1e6, description="peak in multiples of the sensor's own noise before the onset, at least"
    )
    min_stations: int | None = Field(
        default=None, ge=2, le=64, description="stations of the site that have the event (site.coincidence), at least"
    )
    min_events: int | None = Field(
        default=None, ge=2, le=MAX_EVENTS, description="events of the label at this station within within_s, at least"
    )
    within_s: float = Field(default=3_600.0, gt=0, le=86_400, description="time over which min_events counts, seconds")

    def disagreements(self) -> Iterator[Disagreement]:
        conditions = [name for name in type(self).model_fields if name.startswith("min_")]
        if all(getattr(self, name) is None for name in conditions):
            yield Disagreement(("",), f"needs a condition: {', '.join(conditions[:-1])} or {conditions[-1]}")


SIZE_STEPS = (
    EscalationConfig(severity="severe", min_amplitude=30.0),
    EscalationConfig(severity="severe", min_duration_s=10.0),
    EscalationConfig(severity="severe", min_stations=3),
    EscalationConfig(severity="extreme", min_amplitude=300.0),
    EscalationConfig(severity="extreme", min_amplitude=100.0, min_duration_s=20.0),
)
"""Severity by size, the default of the labels of slope failures. Of 123 recorded landslides and rockfalls half reach
an amplitude of 42, and half a duration of 17 s (``bench/alerts.py sizes``)."""


class RateStepConfig(Section):
    """A step of a rate alert to a higher severity."""

    severity: AlertSeverity = Field(examples=["severe"], description="severity from this step on")
    min_ratio: float = Field(
        gt=1, le=100_000, examples=[10.0], description="rate in the window over that of the background, at least"
    )


class AccelerationConfig(Section):
    """The alert for a rising rate of events of the label at a station; all times are of recorded data."""

    severity: AlertSeverity = Field(default="moderate", description="CAP severity of the alert")
    window_s: float = Field(default=3_600.0, ge=60, le=604_800, description="window that is judged, seconds")
    background_s: float = Field(
        default=86_400.0, ge=60, le=2_592_000,
        description="time before the window to compare with, seconds; of which window_s must be there",
    )  # fmt: skip
    min_events: int = Field(default=5, ge=3, le=1_000, description="events in the window, at least")
    min_ratio: float = Field(
        default=3.0, ge=1.5, le=1_000,
        description="rate in the window over that of the background, at least; below half of it the alert ends",
    )  # fmt: skip
    max_chance: float = Field(
        default=1e-5, gt=0, le=0.05,
        description="probability of so many events if the rate had not changed, at most (two Poisson rates, one-sided)",
    )  # fmt: skip
    min_probability: float = Field(
        default=0.5, ge=0, le=1, description="calibrated probability of the label for an event to count"
    )
    escalate: tuple[RateStepConfig, ...] = Field(
        default=(), strict=False, max_length=4, description="steps to higher severities"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if self.background_s < self.window_s:
            yield Disagreement(("background_s", "window_s"), f"must not be shorter than window_s ({self.window_s:g})")
        for index, step in enumerate(self.escalate):
            if rank(step.severity) <= rank(self.severity):
                yield Disagreement(
                    (f"escalate.{index}.severity", "severity"), f"must be above the alert's own ({self.severity})"
                )
            if step.min_ratio <= self.min_ratio:
                yield Disagreement(
                    (f"escalate.{index}.min_ratio", "min_ratio"), f"must be above min_ratio ({self.min_ratio:g})"
                )


_Severity = Annotated[Severity, Field(description="CAP severity of the alert; none: events of this label never alert")]
_MinProbability = Annotated[float, Field(gt=0, le=1, description="calibrated probability of the label, at least")]
_SureProbability = Annotated[
    float | None,
    Field(
        gt=0, le=1,
        description="a verdict with this probability needs no other to agree; without it, each must be confirmed",
    ),
]  # fmt: skip
_RefractoryS = Annotated[
    float,
    Field(
        ge=0, le=86_400,
        description="after an alert, no other of this label and station but those of larger events, seconds of data",
    ),
]  # fmt: skip
_Steps = Annotated[
    tuple[EscalationConfig, ...],
    Field(strict=False, max_length=8, description="steps to higher severities; the highest that is reached counts"),
]


class RuleConfig(Section):
    """When an event of one label becomes an alert."""

    severity: _Severity = "none"
    min_probability: _MinProbability = 0.8
    min_duration_s: float = Field(
        default=2.0, ge=0, le=3_600, description="duration of the trigger so far, at least, seconds"
    )
    min_window_s: float = Field(
        default=3.0,
        ge=0,
        le=POST_ONSET_S,
        description="signal after the onset that a verdict must have seen before it may alert, seconds",
    )
    refractory_s: _RefractoryS = 600.0
    confirm: ConfirmConfig = Field(
        default=ConfirmConfig(), description="k of the newest n verdicts of the event must agree"
    )
    sure_probability: _SureProbability = None
    confirm_events: ConfirmEventsConfig | None = Field(
        default=None,
        description="events of the label that must come together before an alert, for labels that err often",
    )
    escalate: _Steps = ()
    acceleration: AccelerationConfig | None = Field(
        default=None, description="an alert for a rising rate of events of this label; without this section, none"
    )
    retract: bool = Field(default=True, description="whether a later verdict that contradicts the alert withdraws it")
    retract_below: float | None = Field(
        default=None, gt=0, lt=1,
        description="another label wins and this one's probability is below: a contradiction (half of min_probability)",
    )  # fmt: skip

    @property
    def contradicted_below(self) -> float:
        """``retract_below`` with its default put in."""
        return self.min_probability / 2 if self.retract_below is None else self.retract_below

    @property
    def sure(self) -> float:
        """``sure_probability``; infinite without it, and where the rule asks for more of every verdict."""
        sure = self.sure_probability
        return math.inf if sure is None or sure < self.min_probability else sure

    def disagreements(self) -> Iterator[Disagreement]:
        given = self.sure_probability if "sure_probability" in self.model_fields_set else None
        if given is not None and given < self.min_probability:
            reason = f"must not be below min_probability ({self.min_probability:g})"
            yield Disagreement(("sure_probability", "min_probability"), reason)
        if self.retract_below is not None and self.retract_below >= self.min_probability:
            reason = f"must be below min_probability ({self.min_probability:g}), or alerts would come and go"
            yield Disagreement(("retract_below", "min_probability"), reason)
        # The default steps go with any severity: those that are not above it do nothing.
        for index, step in enumerate(self.escalate if "escalate" in self.model_fields_set else ()):
            if rank(step.severity) <= rank(self.severity) or self.severity == "none":
                reason = f"must be above the rule's own severity ({self.severity})"
                yield Disagreement((f"escalate.{index}.severity", "severity"), reason)


class LandslideRule(RuleConfig):
    severity: _Severity = "moderate"
    min_probability: _MinProbability = 0.7
    sure_probability: _SureProbability = 0.8
    refractory_s: _RefractoryS = 120.0
    escalate: _Steps = SIZE_STEPS


class CollapseRule(RuleConfig):
    severity: _Severity = "moderate"
    min_probability: _MinProbability = 0.85
    escalate: _Steps = SIZE_STEPS


class RulesConfig(Section):
    """One rule a label; a rule that is given in part keeps its label's other defaults."""

    earthquake: RuleConfig = Field(default=RuleConfig(), description="rule for earthquakes")
    blast: RuleConfig = Field(default=RuleConfig(), description="rule for blasts")
    collapse: CollapseRule = Field(default=CollapseRule(), description="rule for collapses")
    landslide: LandslideRule = Field(
        default=LandslideRule(), description="rule for landslides, rockfalls and debris flows"
    )
    noise: RuleConfig = Field(default=RuleConfig(), description="rule for noise")

    def of(self, label: str) -> RuleConfig:
        """The rule of one of the labels."""
        rule: RuleConfig = getattr(self, label)
        return rule


class UnclassifiedConfig(Section):
    """The alert for a trigger that the network could not classify; used with ``on_classifier_failure: alert``."""

    severity: AlertSeverity = Field(default="moderate", description="CAP severity of the alert")
    min_duration_s: float = Field(
        default=5.0, ge=0, le=3_600, description="duration of the trigger so far, at least, seconds"
    )
    refractory_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="after such an alert, no other at this station but those of larger events, seconds of data",
    )


class SlowRuleConfig(Section):
    """When a slow event (``trigger.slow``) becomes an alert. The network is not asked of it."""

    severity: Severity = Field(
        default="moderate", description="CAP severity of the alert; none: slow events never alert"
    )
    min_duration_s: float = Field(default=90.0, ge=0, le=3_600, description="duration so far, at least, seconds")
    min_ratio: float = Field(
        default=10.0, ge=1, le=1e6, description="median power of its last minute over the background's, at least"
    )
    stations: int = Field(
        default=1, ge=1, le=64, description="stations of this agent that must have a slow event at once, at least"
    )
    within_s: float = Field(
        default=120.0, ge=0, le=3_600, description="so far apart may theirs be from this one, seconds"
    )
    refractory_s: float = Field(
        default=1_800.0, ge=0, le=86_400,
        description="after such an alert, no other at this station but those of larger events, seconds of data",
    )  # fmt: skip
    escalate: _Steps = (
        EscalationConfig(severity="severe", min_duration_s=300.0),
        EscalationConfig(severity="severe", min_amplitude=30.0),
        EscalationConfig(severity="extreme", min_amplitude=300.0),
    )


class PolicyConfig(Section):
    """Which events become alerts."""

    on_classifier_failure: Literal["event", "alert"] = Field(
        default="event", description="an event that the network could not classify: only the event, or an alert as well"
    )
    unclassified: UnclassifiedConfig = Field(default=UnclassifiedConfig(), description="that alert")
    max_age_s: float = Field(
        default=600.0, ge=1, le=3_153_600_000,
        description="an alert on data older than this when it is decided is late: it is marked so and wakes nobody, "
        "seconds",
    )  # fmt: skip
    late: Literal["mark", "withhold"] = Field(
        default="mark", description="late alerts: sent with their mark, or not at all (their events are sent)"
    )
    rules: RulesConfig = Field(default=RulesConfig(), description="one rule a label")
    slow: SlowRuleConfig = Field(default=SlowRuleConfig(), description="rule for slow events")


def _station(text: str) -> str:
    network, dot, station = text.partition(".")
    if not dot or "." in station:
        raise ValueError("must be NETWORK.STATION, such as XX.S01")
    parse_code(network)
    parse_code(station)
    return text


StationCode = Annotated[str, AfterValidator(_station)]
"""``NET.STA``: every sensor of the station."""


class CoincidenceConfig(Section):
    """Alerts about single events of these stations wait until enough of them have seen the same."""

    stations: tuple[StationCode, ...] = Field(
        strict=False,
        min_length=2,
        max_length=MAX_STATIONS,
        examples=[["XX.S01", "XX.S02"]],
        description="stations of the site, NETWORK.STATION each; sensors of one station count once",
    )
    required: int = Field(
        default=2, ge=2, le=MAX_STATIONS, description="different stations that must have an event, at least"
    )
    window_s: float = Field(
        default=10.0, gt=0, le=120,
        description="their onsets lie within so many seconds: what a slow wave takes across the site, and a margin",
    )  # fmt: skip
    max_lag_s: float = Field(
        default=15.0, ge=1, le=300,
        description="how long a verdict waits for stations whose data come later, seconds of data; "
        "one that is further behind counts as dead",
    )  # fmt: skip
    weights: dict[StationCode, Annotated[float, Field(gt=0, le=100)]] = Field(
        default={}, description="weight of a station's vote, NETWORK.STATION: number; 1 for those not named"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if len(set(self.stations)) != len(self.stations):
            yield Disagreement(("stations",), "names the same station twice")
        if self.required > len(self.stations):
            reason = f"must not exceed the number of stations ({len(self.stations)})"
            yield Disagreement(("required", "stations"), reason)
        for name in self.weights:
            if name not in self.stations:
                yield Disagreement(("weights", "stations"), f"names {name}, which is not among the stations")


class SiteConfig(Section):
    """What the stations of this agent have to do with each other."""

    coincidence: CoincidenceConfig | None = Field(
        default=None, description="alerts wait until several stations agree; without this section each alerts alone"
    )
