"""Raspberry Shake's UDP datagrams, one a channel: ``{'EHZ', 1582315130.292, 14168, 14927, 16112, ...}``.

Channel code, epoch seconds of the first sample, counts; no station, sequence number, checksum or clock flag (Raspberry
Shake's manual, "UDP data cast"). Anyone on the network may send such text, so it is matched against one regular
expression and never evaluated, senders are listed, and everything that is kept is bounded.
"""

from __future__ import annotations

import ipaddress
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from agent.config.sources import ShakeSenderConfig, ShakeUdpConfig
from agent.errors import SourceError, in_words
from agent.sources import Losses, ProblemSink, SourceProblem
from agent.sources.sequence import ChannelSequence, Loss, Packet, Placed
from agent.types import NS, SampleBlock, StationId, StreamId

MAX_BYTES = 8192
"""Longest datagram; a digitizer's have a few hundred bytes."""
MAX_SAMPLES = 1000
MAX_CHANNELS = 12
"""Channels of one sender: geophone and accelerometer have six together."""

_DATAGRAM = re.compile(
    rb"\{ ?'([A-Z][A-Z0-9][A-Z0-9])' ?, ?([0-9]{1,10})(?:\.([0-9]{1,9}))? ?,"
    rb"((?: ?-?[0-9]{1,10} ?,)* ?-?[0-9]{1,10}) ?\}\s?"
)
_MOTION = re.compile(r"[A-Z][HNLPG][ENZ123]")
"""SEED channel codes of ground motion: seismometers, accelerometers, geophones."""
_YEAR_1971_S, _YEAR_2100_S = 365 * 86400, 47482 * 86400

_RECEIVE_BYTES = 1 << 20
_BURST = 256
"""Datagrams read before what they gave is handed on."""
_TICK_S, _IDLE_S = 0.1, 0.25
_GATHER_S = 0.01
"""A digitizer sends its channels one right after the other: to wait for them costs less than to wake up for each."""
_SO_RXQ_OVFL = getattr(socket, "SO_RXQ_OVFL", 40)
"""Linux: each datagram brings the number of those that the full receive buffer has cost so far (socket(7))."""
_MAX_ADDRESSES = 1024


@dataclass(frozen=True, slots=True, eq=False)
class Datagram:
    """What one says: ``start_ns`` exactly as written."""

    channel: str
    start_ns: int
    samples: NDArray[np.int32]


class MalformedError(ValueError):
    """A datagram that is refused; the text is the reason."""


def parse(data: bytes) -> Datagram:
    """Read one datagram.

    Raises:
        MalformedError: it is anything else; nothing of it is used.
    """
    if len(data) > MAX_BYTES:
        raise MalformedError(f"is longer than {MAX_BYTES} bytes")
    match = _DATAGRAM.fullmatch(data)
    if match is None:
        raise MalformedError("is not {'CHANNEL', SECONDS, COUNTS ...}")
    channel, whole, fraction, counts = match.groups()
    seconds = int(whole)
    if not _YEAR_1971_S <= seconds < _YEAR_2100_S:
        raise MalformedError("has a time outside the years 1971 to 2099")
    values = list(map(int, counts.split(b",")))
    if len(values) > MAX_SAMPLES:
        raise MalformedError(f"holds more than {MAX_SAMPLES} samples")
    if min(values) < -(2**31) or max(values) >= 2**31:
        raise MalformedError("holds counts beyond 32 bits")
    samples = np.array(values, np.int32)
    samples.flags.writeable = False
    return Datagram(channel.decode(), seconds * NS + int((fraction or b"0").ljust(9, b"0")), samples)


@dataclass(slots=True)
class _Station:
    sender: ShakeSenderConfig
    network: ipaddress.IPv4Network | ipaddress.IPv6Network
    heard_s: float
    silent: bool = False
    channels: dict[str, tuple[StreamId, ChannelSequence]] = field(default_factory=dict)
    rates: dict[str, _RateWatch] = field(default_factory=dict)

    @property
    def name(self) -> str:
        address = self.sender.address.removesuffix("/32")
        return f"{self.sender.network}.{self.sender.station} ({address})"


