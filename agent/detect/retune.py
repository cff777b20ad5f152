"""A detector that takes over from another in mid-stream, when the settings of the trigger change.

The new one is warmed with what the ring buffers hold, so that it is as awake as the old one was and no sample goes
unseen. Of the time that both have looked at, the old one's triggers count; what was going on at the switch goes on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agent.config.station import TriggerConfig
from agent.dsp.detector import Detector
from agent.dsp.measure import Rsam
from agent.types import NS, Segment, StationId, StreamId, TriggerOff, TriggerOn

_PACKET_S = 10.0
_LEAST_WARM_UP_S = 30.0
"""A station that has just begun is given its time: an average over less is no background."""


def warmed(
    station: StationId, trigger: TriggerConfig, recorded: Mapping[StreamId, Sequence[Segment]], rsam: Rsam
) -> tuple[Detector, list[TriggerOn | TriggerOff]]:
    """A detector that has seen what was recorded, and the triggers that it found there. The long average may be longer
    than that: it then counts after half of it, scaled. ``rsam`` is the old detector's, which the new one carries on.

    Raises:
        DataError: the sampling rate is too low for these settings.
    """
    detector = Detector(station, trigger)
    packets = sorted(
        (packet for stream, runs in recorded.items() for run in runs for packet in run.packets(stream, _PACKET_S)),
        key=lambda packet: packet.start_ns,
    )
    span_s = (packets[-1].end_ns - packets[0].start_ns) / NS if packets else 0.0
    detector.warm_up_s = min(trigger.lta_s, max(_LEAST_WARM_UP_S, span_s / 2))
    found = [change for packet in packets for change in detector.feed(packet)]
    detector.warm_up_s = None
    detector.rsam.follow(rsam)
    return detector, found


@dataclass(slots=True)
class _Span:
    on: TriggerOn
    off: TriggerOff | None = None


class RetuneTransition:
    """Sorts the new detector's triggers until it has decided on all that the old one had."""

    def __init__(
        self, station: StationId, switch_ns: int, running_ns: int | None, ended_ns: int, still_open: Mapping[int, int]
    ) -> None:
        """``switch_ns``: how far the old detector came. ``running_ns``: onset of its trigger that is not over yet;
        ``ended_ns``: end of the last one that is; ``still_open``: onset to end of those whose events are open."""
        self._station = station
        self._switch_ns = switch_ns
        self._running_ns = running_ns
        self._ended_ns, self._still_open = ended_ns, still_open
        self._past: list[_Span] = []
        self._settled = False
        self._newest_ns = 0
        self._aliases: dict[int, int] = {}
        """Onset of a trigger that goes on across the switch to the one under which it is known."""

    @property
    def is_over(self) -> bool:
        """Whether triggers may pass unsorted from now on."""
        return self._settled and not self._aliases

    def sort(
        self, triggers: Sequence[TriggerOn | TriggerOff], now_ns: int, *, last: bool = False
    ) -> list[TriggerOn | TriggerOff]:
        """What the station is to hear of these changes. ``now_ns``: how far the new detector came; ``last``: it will
        come no further."""
        heard: list[TriggerOn | TriggerOff] = []
        for change in triggers:
            if not self._settled and change.onset_ns >= self._switch_ns:
                heard += self._switch()
            if self._settled:
                heard.append(self._named(change))
            elif isinstance(change, TriggerOn):
                self._past.append(_Span(change))
            else:
                self._past[-1].off = change
        # A new detector that goes back has begun anew, as the clock was set back: it will never come to the switch.
        if not self._settled and (last or now_ns >= self._switch_ns or now_ns < self._newest_ns):
            heard += self._switch()
        self._newest_ns = now_ns
        return heard

    def _switch(self) -> list[TriggerOn | TriggerOff]:
        self._settled = True
        running = self._past[-1] if self._past else None
        if running is not None and running.off is not None and running.off.off_ns < self._switch_ns:
            running = None
        if running is None:
            return [] if self._running_ns is None else [self._over(self._running_ns)]
        onset_ns = running.on.onset_ns
        changes: list[TriggerOn | TriggerOff] = [running.on]
        if running.off is not None:
            changes.append(running.off)
        if self._running_ns is not None:
            self._aliases[onset_ns] = self._running_ns
            changes = changes[1:]
        elif onset_ns <= self._ended_ns:
            # By the new settings what has ended goes on: in its event if that is open, else in one that begins now.
            overlapping = [onset for onset, off_ns in self._still_open.items() if off_ns >= onset_ns]
            self._aliases[onset_ns] = max(overlapping, default=self._switch_ns)
        return [self._named(change) for change in changes]

    def _over(self, running_ns: int) -> TriggerOff:
        """The end of a trigger that by the new settings has ended, or would never have begun."""
        ends = [span.off for span in self._past if span.off is not None and span.off.off_ns >= running_ns]
        if not ends:
            return TriggerOff(self._station, running_ns, self._switch_ns, 0.0)
        return TriggerOff(self._station, running_ns, ends[-1].off_ns, ends[-1].peak_ratio)

    def _named(self, change: TriggerOn | TriggerOff) -> TriggerOn | TriggerOff:
        """The change under the onset by which the station knows its trigger."""
        known_ns = self._aliases.get(change.onset_ns, change.onset_ns)
        if isinstance(change, TriggerOff):
            self._aliases.pop(change.onset_ns, None)
        return replace(change, onset_ns=known_ns)
