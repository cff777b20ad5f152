"""Triggers of one station: band-pass, recursive STA/LTA, and the components' combination, packet by packet.

``vector`` sums the energies of the components. As both averages are linear in the energy, the sum's averages are the
sums of the components' averages; so a component that falls silent or comes back takes its own share along, and neither
makes a step in the ratio. ``coincidence`` takes the ``components_needed``-th largest of the components' own ratios.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.config.station import HIGHEST_CORNER, TriggerConfig
from agent.dsp.component import Component, Meter, Phase
from agent.dsp.hearing import STEP_NS, STEP_S, Hearing
from agent.dsp.measure import Rsam
from agent.dsp.ratios import Ratios
from agent.dsp.ring import RingBuffer
from agent.dsp.sos import butterworth
from agent.dsp.stalta import Bounds, Change, OnOff, RecursiveStaLta, Rise
from agent.dsp.timeline import same_rate
from agent.errors import DataError
from agent.types import COMPONENTS, NS, SampleBlock, Segment, StationId, TriggerOff, TriggerOn

Array = NDArray[np.float64]
COMPONENTS_AT_MOST = 3
_VERTICAL = COMPONENTS.index("Z")
_SPAN = 12_000
"""Samples per component taken at once: the work stays in the second-level cache."""
_TEAR_PERIODS = 1.0
"""Samples missing for so many periods of the upper corner are bridged: the band-pass cannot tell."""
_APART_NS = NS // 4
_ASTRAY = 8
"""A component is put to another place of the grid when so many packets in a row are further apart from it in time."""
_EXACT_NS = 1000
"""Times this close to where the grid has them are on it."""
_DECIMALS = 6
"""Digits of the reported ratios: what follows is rounding, which differs between packets and files."""
_LEAST_DECIDED_S = 1.0
"""While no trigger goes on, a decision waits until it is on so many seconds: packets that end at different times in
each component would else cost one each."""
_LEAST_BLOCK = 25
"""Samples whose energy bounds the averages: fewer would cost more than the ratio."""
_HISTORY_S = 240.0
"""How much longer than a trigger the ratio is remembered: pipelines ask for peaks some time after its end."""


class Detector:
    """Feed it one station's blocks as ``Continuity`` hands them on, in the order of arrival. Not thread-safe.

    The components are decided on together, sample by sample, as soon as all have arrived. At the very beginning nobody
    knows how many there are: the first decision waits for three components or for ``max_component_lag_s`` of data.
    """

    def __init__(self, station: StationId, trigger: TriggerConfig, *, kept_s: float = _HISTORY_S) -> None:
        """``kept_s``: how far back ``band_passed`` reaches, seconds."""
        self.station = station
        self._trigger = trigger
        self._grid: _Grid | None = None
        self.rsam = Rsam()
        """RSAM of the vertical component."""
        self.hearing = Hearing(trigger)
        """What it could have heard."""
        self.warm_up_s: float | None = None
        """While it is set, a component's averages count after so many seconds instead of ``lta_s``."""
        self._kept_s = kept_s
        self._former: dict[str, RingBuffer] = {}
        """What was band-passed at another rate before."""

    @property
    def has_begun(self) -> bool:
        """Whether there was a packet that it could use."""
        return self._grid is not None

    @property
    def time_ns(self) -> int:
        """Every sample before this time is decided on; 0 before the first packet."""
        return self._grid.decided_ns if self._grid else 0

    def peak_ratio(self, from_ns: int, to_ns: int) -> float:
        """Largest ratio of the samples in ``from_ns <= t < to_ns``, 0 where there was none.

        Reaches back ``max_duration_s`` and four minutes, not beyond a change of rate or a clock set back.
        """
        return round(self._grid.ratios.peak(from_ns, to_ns), _DECIMALS) if self._grid else 0.0

    def band_passed(self, from_ns: int, to_ns: int) -> dict[str, list[Segment]]:
        """What the trigger sees in ``from_ns <= t < to_ns``, as far as it is decided: by component code the runs
        without gaps, in counts, and without what rings after a short gap. Not beyond a clock set back. Good until the
        next packet."""
        found = {name: ring.segments(from_ns, to_ns, lasting=False) for name, ring in self._former.items()}
        for name, ring in self._grid.passed().items() if self._grid else ():
            found[name] = found.get(name, []) + ring.segments(from_ns, to_ns, lasting=False)
        return found

    def feed(self, block: SampleBlock, *, at_once: bool = True) -> list[TriggerOn | TriggerOff]:
        """Take one component's next samples; returns the changes they decide, in the order of time. Without ``at_once``
        a decision waits, while no trigger goes on, until there is one to be taken on a second of samples.

        A block from before the component's newest sample means that the clock was set back: the station starts anew. So
        it does when the sampling rate has changed on all components; a component with a rate of its own is left out.

        Raises:
            DataError: the rate is too low for the band-pass or the short average.
        """
        if len(block.samples) == 0:
            return []
        if self._grid is not None and self._grid.continues(block):
            return self._grid.feed(block, self.warm_up_s, at_once=at_once)
        if self._grid is not None and self._grid.outvotes(block):
            return []
        new = _Grid(self, self._trigger, block, self._kept_s)
        triggers = self.flush()
        before, self._grid = self._grid, new
        self._former = before.passed() if before is not None and before.decided_ns <= block.start_ns else {}
        if before is not None and before.decided_ns < block.start_ns:
            self.hearing.alive(before.decided_ns, frozenset())
        whole = block.samples.dtype.kind in "iu"
        self.hearing.begin(block.start_ns, block.rate_hz, new.high_hz, whole=whole)
        return triggers + new.feed(block, self.warm_up_s, at_once=at_once)

    def flush(self) -> list[TriggerOn | TriggerOff]:
        """The data ends here: decide on what is waiting and end a running trigger."""
        return self._grid.flush() if self._grid else []


