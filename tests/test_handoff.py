"""What goes from one thread to another comes there, in order, and never more than was allowed waits on the way."""

from __future__ import annotations

import threading

import pytest

from agent.sources.handoff import Empty, Full, Handoff


def test_everything_comes_in_order_and_little_waits() -> None:
    """Protects memory where a source is faster than the pipeline, and every packet."""
    handoff: Handoff[int] = Handoff(10)
    waiting: list[int] = []

    def hand_on() -> None:
        for number in range(2000):
            handoff.put(number, 60.0)
            waiting.append(len(handoff))

    thread = threading.Thread(target=hand_on)
    thread.start()
    assert [handoff.take(60.0) for _ in range(2000)] == list(range(2000))
    thread.join()
    assert max(waiting) <= 10


def test_whoever_finds_no_room_or_nothing_is_told() -> None:
    """Protects the end of a thread: it looks whether it shall stop."""
    handoff: Handoff[int] = Handoff(1)
    with pytest.raises(Empty):
        handoff.take(0.01)
    handoff.put(1)
    with pytest.raises(Full):
        handoff.put(2)
    with pytest.raises(Full):
        handoff.put(2, 0.01)
    assert handoff.take() == 1
    handoff.put(2)
    assert (len(handoff), handoff.take(0.01)) == (1, 2)


def test_who_waits_is_woken() -> None:
    """Protects the delay of a packet: whoever waits for one has it at once, however long it would wait."""
    handoff: Handoff[int] = Handoff(1)
    got: list[int] = []
    thread = threading.Thread(target=lambda: got.append(handoff.take()))
    thread.start()
    handoff.put(7)
    thread.join(60.0)
    assert got == [7]
