"""What of a day was recorded, and in what of it an event could have been heard.

Hours that were not heard are not quiet hours: a rate of events is one per armed hour, and an hour is armed as far as
the station's own figure of its hearing says so (``agent/dsp/hearing.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agent.dsp.hearing import STEP_NS, Step
from agent.sources import SourceProblem
from agent.types import NS, SampleBlock

HOUR_NS = 3600 * NS
_HOLE_NS = NS // 8
"""What is missing is shorter: stamps jitter."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """One unit's. ``recorded_s``: seconds in which at least one component was recorded, ``component_s`` of each.
    ``gaps``: holes in the former, also at the unit's ends, and the ``longest_gap_s``. ``armed_s``: seconds in which the
    detector could trigger, and ``masked_s`` those of them in which its threshold was ten times its usual; ``armed``:
    share of each hour of the unit armed and not masked. ``discarded``: triggers that were too short. ``refused``: what
    could not be used, file (its name alone) and reason."""

    recorded_s: float = 0.0
    component_s: Mapping[str, float] = field(default_factory=dict)
    gaps: int = 0
    longest_gap_s: float = 0.0
    armed_s: float = 0.0
    masked_s: float = 0.0
    armed: Sequence[float] = ()
    triggers: int = 0
    discarded: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    refused: Sequence[Sequence[str]] = ()


class Clerk:
    """Keeps the ledger of one unit while its blocks go by, in the order of time."""

    def __init__(self, from_ns: int, to_ns: int) -> None:
        self._from_ns, self._to_ns = from_ns, to_ns
        self._newest: dict[str, int] = {}
        self._component_ns: dict[str, int] = {}
        self._recorded_ns = 0
        self._until_ns = from_ns
        self._holes: list[int] = []
        self._armed_ns = [0.0] * -(-(to_ns - from_ns) // HOUR_NS)
        self._armed_all_ns = self._masked_ns = 0.0
        self._next_step = 0
        self.refused: dict[tuple[str, str], None] = {}
        self.discarded = 0

    def block(self, block: SampleBlock) -> None:
        """Samples of the unit's sensor."""
        start, end = max(block.start_ns, self._from_ns), min(block.end_ns, self._to_ns)
        if end <= start:
            return
        letter = block.stream.component
        newest = max(self._newest.get(letter, start), start)
        if end > newest:
            self._component_ns[letter] = self._component_ns.get(letter, 0) + end - newest
            self._newest[letter] = end
        if start - self._until_ns > _HOLE_NS:
            self._holes.append(start - self._until_ns)
            self._until_ns = start
        if end > self._until_ns:
            self._recorded_ns += end - self._until_ns
            self._until_ns = end

    def step(self, step: Step) -> None:
        """The next step of the sensor's hearing."""
        begin_ns = step.number * STEP_NS
        inside = min(begin_ns + STEP_NS, self._to_ns) - max(begin_ns, self._from_ns)
        if inside <= 0 or not step.armed or step.number < self._next_step:
            return
        self._next_step = step.number + 1
        armed_ns = min(inside, step.armed * STEP_NS)
        self._armed_all_ns += armed_ns
        if step.masked:
            self._masked_ns += armed_ns
        else:
            self._armed_ns[(max(begin_ns, self._from_ns) - self._from_ns) // HOUR_NS] += armed_ns

    def problem(self, problem: SourceProblem) -> None:
        """Something that the reader had to leave out or doubts."""
        self.refuse(problem.path.rpartition("/")[2], problem.message)

    def refuse(self, name: str, reason: str) -> None:
        """The same, by name."""
        self.refused[name, reason] = None

    def ledger(self, classes: Mapping[str, int]) -> Ledger:
        """What it came to, with the number of events by type."""
        holes = list(self._holes)
        if self._to_ns - self._until_ns > _HOLE_NS:
            holes.append(self._to_ns - self._until_ns)
        return Ledger(
            recorded_s=round(self._recorded_ns / NS, 3),
            component_s={name: round(ns / NS, 3) for name, ns in sorted(self._component_ns.items())},
            gaps=len(holes),
            longest_gap_s=round(max(holes, default=0) / NS, 3),
            armed_s=round(self._armed_all_ns / NS, 1),
            masked_s=round(self._masked_ns / NS, 1),
            armed=[round(ns / HOUR_NS, 4) for ns in self._armed_ns],
            triggers=sum(classes.values()) + self.discarded,
            discarded=self.discarded,
            classes=dict(sorted(classes.items())),
            refused=sorted(self.refused),
        )