class Receiver:
    """Datagrams in, blocks in order out: everything but the socket. For one thread.

    Args:
        config: the section ``source``; each of its senders has codes, and their networks do not overlap.
        where: names the socket in problems.
        on_problem: told what was dropped, and who is silent.
        now_s: the monotonic time at which waiting begins.
    """

    def __init__(self, config: ShakeUdpConfig, *, where: str, on_problem: ProblemSink, now_s: float) -> None:
        self._stations = [_Station(sender, ipaddress.ip_network(sender.address), now_s) for sender in config.senders]
        self._rate_hz, self._reorder_s, self._timeout_s = config.rate_hz, config.reorder_s, config.timeout_s
        self._wanted = frozenset(config.channels)
        self._where, self._on_problem = where, on_problem
        self._losses = Losses(where, on_problem)
        self._by_address: dict[str, _Station | None] = {}
        self._received = self._used = self._samples = self._missing = 0

    @property
    def waiting(self) -> int:
        """Datagrams kept back until others confirm them or fill the hole before them."""
        return sum(channel.waiting for station in self._stations for _, channel in station.channels.values())

    def counters(self) -> dict[str, int]:
        """Since the start: datagrams ``received`` and ``used``, ``samples``, ``missing_samples``, and those dropped by
        reason. ``received`` is the sum of what was used, what was dropped and what is ``waiting``."""
        return {
            "received": self._received,
            "used": self._used,
            "samples": self._samples,
            "missing_samples": self._missing,
            "waiting": self.waiting,
            **self._losses.counters(),
        }

    def problems(self) -> list[str]:
        """The senders that are silent now, and the channels that come at another rate than the configured one."""
        silent = [f"nothing usable from {s.name} for {self._timeout_s:g} s" for s in self._stations if s.silent]
        rates = [watch.problem for s in self._stations for watch in tuple(s.rates.values())]
        return silent + [problem for problem in rates if problem is not None]

    def receive(self, data: bytes, address: str, now_s: float) -> Iterator[SampleBlock]:
        """One datagram from ``address`` at the monotonic time ``now_s``; yields the blocks that it sets free."""
        self._received += 1
        station = self._station(address)
        if station is None:
            hint = f"if it is your digitizer, add {address} to source.senders"
            self._losses.count("unknown_sender", len(data), f"datagrams from {address} are dropped", hint)
            return
        try:
            datagram = parse(data)
        except MalformedError as error:
            hint = "see that nothing but a Raspberry Shake sends to this port"
            self._losses.count("malformed", len(data), f"a datagram from {address} {error}", hint)
            return
        entry = self._channel(station, datagram.channel, len(data))
        if entry is None:
            return
        self._mark_alive(station, now_s)
        station.rates[datagram.channel].see(datagram)
        stream, channel = entry
        for placed in channel.push(Packet(datagram.start_ns, datagram.samples, now_s, len(data))):
            yield self._block(stream, placed)

    def tick(self, now_s: float) -> Iterator[SampleBlock]:
        """Time has passed: yields what has waited long enough, and tells who is silent."""
        for station in self._stations:
            for stream, channel in station.channels.values():
                if channel.waiting:
                    for placed in channel.release(now_s):
                        yield self._block(stream, placed)
            if not station.silent and now_s - station.heard_s > self._timeout_s:
                station.silent = True
                message = f"nothing usable from {station.name} for {self._timeout_s:g} s"
                hint = "check its power and network, and that its UDP data cast goes to this machine and port"
                self._on_problem(SourceProblem(self._where, message, hint))

    def overflow(self, number: int) -> None:
        """The operating system dropped so many datagrams before they could be read; they are not in ``received``."""
        hint = "the machine is too busy, or someone floods the port"
        self._losses.count("buffer_full", 0, "the receive buffer was full; datagrams are lost", hint, number)

    def finish(self) -> None:
        """No more will come."""
        for station in self._stations:
            for _, channel in station.channels.values():
                channel.flush()

    def _station(self, address: str) -> _Station | None:
        if address not in self._by_address:
            if len(self._by_address) >= _MAX_ADDRESSES:
                self._by_address.clear()
            ip = ipaddress.ip_address(address.partition("%")[0])
            ip = getattr(ip, "ipv4_mapped", None) or ip
            self._by_address[address] = next((s for s in self._stations if ip in s.network), None)
        return self._by_address[address]

    def _channel(self, station: _Station, code: str, size: int) -> tuple[StreamId, ChannelSequence] | None:
        entry = station.channels.get(code)
        if entry is not None:
            return entry
        if not (code in self._wanted if self._wanted else _MOTION.fullmatch(code)):
            what = f"channel {code} of {station.name} is not used"
            self._losses.count("other_channel", size, what, "name it in source.channels if it records ground motion")
            return None
        if len(station.channels) >= MAX_CHANNELS:
            what = f"{station.name} sends more than {MAX_CHANNELS} channels; {code} is dropped"
            self._losses.count("too_many_channels", size, what, "name those to use in source.channels")
            return None
        s = station.sender
        stream = StreamId(StationId(s.network or "", s.station or "", s.location, code[:2]), code[2])

        def dropped(packet: Packet, reason: Loss) -> None:
            words = {
                "repeated": "came twice",
                "late": "came too late",
                "unconfirmed": "had a time that no other agreed with",
            }[reason]
            hint = "check the network, and the clock of the digitizer"
            self._losses.count(reason, packet.size, f"a datagram of {stream.seed} {words}", hint)

        station.channels[code] = entry = (stream, ChannelSequence(self._rate_hz, self._reorder_s, dropped))
        station.rates[code] = _RateWatch(self._rate_hz, stream.seed, self._where, self._on_problem)
        return entry

    def _mark_alive(self, station: _Station, now_s: float) -> None:
        if station.silent:
            station.silent = False
            message = f"{station.name} is back after {now_s - station.heard_s:.0f} s"
            self._on_problem(SourceProblem(self._where, message))
        station.heard_s = now_s

    def _block(self, stream: StreamId, placed: Placed) -> SampleBlock:
        self._used += 1
        self._samples += len(placed.samples)
        self._missing += placed.missing
        if placed.step_ns:
            message = f"the clock of {stream.seed} was set back by {placed.step_ns / NS:.3f} s"
            self._on_problem(SourceProblem(self._where, message, "check the digitizer's NTP or GPS"))
        return SampleBlock(stream, placed.start_ns, self._rate_hz, placed.samples)


