"""The ratio is remembered where it was worked out, for as long as a peak may be asked for."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from agent.dsp.ratios import Ratios
from agent.types import NS

T0 = 1_700_000_000 * NS
STEP_NS = NS // 100


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from([0, 0, 3, 500])), min_size=1, max_size=20),
    st.integers(-20, 1500),
    st.integers(0, 900),
)
def test_a_peak_is_that_of_the_span(pieces: list[tuple[int, int]], first: int, length: int) -> None:
    """Protects the ratio of an event: against a plain list of (number, ratio) as the model; a span includes its start
    and not its end."""
    ratios, model, number = Ratios(300), dict[int, float](), 0
    for size, gap in pieces:
        number += gap
        values = np.random.default_rng(number).uniform(0, 10, size)
        ratios.keep(number, T0 + number * STEP_NS, 100.0, values)
        model |= dict(enumerate(values.tolist(), number))
        number += size
    begin = max(first, number - 300)  # what is older may be forgotten
    wanted = [ratio for at, ratio in model.items() if begin <= at < first + length]
    assert ratios.peak(T0 + begin * STEP_NS, T0 + (first + length) * STEP_NS) == max(wanted, default=0.0)


def test_old_ratios_take_no_memory() -> None:
    """Protects the memory of many stations, each of which triggers now and then: by age, not by number."""
    ratios = Ratios(54_000)
    for minute in range(600):
        ratios.keep(minute * 6000, T0 + minute * 60 * NS, 100.0, np.ones(1000))
    held = sum(len(piece.ratio) for piece in ratios._pieces)
    assert 9000 <= held <= 10_000
    assert ratios.peak(T0, T0 + 3600 * NS) == 0.0
