"""``kill -9`` of a whole station in mid-stream: what was decided before it is still delivered."""

from __future__ import annotations

import signal
from collections import defaultdict
from pathlib import Path
from typing import Any

from agent_support import by_revision, content, expected, on_disk, running_agent, write_config, write_records
from broker_support import Collector, Mosquitto, first_order, needs_mosquitto, wait_for

COPIES = 4


class FreezableBroker(Mosquitto):
    """One that can stop answering without closing its connections."""

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)


def by_boot(bodies: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = defaultdict(list)
    for body in bodies:
        found[body["boot_id"]].append(body)
    return found


@needs_mosquitto
def test_kill_9_in_mid_stream_loses_nothing_that_was_decided(tmp_path: Path) -> None:
    """Killed while the broker does not answer, and killed while all is well; the last run gets to the end.

    Every revision that reached the outbox arrives, in order; each run's messages are the beginning of what a replay
    gives, without a hole; a copy has the same id, revision, boot id and sequence number as its original.
    """
    records = write_records(tmp_path / "records", COPIES)
    wanted = [content(body) for body in expected(records)]
    outbox = tmp_path / "state" / "outbox.sqlite3"
    broker = FreezableBroker(tmp_path)
    broker.start()
    source = f"{{kind: archive, paths: ['{records}'], speed: 40}}"
    config = write_config(tmp_path, records, broker.port, source=source)
    left: list[dict[str, Any]] = []
    try:
        with Collector(broker.settings()) as collector:
            for frozen in (True, False, True):
                boots = len(by_boot(collector.bodies("/event")))
                with running_agent("run", "--config", config) as agent:
                    wait_for(lambda: len(by_boot(collector.bodies("/event"))) > boots, what="an event of this run")  # noqa: B023
                    if frozen:
                        broker.freeze()
                        wait_for(lambda: len(on_disk(outbox)) > 1, what="messages that the broker does not take")
                    agent.signal(signal.SIGKILL)
                    assert agent.end() == -signal.SIGKILL
                    waiting = on_disk(outbox)
                    assert waiting or not frozen, "nothing was left between outbox and broker: the test proves nothing"
                    left += waiting
                broker.thaw()
            config = write_config(tmp_path, records, broker.port)
            with running_agent("run", "--config", config) as agent:
                assert agent.end() == 0, agent.log
            wait_for(lambda: len(by_revision(collector.bodies("/event"))) >= len(wanted))
            wait_for(lambda: len(by_boot(collector.bodies("/event"))) == 4, what="messages of all four runs")
            wait_for(lambda: {(b["boot_id"], b["seq"]) for b in left} <= identities(collector))
            bodies = collector.bodies("/event")
    finally:
        broker.thaw()
        broker.stop()
    runs = by_boot(bodies)
    order = {(body["id"], body["revision"]): number for number, body in enumerate(wanted)}
    for boot, messages in runs.items():
        assert all(revisions == sorted(revisions) for revisions in first_order(messages).values()), boot
        decided = sorted(by_revision(messages), key=lambda name: order[name])
        assert [by_revision(messages)[name] for name in decided] == wanted[: len(decided)], f"a hole in run {boot}"
    assert [len(by_revision(messages)) == len(wanted) for messages in runs.values()].count(True) >= 1
    copies = {(body["id"], body["revision"], body["boot_id"], body["seq"]) for body in bodies}
    assert len(copies) == sum(len(by_revision(messages)) for messages in runs.values())


def identities(collector: Collector) -> set[tuple[str, int]]:
    return {(body["boot_id"], body["seq"]) for body in collector.bodies("/event")}
