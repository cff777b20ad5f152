"""``talus replay``: recorded data through the whole line, to the terminal or to a broker."""

from __future__ import annotations

import argparse
import os
import re
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeAlias

from agent.commands.options import add_broker, settings_of
from agent.config.broker import DEFAULT_PREFIX
from agent.errors import INTERRUPTED, DataError, UsageError
from agent.messages.payloads import Message, Priority
from agent.types import MAX_BLOCK_S, Event, SampleBlock, StationId, StreamId, counted, format_ns, waiting

if TYPE_CHECKING:
    from tqdm import tqdm

    from agent.config.file import Config
    from agent.deliver.delivery import Delivery
    from agent.service.assemble import Fed, Line

Sink: TypeAlias = Callable[[Sequence[Message]], None]

EXAMPLE = "talus replay day.mseed --json\n  talus replay archive/ --speed 1 --broker mqtt://localhost"

PATIENCE_S = 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths", nargs="*", metavar="PATH", help="files, folders or patterns (default: the source of --config)"
    )
    parser.add_argument("--speed", type=float, default=0.0, help="times real time; 0, the default: as fast as it goes")
    parser.add_argument(
        "--packet", type=float, metavar="SECONDS", help="length of the packets (default: records as they are)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line instead of a table")
    parser.add_argument("--config", type=Path, metavar="FILE", help="settings; its broker, if any, gets the messages")
    add_broker(parser, "send to ", required=False)
    parser.add_argument(
        "--wait",
        type=float,
        default=PATIENCE_S,
        metavar="SECONDS",
        help=f"at the end, how long to wait for a broker that acknowledges nothing (default {PATIENCE_S:g})",
    )
    parser.add_argument("--as-live", action="store_true", help="do not mark messages to a broker as an exercise")
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
            f"{counted(len(self.events), 'event')}, {counted(self.alerts, 'alert')}, "
            f"{counted(self.discarded, 'trigger')} discarded, {counted(self.problems, 'problem')}; "
            f"{counted(stations, 'station')}, {_duration(longest)} of data in {_duration(took_s)} "
            f"({longest / max(took_s, 1e-9):.0f} x real time)"
        )


class _Console:
    """Standard output and error with a progress bar between their lines; the bar shows on a terminal only."""

    def __init__(self) -> None:
        from tqdm import tqdm

        form = "{l_bar}{bar}| {elapsed}"
        self._bar: tqdm[NoReturn] = tqdm(
            total=100, unit="%", disable=not sys.stderr.isatty(), leave=False, bar_format=form
        )

    def out(self, text: str) -> None:
        with self._bar.external_write_mode():
            print(text, flush=True)

    def err(self, text: str) -> None:
        with self._bar.external_write_mode():
            print(text, file=sys.stderr, flush=True)

    def progress(self, share: float) -> None:
        self._bar.n = round(100 * share)
        self._bar.refresh()

    def close(self) -> None:
        self._bar.close()


def main(args: argparse.Namespace) -> int:
    from agent.config.file import ArchiveConfig, ClassifierConfig, TunablesConfig, load
    from agent.service.assemble import build_line, open_site

    config = load(args.config) if args.config else None
    paths = args.paths or (config.source.paths if config and isinstance(config.source, ArchiveConfig) else None)
    if not paths:
        raise UsageError("nothing to replay", "name files or folders, or a --config whose source is an archive")
    if args.packet is not None and not 0 < args.packet <= MAX_BLOCK_S:
        raise UsageError(
            f"--packet must be positive, and at most {MAX_BLOCK_S:g} s, not {args.packet:g}", "give seconds, such as 1"
        )
    sends = args.broker is not None or (config is not None and config.mqtt is not None)
    delivery = _delivery(config, args) if sends else None
    try:
        line = build_line(
            config.tunables if config else TunablesConfig(),
            config.classifier if config else ClassifierConfig(),
            delivery.prefix if delivery else DEFAULT_PREFIX,
            exercise=sends and not args.as_live,
            site=open_site(config) if config else None,
            envelope=config.envelope.component if config else None,
        )
        for reason in line.fallbacks:
            print(f"talus replay: {reason}", file=sys.stderr)
        if delivery:
            delivery.start()
        finished = _replay(paths, args, line, delivery)
    finally:
        rest = delivery.close() if delivery else None
    if rest and rest.refused:
        print(f"talus replay: the broker refused {counted(rest.refused, 'message')} for good", file=sys.stderr)
    if rest and delivery and rest.waiting:
        why = f": {rest.error}" if rest.error else ""
        print(
            f"talus replay: {waiting(rest.waiting)} in {delivery.path}{why}\n"
            "  hint: the next replay to this broker sends them",
            file=sys.stderr,
        )
    undelivered = rest is not None and (rest.waiting or rest.refused)
    return INTERRUPTED if not finished else 1 if undelivered else 0


