"""``python -m demo.remote``: a station changed remotely, from the key to the model, on this machine.

A real broker, the real service on a synthetic site, and the commands as an operator types them, each shown with what
it printed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import yaml

from agent.errors import DeliveryError, TalusError
from agent.inference.bundle import DEFAULT_BUNDLE
from demo.broker import BrokerAddress, local_broker

STATION = "XX.SLOPE"
START_S = 60.0
_SOURCE = {"kind": "simulator", "speed": 20.0, "rates": {"slopequakes_per_hour": 60.0, "rockfalls_per_hour": 30.0}}


def main() -> int:
    """Play the story; returns the exit status."""
    try:
        with local_broker() as broker, tempfile.TemporaryDirectory(prefix="talus-remote-") as folder:
            return _Story(Path(folder), broker).play()
    except TalusError as error:
        print(f"remote demo: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print("remote demo: stopped", file=sys.stderr)
        return 130


class _Story:
    """Its files are in ``folder``, in which the commands run."""

    def __init__(self, folder: Path, broker: BrokerAddress) -> None:
        self._folder, self._broker = folder, broker
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        self._wrong = 0

    def play(self) -> int:
        section = yaml.safe_load(self._talus("config", "keygen", "ops.pem", "--name", "ops"))
        self._write_station(section["control"]["keys"])
        with (self._folder / "station.log").open("w") as log:
            print("$ talus run --config station.yaml &\n", flush=True)
            station = subprocess.Popen(
                self._command("run", "--config", "station.yaml"), cwd=self._folder, stderr=log, env=self._environment
            )
            try:
                self._tell(station)
            finally:
                station.terminate()
                station.wait(10)
        print("all as it should be" if not self._wrong else f"{self._wrong} steps went otherwise than they should")
        return min(self._wrong, 1)

    def _tell(self, station: subprocess.Popen[bytes]) -> None:
        self._wait_for("connected to", station)
        where = ("--broker", self._broker.url, "--station", STATION)
        print("# A change, signed and pushed: on trial, and kept after ten seconds without harm.")
        self._change("good.yaml", "policy: {rules: {landslide: {min_probability: 0.8}}}", number=1)
        self._talus("config", "push", "good.json", "--broker", self._broker.url, "--follow")
        print("# A bad one: everything triggers. The station goes back by itself.")
        self._change("bad.yaml", "trigger: {on: 1.1, off: 0.1}", number=2)
        self._talus("config", "push", "bad.json", "--broker", self._broker.url, "--follow", status=1)
        self._talus("config", "show", *where)
        print("# A model: fetched in pieces, tried in a process of its own, run in the shadow, on probation, kept.")
        self._make_model()
        self._talus("model", "push", "model", "--key", "ops.pem", *where, "--follow")
        self._talus("model", "rollback", "--key", "ops.pem", *where)
        print("# A test alarm, all the way to whoever watches; marked as an exercise.")
        self._talus("ask", "test-alarm", "--key", "ops.pem", *where)

    def _write_station(self, keys: Sequence[object]) -> None:
        content = {
            "station": {"network": "XX", "station": "SLOPE"},
            "source": _SOURCE,
            "mqtt": {"host": self._broker.host, "port": self._broker.port, "protocol": self._broker.protocol},
            "state_dir": "state",
            "control": {"keys": list(keys), "probation_s": 10.0, "models": {"shadow_windows": 3}},
        }
        (self._folder / "station.yaml").write_text(yaml.safe_dump(content))

    def _change(self, name: str, text: str, *, number: int) -> None:
        (self._folder / name).write_text(f"{text}\n")
        print(f"$ cat {name}\n{text}")
        signed = Path(name).with_suffix(".json").name
        self._talus("config", "sign", name, "--key", "ops.pem", "--station", STATION, "--revision", str(number),
                    "--out", signed)  # fmt: skip

    def _make_model(self) -> None:
        """The bundle of the agent under another version: the same network, so that it must agree."""
        target = self._folder / "model"
        target.mkdir()
        for file in DEFAULT_BUNDLE.iterdir():
            (target / file.name).write_bytes(file.read_bytes())
        manifest = json.loads((target / "manifest.json").read_text())
        manifest["version"] = "2.0.0-demo"
        (target / "manifest.json").write_text(json.dumps(manifest))

    def _talus(self, *words: str, status: int = 0) -> str:
        """Run one command, show it, and count it where it ends otherwise than with ``status``."""
        shown = " ".join(words).replace(self._broker.url, "$BROKER")
        print(f"$ talus {shown}", flush=True)
        done = subprocess.run(
            self._command(*words), cwd=self._folder, env=self._environment, capture_output=True, text=True, check=False
        )
        print(done.stdout + done.stderr, flush=True)
        self._wrong += done.returncode != status
        return done.stdout

    @staticmethod
    def _command(*words: str) -> list[str]:
        return [sys.executable, "-m", "agent", *words]

    def _wait_for(self, text: str, station: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and station.poll() is None:
            if text in (self._folder / "station.log").read_text():
                return
            time.sleep(0.1)
        said = (self._folder / "station.log").read_text().strip().splitlines()[-1:] or ["nothing"]
        raise DeliveryError(f"the station did not start: {said[0]}")


if __name__ == "__main__":
    sys.exit(main())
