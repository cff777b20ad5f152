"""From the last sample to the broker's acknowledgement on the loopback: median <= 20 ms, 99th percentile <= 100 ms;
and a backlog drained at >= 500 messages a second.

Three measurements, each beside its peer in the same run: one message through outbox and link (commit with fsync,
publish, acknowledgement) beside paho-mqtt alone, in memory; the whole line (packet, trigger, network, policy, outbox,
broker) for every packet that leads to a verdict; and the drain of a backlog beside paho's own queue.

    OMP_NUM_THREADS=1 python bench/delivery.py [--rounds 500] [--backlog 5000] [--folder DIR]
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from paho.mqtt.client import Client
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from support import row

from agent.config.broker import (
    DEFAULT_PREFIX,
    MqttSettings,
)
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.deliver.mqtt import MqttSink
from agent.deliver.outbox import Outbox
from agent.messages.payloads import Message, Stamp, event_message, summary_message
from agent.service.assemble import Line, build_line
from agent.types import (
    NS,
    Classification,
    Detection,
    Discard,
    Event,
    Quality,
    SampleBlock,
    StationId,
    StreamId,
    event_id,
)
from demo.broker import BrokerAddress, local_broker

STATION = StationId("XX", "BENCH", "00", "HH")
START_NS = 1_767_225_600 * NS
RATE_HZ = 100
MEDIAN_MS, P99_MS, DRAIN_PER_S = 20.0, 100.0, 500.0


class TimedOutbox(Outbox):
    """Notes when an acknowledgement arrives and when nothing is left."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.empty = threading.Event()
        self.acknowledged_at = 0.0
        cursor = self.cursor("mqtt")
        acknowledge = cursor.acknowledge

        def timed(ids: Collection[int]) -> None:
            self.acknowledged_at = time.perf_counter()
            acknowledge(ids)
            if self.depth == 0:
                self.empty.set()

        cursor.acknowledge = timed  # type: ignore[method-assign]


def event(number: int, revision: int = 0) -> Event:
    onset_ns = START_NS + number * NS
    verdict = Classification("landslide", 0.91, (0.02, 0.02, 0.03, 0.91, 0.02), False, 3.0, "m", "a" * 64, "b", "int8")
    return Event(
        event_id(STATION, onset_ns), revision, "new", STATION, onset_ns, Detection(12.3, 3.2, 812.0, 7.2), verdict,
        Quality(0.0, "ENZ"), onset_ns + 3 * NS,
    )  # fmt: skip


def messages(number: int) -> list[Message]:
    stamp = Stamp("0" * 16, number, time.time_ns(), time.time_ns())
    return [event_message(event(number), stamp), summary_message(event(number), stamp)]


