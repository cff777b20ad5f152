"""``talus doctor``: one line for each thing the station needs, with a hint where it is not well."""

from __future__ import annotations

import argparse
import errno
import json
import os
import platform
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from agent import __version__
from agent.commands.options import say
from agent.errors import SourceError, TalusError, UsageError, in_words
from agent.types import NS, counted

if TYPE_CHECKING:
    from agent.config.file import Config
    from agent.config.sources import SeedLinkConfig
    from agent.inference import Bundle
    from agent.inference.tensorrt.fallback import EngineSettings
    from agent.sources import SourceProblem

EXAMPLE = "talus doctor --config /etc/talus/station.yaml"

MIN_FREE_MB = 500
SOURCE_WAIT_S = 15.0


@dataclass(frozen=True, slots=True)
class Finding:
    """``ok`` is well, ``skip`` was not looked at (and why), ``bad`` needs the operator."""

    state: Literal["ok", "skip", "bad"]
    what: str
    detail: str
    hint: str = ""

    def __str__(self) -> str:
        mark = {"ok": "ok  ", "skip": "--  ", "bad": "BAD "}[self.state]
        return f"{mark} {self.what:12s} {self.detail}" + (f"\n                  hint: {self.hint}" if self.hint else "")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="configuration file; without it only the machine")
    parser.add_argument("--json", action="store_true", help="one JSON object a line: state, what, detail, hint")
    parser.add_argument(
        "--jetson", action="store_true", help="build TensorRT's engines anew, check and time them (minutes)"
    )
    parser.add_argument(
        "--fp32", type=Path, metavar="FILE", help="with --jetson: time this ONNX file as well, unchecked"
    )
    parser.add_argument(
        "--report", type=Path, metavar="FILE", help="with --jetson: write everything here, to send back"
    )


def main(args: argparse.Namespace) -> int:
    if (args.report or args.fp32) and not args.jetson:
        raise UsageError("--report and --fp32 go with --jetson", "talus doctor --jetson --report FILE")
    if args.jetson:
        return _jetson(args.config, args.report, args.fp32)
    bad = 0
    for finding in _examine(args.config):
        bad += finding.state == "bad"
        say(json.dumps(asdict(finding), ensure_ascii=False) if args.json else finding)
    verdict = f"{counted(bad, 'problem')} found" if bad else "all well"
    print(f"talus doctor: {verdict}", file=sys.stderr)
    return 1 if bad else 0


def _examine(path: Path | None) -> Iterator[Finding]:
    yield Finding("ok", "software", f"talus {__version__}, Python {platform.python_version()}, {platform.machine()}")
    config = None
    if path is None:
        yield Finding("skip", "config", "no --config given: broker, source and state folder are not looked at")
    else:
        from agent.config.file import check, hint, load

        problems = [problem for problem in check(path) if problem.level == "error"]
        if problems:
            for problem in problems:
                yield Finding("bad", "config", str(problem), hint(problems))
        else:
            config = load(path)
            yield Finding("ok", "config", str(path))
    yield from _models(config)
    if config is not None:
        if config.source.kind == "seedlink":
            yield from _seedlink(config.source)
        else:
            yield _guarded("source", lambda: _source(config))
        try:
            yield from _broker(config)
        except TalusError as error:
            yield Finding("bad", "broker", error.message, error.hint)
        for folder in dict.fromkeys((config.state_dir, config.outbox_path.parent)):
            yield _state(folder)
    yield _clock()


def _guarded(what: str, look: Callable[[], Finding]) -> Finding:
    try:
        return look()
    except TalusError as error:
        return Finding("bad", what, error.message, error.hint)


def _models(config: Config | None) -> Iterator[Finding]:
    from agent.inference import open_bundle, open_classifier
    from agent.inference.bundle import DEFAULT_BUNDLE

    path = (config.classifier.bundle if config else None) or DEFAULT_BUNDLE
    try:
        bundle = open_bundle(path)
    except TalusError as error:
        yield Finding("bad", "model", error.message, error.hint)
        return
    yield Finding("ok", "model", f"{bundle.manifest.name} {bundle.manifest.version}, sha256 {bundle.sha256[:12]}")
    try:
        started = time.perf_counter()
        classifier = open_classifier(bundle, "onnxruntime")
        took = time.perf_counter() - started
    except TalusError as error:
        yield Finding("bad", "onnxruntime", error.message, error.hint)
    else:
        version = metadata.version("onnxruntime")
        detail = f"{version}, {classifier.precision}: golden windows agree ({took:.2f} s)"
        yield Finding("ok", "onnxruntime", detail)
    yield _tensorrt(bundle, config)


