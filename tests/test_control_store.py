"""What was accepted survives a power cut at any byte, as it was before the write or as it is after it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from agent.errors import ControlError
from agent.messages.schema import Outcome
from agent.remote.store import HISTORY, Order, Store, Stored, decode, encode
from agent.types import format_ns


def order(revision: int) -> Order:
    return Order(revision=revision, envelope=f"{revision:064x}", key="me", content={"trigger": {"on": 5.0 + revision}})


def outcome(revision: int) -> Outcome:
    return Outcome(
        envelope="0" * 64, revision=revision, key="me", result="kept", kind=None, reason="±", time=format_ns(0)
    )


def state(revision: int) -> Stored:
    return Stored(kept=order(revision), highest=revision, newest=f"{revision:064x}").with_outcome(outcome(revision))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    store = Store(tmp_path / "control", "config")
    assert store.stored == Stored()
    for revision in range(1, 6):
        store.write(state(revision))
        again = Store(tmp_path / "control", "config")
        assert again.stored == state(revision)
        assert not again.faults
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "control").iterdir()} == {0o600}
    assert stat.S_IMODE((tmp_path / "control").stat().st_mode) == 0o700


@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_slot_torn_at_any_byte_leaves_the_state_before_it(tmp_path: Path, writes: int) -> None:
    store = Store(tmp_path, "config")
    for revision in range(1, writes + 1):
        store.write(state(revision))
    newest = tmp_path / f"config.{writes % 2}"
    whole = newest.read_bytes()
    for length in range(len(whole)):
        newest.write_bytes(whole[:length])
        torn = Store(tmp_path, "config")
        assert torn.stored == (state(writes - 1) if writes > 1 else Stored())
        assert len(torn.faults) == 1
        assert str(newest) in torn.faults[0]


def test_a_slot_torn_at_any_byte_is_written_anew(tmp_path: Path) -> None:
    store = Store(tmp_path, "config")
    store.write(state(1))
    store.write(state(2))
    newest = tmp_path / "config.0"
    newest.write_bytes(newest.read_bytes()[:-1])
    Store(tmp_path, "config").write(state(3))
    healed = Store(tmp_path, "config")
    assert healed.stored == state(3)
    assert not healed.faults


def test_every_flipped_byte_is_noticed() -> None:
    whole = encode(7, state(7))
    assert decode(whole).stored == state(7)
    for at in range(len(whole)):
        broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
        with pytest.raises(ValueError, match="torn"):
            decode(broken)


def test_what_was_left_half_written_beside_the_slots_is_no_state(tmp_path: Path) -> None:
    """The cut between writing and renaming."""
    store = Store(tmp_path, "config")
    store.write(state(1))
    (tmp_path / ".config.0.new").write_bytes(encode(2, state(2)))
    assert Store(tmp_path, "config").stored == state(1)


def test_both_slots_broken_is_told_and_is_a_new_beginning(tmp_path: Path) -> None:
    for name in ("config.0", "config.1"):
        (tmp_path / name).write_bytes(b"\x00" * 100)
    store = Store(tmp_path, "config")
    assert store.stored == Stored()
    assert len(store.faults) == 2


def test_a_disk_that_refuses_leaves_the_old_state(tmp_path: Path) -> None:
    store = Store(tmp_path, "config")
    store.write(state(1))
    (tmp_path / ".config.0.new").mkdir()
    with pytest.raises(ControlError, match="directory"):
        store.write(state(2))
    assert store.stored == state(1)
    assert Store(tmp_path, "config").stored == state(1)


def test_the_history_has_an_end(tmp_path: Path) -> None:
    stored = Stored()
    for revision in range(3 * HISTORY):
        stored = stored.with_outcome(outcome(revision))
    assert [line.revision for line in stored.history] == list(range(2 * HISTORY, 3 * HISTORY))
    store = Store(tmp_path, "config")
    store.write(stored)
    assert Store(tmp_path, "config").stored == stored


def test_a_folder_that_is_not_ours_is_told(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file")
    with pytest.raises(ControlError, match="control"):
        Store(tmp_path / "control", "config")
