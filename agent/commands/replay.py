"""``talus replay``: recorded data through the whole line, to the terminal or to a broker."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from agent.errors import UsageError
from agent.messages import DEFAULT_PREFIX, Message, Priority
from agent.types import MAX_BLOCK_S, Discard, Event, SampleBlock, StationId, StreamId, format_ns

if TYPE_CHECKING:
    from tqdm import tqdm

    from agent.assemble import Line
    from agent.config import Config
    from agent.delivery import Delivery
    from agent.mqtt_settings import MqttSettings
    from agent.sources import SourceProblem
    from agent.sources.archive import ArchiveSource

Output: TypeAlias = Event | Discard
Sink: TypeAlias = Callable[[Sequence[Message]], None]

EXAMPLE = "talus replay day.mseed --json\n  talus replay archive/ --speed 1 --broker mqtt://localhost"

DRAIN_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files, folders or patterns (default: the source of --config)"
    )
    parser.add_argument("--speed", type=float, default=0.0, help="times real time; 0, the default: as fast as it goes")
    parser.add_argument(
        "--packet", type=float, default=1.0, metavar="SECONDS", help="length of the packets (default 1)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line, on a terminal too")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; its broker, if any, gets the messages")
    parser.add_argument("--broker", metavar="URL", help="send to this broker, such as mqtt://localhost:1883")
    parser.add_argument("--as-live", action="store_true", help="do not mark what goes to a broker as an exercise")
    parser.add_argument("-v", "--verbose", action="store_true", help="say why triggers were discarded")


@dataclass(slots=True)
class _Tally:
    events: set[str] = field(default_factory=set)
    alerts: int = 0
    discarded: int = 0
    problems: int = 0
    seconds: dict[StreamId, float] = field(default_factory=dict)

    def saw(self, block: SampleBlock) -> None:
        length = len(block.samples) / block.rate_hz
        self.seconds[block.stream] = self.seconds.get(block.stream, 0.0) + length

    def summary(self, took_s: float) -> str:
        longest = max(self.seconds.values(), default=0.0)
        stations = len({stream.station for stream in self.seconds})
        return (
            f"talus replay: {len(self.events)} events, {self.alerts} alerts, {self.discarded} triggers discarded, "
            f"{self.problems} problems; {stations} stations, {longest / 3600:.2f} h of data in {took_s:.1f} s "
            f"({longest / max(took_s, 1e-9):.0f} x real time)"
        )


def main(args: argparse.Namespace) -> int:
    from agent.assemble import build_line
    from agent.config import ClassifierConfig, TunablesConfig, load

    config = load(args.config) if args.config else None
    paths = args.paths or (config.source.paths if config else None)
    if not paths:
        raise UsageError("nothing to replay", "name files or folders, or a --config whose source is an archive")
    if not 0 < args.packet <= MAX_BLOCK_S:
        raise UsageError(f"--packet {args.packet:g} makes no sense", f"give more than 0 and at most {MAX_BLOCK_S:g} s")
    mqtt = _broker(config, args.broker)
    line = build_line(
        config.tunables if config else TunablesConfig(),
        config.classifier if config else ClassifierConfig(),
        mqtt.prefix if mqtt else DEFAULT_PREFIX,
        exercise=mqtt is not None and not args.as_live,
    )
    for reason in line.fallbacks:
        print(f"talus replay: {reason}", file=sys.stderr)
    tally = _Tally()
    with ExitStack() as stack:
        delivery = None
        if mqtt is None:
            sink = _printer(as_json=args.json or not sys.stdout.isatty())
        else:
            delivery = stack.enter_context(_delivery(config, mqtt))
            sink = delivery.put
        bar = stack.enter_context(_progress())
        source = _open_source(paths, args, tally, bar)
        started = time.monotonic()
        try:
            _run(source, line, tally, sink, verbose=args.verbose)
        finally:
            bar.close()
            source.close()
            print(tally.summary(time.monotonic() - started), file=sys.stderr)
        left = delivery.drain(DRAIN_S) if delivery else 0
        if delivery and left:
            error = delivery.link.status().error
            print(
                f"talus replay: {left} messages wait in {delivery.path} for the broker{f': {error}' if error else ''}",
                file=sys.stderr,
            )
    return 1 if left else 0


def _broker(config: Config | None, url: str | None) -> MqttSettings | None:
    from agent.mqtt_settings import MqttSettings

    if url is not None:
        return MqttSettings.from_url(url)
    return config.mqtt.settings(config.client_id) if config and config.mqtt else None


def _delivery(config: Config | None, mqtt: MqttSettings) -> Delivery:
    from agent.delivery import Delivery

    if config is not None:
        station = StationId(config.station.network, config.station.station, "", "")
        return Delivery(mqtt, station, config.outbox_path, config.outbox.max_mb)
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    return Delivery(mqtt, StationId("XX", "REPLAY", "", ""), home / "talus" / "replay.sqlite3")


def _progress() -> tqdm[NoReturn]:
    from tqdm import tqdm

    return tqdm(total=100, unit="%", disable=not sys.stderr.isatty(), leave=False, bar_format="{l_bar}{bar}| {elapsed}")


def _open_source(
    paths: Sequence[str | Path], args: argparse.Namespace, tally: _Tally, bar: tqdm[NoReturn]
) -> ArchiveSource:
    from agent.sources.archive import ArchiveSource

    def problem(what: SourceProblem) -> None:
        tally.problems += 1
        with bar.external_write_mode():
            print(f"talus replay: {what}", file=sys.stderr)

    def progress(share: float) -> None:
        bar.n = round(100 * share)
        bar.refresh()

    return ArchiveSource(paths, args.packet, args.speed, on_problem=problem, progress=progress)


def _run(source: ArchiveSource, line: Line, tally: _Tally, sink: Sink, *, verbose: bool) -> None:
    def deliver(outputs: Sequence[Output], received_ns: int) -> None:
        for output in outputs:
            if isinstance(output, Discard):
                tally.discarded += 1
                if verbose:
                    print(f"{output.station} {format_ns(output.onset_ns)} discarded: {output.reason}", file=sys.stderr)
                continue
            messages = line.reporter.report(output, received_ns)
            tally.events.add(output.id)
            tally.alerts += sum(message.priority is Priority.ALERT for message in messages)
            sink(messages)

    for block in source.blocks():
        tally.saw(block)
        deliver(line.pipeline.feed(block), time.time_ns())
    deliver(line.pipeline.flush(), time.time_ns())


def _printer(*, as_json: bool) -> Sink:
    """Prints what would be sent, except the retained summaries, which repeat it."""
    from agent.watch import readable

    def sink(messages: Sequence[Message]) -> None:
        for message in messages:
            if not message.retain:
                text = message.payload.decode() if as_json else readable(message)
                print(text, flush=True)

    return sink
