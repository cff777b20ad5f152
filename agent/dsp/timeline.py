"""A channel's estimate of its own time and rate.

The estimate is a smooth clock behind time stamps that are noisy, rounded, or seconds apart. A recorder samples evenly;
what it writes down about it jitters (software time stamps), is rounded (milliseconds, tenths of a second), or drifts
against the nominal rate. It is a Kalman filter of two states, the time of the newest stamp and the relative error of
the period, which forgets what is older than some packets (time) or minutes (period).
"""

from __future__ import annotations

import math

from agent.types import NS

SAME_RATE = 1.2e-2
"""Rates that differ by no more are one nominal rate: headers with a measured rate wobble by half a per cent."""
TOLERANCE_NS = 120_000_000
"""A stamp may be this much off: a computer's clock jitters, times have one decimal, clocks are set by a step."""
CALM_NS = 1_000_000
"""Stamps this close to where they are expected confirm the clock as it is: it stays exactly where it was."""
_JITTER_S, _LEAST_S, _MOST_S = 0.010, 0.001, 0.040
"""Standard deviation of the stamps: assumed at first, and the bounds of what is learned from them."""
_PERIOD, _MOST_PERIOD = 5e-4, 6e-3
"""Standard deviation of the period's relative error before anything is known of it, and when the stamps contradict what
is: headers hold rates that were measured, or meant."""
_MOST_ERROR = SAME_RATE / (1 + SAME_RATE)
"""Of the period, so that the rate that is shown is the same as the nominal one."""
_WANDER = 1e-14
"""Variance that the period's error gains in a second: crystals change by some ppm in an hour."""
_FORGET = 0.05
"""Variance that the time gains from stamp to stamp, as a share of the stamps': the last five or so decide."""
_LEARN = 1 / 32
_OUTLIER = 4.0
"""A stamp that is off by so many standard deviations counts only if the next one agrees ..."""
_CLIPPED = 3.0
"""... and until then for so many."""
_ONE_BY_ONE = 8
_LEAST_SLACK, _MOST_SLACK = 1e-3, 6e-3
_FEW = 4
"""Stamps before which nothing is known of the period."""


def same_rate(one_hz: float, other_hz: float) -> bool:
    """Whether two rates are one nominal rate."""
    return one_hz == other_hz or abs(one_hz - other_hz) <= SAME_RATE * other_hz