class _RateWatch:
    """Notices that a channel's times grow at another rate than the configured one.

    Judged are ``_ENOUGH`` datagrams at a time, so that times which jitter or are rounded do not hide it: by their
    steps, of which those that are far longer than most are losses, and by the time that they take together, as jitter
    makes steps of its own. Both must say it, and twice in a row.
    """

    _ENOUGH = 25
    _LONG = 1.7
    _OFF, _OFF_TOGETHER = 0.02, 0.1

    def __init__(self, rate_hz: float, name: str, where: str, on_problem: ProblemSink) -> None:
        self._rate_hz, self._name, self._where, self._on_problem = rate_hz, name, where, on_problem
        self._came: list[Datagram] = []
        self._found_hz = 0.0
        self.problem: str | None = None
        """How fast the channel comes, while that is not as configured."""

    def see(self, datagram: Datagram) -> None:
        self._came.append(datagram)
        if len(self._came) <= self._ENOUGH:
            return
        came, self._came = self._came, [datagram]
        before_hz, self._found_hz = self._found_hz, self._judge(came)
        if not self._found_hz:
            self.problem = None
        if not self._found_hz or abs(before_hz / self._found_hz - 1) > self._OFF:
            return
        told = self.problem is not None
        self.problem = f"{self._name} comes at {self._found_hz:.4g} samples a second, not {self._rate_hz:g}"
        if not told:
            hint = f"set source.rate_hz to {round(self._found_hz)}"
            self._on_problem(SourceProblem(self._where, self.problem, hint))

    def _judge(self, came: Sequence[Datagram]) -> float:
        """The rate, samples a second, if it is not the configured one; else 0."""
        steps = [
            ((after.start_ns - before.start_ns) / NS, len(before.samples))
            for before, after in pairwise(came)
            if after.start_ns > before.start_ns
        ]
        span_s = (came[-1].start_ns - came[0].start_ns) / NS
        if not steps or span_s <= 0:
            return 0.0
        typical_s = sorted(seconds / samples for seconds, samples in steps)[len(steps) // 2]
        kept = [step for step in steps if step[0] <= self._LONG * typical_s * step[1]]
        found_hz = sum(step[1] for step in kept) / sum(step[0] for step in kept)
        off, off_together = (
            hz / self._rate_hz - 1 for hz in (found_hz, sum(len(one.samples) for one in came[:-1]) / span_s)
        )
        agree = off * off_together > 0 and abs(off) >= self._OFF and abs(off_together) >= self._OFF_TOGETHER
        return found_hz if agree else 0.0


class ShakeUdpSource:
    """A socket that listens for digitizers; see ``Receiver``."""

    def __init__(self, config: ShakeUdpConfig, *, on_problem: ProblemSink) -> None:
        self._host, self._port = host, port = config.host, config.port
        where = f"udp://{f'[{host}]' if ':' in host else host}:{port}"
        self._receiver = Receiver(config, where=where, on_problem=on_problem, now_s=time.monotonic())
        self._stop = threading.Event()
        self._lost = 0

    def close(self) -> None:
        """Make ``blocks()`` end within a quarter of a second, also from another thread or while it waits."""
        self._stop.set()

    def counters(self) -> dict[str, int]:
        """See ``Receiver.counters``; from any thread."""
        return self._receiver.counters()

    def problems(self) -> list[str]:
        """See ``Telling``."""
        return self._receiver.problems()

    def blocks(self) -> Iterator[SampleBlock]:
        """Packets as they come, until ``close``.

        Raises:
            SourceError: the port cannot be opened.
        """
        with self._open() as sock:
            ticked_s = 0.0
            while not self._stop.is_set():
                wait_s = _TICK_S if self._receiver.waiting else _IDLE_S
                if select.select([sock], [], [], wait_s)[0]:
                    time.sleep(_GATHER_S)
                    yield from self._read(sock)
                now_s = time.monotonic()
                if now_s - ticked_s >= _TICK_S:
                    ticked_s = now_s
                    yield from self._receiver.tick(now_s)
        self._receiver.finish()

    def _open(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BYTES)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
            sock.setblocking(False)
            sock.bind((self._host, self._port))
        except OSError as error:
            sock.close()
            raise SourceError(
                f"UDP port {self._port} at {self._host} cannot be opened: {in_words(error)}",
                "see which program listens there (ss -ulpn), or choose another source.port",
            ) from None
        return sock

    def _read(self, sock: socket.socket) -> Iterator[SampleBlock]:
        for _ in range(_BURST):
            try:
                data, extra, _, peer = sock.recvmsg(MAX_BYTES + 1, 64)
            except BlockingIOError:
                return
            for level, kind, value in extra:
                if level == socket.SOL_SOCKET and kind == _SO_RXQ_OVFL:
                    (lost,) = struct.unpack("I", value)
                    if lost > self._lost:
                        self._receiver.overflow(lost - self._lost)
                        self._lost = lost
            yield from self._receiver.receive(data, peer[0], time.monotonic())
