"""Many stations at a broker in one process: what they retain, and how they answer to orders, without any ground."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Collection, Sequence
from types import TracebackType
from typing import Any

from broker_support import BOOT, Mosquitto, wait_for
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

from agent.messages.schema import (
    ConfigReport,
    HealthMessage,
    HearingHealth,
    ModelPart,
    ModelReport,
    Outcome,
    Payload,
    ReasonPart,
    StateMessage,
)
from agent.remote.gate import unverified_body
from agent.types import format_ns

OLD, NEW = (hashlib.sha256(word).hexdigest() for word in (b"old", b"new"))


def now() -> str:
    return format_ns(time.time_ns())


class Stations:
    """Stations of these names, online. One of ``harmed`` takes an order back; one of ``mute`` answers none.

    ``orders``: of which station an order came, in that sequence. ``serving``: hash of the model that an order brings.
    """

    def __init__(
        self, broker: Mosquitto, names: Sequence[str], harmed: Collection[str] = (), mute: Collection[str] = ()
    ):
        self.names, self.harmed, self.mute = list(names), set(harmed), set(mute)
        self.orders: list[str] = []
        self.serving = NEW
        self._port = broker.port
        self._history: dict[str, list[Outcome]] = {name: [] for name in names}
        self._revision: dict[str, int] = {}
        self._client = Client(CallbackAPIVersion.VERSION2)
        self._client.max_inflight_messages_set(1000)
        self._subscribed = False

    def __enter__(self) -> Stations:
        self._client.on_message = self._answer
        self._client.on_subscribe = lambda *_: setattr(self, "_subscribed", True)
        self._client.connect("127.0.0.1", self._port)
        self._client.subscribe([(f"talus/v1/+/+/{kind}", 1) for kind in ("config/set", "model/set", "model/chunk")])
        self._client.loop_start()
        wait_for(lambda: self._subscribed, what="the stations have subscribed")
        for name in self.names:
            self.retain(name, "availability", "online")
            self.report(name, "file", None)
            self.model(name, "installed", OLD)
        last = None
        for name in self.names:
            last = self.health(name)
        assert last is not None
        last.wait_for_publish(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.loop_stop()
        self._client.disconnect()

    def retain(self, name: str, kind: str, payload: Payload | str) -> Any:
        text = payload if isinstance(payload, str) else payload.model_dump_json(by_alias=True)
        return self._client.publish(f"talus/v1/{name.replace('.', '/')}/{kind}", text, 1, retain=True)

    def health(self, name: str, *reasons: str, armed: float = 1.0) -> Any:
        self.retain(name, "state", StateMessage(
            station=name, boot_id=BOOT, started=now(), versions={"talus": "0.2.0"}, model=None, backend=None,
            precision=None, backend_reason=None, config_revision=None, config_sha256=None, position=None,
            exercise=False,
        ))  # fmt: skip
        hearing = HearingHealth(
            station=f"{name}.00.HH", listening_in_s=None, armed_10min=armed, armed_hour=armed, threshold_counts=9.0,
            usual_counts=9.0, usual_hours=3.0, plausible=True,
        )  # fmt: skip
        return self.retain(name, "health", HealthMessage(
            station=name, boot_id=BOOT, seq=1, time=now(), uptime_s=9.0, status="degraded" if reasons else "ok",
            reasons=[ReasonPart(code=code, text=code) for code in reasons], streams=[], streams_total=0,
            streams_stalled=0, clock_source=None, clock_offset_s=None, cpu_percent=None, rss_mb=None, disk_free_mb=None,
            temperature_c=None, hearing=[hearing], outbox=None, link=None, events_hour={}, discards_hour={},
            inference_ms=None, inference_failures=0,
        ))  # fmt: skip

    def report(self, name: str, status: Any, revision: int | None) -> None:
        self.retain(name, "config/reported", ConfigReport(
            station=name, boot_id=BOOT, seq=1, time=now(), status=status, revision=revision, highest=revision or 0,
            tunables_sha256=OLD, trial_left_s=None, refusals=0, refused=[], history=self._history[name][-20:],
        ))  # fmt: skip

    def model(self, name: str, phase: Any, serving: str, revision: int = 0, missing: Sequence[int] = ()) -> None:
        self.retain(name, "model/reported", ModelReport(
            station=name, boot_id=BOOT, seq=1, time=now(), phase=phase, revision=revision,
            serving=ModelPart(name="net", sha256=serving), ordered=None, pieces=1, got=0, missing=list(missing),
            agreement=None, reason="harm" if phase == "rolled_back" else None, refused=None,
        ))  # fmt: skip

    def _answer(self, _client: Client, _data: object, message: MQTTMessage) -> None:
        network, code, kind = message.topic.split("/", 4)[2:]
        name = f"{network}.{code}"
        if name not in self._history or not message.payload or name in self.mute:
            return
        harmed = name in self.harmed
        if kind == "model/chunk":
            self.model(name, "rolled_back" if harmed else "kept", OLD if harmed else self.serving, self._revision[name])
            return
        revision = unverified_body(message.payload).revision
        self._revision[name] = revision
        envelope = hashlib.sha256(message.payload).hexdigest()
        if kind == "model/set":
            self.orders.append(name)
            self.model(name, "fetching", OLD, revision, [0])
            return
        if any(line.envelope == envelope for line in self._history[name]):
            return  # judged once
        self.orders.append(name)
        for result in ("trial", "rolled_back" if harmed else "kept"):
            self._history[name].append(
                Outcome(
                    envelope=envelope, revision=revision, key="ops", time=now(), result=result,
                    kind="deaf" if harmed and result != "trial" else None,
                    reason="harm" if harmed and result != "trial" else None,
                )
            )  # fmt: skip
            self.report(
                name, "file" if result == "rolled_back" else result, None if result == "rolled_back" else revision
            )