class _Grid:
    """The station's components on one grid of sample numbers, which begins with a block and has its rate.

    A component's samples are counted; their times only say where its run begins. The time of a number is that of one
    component, the leader: the first that came, another once that one has fallen silent.
    """

    def __init__(self, owner: Detector, trigger: TriggerConfig, block: SampleBlock, kept_s: float) -> None:
        t, rate = trigger, block.rate_hz
        self.high_hz = high_hz = min(t.high_hz, HIGHEST_CORNER * rate / 2)
        self._nsta, self._nlta = round(t.sta_s * rate), round(t.lta_s * rate)
        if not (t.low_hz < high_hz and 2 <= self._nsta < self._nlta):
            raise DataError(
                f"{block.stream}: {rate:g} samples a second are too few for the trigger",
                f"it looks above {t.low_hz:g} Hz and averages over {t.sta_s:g} s",
            )
        self.next = 0
        """Number of the first undecided sample."""
        self.decided_ns = block.start_ns
        """The time of the last decision: a grid that follows a clock does not revise it."""
        self.ratios = Ratios(round((t.max_duration_s + _HISTORY_S) * rate))
        self._passed: dict[str, RingBuffer] = {}
        self._kept_s = kept_s
        self._station = owner.station
        self._rsam, self._hearing = owner.rsam, owner.hearing
        self._alive: list[Component] = []
        self._bounds: list[Bounds] = []
        self._block = max(self._nsta, _LEAST_BLOCK)
        self._blocks = np.arange(0, _SPAN, self._block)
        self._report_at = 0
        """Number of the sample from which on the hearing is told of what was decided."""
        self._is_sum, self._on = t.combine == "vector", t.on
        self._needed = t.components_needed
        self._rate_hz, self._step_ns = rate, NS / rate
        self._leader = ""
        self._line_hz = rate
        self._line = (0, block.start_ns, self._step_ns)
        """Number, time and step (ns) from which the times of all numbers follow."""
        self._sos = butterworth(t.low_hz, high_hz, rate, t.order)
        self._tear = max(1, round(_TEAR_PERIODS * rate / high_hz))
        self._long_gap = round((t.lta_s if t.long_gap_s is None else t.long_gap_s) * rate)
        self._lag, self._lag_ns = round(t.max_component_lag_s * rate), round(t.max_component_lag_s * NS)
        self._least_decided = int(_LEAST_DECIDED_S * rate)
        self._components: dict[str, Component] = {}
        self._complete = False
        self._newest_start = 0
        self._judged: list[RecursiveStaLta] = []
        """STA/LTA of what is judged, and the components that they are up to date with."""
        self._followed: list[Component] = []
        self._onoff = OnOff(t.on, t.off, round(t.merge_s * rate), round(t.max_duration_s * rate))
        self._onset_ns = 0

    def time_ns(self, number: int) -> int:
        first, start_ns, step_ns = self._line
        return start_ns + round((number - first) * step_ns)

    def continues(self, block: SampleBlock) -> bool:
        """Whether the block has the grid's rate and comes after its component's last one."""
        component = self._components.get(block.stream.component)
        if component is not None and block.continues:
            return True  # its rate is an estimate, which the stamps may have led astray
        if block.rate_hz != self._rate_hz and not same_rate(block.rate_hz, self._rate_hz):
            return False
        return component is None or 2 * (block.start_ns - component.due_ns) > -self._step_ns

    def outvotes(self, block: SampleBlock) -> bool:
        """Whether a block at another rate is left out because other components still come at the grid's."""
        if same_rate(block.rate_hz, self._rate_hz):
            return False
        if (component := self._components.pop(block.stream.component, None)) is not None:
            component.flush()
        return any(block.start_ns - other.due_ns <= self._lag_ns for other in self._components.values())

    def feed(self, block: SampleBlock, warm_up_s: float | None, *, at_once: bool) -> list[TriggerOn | TriggerOff]:
        samples = block.samples
        component = self._components.get(block.stream.component)
        if component is None:
            component = self._add(block, None if warm_up_s is None else round(warm_up_s * self._rate_hz))
        number = self._place(component, block)
        if number != component.end:
            number, samples = component.join(number, samples)
        component.newest, component.due_ns = block.samples, block.end_ns
        self._newest_start = max(self._newest_start, number)
        if number < self.next:
            stale = min(len(samples), self.next - number)
            component.catch_up(number, samples[:stale])
            number, samples = number + stale, samples[stale:]
        if len(samples):
            component.queue(number, samples)
        if not self._complete:
            self._complete = len(self._components) >= COMPONENTS_AT_MOST or self._newest_start > self._lag
            if not self._complete:
                return []
        # Whoever is further behind than the lag is not waited for; the newest component itself never is.
        oldest = self._newest_start - self._lag
        until = component.end
        for other in self._components.values():
            if oldest <= other.end < until:
                until = other.end
        least = 1 if at_once or not self._onoff.is_idle else self._least_decided
        return self._decide(until) if until - self.next >= least else []

    def flush(self) -> list[TriggerOn | TriggerOff]:
        triggers = self._decide(max((c.end for c in self._components.values()), default=0))
        self._gather()
        return triggers + self._announce(self._onoff.flush())

    def _add(self, block: SampleBlock, warm_up: int | None) -> Component:
        """A component that was not there before, whose first sample comes next."""
        name = block.stream.component
        component = self._components[name] = Component(
            self._sos,
            self._nsta,
            self._nlta,
            self._long_gap,
            self._number(block.start_ns),
            tear=self._tear,
            meter=self._meter(name, vertical=block.stream.row == _VERTICAL),
            warm_up=warm_up,
            report=round(STEP_S * self._rate_hz),
        )
        component.due_ns = block.start_ns
        return component

    def _number(self, time_ns: int) -> int:
        """Number of the sample that is nearest to a time."""
        first, start_ns, step_ns = self._line
        return first + round((time_ns - start_ns) / step_ns)

    def _place(self, component: Component, block: SampleBlock) -> int:
        """Number of a block's first sample: it follows from the count of the component's samples, and from the times
        after a gap. The grid's time follows the leader."""
        start_ns, number = block.start_ns, component.end
        late_ns = start_ns - component.due_ns
        if 2 * late_ns >= self._step_ns and not block.continues:
            number += round(late_ns / self._step_ns)
        first, line_ns, step_ns = self._line
        off_ns = start_ns - line_ns - round((number - first) * step_ns)
        if block.stream.component == self._leader or self._takes_the_lead(block):
            if not -_EXACT_NS <= off_ns <= _EXACT_NS or block.rate_hz != self._line_hz:
                self._gather()  # by the line that was valid
                self._line_hz = block.rate_hz
                self._line = (number, start_ns, NS / block.rate_hz)
        elif -_APART_NS <= off_ns <= _APART_NS:
            component.astray = 0
        else:
            component.astray += 1
            if component.astray >= _ASTRAY:
                component.astray, number = 0, self._number(start_ns)
        return number

    def _takes_the_lead(self, block: SampleBlock) -> bool:
        """Whether the grid has its time from the block's component from now on, as the leader has fallen silent."""
        leader = self._components.get(self._leader)
        if leader is not None and block.start_ns - leader.due_ns <= self._lag_ns:
            return False
        self._leader = block.stream.component
        return True

    def _keeper(self, ring: RingBuffer) -> Meter:
        """What writes numbered samples to a ring."""
        due = -1

        def keep(samples: NDArray[Any], first: int) -> None:
            nonlocal due
            ring.write(self.time_ns(first), samples, rate_hz=self._line_hz, continues=first == due)
            due = first + len(samples)

        return keep

    def _meter(self, name: str, *, vertical: bool) -> Meter:
        """What keeps a component's band-passed samples."""
        keep = self._keeper(self._passed.setdefault(name, RingBuffer(self._rate_hz, self._kept_s)))

        def measure(filtered: Array, first: int) -> None:
            keep(filtered.astype(np.float32), first)  # seven digits, of which six are reported
            if vertical:
                self._rsam.feed(filtered, first, self.time_ns, self._rate_hz)

        return measure

    def _gather(self) -> None:
        """Have kept what was decided."""
        for component in self._components.values():
            component.flush()

    def passed(self) -> dict[str, RingBuffer]:
        """The band-passed samples of each component."""
        self._gather()
        return self._passed

    def _decide(self, until: int) -> list[TriggerOn | TriggerOff]:
        """Advance to sample ``until``, in steps during which no component changes its phase."""
        triggers: list[TriggerOn | TriggerOff] = []
        while self.next < until:
            count = until - self.next
            live: list[Component] = []
            others: list[tuple[Component, Phase]] = []
            for component in self._components.values():
                phase, certain = component.phase(self.next)
                count = min(count, certain)
                if phase is Phase.LIVE:
                    live.append(component)
                elif phase is not Phase.ABSENT:
                    others.append((component, phase))
            if live or others:
                count = min(count, _SPAN)
            if live != self._alive:
                self._alive = live
                names = frozenset(name for name, component in self._components.items() if component in live)
                self._hearing.alive(self.time_ns(self.next), names)
                for component in live:
                    component.cut()
                self._bounds = [Bounds(self._nsta, self._nlta, self._block, each) for each in self._averages(live)]
                self._judged, self._followed = [RecursiveStaLta(self._nsta, self._nlta) for _ in self._bounds], []
            for component, phase in others:
                component.pass_by(phase, count)
            changes = self._judge(live, count) if live else self._onoff.absent(self.next, count)
            if changes:
                triggers += self._announce(changes)
            self.next += count
        self.decided_ns = max(self.decided_ns, self.time_ns(self.next))
        if self.next >= self._report_at or not self._alive:
            self._report()
        return triggers

    def _report(self) -> None:
        """Tell the hearing what was decided, every ten seconds of data."""
        for name, component in self._components.items():
            for first, levels in component.levels():
                self._hearing.levels(name, self.time_ns(first), levels)
        self._hearing.close(self.decided_ns)
        left_ns = STEP_NS - self.decided_ns % STEP_NS
        self._report_at = self.next + max(1, math.ceil(left_ns / self._step_ns))

    def _judge(self, live: list[Component], count: int) -> Sequence[Change]:
        """The changes in the next samples of the live components. The ratio is worked out where it could reach the on
        threshold, or a trigger goes on."""
        blocks = self._blocks[: -(-count // self._block)]
        energies, needed = [component.take(count, blocks) for component in live], min(self._needed, len(live))
        if self._is_sum:
            energies, needed = [list(map(sum, zip(*energies, strict=True)))], 1
        reached = [one.reach(self._on, own, count) for one, own in zip(self._bounds, energies, strict=True)]
        near = [one for one in reached if any(one)]
        changes: Sequence[Change] = ()
        if self._onoff.is_idle and (len(near) < needed or max(map(sum, zip(*near, strict=True))) < needed):
            self._followed = []
        else:
            changes = self._divide(live, needed)
        for component in live:
            component.keep()
        return changes

    def _divide(self, live: list[Component], needed: int) -> Sequence[Change]:
        """Work the ratio out of the samples that the components have taken."""
        if live != self._followed:
            for one, (sta, lta) in zip(self._judged, self._averages(live), strict=True):
                one.resume(sta, lta)
            self._followed = live
        energies = [component.energy() for component in live]
        if self._is_sum:
            energies = [sum(energies[1:], energies[0])]
        ratio = _nth_largest([one.process(own) for one, own in zip(self._judged, energies, strict=True)], needed)
        self.ratios.keep(self.next, self.time_ns(self.next), self._line_hz, ratio)
        return self._onoff.feed(self.next, ratio)

    def _averages(self, live: list[Component]) -> list[tuple[float, float]]:
        """Those of what is judged."""
        averages = [component.averages for component in live]
        return [(sum([sta for sta, _ in averages]), sum([lta for _, lta in averages]))] if self._is_sum else averages

    def _announce(self, changes: Sequence[Change]) -> list[TriggerOn | TriggerOff]:
        found: list[TriggerOn | TriggerOff] = []
        for change in changes:
            if isinstance(change, Rise):
                self._onset_ns = self.time_ns(change.onset)
                self._hearing.triggered(self._onset_ns, on=True)
                found.append(TriggerOn(self._station, self._onset_ns, round(change.ratio, _DECIMALS)))
            else:
                off_ns, peak = self.time_ns(change.last), round(change.peak, _DECIMALS)
                self._hearing.triggered(off_ns, on=False)
                found.append(TriggerOff(self._station, self._onset_ns, off_ns, peak))
        return found


def _nth_largest(series: list[Array], n: int) -> Array:
    """Sample by sample the ``n``-th largest of a few series: far quicker than a sort along such a short axis."""
    for _ in range(n - 1):
        largest, rest = series[0], []
        for one in series[1:]:
            rest.append(np.minimum(largest, one))
            largest = np.maximum(largest, one)
        series = rest
    largest = series[0]
    for one in series[1:]:
        largest = np.maximum(largest, one)
    return largest