def _tensorrt(bundle: Bundle, config: Config | None) -> Finding:
    """The GPU with the engine that the service has built; building one here would take minutes."""
    from agent.inference.tensorrt.bring_up import serving
    from agent.inference.tensorrt.child import NoGpuError

    if config is not None and "tensorrt" not in config.classifier.backends:
        return Finding("skip", "tensorrt", "not among classifier.backends")
    try:
        return Finding("ok", "tensorrt", serving(bundle, _engine_settings(config, build=False)))
    except NoGpuError as error:
        return Finding("skip", "tensorrt", error.message)
    except TalusError as error:
        return Finding("bad", "tensorrt", error.message, error.hint)


def _engine_settings(config: Config | None, *, build: bool = True, again: bool = False) -> EngineSettings:
    from agent.inference.tensorrt import engine_folder
    from agent.inference.tensorrt.fallback import EngineSettings

    state_dir = config.state_dir if config else Path.home() / ".cache" / "talus"
    return EngineSettings(engine_folder(state_dir), build=build, again=again)


def _jetson(path: Path | None, target: Path | None, fp32: Path | None) -> int:
    from agent.config.file import load
    from agent.inference import open_bundle
    from agent.inference.bundle import DEFAULT_BUNDLE
    from agent.inference.tensorrt.bring_up import bring_up, write_report

    config = load(path) if path else None
    bundle = open_bundle((config.classifier.bundle if config else None) or DEFAULT_BUNDLE)
    try:
        plain = fp32.read_bytes() if fp32 else None
    except OSError as error:
        raise UsageError(f"{fp32}: {in_words(error)}", "make it with `python -m quantize float`") from None
    report = bring_up(bundle, _engine_settings(config, again=True), say, fp32=plain)
    if target is not None:
        try:
            write_report(target, report)
        except OSError as error:
            raise UsageError(f"{target}: {in_words(error)}", "name a file in a folder that can be written") from None
        print(f"written to {target}: send this file back", file=sys.stderr)
    return int("error" in report["tensorrt"] or any("error" in run for run in report["runs"]))


def _source(config: Config) -> Finding:
    # What the source keeps of how far it has read is the service's: made by another user, it would be closed to it.
    with tempfile.TemporaryDirectory(prefix="talus-") as folder:
        try:
            return _first_packet(config.model_copy(update={"state_dir": Path(folder)}))
        except SourceError:
            if config.source.kind != "shake_udp" or (pid := _running(config)) is None:
                raise
            detail = f"shake_udp: port {config.source.port} is the running agent's (process {pid})"
            return Finding("skip", "source", detail, f"what it receives: talus status --state {config.state_dir}")


def _running(config: Config) -> int | None:
    """Process of the agent that works with this configuration's state."""
    from agent.health.status import read

    try:
        status = read(config.state_dir)
    except TalusError:
        return None
    return status.said.pid if status.verdict in ("ok", "degraded", "silent") else None


def _first_packet(config: Config) -> Finding:
    from agent.detect.lag import is_live
    from agent.host.data_age import assess
    from agent.service.assemble import open_source

    heard: list[SourceProblem] = []
    source = open_source(config, on_problem=heard.append)
    # A live source waits for data for as long as it takes; the operator does not.
    patience = threading.Timer(SOURCE_WAIT_S, source.close)
    patience.start()
    try:
        for block in source.blocks():
            lag_s = (time.time_ns() - block.end_ns) / NS
            source.close()
            what = f"{config.source.kind}: {block.stream} at {block.rate_hz:g} Hz"
            if not is_live(config):
                return Finding("ok", "source", what)
            freshness = assess(what, block, lag_s)
            return Finding("ok" if freshness.well else "bad", "source", freshness.detail, freshness.hint)
    finally:
        patience.cancel()
    hint = "check the section source, and whether the recorder sends"
    if heard:
        first = heard[0]
        return Finding("bad", "source", f"{first.path}: {first.message}", first.hint or hint)
    return Finding("bad", "source", f"{config.source.kind}: no samples in {SOURCE_WAIT_S:g} s", hint)


def _seedlink(source: SeedLinkConfig) -> Iterator[Finding]:
    from agent.sources.seedlink.source import probe

    for freshness in probe(source):
        yield Finding("ok" if freshness.well else "bad", "source", freshness.detail, freshness.hint)