def paced(rounds: int, send: Callable[[int], float]) -> np.ndarray:
    """Milliseconds of each round, with a pause after each as between real events."""
    times = []
    for number in range(rounds):
        times.append(1e3 * send(number))
        time.sleep(0.005)
    return np.array(times[rounds // 20 :])


def through_the_outbox(broker: BrokerAddress, folder: Path, rounds: int) -> np.ndarray:
    outbox = TimedOutbox(folder / "latency.db")
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    link.start()

    def send(number: int) -> float:
        batch = messages(number)
        outbox.empty.clear()
        begin = time.perf_counter()
        outbox.put(batch)
        outbox.empty.wait()
        return outbox.acknowledged_at - begin

    times = paced(rounds, send)
    link.stop()
    outbox.close()
    return times


def paho_client(broker: BrokerAddress) -> Client:
    client = Client(CallbackAPIVersion.VERSION2, "peer", protocol=MQTTProtocolVersion.MQTTv5)
    client.connect(broker.host, broker.port)
    client.loop_start()
    while not client.is_connected():
        time.sleep(0.01)
    return client


def paho_alone(broker: BrokerAddress, rounds: int) -> np.ndarray:
    client = paho_client(broker)

    def send(number: int) -> float:
        batch = messages(number)
        begin = time.perf_counter()
        infos = [client.publish(m.topic, m.payload, 1, m.retain) for m in batch]
        infos[0].wait_for_publish()
        return time.perf_counter() - begin

    times = paced(rounds, send)
    client.disconnect()
    client.loop_stop()
    return times


def commit_alone(folder: Path, rounds: int) -> np.ndarray:
    """The disk's share: the outbox's commit, nothing sent."""
    outbox = Outbox(folder / "commit.db")

    def send(number: int) -> float:
        batch = messages(number)
        begin = time.perf_counter()
        outbox.put(batch)
        return time.perf_counter() - begin

    times = paced(rounds, send)
    outbox.close()
    return times


def packets(seconds: int) -> Iterator[SampleBlock]:
    """Noise with a decaying burst every 40 s, three components, packets of one second."""
    noise = np.random.default_rng(0)
    streams = [StreamId(STATION, component) for component in "ENZ"]
    envelope = np.exp(-np.arange(8 * RATE_HZ) / (2.0 * RATE_HZ)) * 4000
    for second in range(seconds):
        phase = (second - 40) % 40
        for stream in streams:
            samples = noise.normal(0, 60, RATE_HZ)
            if second >= 40 and phase < 8:
                piece = envelope[phase * RATE_HZ : (phase + 1) * RATE_HZ]
                samples += piece * noise.normal(0, 1, RATE_HZ)
            yield SampleBlock(stream, START_NS + second * NS, RATE_HZ, samples.astype(np.int32))


def whole_line(broker: BrokerAddress, folder: Path, seconds: int) -> np.ndarray:
    """Milliseconds from a packet that completes a verdict to the acknowledgement of all that it caused."""
    line: Line = build_line(TunablesConfig(), ClassifierConfig(), DEFAULT_PREFIX)
    outbox = TimedOutbox(folder / "line.db")
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    link.start()
    times = []
    for block in packets(seconds):
        begin, received_ns = time.perf_counter(), time.time_ns()
        events = [output for output in line.pipeline.feed(block) if not isinstance(output, Discard)]
        batch = list(itertools.chain.from_iterable(line.reporter.report(e, received_ns) for e in events))
        if batch:
            outbox.empty.clear()
            outbox.put(batch)
            outbox.empty.wait()
            times.append(1e3 * (outbox.acknowledged_at - begin))
            time.sleep(0.005)
    link.stop()
    outbox.close()
    return np.array(times[10:])


def drained(broker: BrokerAddress, folder: Path, count: int) -> float:
    """Messages a second from the outbox, filled while there was no connection."""
    outbox = TimedOutbox(folder / "drain.db")
    for first in range(0, count, 100):
        outbox.put([messages(first + n)[0] for n in range(100)])
    link = MqttSink(MqttSettings.from_url(broker.url), outbox.cursor("mqtt"), STATION)
    begin = time.perf_counter()
    link.start()
    outbox.empty.wait()
    rate = count / (time.perf_counter() - begin)
    link.stop()
    outbox.close()
    return rate


def paho_drained(broker: BrokerAddress, count: int) -> float:
    batch = [messages(number)[0] for number in range(count)]
    client = paho_client(broker)
    begin = time.perf_counter()
    infos = [client.publish(m.topic, m.payload, 1) for m in batch]
    infos[-1].wait_for_publish()
    rate = count / (time.perf_counter() - begin)
    client.disconnect()
    client.loop_stop()
    return rate


def show(name: str, times: Sequence[float] | np.ndarray) -> tuple[float, float]:
    median, p99, worst = (float(np.percentile(times, q)) for q in (50, 99, 100))
    row(f"{name} ({len(times)})", f"{median:.2f} / {p99:.2f} / {worst:.2f} ms")
    return median, p99


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--backlog", type=int, default=5000)
    parser.add_argument("--seconds", type=int, default=2000, help="of data through the whole line")
    parser.add_argument("--folder", type=Path, help="where the outbox lies: the disk to be measured")
    options = parser.parse_args()
    with local_broker() as broker, tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        print(f"broker {broker.program}, outbox in {folder.parent}, {os.cpu_count()} cores; median / p99 / most")
        show("paho alone, in memory (peer)", paho_alone(broker, options.rounds))
        show("outbox's commit alone", commit_alone(folder, options.rounds))
        show("put to acknowledgement", through_the_outbox(broker, folder, options.rounds))
        median, p99 = show("last sample in to acknowledgement", whole_line(broker, folder, options.seconds))
        peer = paho_drained(broker, options.backlog)
        rate = drained(broker, folder, options.backlog)
    met = median <= MEDIAN_MS and p99 <= P99_MS
    row("last sample in to acknowledgement", f"{median:.1f} / {p99:.1f} ms", f"<= {MEDIAN_MS:g} / {P99_MS:g} ms", met)
    row(f"backlog of {options.backlog} drained", f"{rate:,.0f} /s", f">= {DRAIN_PER_S:g} /s", rate >= DRAIN_PER_S)
    row("  paho's queue, in memory (peer)", f"{peer:,.0f} /s")
    return 0 if met and rate >= DRAIN_PER_S else 1


if __name__ == "__main__":
    sys.exit(main())
