"""``make demo``: real seismograms and synthetic rockfalls through the whole line and a real broker, to a table.

The records ship inside the installed ObsPy package; they show earthquakes. The rockfalls are those of ``talus
simulate``: eight, each larger than the one before, with the default settings and seed. Both are marked as exercises.
``talus replay`` and ``talus simulate`` send, a subscriber in the manner of ``talus watch`` receives, and the table
holds only what that subscriber got from the broker.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from agent.config.broker import MqttSettings
from agent.errors import SourceError, TalusError
from agent.messages.schema import MODELS, AlertMessage, EventMessage, parse
from agent.messages.text import EventTable
from agent.types import counted
from demo.broker import BrokerAddress, local_broker
from desk.watch import watch

RECORDS = (
    "signal/tests/data/BW.UH1._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH2._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHE.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHN.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH4._.EHZ.D.2010.147.cut.slist.gz",
)
"""Files of the ObsPy package, relative to it."""

ROCKFALLS = ("--scenario", "rockfalls", "--hours", "0.2", "--speed", "0", "--quiet")

IDLE_S = 1.5
"""A subscriber that hears nothing for so long after the last was sent has everything that the broker held for it."""
SESSION = "talus-demo"


class _Inbox(io.StringIO):
    """Collects the payloads that the subscriber prints, one a line."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: dict[tuple[str, int], EventMessage | AlertMessage] = {}
        """By the run of the agent and its number: a copy replaces its original."""
        self.latest = time.monotonic()
        """When the last one came."""
        self._part = ""

    def write(self, text: str, /) -> int:
        *lines, self._part = (self._part + text).split("\n")
        for line in filter(None, lines):
            body = parse(MODELS[json.loads(line)["schema"].split("/")[1]], line.encode())
            if isinstance(body, EventMessage | AlertMessage):
                self.messages[body.boot_id, body.seq] = body
        self.latest = time.monotonic()
        return len(text)


def main() -> int:
    """Run the demonstration; returns the exit status."""
    try:
        with local_broker() as broker:
            return _demo(broker)
    except TalusError as error:
        print(f"demo: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("demo: stopped", file=sys.stderr)
        return 130


def _demo(broker: BrokerAddress) -> int:
    started = time.monotonic()
    files = _records()
    settings = MqttSettings.from_url(broker.url)
    print(f"broker      {broker.program} on {broker.url}")
    print(f"records     {len(files)} files of real ground motion from the ObsPy package: earthquakes")
    print("synthetic   eight rockfalls, each larger than the one before, seed 1")
    inbox = _Inbox()
    # The first, empty call makes a session, so that the broker keeps what comes before the second one listens.
    watch(settings, inbox, sys.stderr, session=SESSION, timeout_s=0.2)
    sent = threading.Event()

    def all_here() -> bool:
        return sent.is_set() and time.monotonic() > inbox.latest + IDLE_S

    with ThreadPoolExecutor(1, "watch") as listening, tempfile.TemporaryDirectory(prefix="talus-demo-") as folder:
        listener = listening.submit(
            watch, settings, inbox, sys.stderr, style="json", session=SESSION, cancelled=all_here
        )
        try:
            sound = [
                _send(what, shown, broker.url, folder)
                for what, shown in (
                    (["replay", *files], "replay FILES"),
                    (["simulate", *ROCKFALLS], f"simulate {' '.join(ROCKFALLS)}"),
                )
            ]
        finally:
            inbox.latest = time.monotonic()
            sent.set()
        refused = listener.result().refused
    print()
    table = EventTable(print)
    table.follow(sorted(inbox.messages.values(), key=lambda body: (body.onset, body.id, body.revision)))
    table.finish()
    took = time.monotonic() - started
    print(
        f"\ndemo: {counted(table.events, 'event')} and {counted(table.alerts, 'alert')} arrived over MQTT in "
        f"{len(inbox.messages)} messages, {refused} refused; {took:.1f} s"
    )
    return 0 if all(sound) and table.events and table.alerts and not refused else 1


def _send(arguments: list[str], shown: str, url: str, folder: str) -> bool:
    """Run a command of ``talus`` with the broker; return whether it ended well. ``shown`` is what is printed of it."""
    print(f"sending     talus {shown} --broker {url}", flush=True)
    command = [sys.executable, "-m", "agent", *arguments, "--broker", url]
    return subprocess.run(command, env={**os.environ, "XDG_STATE_HOME": folder}, check=False).returncode == 0


def _records() -> list[str]:
    try:
        import obspy
    except ImportError:
        raise SourceError(
            "the records of the demonstration are part of ObsPy, which is not installed",
            "pip install 'talus-agent[demo]'",
        ) from None
    root = Path(obspy.__file__).parent
    files = [str(root / name) for name in RECORDS if (root / name).is_file()]
    if not files:
        raise SourceError(
            f"the ObsPy package in {root} comes without its test records", "pip install --force-reinstall obspy"
        )
    return files


if __name__ == "__main__":
    sys.exit(main())
