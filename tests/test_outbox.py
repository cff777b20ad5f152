"""The outbox: nothing put is lost, the order is kept, the size is bounded, and a bad disk or file is survived."""

from __future__ import annotations

import contextlib
import os
import random
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from broker_support import make_alert, make_message, make_other
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.deliver.outbox import MAIN, Entry, Outbox
from agent.deliver.outbox_file import TOO_LARGE, drop, listing
from agent.errors import DeliveryError, UsageError
from agent.messages.payloads import Message, Priority

ROOT = Path(__file__).parent.parent
SINKS = (MAIN, "file")


@pytest.fixture
def outbox(tmp_path: Path) -> Outbox:
    return Outbox(tmp_path / "outbox.db")


def drain(outbox: Outbox, sink: str = MAIN) -> list[Message]:
    """Everything in the order of sending, acknowledged one by one."""
    sent, cursor = [], outbox.cursor(sink)
    while entries := cursor.fetch(1):
        sent.append(entries[0].message)
        cursor.delete([entries[0].id])
    return sent


def test_messages_come_back_as_they_were_put_after_a_restart(tmp_path: Path) -> None:
    messages = [make_message(0), *(replace(make_other(n), correlation=b"asked %d" % n) for n in range(4))]
    first = Outbox(tmp_path / "o.db")
    first.put(messages)
    first.close()
    second = Outbox(tmp_path / "o.db")
    assert second.depth == 5
    assert drain(second) == messages
    assert second.depth == 0
    second.close()
    assert Outbox(tmp_path / "o.db").depth == 0


def test_skipped_topics_and_rows_hold_up_nothing_else(outbox: Outbox) -> None:
    outbox.put([make_alert(1), make_message(1, 0), make_message(1, 1), make_message(2)])
    taken = outbox.cursor(MAIN).fetch(10, skip_topics=["talus/v1/XX/ABC/alert"])
    assert all(entry.message.priority is Priority.EVENT for entry in taken)
    assert len(taken) == 2
    outbox.cursor(MAIN).release([entry.id for entry in taken])
    taken = outbox.cursor(MAIN).fetch(10, skip_topics=["talus/v1/XX/ABC/alert"], skip_ids=[taken[0].id])
    assert [entry.message.key for entry in taken] == [make_message(2).key], "revision 1 waits behind revision 0"