class Timeline:
    """Samples are numbered without gaps from 0. Not thread-safe."""

    __slots__ = (
        "_anchor_ns", "_anchored", "_calm", "_calm_from", "_calm_ns", "_cross", "_error", "_noise", "_nominal_ns",
        "_phase", "_rate", "_stamped", "_stamps", "_suspect", "rate_hz", "step_ns",
    )  # fmt: skip

    def __init__(self, start_ns: int, rate_hz: float) -> None:
        self.rate_hz = rate_hz
        """The rate that the times show; the nominal one as long as they do not contradict it."""
        self._nominal_ns = self.step_ns = NS / rate_hz
        """``step_ns``: the estimated time from sample to sample."""
        self._calm_ns = min(CALM_NS, 0.49 * self.step_ns)
        self._error = 0.0
        self._noise = _JITTER_S**2
        self._rate = _PERIOD**2
        self._stamps = 0
        self.jump(start_ns)

    def jump(self, start_ns: int) -> None:
        """Begin a new run with sample 0 at a time stamp; what is known of the period stays."""
        self._anchored, self._anchor_ns = 0, start_ns
        self._stamped = self._calm = self._calm_from = 0
        self._phase, self._cross = self._noise, 0.0
        self._suspect = 0

    def doubt(self, error: float) -> None:
        """Take nothing for known of the period to within a relative error: the headers contradict each other."""
        self._absorb()
        self._rate = max(self._rate, min(_MOST_PERIOD, error) ** 2)

    def put(self, number: int, time_ns: int) -> None:
        """Have the time of a sample known better; what is known of the period stays."""
        self._anchored, self._anchor_ns = number, time_ns

    def time_ns(self, number: int) -> int:
        """Estimated time of a sample."""
        return self._anchor_ns + round((number - self._anchored) * self.step_ns)

    def confirms(self, number: int, off_ns: float) -> bool:
        """Whether a stamp of sample ``number``, ``off_ns`` later than estimated, leaves everything as it is."""
        if -self._calm_ns <= off_ns <= self._calm_ns:
            self._calm += 1
            self._stamped = number
            return True
        return False

    def confirms_all(self, number: int, stamps: tuple[tuple[int, int], ...]) -> bool:
        """Whether all of some stamps (sample, counted from ``number``, and time) leave everything as it is."""
        calm_ns = self._calm_ns
        if any(not -calm_ns <= stamp_ns - self.time_ns(number + at) <= calm_ns for at, stamp_ns in stamps):
            return False
        self._calm += len(stamps)
        self._stamped = number + stamps[-1][0]
        return True

    def tolerance_ns(self, number: int) -> float:
        """How far the stamp of sample ``number`` may be off for it to be the next one all the same.

        ``TOLERANCE_NS``, or half the time since the last stamp where that is less; and what the period is not known to,
        1 per mille of that time at least, 6 per mille as long as nothing is known.
        """
        self._absorb()
        span_ns = (number - self._stamped) * self.step_ns
        known = _LEAST_SLACK if self._stamps >= _FEW else _MOST_SLACK
        share = min(_MOST_SLACK, max(known, 3 * math.sqrt(self._rate)))
        return min(TOLERANCE_NS, span_ns / 2) + share * span_ns

    def follow(self, number: int, off_ns: float) -> None:
        """Take account of a stamp of sample ``number`` that is ``off_ns`` later than estimated."""
        self._absorb()
        off_s, span_s = off_ns / NS, (number - self._stamped) * self.step_ns / NS
        self._stamps += 1
        self._predict(span_s)
        spread = self._phase + self._noise
        if off_s * off_s > _OUTLIER**2 * spread:
            side = 1 if off_s > 0 else -1
            if self._suspect == side:
                # The clock was set: the new time counts. Or the period is another one, which the next stamps will say.
                self._phase, self._cross, self._suspect = self._phase + off_s * off_s, 0.0, 0
                self._rate = max(self._rate, min(_MOST_PERIOD, abs(off_s) / span_s) ** 2) if span_s else self._rate
                spread = self._phase + self._noise
            else:
                self._suspect = side
                off_s = side * _CLIPPED * math.sqrt(spread)
        else:
            self._suspect = 0
            noise = self._noise + _LEARN * (off_s * off_s * self._noise / spread - self._noise)
            self._noise = min(_MOST_S**2, max(_LEAST_S**2, noise))
        gain, period_gain = self._phase / spread, self._cross / spread
        self._correct(spread)
        self._anchor_ns = self.time_ns(number) + round(gain * off_s * NS)
        self._anchored = self._stamped = self._calm_from = number
        self._error = min(_MOST_ERROR, max(-_MOST_ERROR, self._error + period_gain * off_s))
        self.step_ns = self._nominal_ns * (1 + self._error)
        self.rate_hz = NS / self.step_ns

    def _predict(self, span_s: float) -> None:
        self._phase += span_s * (2 * self._cross + span_s * self._rate) + _FORGET * self._noise
        self._cross += span_s * self._rate
        self._rate += _WANDER * span_s

    def _correct(self, spread: float) -> None:
        self._rate -= self._cross * self._cross / spread
        self._cross *= 1 - self._phase / spread
        self._phase *= 1 - self._phase / spread

    def _absorb(self) -> None:
        """Take account of the stamps that confirmed the clock since the last time: they said more about it."""
        count, self._calm = self._calm, 0
        span_s = (self._stamped - self._calm_from) * self.step_ns / NS
        if not span_s:
            return
        self._calm_from = self._stamped
        self._stamps += count
        self._suspect = 0
        self._noise = max(_LEAST_S**2, self._noise * (1 - _LEARN) ** count)
        for _ in range(min(count, _ONE_BY_ONE)):
            self._predict(span_s / count)
            self._correct(self._phase + self._noise)
        if count > _ONE_BY_ONE:
            # As a straight line through so many stamps is known.
            self._rate = min(self._rate, 12 * self._noise / (count * span_s * span_s))
            self._cross = 0.0
