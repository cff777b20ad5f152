"""A disk that stops for seconds or minutes, as memory cards do before they fail: nothing waits for it but what it is to
keep."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_support import Collector, make_alert, make_message, needs_mosquitto, running, wait_for

from agent.deliver.delivery import Delivery
from agent.errors import DeliveryError
from agent.service import storing
from agent.service.storing import Storing
from agent.types import StationId


class HangingDisk:
    """Stores what it is given, unless it is told to hang."""

    def __init__(self) -> None:
        self.moves, self.stored = threading.Event(), list[object]()
        self.moves.set()

    def put(self, messages: list[object]) -> None:
        assert self.moves.wait(100)
        self.stored += messages


@pytest.fixture
def slow_s(monkeypatch: pytest.MonkeyPatch) -> float:
    monkeypatch.setattr(storing, "SLOW_S", 0.3)
    return 0.3


def test_what_waits_for_a_hanging_disk_keeps_nobody_and_is_stored_in_order(slow_s: float) -> None:
    disk = HangingDisk()
    store = Storing(disk.put)  # type: ignore[arg-type]
    first, second, third = make_message(1), make_alert(2), make_message(3)
    assert (store.add([first]), store.reasons()) == (0, [])
    disk.moves.clear()
    assert store.add([first, second]) == 2, "neither is on disk: an alert among them is sent past it"
    began = time.monotonic()
    for _ in range(20):
        assert store.add([third]) == 1
    assert time.monotonic() - began < 20 * slow_s, "a disk that is known to hang is not waited for"
    assert (store.held, store.is_done) == (22, False)
    (reason,) = store.reasons()
    assert reason.code == "disk_slow"
    assert "22 messages wait in memory" in reason.text
    disk.moves.set()
    wait_for(lambda: store.is_done)
    assert disk.stored == [first, first, second, *[third] * 20]


def test_a_disk_that_was_slow_is_told_of_for_a_while(slow_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = HangingDisk()
    store = Storing(disk.put)  # type: ignore[arg-type]
    disk.moves.clear()
    store.add([make_message()])
    disk.moves.set()
    wait_for(lambda: store.is_done)
    assert [reason.code for reason in store.reasons()] == ["disk_slow"]
    monkeypatch.setattr(storing, "TOLD_S", 0.0)
    assert store.reasons() == []


@contextlib.contextmanager
def hanging(delivery: Delivery) -> Iterator[None]:
    """The outbox's file takes no step while the block runs: SQLite stops in the middle of whatever it is asked for."""
    moves, stopped = threading.Event(), threading.Event()

    def stop() -> int:
        stopped.set()
        return 0 if moves.wait(100) else 1

    delivery.outbox._db.set_progress_handler(stop, 1)
    writer = threading.Thread(target=delivery.put, args=([make_message(7)],))
    writer.start()
    assert stopped.wait(100)
    try:
        yield
    finally:
        moves.set()
        writer.join(100)
        delivery.outbox._db.set_progress_handler(None, 0)


@needs_mosquitto
def test_while_the_disk_hangs_the_connection_lives_and_alerts_go_past_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that sends waits for no write, and the monitor gets an answer."""
    monkeypatch.setattr("agent.deliver.outbox.LOCK_WAIT_S", 0.2)
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        delivery = Delivery(broker.settings(), StationId("XX", "ABC", "", ""), tmp_path / "outbox.sqlite3", 10.0)
        delivery.start()
        delivery.put([make_message(1)])
        wait_for(lambda: collector.payloads("/event"))
        with hanging(delivery):
            for number in (2, 3):
                delivery.send_now(make_alert(number))
            wait_for(lambda: len(collector.payloads("/alert")) == 2)
            with pytest.raises(DeliveryError, match="the disk has not finished writing"):
                delivery.health()
            assert delivery.connected
        wait_for(lambda: len(collector.payloads("/event")) == 2, what="what the disk was writing arrives too")
        assert delivery.close().waiting == 0
        assert delivery.mqtt is not None and delivery.mqtt.status().connects == 1