class Histories(RuleBasedStateMachine):
    """Any history of two sinks against a model in memory: nothing is lost, each sink has the messages of an event in
    their order, alerts go first, and only the newest retained value counts."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "o.db"
        self.put_count = [0] * 4
        self.value = -1
        self.out: dict[str, list[Entry]] = {name: [] for name in SINKS}
        self.had: dict[str, list[list[int]]] = {name: [[] for _ in range(4)] for name in SINKS}
        self.aside: dict[str, list[Entry]] = {name: [] for name in SINKS}
        self.opened()

    def opened(self) -> None:
        self.outbox = Outbox(self.path, sinks=SINKS)
        self.cursors = {name: self.outbox.cursor(name) for name in SINKS}

    @rule(key=st.integers(0, 3), count=st.integers(1, 4))
    def put(self, key: int, count: int) -> None:
        """Key 0 is an alert's."""
        priority = Priority.ALERT if key == 0 else Priority.EVENT
        first, self.put_count[key] = self.put_count[key], self.put_count[key] + count
        numbers = range(first, first + count)
        self.outbox.put([Message("t", b"%d" % n, priority, key=str(key)) for n in numbers])

    @rule()
    def put_a_value(self) -> None:
        self.value += 1
        self.outbox.put([Message("t/last", b"%d" % self.value, Priority.OTHER, retain=True)])

    @rule(sink=st.sampled_from(SINKS), limit=st.integers(1, 5))
    def fetch(self, sink: str, limit: int) -> None:
        entries = self.cursors[sink].fetch(limit)
        priorities = [entry.message.priority for entry in entries]
        assert priorities == sorted(priorities)
        for entry in entries:
            key, number = int(entry.message.key), int(entry.message.payload)
            assert number == len(self.had[sink][key]), "the first that this sink has not had"
            assert all(other.message.key != entry.message.key for other in self.out[sink])
            self.out[sink].append(entry)

    @rule(sink=st.sampled_from(SINKS), count=st.integers(1, 5))
    def deliver(self, sink: str, count: int) -> None:
        gone, self.out[sink] = self.out[sink][:count], self.out[sink][count:]
        ids = [entry.id for entry in gone]
        self.cursors[sink].acknowledge(ids)
        self.cursors[sink].delete(ids)
        for entry in gone:
            self.had[sink][int(entry.message.key)].append(int(entry.message.payload))

    @rule(sink=st.sampled_from(SINKS))
    def give_back(self, sink: str) -> None:
        self.cursors[sink].release([entry.id for entry in self.out[sink]])
        self.out[sink] = []

    @precondition(lambda self: self.out["mqtt"])
    @rule(packets=st.booleans())
    def refuse_and_take_back(self, packets: bool) -> None:
        entry = self.out["mqtt"].pop(0)
        self.cursors["mqtt"].refuse(entry.id, TOO_LARGE, "Packet too large")
        assert self.outbox.stats().set_aside == 1
        assert self.cursors["mqtt"].requeue(1 if packets else None) == (0 if packets else 1)
        assert self.cursors["mqtt"].requeue(None) == (1 if packets else 0)

    @rule()
    def restart(self) -> None:
        self.outbox.close()
        self.opened()
        self.out = {name: [] for name in SINKS}

    @invariant()
    def counts(self) -> None:
        for sink in SINKS:
            had = sum(map(len, self.had[sink]))
            assert self.cursors[sink].depth == sum(self.put_count) - had
        kept, _ = self.outbox.retained()
        assert [int(message.payload) for message in kept] == ([] if self.value < 0 else [self.value])

    def teardown(self) -> None:
        for sink in SINKS:
            self.give_back(sink)
            for message in drain(self.outbox, sink):
                self.had[sink][int(message.key)].append(int(message.payload))
            assert self.had[sink] == [list(range(count)) for count in self.put_count]
        assert self.outbox.stats().bytes == 0
        self.outbox.close()
        self.folder.cleanup()


Histories.TestCase.settings = settings(max_examples=25, stateful_step_count=30)
TestHistories = Histories.TestCase


