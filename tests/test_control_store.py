"""What was accepted survives a power cut, as it was before the write or as it is after it."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from schema_support import instances

from agent.errors import ControlError
from agent.messages.schema import Outcome
from agent.remote.gate import HISTORY, Store, Stored

STATES = instances(Stored)


@given(states=st.lists(STATES, min_size=1, max_size=4))
def test_what_was_written_is_read(tmp_path_factory: pytest.TempPathFactory, states: list[Stored]) -> None:
    folder = tmp_path_factory.mktemp("state") / "control"
    store = Store(folder, "config")
    assert store.stored == Stored()
    for state in states:
        store.write(state)
        again = Store(folder, "config")
        assert (again.stored, again.fault) == (state, None)
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_what_was_left_half_written_beside_the_file_is_no_state(tmp_path: Path) -> None:
    """The cut between writing and renaming, at any byte."""
    store, state = Store(tmp_path, "config"), Stored(highest=1, newest="1" * 64)
    store.write(state)
    whole = (tmp_path / "config.json").read_bytes()
    for length in range(len(whole)):
        (tmp_path / ".config.json.new").write_bytes(whole[:length])
        assert Store(tmp_path, "config").stored == state


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"{}x", b'{"highest": "1"}', b'{"lowest": 1}', b"[" * 100_000])
def test_a_damaged_file_is_told_and_is_a_new_beginning(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "config.json").write_bytes(content)
    store = Store(tmp_path, "config")
    assert store.stored == Stored()
    assert str(tmp_path / "config.json") in str(store.fault)
    store.write(Stored(highest=3))
    assert (Store(tmp_path, "config").stored.highest, Store(tmp_path, "config").fault) == (3, None)


def test_a_disk_that_refuses_leaves_the_old_state(tmp_path: Path) -> None:
    store = Store(tmp_path, "config")
    store.write(Stored(highest=1))
    (tmp_path / ".config.json.new").mkdir()
    with pytest.raises(ControlError, match="directory"):
        store.write(Stored(highest=2))
    assert store.stored == Store(tmp_path, "config").stored == Stored(highest=1)


@given(instances(Outcome))
def test_the_history_has_an_end(outcome: Outcome) -> None:
    numbered = [outcome.model_copy(update={"revision": number}) for number in range(3 * HISTORY)]
    stored = Stored()
    for line in numbered:
        stored = stored.with_outcome(line)
    assert [line.revision for line in stored.history] == list(range(2 * HISTORY, 3 * HISTORY))
    assert Stored.model_validate_json(stored.model_dump_json()) == stored


def test_a_folder_that_is_not_ours_is_told(tmp_path: Path) -> None:
    (tmp_path / "control").write_text("a file")
    with pytest.raises(ControlError, match="control"):
        Store(tmp_path / "control", "config")
