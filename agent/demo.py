"""``make demo``: real seismograms through the whole line and a real broker, to a table of labelled events.

The records ship inside the installed ObsPy package. ``talus replay`` sends, a subscriber in the manner of ``talus
watch`` receives, and the table holds only what that subscriber got from the broker.
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
from typing import Any

from agent.broker import BrokerAddress, local_broker
from agent.errors import SourceError, TalusError
from agent.mqtt_settings import MqttSettings
from agent.watch import watch

RECORDS = (
    "signal/tests/data/BW.UH1._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH2._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHE.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHN.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH3._.SHZ.D.2010.147.cut.slist.gz",
    "signal/tests/data/BW.UH4._.EHZ.D.2010.147.cut.slist.gz",
)
"""Files of the ObsPy package, relative to it."""

IDLE_S = 1.5
"""A subscriber that hears nothing for so long after the last was sent has everything that the broker held for it."""
SESSION = "talus-demo"


class _Inbox(io.StringIO):
    """Collects the payloads that the subscriber prints, one a line."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[dict[str, Any]] = []
        self.latest = time.monotonic()
        """When the last one came."""
        self._part = ""

    def write(self, text: str, /) -> int:
        *lines, self._part = (self._part + text).split("\n")
        self.messages += [json.loads(line) for line in lines if line]
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
    print(f"records     {len(files)} files of real ground motion from the ObsPy package")
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
        command = [sys.executable, "-m", "agent", "replay", *files, "--broker", broker.url]
        print(f"sending     talus replay FILES --broker {broker.url}\n", flush=True)
        try:
            result = subprocess.run(command, env={**os.environ, "XDG_STATE_HOME": folder}, check=False)
        finally:
            inbox.latest = time.monotonic()
            sent.set()
        refused = listener.result().refused
    messages = list({(message["boot_id"], message["seq"]): message for message in inbox.messages}.values())
    events, alerts = _print_table(messages)
    took = time.monotonic() - started
    print(
        f"\ndemo: {events} events and {alerts} alerts arrived over MQTT in {len(messages)} messages, "
        f"{refused} refused; {took:.1f} s"
    )
    return 0 if result.returncode == 0 and events and not refused else 1


def _records() -> list[str]:
    import obspy

    root = Path(obspy.__file__).parent
    files = [str(root / name) for name in RECORDS if (root / name).is_file()]
    if not files:
        raise SourceError(
            f"the ObsPy package in {root} comes without its test records", "pip install --force-reinstall obspy"
        )
    return files


def _print_table(messages: list[dict[str, Any]]) -> tuple[int, int]:
    """One line an event: its first verdict and its last; returns how many events and alerts there were."""
    revisions: dict[str, list[dict[str, Any]]] = {}
    raised: dict[str, str] = {}
    alerts = 0
    for message in messages:
        if message["schema"].startswith("talus/alert/"):
            alerts += 1
            raised[message["id"]] = f"{message['action']} {message['severity']}"
        else:
            revisions.setdefault(message["id"], []).append(message)
    print(f"{'station':<16}{'onset (UTC)':<24}{'ratio':>6}  {'after 3 s':<18}{'last verdict':<18}{'window':>7}  alert")
    for key, history in sorted(revisions.items(), key=lambda item: item[1][0]["onset"]):
        history.sort(key=lambda message: int(message["revision"]))
        first, last = history[0], history[-1]
        print(
            f"{last['station']:<16}{last['onset'][:22]:<24}{last['detection']['ratio']:>6.1f}  "
            f"{_verdict(first):<18}{_verdict(last):<18}{_window(last):>7}  {raised.get(key, '')}"
        )
    return len(revisions), alerts


def _verdict(message: dict[str, Any]) -> str:
    verdict = message["classification"]
    if verdict is None:
        return "no verdict"
    return f"{verdict['label']} {verdict['probability']:.2f}{'?' if verdict['abstained'] else ''}"


def _window(message: dict[str, Any]) -> str:
    verdict = message["classification"]
    return "" if verdict is None else f"{verdict['window_s']:.0f} s"


if __name__ == "__main__":
    sys.exit(main())