def _broker(config: Config) -> Iterator[Finding]:
    """The connection, and each topic that will be used."""
    from agent.health.broker_probe import access_lines, orders, probes, try_topics
    from agent.messages.payloads import largest_alert

    if config.mqtt is None:
        yield Finding("skip", "broker", "none configured: events are printed, not sent")
        return
    settings = config.mqtt.settings(config.client_id)
    client_id = f"talus-doctor-{config.station.network}.{config.station.station}-{os.getpid()}"
    tried = probes(config, _availability(config))
    report = try_topics(settings, client_id, tried, orders(config))
    if report.lacks:
        detail = f"{settings.address} does not offer {' and '.join(report.lacks)}: it refuses the agent"
        yield Finding("bad", "broker", detail, "allow it (Mosquitto: retain_available true, max_qos 1)")
        return
    yield Finding("ok", "broker", f"{settings.address} accepts us, MQTT {report.protocol}")
    together = config.site.coincidence
    needed = largest_alert(config.mqtt.prefix, 0 if together is None else len(together.stations))
    if report.packet_limit is not None and report.packet_limit < needed:
        detail = f"the broker takes packets of {report.packet_limit} bytes at most; an alert may have {needed}"
        yield Finding("bad", "packets", detail, "raise its limit (Mosquitto: max_packet_size)")
    if report.forbidden:
        reasons = "; ".join(f"{name} ({why})" for name, why in report.forbidden.items())
        lines = "; ".join(access_lines(config, report.forbidden))
        hint = f"let user {settings.username or '(none)'} write there, in Mosquitto's access list: {lines}"
        yield Finding("bad", "topics", f"the broker forbids {reasons}", hint)
    elif not report.unknown:
        yield Finding("ok", "topics", f"all {len(report.allowed)} topics may be written{_unknown_stations(config)}")
    if report.unknown:
        detail = (
            f"MQTT 3.1.1 does not tell what the access list forbids: {len(report.allowed)} topics are allowed, "
            f"what was sent to {', '.join(report.unknown)} did not come back"
        )
        own = report.unknown[0].rsplit("/", 1)[0]
        hint = f"let user {settings.username or '(none)'} write and read {own}/#, or use a broker with MQTT 5"
        yield Finding("bad", "topics", detail, hint)
    if report.orders_refused:
        hint = "topic read PREFIX/NET/STA/config/set, model/set, model/chunk and command (talus docs mqtt)"
        yield Finding("bad", "orders", "the broker refuses the subscription to remote orders", hint)
    if report.orders_silent:
        names = ", ".join(report.orders_silent)
        lines = "; ".join(f"topic read {name}" for name in report.orders_silent)
        hint = f"let user {settings.username or '(none)'} read there, in Mosquitto's access list: {lines}"
        yield Finding("bad", "orders", f"the broker grants the subscription to {names}, and delivers nothing", hint)


def _unknown_stations(config: Config) -> str:
    from agent.config.station import stations_of

    return "" if stations_of(config).complete else "; stations that the file does not name are not tried"


def _availability(config: Config) -> str | None:
    """The value that the availability topic has now: to say another one, even for a moment, would alarm somebody. None
    where the agent's state cannot be read."""
    from agent.health.status import FILE, read
    from agent.messages.payloads import OFFLINE, ONLINE, STOPPED

    try:
        status = read(config.state_dir)
    except TalusError:
        try:
            return None if (config.state_dir / FILE).exists() else STOPPED
        except OSError:
            return None
    link = status.said.health.link
    if status.verdict in ("stopped", "gone"):
        return STOPPED if status.verdict == "stopped" else OFFLINE
    return ONLINE if link is not None and link.connected else None


def _state(folder: Path) -> Finding:
    """Whether this user can write there. The folder is not made: made by root, it would be closed to the agent."""
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        if nearest == folder:
            # Without a name: under one, whoever owns the folder could have root write into any file.
            with tempfile.TemporaryFile(dir=folder) as probe:
                probe.write(b"x")
        elif not os.access(nearest, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        hint = "make it writable for the user that runs talus"
        if error.errno in (errno.EROFS, errno.EIO):
            hint = "the kernel's log (dmesg) says what is wrong with that disk"
        return Finding("bad", "state", f"{folder}: {in_words(error)}", hint)
    free = shutil.disk_usage(nearest).free / 1e6
    if free < MIN_FREE_MB:
        return Finding("bad", "state", f"{folder}: {free:.0f} MB free", "make room: alerts wait there while offline")
    state = "writable" if nearest == folder else "will be made"
    return Finding("ok", "state", f"{folder}: {state}, {free / 1000:.1f} GB free")


def _clock() -> Finding:
    from agent.host.clock import host_clock

    clock = host_clock()
    if clock.is_wrong:
        hint = "install chrony, or see why it does not work; onsets of sources without their own clock are doubtful"
        return Finding("bad", "clock", str(clock), hint)
    return Finding("skip" if clock.synchronised is None else "ok", "clock", str(clock))
