"""A SeedLink server for tests, versions 3 and 4, in the clear or with TLS, which can also be made to misbehave.

It holds the last packets of every station and goes on from any of them, as SeisComP does; asked for a packet that it
has yet to number, it waits for it, as the specification has it ("not older than requested").

With ``ringserver`` it does as ringserver 4.5.3 does: one numbering, and one place to read from, for all stations.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
from broker_support import own_port
from certificates_support import Authority
from pymseed import MS3Record

from agent.types import NS, StreamId

_LINE = re.compile(rb"([^\r\n]*)\r\n?|([^\r\n]*)\n")


@dataclass(frozen=True)
class Entry:
    """A packet in the ring."""

    sequence: int
    station: str
    location: str
    channel: str
    start_ns: int
    end_ns: int
    payload: bytes


@dataclass
class Subscription:
    """What a client asked for of one station (or pattern)."""

    station: str
    selectors: list[str] = field(default_factory=list)
    armed: bool = False
    begin: int | None = None
    """First sequence number; None: what comes next; 0: everything."""
    from_ns: int | None = None


class SeedLinkServer:
    """One server. Every attribute below may be set while it runs."""

    def __init__(
        self,
        *,
        tls: ssl.SSLContext | None = None,
        size: int = 100_000,
        versions: Sequence[int] = (3, 4),
        ringserver: bool = False,
    ):
        self.size, self.versions, self.tls = size, versions, tls
        self.ringserver = ringserver
        self.software = "RingServer/4.5.3" if ringserver else "Talus test"
        self.wildcards = True
        self.refuse_info = False
        self.waits_for_future = True
        """What it does when asked for a number that it has not reached: wait, or go on with what comes next."""
        self.resends_last = False
        """Whether it begins with the packet before the one that is asked for."""
        self.refuses_numbers = False
        """Whether DATA with a sequence number is an error."""
        self.cut_at: int | None = None
        """Bytes of the next packets after which the connection is closed, once."""
        self.stalled = threading.Event()
        """While set, nothing is sent or answered, and nothing is closed."""
        self.commands: list[str] = []
        self.connections = 0
        self._ring: list[Entry] = []
        self._next: dict[str, int] = {}
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self.port = own_port()

    # Filling it.

    def feed(self, records: Iterable[bytes]) -> None:
        with self._changed:
            for payload in records:
                self._ring.append(self._entry(payload))
            del self._ring[: -self.size]
            self._changed.notify_all()

    def feed_raw(self, payload: bytes, like: bytes) -> None:
        """A payload that need not be a record, as if it were that of ``like``."""
        with self._changed:
            self._ring.append(replace(self._entry(like), payload=payload))
            self._changed.notify_all()

    def number_from(self, sequence: int, *, forget: bool = False, keep: int | None = None) -> None:
        """Number what is held (of it the last ``keep`` packets) and what comes in another way, as after a loss of the
        server's state."""
        with self._changed:
            known = list(self._next)
            self._next.clear()
            old, self._ring = self._ring if keep is None else self._ring[-keep:], []
            for entry in [] if forget else old:
                at = self._next.setdefault(self._counter(entry.station), sequence)
                self._next[self._counter(entry.station)] = at + 1
                self._ring.append(replace(entry, sequence=at))
            if forget:
                self._next = dict.fromkeys(known, sequence)

    def _entry(self, payload: bytes) -> Entry:
        record = MS3Record.parse(payload)
        stream = StreamId.parse(record.sourceid)
        station = f"{stream.station.network}_{stream.station.station}"
        sequence = self._next.get(self._counter(station), 1)
        self._next[self._counter(station)] = sequence + 1
        channel = stream.station.band_source + stream.component
        location = stream.station.location
        return Entry(sequence, station, location, channel, record.starttime, record.endtime, payload)

    def _counter(self, station: str) -> str:
        return "" if self.ringserver else station

    # Running it.

    def start(self) -> SeedLinkServer:
        listener = socket.create_server(("127.0.0.1", self.port), reuse_port=False)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return self

    def stop(self) -> None:
        """No connection any more, old or new, until ``start``."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.drop()

    def drop(self) -> None:
        """Close all connections; new ones are accepted."""
        for connection in list(self._sockets):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue

    def __enter__(self) -> SeedLinkServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                plain, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(plain,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        connection: socket.socket = plain
        try:
            if self.tls is not None:
                connection = self.tls.wrap_socket(plain, server_side=True)
            self._sockets.add(connection)
            self.connections += 1
            _Session(self, connection).run()
        except (OSError, ValueError):
            return
        finally:
            self._sockets.discard(connection)
            connection.close()

    def held(self) -> list[Entry]:
        with self._changed:
            return list(self._ring)

    def wait(self, timeout_s: float) -> None:
        with self._changed:
            self._changed.wait(timeout_s)


class _Session:
    """One client."""

    def __init__(self, server: SeedLinkServer, connection: socket.socket) -> None:
        self.server, self.socket = server, connection
        self.version = 3
        self.subscriptions: list[Subscription] = []
        self.streaming = False
        self.after = 0
        """As ringserver: the number of the packet behind which the connection reads."""

    def run(self) -> None:
        buffer = b""
        self.socket.settimeout(0.02)
        sent: dict[str, int] = {}
        while True:
            while self.server.stalled.is_set():
                time.sleep(0.01)
            try:
                piece = self.socket.recv(4096)
                if not piece:
                    return
                buffer += piece
            except TimeoutError:
                pass
            while match := _LINE.match(buffer):
                buffer = buffer[match.end() :]
                line = (match[1] or match[2] or b"").decode("ascii").strip()
                if line and not self.answer(line):
                    return
            if self.streaming:
                self.flow(sent)

    def say(self, data: bytes) -> None:
        self.socket.settimeout(60)
        self.socket.sendall(data)
        self.socket.settimeout(0.02)

    def answer(self, line: str) -> bool:
        self.server.commands.append(line)
        verb, *words = line.split()
        verb = verb.upper()
        if verb == "BYE":
            return False
        if verb == "HELLO":
            protocols = " ".join(f"SLPROTO:{version}.0" for version in self.server.versions)
            more = "CAP WS:13" if self.server.ringserver else "TIME"
            self.say(f"SeedLink v4.0 ({self.server.software}) :: {protocols} {more}\r\nTalus test\r\n".encode())
        elif verb == "INFO":
            self.info(words)
        elif verb == "END":
            self.streaming = True
            self.after = self.place()
        else:
            reason = self.handshake(verb, words)
            tail = f" {reason}" if reason and self.version == 4 else ""
            self.say(b"OK\r\n" if reason is None else f"ERROR{tail}\r\n".encode())
        return True

    def handshake(self, verb: str, words: list[str]) -> str | None:
        """None for OK, else the error."""
        if verb == "SLPROTO":
            if 4 not in self.server.versions:
                return "UNSUPPORTED"
            self.version = 4
        elif verb == "STATION":
            return self.station(words[0] if self.version == 4 else f"{words[1]}_{words[0]}")
        elif verb == "SELECT":
            if not self.subscriptions or not words or _pattern(words[0], self.version) is None:
                return "ARGUMENTS no such selector"
            self.subscriptions[-1].selectors.append(words[0])
        elif verb in ("DATA", "TIME"):
            return self.data(verb, words) if self.subscriptions else "UNEXPECTED"
        elif verb not in ("USERAGENT", "CAPABILITIES"):
            return "UNSUPPORTED"
        return None

    def station(self, station: str) -> str | None:
        wild = "*" in station or "?" in station
        if self.server.ringserver:
            self.subscriptions.append(Subscription(station))
            return None
        known = {entry.station for entry in self.server.held()} | set(self.server._next)
        if (wild and not self.server.wildcards) or not any(_fits(station, name) for name in known):
            return "ARGUMENTS unknown station"
        self.subscriptions.append(Subscription(station))
        return None

    def data(self, verb: str, words: list[str]) -> str | None:
        if self.server.refuses_numbers and verb == "DATA" and len(words) == 1 and words[0] != "ALL":
            return "ARGUMENTS no such number"
        it = self.subscriptions[-1]
        it.armed = True
        if verb == "TIME":
            it.begin, it.from_ns = 0, _commas(words[0])
        elif self.version == 4:
            if words:
                it.begin = 0 if words[0] == "ALL" else int(words[0])
            if len(words) > 1:
                it.from_ns = round(datetime.fromisoformat(words[1].replace("Z", "+00:00")).timestamp()) * NS
        else:
            if words:
                it.begin = self.unwrapped(it.station, int(words[0], 16))
            if len(words) > 1:
                it.from_ns = _commas(words[1])
        if self.server.ringserver:
            return None
        if it.begin and self.server.resends_last:
            it.begin -= 1
        if it.begin is None:
            it.begin = 1 + max((e.sequence for e in self.server.held() if _fits(it.station, e.station)), default=0)
        elif not self.server.waits_for_future:
            newest = max((e.sequence for e in self.server.held() if _fits(it.station, e.station)), default=0)
            it.begin = min(it.begin, newest + 1)
        return None

    def place(self) -> int:
        """As ringserver: behind which packet all stations begin.

        A number counts if the packet before it is held (and begins in the second that is given with it), and of several
        the newest; else the earliest time, which never
        gives the very first packet of the ring; else what comes next.
        """
        ring = self.server.held()
        held = {entry.sequence: entry.start_ns // NS for entry in ring}
        numbers = [
            it.begin - 1
            for it in self.subscriptions
            if it.begin and it.begin - 1 in held and it.from_ns in (None, held[it.begin - 1] * NS)
        ]
        if numbers or not ring:
            return max(numbers, default=0)
        times = [it.from_ns for it in self.subscriptions if it.from_ns is not None]
        if times:
            for entry in ring:
                if entry.end_ns > min(times) and any(self.fits(it, entry) for it in self.subscriptions):
                    return max(entry.sequence - 1, ring[0].sequence)
        return ring[-1].sequence

    def unwrapped(self, station: str, number: int) -> int:
        """The whole number nearest to what is held of which version 3 gives the last 24 bits."""
        newest = max((e.sequence for e in self.server.held() if _fits(station, e.station)), default=0)
        return number + round((newest - number) / (1 << 24)) * (1 << 24)

    def flow(self, sent: dict[str, int]) -> None:
        out = bytearray()
        for entry in self.server.held():
            if self.server.ringserver:
                if entry.sequence > self.after and any(self.fits(it, entry) for it in self.subscriptions):
                    out += self.packet(entry)
                self.after = max(self.after, entry.sequence)
                continue
            subscription = next((s for s in self.subscriptions if s.armed and _fits(s.station, entry.station)), None)
            if subscription is None or entry.sequence <= sent.get(entry.station, -1):
                continue
            if entry.sequence < (subscription.begin or 0) or not self.wanted(subscription, entry):
                continue
            sent[entry.station] = entry.sequence
            out += self.packet(entry)
        if out and self.server.cut_at is not None:
            cut, self.server.cut_at = self.server.cut_at, None
            self.say(bytes(out[:cut]))
            self.socket.shutdown(socket.SHUT_RDWR)
        elif out:
            self.say(bytes(out))
        else:
            self.server.wait(0.02)

    def wanted(self, subscription: Subscription, entry: Entry) -> bool:
        if subscription.from_ns is not None and entry.end_ns <= subscription.from_ns:
            return False
        return self.fits(subscription, entry)

    def fits(self, subscription: Subscription, entry: Entry) -> bool:
        if not _fits(subscription.station, entry.station):
            return False
        name = f"{entry.location}_{entry.channel[0]}_{entry.channel[1]}_{entry.channel[2]}"
        positive = [s for s in subscription.selectors if not s.startswith("!")]
        negative = [s[1:] for s in subscription.selectors if s.startswith("!")]

        def fits(selector: str) -> bool:
            pattern = _pattern(selector, self.version)
            return pattern is not None and _fits(pattern, name)

        return (not positive or any(map(fits, positive))) and not any(map(fits, negative))

    def packet(self, entry: Entry) -> bytes:
        if self.version == 3:
            return f"SL{entry.sequence % (1 << 24):06X}".encode() + entry.payload
        form = b"3" if entry.payload.startswith(b"MS\x03") else b"2"
        station = entry.station.encode()
        head = struct.pack("<2s1s1sIQB", b"SE", form, b"D", len(entry.payload), entry.sequence, len(station))
        return head + station + entry.payload

    def info(self, words: list[str]) -> None:
        if self.server.refuse_info and words[0] != "ID":
            self.say(self.json(b"E", {"error": {"code": "UNAUTHORIZED"}}) if self.version == 4 else b"ERROR\r\n")
            return
        ranges: dict[str, list[int]] = {}
        for entry in self.server.held():
            ranges.setdefault(entry.station, []).append(entry.sequence)
        if words[0] != "STATIONS":
            ranges.clear()
        elif len(words) > 1:
            ranges = {name: numbers for name, numbers in ranges.items() if _fits(words[1], name)}
        if self.server.ringserver:
            # The number that comes next, instead of the last; and in version 3 in decimal.
            ranges = {name: [min(numbers), max(numbers) + 1] for name, numbers in ranges.items()}
        form = "d" if self.server.ringserver else "06X"
        if self.version == 4:
            stations = [{"id": n, "start_seq": min(s), "end_seq": max(s)} for n, s in ranges.items()]
            self.say(self.json(b"I", {"software": "Talus test", "organization": "Talus", "station": stations}))
            return
        inner = "".join(
            f'<station name="{n.partition("_")[2]}" network="{n.partition("_")[0]}" '
            f'begin_seq="{min(s) % (1 << 24):{form}}" end_seq="{max(s) % (1 << 24):{form}}"/>'
            for n, s in ranges.items()
        )
        text = f'<?xml version="1.0"?><seedlink software="test" organization="Talus">{inner}</seedlink>'.encode()
        pieces = [text[at : at + 448] for at in range(0, len(text), 448)]
        for piece in pieces:
            mark = b"SLINFO  " if piece is pieces[-1] else b"SLINFO *"
            self.say(mark + _log_record(piece))

    @staticmethod
    def json(kind: bytes, content: object) -> bytes:
        payload = json.dumps(content).encode()
        return struct.pack("<2s1s1sIQB", b"SE", b"J", kind, len(payload), 0, 0) + payload


def _log_record(text: bytes) -> bytes:
    """A miniSEED 2 record of 512 bytes with text."""
    record = bytearray(512)
    record[:20] = b"000001D INFO   INFSL"
    struct.pack_into(">HHBBBxH", record, 20, 2024, 1, 0, 0, 0, 0)
    struct.pack_into(">HhhBBBBlHH", record, 30, len(text), 0, 0, 0, 0, 0, 1, 0, 64, 48)
    struct.pack_into(">HHBBBx", record, 48, 1000, 0, 0, 1, 9)
    record[64 : 64 + len(text)] = text
    return bytes(record)


def _fits(pattern: str, name: str) -> bool:
    whole = "".join({"*": ".*", "?": "."}.get(c, re.escape(c)) for c in pattern)
    return re.fullmatch(whole, name) is not None


def _pattern(selector: str, version: int) -> str | None:
    """A selector as a pattern of ``LOC_B_S_SS``; None if it is none of that version."""
    name = selector.removeprefix("!").partition(".")[0]
    if version == 4:
        return name if name.count("_") == 3 else None
    if not re.fullmatch(r"(?:[A-Z0-9?-]{2})?[A-Z0-9?]{3}", name):
        return None
    location = {"": "*", "--": ""}.get(name[:-3], name[:-3])
    return f"{location}_{name[-3]}_{name[-2]}_{name[-1]}"


def _commas(text: str) -> int:
    parts = [int(part) for part in text.split(",")]
    return round(datetime(*parts[:6], tzinfo=timezone.utc).timestamp()) * NS  # type: ignore[arg-type, misc]


# Records.


def records_of(path: Path, size: int = 512) -> list[bytes]:
    """The records of a miniSEED 2 file whose records all have one length."""
    data = path.read_bytes()
    return [data[at : at + size] for at in range(0, len(data), size)]


def made(
    stream: str,
    start_ns: int,
    samples: Sequence[int] | np.ndarray,
    rate_hz: float = 100.0,
    *,
    version: int = 2,
    reclen: int = 512,
    encoding: int = 11,
    flags: int = 0,
    extra: str | None = None,
) -> list[bytes]:
    """Records of at most ``reclen`` bytes with the given samples; ``encoding`` as miniSEED numbers them."""
    out = MS3Record(reclen=reclen, encoding=encoding)
    out.sourceid, out.formatversion, out.starttime, out.samprate, out.flags = stream, version, start_ns, rate_hz, flags
    if extra is not None:
        out.extra = extra
    kind, dtype = {4: ("f", np.float32), 5: ("d", np.float64)}.get(encoding, ("i", np.int32))
    with out.with_datasamples(np.asarray(samples, dtype=dtype), kind):
        return [bytes(record) for record in out.generate()]


def authority(folder: Path, name: str = "127.0.0.1") -> tuple[Path, ssl.SSLContext]:
    """A certificate authority's file, and a server's context with a certificate that it issued for ``name``."""
    issuer = Authority(folder)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issuer.issue("server", name))
    return issuer.ca, context
