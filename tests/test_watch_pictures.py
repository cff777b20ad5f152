"""``talus watch --format picture``: a picture and its record when a station sends one; nothing of what was forged."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from broker_support import needs_mosquitto, running, wait_for
from browser_support import evidence
from desk_support import event, verdict
from test_desk_record import record
from test_watch import Publisher, Watching

from agent.cli import main
from agent.errors import DataError
from agent.messages.payloads import encode, evidence_messages
from agent.types import StationId
from desk.formats.picture import Pictures

AGENT = StationId("XX", "SLP", "", "")
RAW = record()
PLACE = event().id.replace(".", "_")


@needs_mosquitto
def test_the_record_of_an_alert_becomes_a_picture_once_it_is_whole(tmp_path: Path) -> None:
    from PIL import Image

    folder = tmp_path / "pictures"
    folder.mkdir()
    with running(tmp_path) as broker:
        publisher = Publisher(broker)
        publisher.send("talus/v1/XX/SLP/health", b"broken", retain=True)
        watching = Watching(broker.settings(), pictures=Pictures(folder), limit=1, timeout_s=60)
        wait_for(lambda: "health" in watching.err.getvalue())
        publisher.send("talus/v1/XX/SLP/event", encode(event(0)))
        publisher.send(
            "talus/v1/XX/SLP/event", encode(event(3, evidence=evidence(RAW), classification=verdict("blast")))
        )
        publisher.send(f"talus/v1/XX/SLP/evidence/{PLACE}/7", b"")
        for message in evidence_messages(event().id, RAW, AGENT):
            publisher.send(message.topic, message.payload)
        assert watching.finish().printed == 1
    picture = folder / f"{event().id}.webp"
    assert watching.out.getvalue().split() == [str(picture)]
    assert picture.with_suffix(".mseed").read_bytes() == RAW
    with Image.open(picture) as image:
        assert image.size[0] == 640
    assert picture.stat().st_size < 80_000


def test_forged_foreign_and_broken_pieces_make_no_picture(tmp_path: Path) -> None:
    pictures = Pictures(tmp_path)
    with pytest.raises(DataError, match="no event has announced"):
        pictures.piece(PLACE, "0", b"x")
    pictures.event(event(3, evidence=evidence(RAW)))
    for name, number, payload in (
        (PLACE, "x", b"x"),
        (PLACE, "128", b"x"),
        (PLACE, "0", b""),
        ("../../etc", "0", b"x"),
    ):
        with pytest.raises(DataError):
            pictures.piece(name, number, payload)
    forged = RAW[:-1] + b"?"
    messages = evidence_messages(event().id, forged, AGENT)
    with pytest.raises(DataError, match="not what the event announced"):
        for number, message in enumerate(messages):
            pictures.piece(PLACE, str(number), message.payload)
    nonsense = bytes(5000)
    lie = evidence(nonsense) | {"sha256": hashlib.sha256(nonsense).hexdigest()}
    pictures.event(event(4, evidence=lie))
    with pytest.raises(DataError):
        pictures.piece(PLACE, "0", nonsense)
    assert [path.suffix for path in tmp_path.iterdir() if path.suffix == ".webp"] == []


def test_pictures_need_a_folder(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "--broker", "mqtt://127.0.0.1:1", "--format", "picture"]) == 2
    assert "--out FOLDER" in capsys.readouterr().err
