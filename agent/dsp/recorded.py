"""How much a station has recorded: a time axis without its gaps, on which the rates of events can be compared."""

from __future__ import annotations

from collections import deque

from agent.types import NS

_SET_BACK_NS = 600 * NS
_TEAR_NS = NS // 8
"""What is missing is shorter: the components' times jitter, each on its own."""
_REMEMBERED_GAPS = 64


class Recorded:
    """The union of what a station's components have. Owned by the pipeline's thread."""

    def __init__(self) -> None:
        self._total_ns = 0
        self._newest_ns = 0
        self._gaps: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED_GAPS)

    def add(self, start_ns: int, end_ns: int) -> None:
        """Samples from ``start_ns`` to before ``end_ns``. What comes late does not count; a clock that was set back
        goes on from where the total was."""
        if self._newest_ns == 0 or end_ns < self._newest_ns - _SET_BACK_NS:
            self._newest_ns = start_ns
            self._gaps.clear()
        if start_ns - self._newest_ns > _TEAR_NS:
            self._gaps.append((self._newest_ns, start_ns))
            self._newest_ns = start_ns
        if end_ns > self._newest_ns:
            self._total_ns += end_ns - self._newest_ns
            self._newest_ns = end_ns

    def until(self, time_ns: int) -> float:
        """Seconds recorded up to a time of the last minutes."""
        after = max(0, self._newest_ns - time_ns)
        absent = sum(max(0, end - max(begin, time_ns)) for begin, end in self._gaps)
        return max(0, self._total_ns - max(0, after - absent)) / NS