def test_a_full_outbox_drops_the_rest_then_updates_then_events_and_keeps_the_alerts(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", max_bytes=75_000)
    alerts = [make_alert(n) for n in range(20)]
    outbox.put(alerts)
    outbox.put([make_other(n, 900) for n in range(20)])
    for n in range(20):
        outbox.put([make_message(n, 0), make_message(n, 1, "update"), make_message(n, 2, "end")])
    phases = [json_phase(message) for message in drain(outbox)]
    assert phases[:20] == ["alert"] * 20
    assert "other" not in phases
    assert phases.count("update") < 20
    assert (phases.count("new"), phases.count("end")) == (20, 20)
    assert outbox.stats().dropped == 20 + 20 - phases.count("update")
    for n in range(50):
        outbox.put([make_message(n), make_alert(n)])
    left = drain(outbox)
    assert sum(message.priority is Priority.ALERT for message in left) == 50, "events make room for alerts"
    assert len(left) < 100
    assert sum(len(message.payload) + 200 for message in left) <= 75_000
    outbox.close()
    assert Outbox(tmp_path / "o.db").stats().dropped > 0, "the count survives a restart"


def json_phase(message: Message) -> str:
    if message.priority is Priority.EVENT:
        return next(phase for phase in ("new", "update", "end") if f'"phase":"{phase}"'.encode() in message.payload)
    return message.priority.name.lower()


def test_what_waits_for_another_way_out_alone_goes_first_when_there_is_no_room(tmp_path: Path) -> None:
    """A file that cannot be written must not cost the broker a message, nor can a section that was taken out again."""
    outbox = Outbox(tmp_path / "o.db", max_bytes=50_000, sinks=SINKS)
    outbox.put([make_alert(n) for n in range(20)])
    assert len(drain(outbox)) == 20
    for n in range(20, 60):
        outbox.put([make_other(n, 500)])
    assert len(drain(outbox)) == 40, "all that the broker has not had is still there"
    assert outbox.cursor("file").depth < 60
    outbox.close()
    alone = Outbox(tmp_path / "o.db", max_bytes=50_000)
    for n in range(60, 100):
        alone.put([make_other(n, 500)])
    assert len(drain(alone)) == 40
    assert alone.stats().bytes <= 50_000


def test_what_is_in_flight_is_not_dropped(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", max_bytes=50_000)
    outbox.put([make_other(0, 900)])
    (flying,) = outbox.cursor(MAIN).fetch(1)
    outbox.put([make_message(n) for n in range(60)][:40])
    outbox.put([make_message(n) for n in range(40, 60)])
    assert outbox.stats().dropped > 0
    before = outbox.depth
    outbox.cursor(MAIN).delete([flying.id])
    assert outbox.depth == before - 1


def test_a_batch_larger_than_the_outbox_is_refused_whole(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", max_bytes=10_000)
    outbox.put([make_message()])
    with pytest.raises(DeliveryError, match="do not fit"):
        outbox.put([make_other(0, 20_000)])
    assert len(drain(outbox)) == 1


def test_what_is_refused_for_good_is_set_aside_and_goes_back_to_its_old_place(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db")
    messages = [make_alert(1), make_message(1), make_message(2), make_message(3)]
    outbox.put(messages)
    taken = outbox.cursor(MAIN).fetch(2)
    for entry in taken:
        outbox.cursor(MAIN).refuse(entry.id, TOO_LARGE, "larger than the broker's 900 bytes")
    assert [entry.message for entry in outbox.cursor(MAIN).fetch(4)] == messages[2:]
    outbox.close()
    outbox = Outbox(tmp_path / "o.db")
    stats = outbox.stats()
    assert (stats.depth, stats.set_aside, stats.set_aside_alerts, stats.set_aside_total) == (2, 2, 1, 2)
    assert stats.set_aside_reason == "larger than the broker's 900 bytes"
    assert outbox.cursor(MAIN).requeue(900) == 0, "still too large"
    assert outbox.cursor(MAIN).requeue(None) == 2
    stats = outbox.stats()
    assert (stats.depth, stats.set_aside, stats.set_aside_total) == (4, 0, 2)
    assert drain(outbox) == messages


def test_only_what_was_too_large_goes_back_by_itself(outbox: Outbox) -> None:
    outbox.put([make_message(1), make_message(2)])
    first, second = outbox.cursor(MAIN).fetch(2)
    outbox.cursor(MAIN).refuse(first.id, 0x90, "Topic name invalid")
    outbox.cursor(MAIN).refuse(second.id, TOO_LARGE, "Packet too large")
    assert outbox.cursor(MAIN).requeue(None) == 1
    assert outbox.stats().set_aside == 1
    assert [message.key for message in drain(outbox)] == [make_message(2).key]


def test_of_a_thousand_set_aside_the_alerts_stay_and_what_goes_is_counted(outbox: Outbox) -> None:
    outbox.put([make_alert(1), *(make_other(n, size=1) for n in range(1001))])
    for entry in outbox.cursor(MAIN).fetch(1002):
        outbox.cursor(MAIN).refuse(entry.id, 0x99, "Payload format invalid")
    stats = outbox.stats()
    assert (stats.set_aside, stats.set_aside_alerts, stats.dropped, stats.lost) == (1000, 1, 2, 0)


def test_another_process_lists_retries_and_drops_while_the_agent_has_the_file(tmp_path: Path, outbox: Outbox) -> None:
    woken = threading.Event()
    outbox.listen(woken.set)
    outbox.put([make_message(n) for n in range(1, 5)])
    for entry in outbox.cursor(MAIN).fetch(3):
        outbox.cursor(MAIN).refuse(entry.id, TOO_LARGE, "Packet too large")
    woken.clear()
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        from agent.deliver.outbox_file import drop, listing, retry
        path = Path(sys.argv[1])
        found = listing(path, 1)
        print(found.waiting_total, [one.reason for one in found.set_aside], found.set_aside[0].kind)
        numbers = [one.number for one in found.set_aside]
        print(retry(path, numbers[:2]), drop(path, None))
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, outbox.path], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout.splitlines() == ["1 ['Packet too large', 'Packet too large', 'Packet too large'] event", "2 1"]
    stats = outbox.stats()
    assert (stats.depth, stats.set_aside, stats.set_aside_total) == (3, 0, 3)
    assert woken.is_set(), "who sends is told"
    assert [message.key for message in drain(outbox)] == [make_message(n).key for n in (1, 2, 4)]
    outbox.put([make_alert()])
    assert outbox.stats().depth == 1


def test_numbers_that_are_not_set_aside_are_refused_and_nothing_is_done(outbox: Outbox) -> None:
    outbox.put([make_message(1), make_message(2)])
    (entry,) = outbox.cursor(MAIN).fetch(1)
    outbox.cursor(MAIN).refuse(entry.id, TOO_LARGE, "Packet too large")
    with pytest.raises(UsageError, match="no message 99"):
        drop(outbox.path, [entry.id, 99])
    assert outbox.stats().set_aside == 1
    with pytest.raises(DeliveryError, match="there is no outbox"):
        listing(outbox.path.with_name("none"), None)


def test_what_was_lost_for_want_of_room_is_told_apart_and_survives_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path / "o.db", max_bytes=20_000)
    assert outbox.stats().lost_age_s is None
    for n in range(20):
        outbox.put([make_other(n), make_message(n)])
    stats = outbox.stats()
    assert stats.dropped > stats.lost > 0
    outbox.close()
    again = Outbox(tmp_path / "o.db", max_bytes=20_000).stats()
    assert (again.dropped, again.lost) == (stats.dropped, stats.lost)
    assert again.lost_age_s is not None
    assert again.lost_age_s < 60


def test_a_message_grows_older_while_the_machines_clock_is_set_back(
    outbox: Outbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    outbox.put([make_message(1)])
    assert outbox.stats().oldest_s < 80
    now, then = time.monotonic(), time.time_ns() - 3600 * 10**9
    monkeypatch.setattr(time, "time_ns", lambda: then)
    monkeypatch.setattr(time, "monotonic", lambda: now + 90)
    assert outbox.stats().oldest_s > 80


def test_a_second_process_is_refused(tmp_path: Path, outbox: Outbox) -> None:
    outbox.put([make_message()])
    code = f"from pathlib import Path; from agent.deliver.outbox import Outbox; Outbox(Path({str(outbox.path)!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode != 0
    assert "is in use" in done.stderr


def test_puts_from_several_threads_are_all_there_and_each_thread_in_order(outbox: Outbox) -> None:
    woken = threading.Semaphore(0)
    outbox.listen(woken.release)

    def work(name: int) -> None:
        for n in range(25):
            outbox.put([Message("t", str(n).encode(), Priority.EVENT, key=str(name))])

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    taken: dict[str, list[int]] = {}
    while sum(map(len, taken.values())) < 100:
        assert woken.acquire(timeout=60), "a put wakes the listener"
        for message in drain(outbox):
            taken.setdefault(message.key, []).append(int(message.payload))
    assert taken == {str(name): list(range(25)) for name in range(4)}
    for thread in threads:
        thread.join()


@pytest.mark.parametrize("damage", ["garbage", "pages", "truncated", "schema"])
def test_a_corrupt_file_is_moved_aside_and_named(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path)
    first.put([make_message(n) for n in range(60)])
    first.close()
    data = bytearray(path.read_bytes())
    if damage == "garbage":
        data = bytearray(os.urandom(5000))
    elif damage == "pages":
        data[len(data) // 2 :] = b"\xaa" * (len(data) - len(data) // 2)
    elif damage == "truncated":
        data = data[: len(data) // 2 + 100]
    else:
        data[100:200] = b"\x55" * 100
    path.write_bytes(data)
    outbox = Outbox(path)
    (aside,) = outbox.stats().moved_aside
    assert aside.read_bytes() == data, "the evidence is kept as it was"
    assert str(aside) in caplog.text
    outbox.put([make_alert(99)])
    assert make_alert(99).key in [message.key for message in drain(outbox)]
    outbox.close()
    outbox = Outbox(path)
    assert outbox.stats().moved_aside == (aside,), "it is named until an operator has dealt with it"
    aside.unlink()
    assert outbox.stats().moved_aside == ()


def test_what_was_set_aside_is_carried_over_from_a_corrupt_file(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path)
    first.put([make_alert(1), make_message(1)])
    (entry,) = first.cursor(MAIN).fetch(1)
    first.cursor(MAIN).refuse(entry.id, TOO_LARGE, "Packet too large")
    first.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("DROP TABLE counter")
        db.commit()
    outbox = Outbox(path)
    assert (outbox.stats().set_aside_alerts, len(outbox.stats().moved_aside)) == (1, 1)
    assert outbox.cursor(MAIN).requeue(None) == 1
    assert [message.key for message in drain(outbox)] == [make_alert(1).key, make_message(1).key]


def test_a_row_that_cannot_be_read_costs_itself_and_neither_the_start_nor_what_is_behind_it(tmp_path: Path) -> None:
    """One bit, and a topic is no text, a priority is none, a payload is missing: SQLite itself sees nothing wrong."""
    path = tmp_path / "o.db"
    first = Outbox(path)
    first.put([make_message(n) for n in range(60)])
    first.close()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA writable_schema=ON")
        db.execute("UPDATE sqlite_schema SET sql = replace(sql, ' NOT NULL', '') WHERE name = 'queue'")
        db.commit()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("UPDATE queue SET topic = CAST(x'74c32f' AS TEXT) WHERE id = 10")
        db.execute("UPDATE queue SET priority = 9 WHERE id = 20")
        db.execute("UPDATE queue SET payload = NULL WHERE id = 30")
        db.commit()
    outbox = Outbox(path)
    found = [message.key for message in drain(outbox)]
    assert set(found) == {make_message(n).key for n in range(60) if n not in (9, 19, 29)}
    (aside,) = outbox.stats().moved_aside
    assert aside.exists()


def test_what_lies_behind_a_torn_page_is_carried_over(tmp_path: Path) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path)
    first.put([make_message(n) for n in range(400)])
    first.close()
    data = bytearray(path.read_bytes())
    torn = data.index(b"\x0d", len(data) // 2 // 4096 * 4096) // 4096 * 4096
    data[torn : torn + 4096] = b"\xaa" * 4096
    path.write_bytes(data)
    found = [message.key for message in drain(Outbox(path))]
    assert found[0] == make_message(0).key and found[-1] == make_message(399).key
    assert len(found) > 300


@pytest.mark.parametrize("seed", range(18, 26))
def test_no_flipped_bit_keeps_an_outbox_from_taking_and_giving(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "o.db"
    first = Outbox(path)
    first.put([make_message(n) for n in range(60)])
    first.close()
    data, chance = bytearray(path.read_bytes()), random.Random(seed)
    for _ in range(8):
        data[chance.randrange(100, len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
    outbox = Outbox(path)
    drain(outbox)
    outbox.put([make_alert(99)])
    assert make_alert(99).key in [message.key for message in drain(outbox)]
    outbox.retained()
    outbox.journal()
    outbox.stats()


def test_corruption_while_running_is_survived_and_nothing_put_afterwards_is_lost(tmp_path: Path) -> None:
    """The file is overwritten under a running outbox; acknowledgements of the old file must not hit new messages."""
    path = tmp_path / "o.db"
    outbox = Outbox(path)
    outbox.put([make_message(n) for n in range(5000)])  # more than SQLite keeps in its cache
    outbox.close()
    outbox = Outbox(path)
    flying = outbox.cursor(MAIN).fetch(20)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xaa" * (path.stat().st_size - 4096))
    for n in range(5000, 6000):
        outbox.put([make_message(n)])
        if outbox.stats().moved_aside:
            break
    (aside,) = outbox.stats().moved_aside
    assert aside.exists()
    fresh = [make_message(10_000 + n) for n in range(40)]
    outbox.put(fresh)
    outbox.cursor(MAIN).delete([entry.id for entry in flying])
    keys = [message.key for message in drain(outbox)]
    assert [key for key in keys if key in {message.key for message in fresh}] == [message.key for message in fresh]


@pytest.mark.parametrize("harm", ["file", "folder", "another"])
def test_a_file_that_is_deleted_or_replaced_under_a_running_outbox_is_written_anew(tmp_path: Path, harm: str) -> None:
    """What waits in it would end with the process, and nothing would say so."""
    outbox = Outbox(path := tmp_path / "state" / "o.db")
    outbox.put([make_message(1)])
    other = Outbox(tmp_path / "other" / "o.db")
    other.put([make_message(5)])
    other.close()
    for file in path.parent.iterdir():
        file.unlink()
    if harm == "folder":
        path.parent.rmdir()
    elif harm == "another":
        (tmp_path / "other" / "o.db").rename(path)
    outbox.put([make_message(2)])
    assert bool(outbox.stats().moved_aside) == (harm == "another")
    outbox.put([make_message(3)])
    outbox.close()
    assert [message.key for message in drain(Outbox(path))] == [make_message(n).key for n in (1, 2, 3)]


@pytest.mark.skipif(os.name != "posix", reason="needs a file size limit")
def test_a_disk_that_is_full_is_an_error_and_the_put_can_be_repeated(tmp_path: Path) -> None:
    """In a process whose files may not grow beyond a limit: put fails, nothing is half there, later it works."""
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from agent.errors import DeliveryError
        from agent.messages.payloads import Message, Priority
        from agent.deliver.outbox import Outbox
        outbox = Outbox(Path(sys.argv[1]))
        small = [Message("t", b"small", Priority.EVENT, key="k")]
        outbox.put(small)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
        big = [Message("t", b"x" * 50_000, Priority.EVENT, key=str(n)) for n in range(5)]
        try:
            outbox.put(big)
        except DeliveryError as error:
            print("refused:", error.hint)
        print("after refusal", outbox.depth, len(outbox.cursor("mqtt").fetch(100)))
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        outbox.put(big)
        print("in the end", outbox.depth)
    """)
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "o.db"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert "refused: free space" in done.stdout, done.stdout + done.stderr
    assert "after refusal 1 1" in done.stdout
    assert "in the end 6" in done.stdout


def test_a_damaged_file_on_a_disk_that_takes_no_other_leaves_a_voice(tmp_path: Path) -> None:
    """A failing card damages the file under a running agent and refuses the new one: the outbox goes on in memory, with
    what can be read. It was closed for good, and every later message lost, also when the disk was well again."""
    code = textwrap.dedent("""
        import resource, sys
        from pathlib import Path
        from broker_support import make_alert, make_message
        from agent.deliver.outbox import MAIN, Outbox
        path = Path(sys.argv[1])
        outbox = Outbox(path)
        outbox.put([make_message(n) for n in range(5000)])  # more than SQLite keeps in its cache
        outbox.close()
        outbox = Outbox(path)
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            file.write(bytes([0xaa]) * (path.stat().st_size // 2))
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
        ids = [entry.id for entry in outbox.cursor(MAIN).fetch(5000)]
        stats = outbox.stats()
        print("in memory:", stats.in_memory, "kept some:", 0 < stats.depth < 5000)
        outbox.put([make_alert(1)])
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        outbox.put([make_alert(2)])
        alerts = [entry.message.key for entry in outbox.cursor(MAIN).fetch(2)]
        print("alerts:", alerts == [make_alert(1).key, make_alert(2).key])
        outbox.close()
    """)
    command = [sys.executable, "-c", code, str(tmp_path / "o.db")]
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert "in memory: " in done.stdout, done.stderr
    assert "in memory: None" not in done.stdout
    assert "alerts: True" in done.stdout, done.stdout + done.stderr


def test_a_directory_that_is_not_writable_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DeliveryError) as caught:
        Outbox(tmp_path / "file" / "o.db")
    assert "writable" in caught.value.hint


def test_a_file_of_a_later_version_is_refused(tmp_path: Path, outbox: Outbox) -> None:
    outbox.close()
    with sqlite3.connect(outbox.path) as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(DeliveryError, match="layout 99"):
        Outbox(outbox.path)
    assert outbox.path.exists()