def _delivery(config: Config | None, args: argparse.Namespace) -> Delivery:
    """To the configured broker from the configuration's outbox, or to another one from an outbox of its own: what waits
    for one broker is not for any other."""
    from agent.deliver.delivery import Delivery

    if args.broker is None and config is not None and config.mqtt is not None:
        station = StationId(config.station.network, config.station.station, "", "")
        return Delivery(config.mqtt.settings(config.client_id), station, config.outbox_path, config.outbox.max_mb)
    settings = settings_of(args).model_copy(update={"client_id": f"talus-replay-{secrets.token_hex(4)}"})
    home = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    name = re.sub("[^A-Za-z0-9.-]", "_", settings.host)
    return Delivery(
        settings, StationId("XX", "REPLAY", "", ""), home / "talus" / f"replay-{name}-{settings.port}.sqlite3"
    )


def _replay(paths: Sequence[str | Path], args: argparse.Namespace, line: Line, delivery: Delivery | None) -> bool:
    """Everything from the source to the broker's last acknowledgement; False when Ctrl-C ended it."""
    from agent.messages.text import EventTable
    from agent.sources.archive import ArchiveSource

    tally, console = _Tally(), _Console()

    def problem(what: object) -> None:
        tally.problems += 1
        console.err(f"talus replay: {what}")

    table = EventTable(console.out)
    sink = delivery.put if delivery else _as_json(console) if args.json else table.add
    source = ArchiveSource(paths, args.packet, args.speed, on_problem=problem, progress=console.progress)
    started = time.monotonic()
    try:
        _run(source.blocks(), line, tally, sink, problem, explain=console.err if args.verbose else None)
        finished = True
    except KeyboardInterrupt:
        finished = False
    finally:
        console.close()
    try:
        table.finish()
        outcome = "" if finished else "stopped; "
        print(f"talus replay: {outcome}{tally.summary(time.monotonic() - started)}", file=sys.stderr)
        if delivery and finished:
            delivery.drain(args.wait)
    except KeyboardInterrupt:
        return False
    return finished


def _run(
    blocks: Iterable[SampleBlock],
    line: Line,
    tally: _Tally,
    sink: Sink,
    problem: Callable[[object], None],
    *,
    explain: Callable[[str], None] | None,
) -> None:
    """Feed the pipeline to the end of the data. ``explain`` is told why triggers were discarded."""
    from agent.dsp.continuity import LARGEST

    refused: set[tuple[StreamId, str]] = set()

    def deliver(fed: Fed) -> None:
        for output in fed.outputs:
            if isinstance(output, Event):
                tally.events.add(output.id)
                continue
            tally.discarded += 1
            if explain:
                explain(f"{output.station}  {format_ns(output.onset_ns)}  discarded: {output.reason}")
        tally.alerts += sum(message.priority is Priority.ALERT for message in fed.messages)
        if fed.messages:
            sink(fed.messages)

    for block in blocks:
        tally.saw(block)
        try:
            deliver(line.feed(block, time.time_ns()))
        except DataError as error:
            if (block.stream, error.message) not in refused:
                refused.add((block.stream, error.message))
                problem(error)
    deliver(line.finish(time.time_ns()))
    for sensor, station in line.pipeline.stations.items():
        for component, counts in station.counts.items():
            if invalid := counts.invalid_samples:
                total = invalid + counts.samples
                problem(f"{sensor}{component}: {invalid} of {total} samples are not finite or beyond {LARGEST:g}")


def _as_json(console: _Console) -> Sink:
    """Print the payloads that would be sent, one a line, except the retained summaries, which repeat them."""

    def sink(messages: Sequence[Message]) -> None:
        for message in messages:
            if not message.retain:
                console.out(message.payload.decode())

    return sink


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.2f} h"
