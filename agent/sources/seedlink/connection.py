"""A connection to a SeedLink server: TCP or TLS, greeting, commands and answers, packets; what is asked for over it.

Version 4 is the FDSN's specification. Version 3 has none; what is done here is what SeisComP's manual describes, with
records of any length, which ringserver sends. The library ``seedlink-client`` does the same from Python 3.11 on; Talus
must run on 3.10, trust a certificate authority of the site's own, and outlive a record that is damaged on the server.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from agent import __version__
from agent.errors import SourceError, in_words
from agent.host.tls import client_context, refusal
from agent.sources.seedlink.protocol import (
    MAX_LINE,
    Beginning,
    ForeignError,
    Frames,
    Holding,
    Packet,
    holdings,
    in_notation,
    log_text,
    match,
    ringserver,
)
from agent.sources.seedlink.resume import Cursor, Past, Plan, plan

if TYPE_CHECKING:
    from agent.config.broker import TlsConfig
    from agent.config.sources import SeedLinkServerConfig, SeedLinkStationConfig

_MAX_INFO = 32 << 20
_CHUNK = 64 << 10
_MAX_NAMED = 8


class RefusedError(SourceError):
    """The server answered a command with ERROR."""


class SilentError(SourceError):
    """Nothing came in time."""


class Connection:
    """One connection to one server. Not thread-safe, but any thread may call ``abort``."""

    def __init__(self, server: SeedLinkServerConfig, timeout_s: float) -> None:
        """Nothing is sent before ``open``.

        Args:
            server: where it is and how it is talked to.
            timeout_s: longest wait for the connection, and for each answer to a command.
        """
        self._server, self.address = server, server.address
        self.software = ""
        """What the server says it is."""
        self.capabilities: frozenset[str] = frozenset()
        self._timeout_s = timeout_s
        self._frames = Frames()
        self._socket = socket.socket()  # not connected yet; there is always one to abort

    def open(self) -> None:
        """Connect, greet, and agree on the protocol version.

        Raises:
            SourceError: there is no connection; the hint says what to look at.
        """
        self._socket.close()
        self._socket = _connect(self._server, self._timeout_s)
        self.software, self.capabilities = self._greet()
        self._frames.version = self._agree(self.capabilities)

    @property
    def version(self) -> int:
        """Version of the protocol: 3 or 4."""
        return self._frames.version

    @property
    def skipped_bytes(self) -> int:
        """Bytes between packets that belonged to none."""
        return self._frames.skipped_bytes

    @property
    def waiting_bytes(self) -> int:
        """Bytes of a packet that is not complete yet."""
        return len(self._frames)

    def close(self) -> None:
        """End the connection."""
        self.abort()
        self._socket.close()

    def abort(self) -> None:
        """Make whatever waits on this connection end now; from any thread."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it was gone already

    def command(self, text: str) -> None:
        """Send a command and wait for its OK.

        Raises:
            RefusedError: the server said ERROR.
            SourceError: the connection is lost, or there was no answer.
        """
        self._send(text)
        self._expect_ok(text)

    def commands(self, texts: Sequence[str]) -> list[RefusedError]:
        """Send several commands whose answers do not depend on each other; returns the refusals.

        Version 4 lets a client send without waiting; version 3 does not.
        """
        refused = []
        if self.version >= 4:
            self._send(*texts)
        for text in texts:
            if self.version < 4:
                self._send(text)
            try:
                self._expect_ok(text)
            except RefusedError as error:
                refused.append(error)
        return refused

    def start(self) -> None:
        """End the hand-shake: data flow from here on."""
        self._send("END")

    def ask(self, item: str) -> None:
        """Send INFO; the answer comes as packets among the others."""
        self._send(f"INFO {item}")

    def info(self, item: str) -> bytes:
        """The answer to INFO before data flow: JSON in version 4, XML in version 3.

        Raises:
            RefusedError: the server does not tell.
            SourceError: the connection is lost, or there was no answer.
        """
        self.ask(item)
        answer = bytearray()
        heard, waiting = time.monotonic(), len(self._frames)
        while True:
            packet = self.receive(min(1.0, self._timeout_s))
            if packet is not None or len(self._frames) != waiting:
                # The answer of a large server takes its time on a thin link.
                heard, waiting = time.monotonic(), len(self._frames)
            if packet is None:
                if time.monotonic() - heard > self._timeout_s:
                    raise SilentError(f"{self.address} did not answer INFO {item}", "the server may be overloaded")
                continue
            if packet.form == "E":
                raise RefusedError(
                    f"{self.address} refused INFO {item}",
                    "the server does not list what it holds; reception goes on without",
                )
            answer += log_text(packet.payload) if packet.form == "X" else packet.payload
            if packet.last:
                return bytes(answer)
            if len(answer) > _MAX_INFO:
                raise SourceError(f"{self.address} does not stop answering INFO {item}", "see what serves there")

    def receive(self, wait_s: float) -> Packet | None:
        """The next packet; None when none is complete within ``wait_s``. Nothing is lost in between.

        An ERROR line is a packet of form ``E``.

        Raises:
            SourceError: the connection is lost, or what comes is not SeedLink.
        """
        deadline = time.monotonic() + wait_s
        while True:
            try:
                packet = self._frames.packet()
            except ForeignError as error:
                raise _foreign(self.address, error.found) from None
            if packet is not None:
                return packet
            if not self._fill(deadline - time.monotonic()):
                return None

    def _read_line(self, what: str) -> str:
        deadline = time.monotonic() + self._timeout_s
        while True:
            line = self._frames.line()
            if line is not None:
                return line
            if len(self._frames) >= MAX_LINE:
                raise _foreign(self.address, self._frames.pop(20))
            if not self._fill(deadline - time.monotonic()):
                raise SilentError(
                    f"{self.address} does not answer {what}",
                    "check the port: another service may listen there, or the server hangs",
                )

    def _expect_ok(self, text: str) -> None:
        answer = self._read_line(text)
        if answer.startswith("OK"):
            return
        if not answer.startswith("ERROR"):
            raise _foreign(self.address, answer.encode())
        reason = answer[5:].strip()
        raise RefusedError(f"{self.address} refused {text!r}" + (f" ({reason})" if reason else ""), _advice(text))

    def _greet(self) -> tuple[str, frozenset[str]]:
        self._send("HELLO")
        first = self._read_line("HELLO")
        if not first.lower().startswith("seedlink"):
            raise _foreign(self.address, first.encode())
        software, _, capabilities = first.partition("::")
        self._read_line("HELLO")  # whose it is
        return software.strip(), frozenset(capabilities.split())

    def _agree(self, offered: frozenset[str]) -> int:
        speaks_4 = any(word.startswith("SLPROTO:4") for word in offered)
        wanted = self._server.protocol
        if wanted == "3" or (wanted == "auto" and not speaks_4):
            return 3
        if not speaks_4:
            raise SourceError(
                f"{self.address} does not speak SeedLink 4 ({self.software})", "set protocol to auto, or to 3"
            )
        self.command("SLPROTO 4.0")
        with contextlib.suppress(RefusedError):  # a courtesy, which a server may do without
            self.command(f"USERAGENT Talus/{__version__}")
        return 4

    def _send(self, *texts: str) -> None:
        self._socket.settimeout(self._timeout_s)
        try:
            self._socket.sendall("".join(f"{text}\r\n" for text in texts).encode("ascii"))
        except OSError as error:
            raise _lost(self.address, error) from None

    def _fill(self, wait_s: float) -> bool:
        """Read what there is; False when nothing came in time.

        Raises:
            SourceError: the connection is lost.
        """
        if wait_s <= 0 and not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
            wait_s = 1e-3
        self._socket.settimeout(max(wait_s, 1e-3))
        try:
            piece = self._socket.recv(_CHUNK)
        except (TimeoutError, ssl.SSLWantReadError):
            return False
        except OSError as error:
            raise _lost(self.address, error) from None
        if not piece:
            raise SourceError(f"{self.address} closed the connection", "")
        self._frames.add(piece)
        return True


def _connect(server: SeedLinkServerConfig, timeout_s: float) -> socket.socket:
    """Raises SourceError with what is wrong: the name, the port, the way, the certificate."""
    address = server.address
    try:
        plain = socket.create_connection((server.host, server.server_port), timeout_s)
    except (socket.gaierror, UnicodeError):  # what no name can be, such as a..b, is a UnicodeError
        raise SourceError(
            f"there is no host {server.host!r}", "check the host's name, and this machine's name server"
        ) from None
    except ConnectionRefusedError:
        raise SourceError(
            f"{address} refuses connections",
            "check the port (SeedLink: 18000, with TLS 18500) and whether the server runs",
        ) from None
    except TimeoutError:
        raise SilentError(
            f"{address} cannot be reached within {timeout_s:g} s", "check the address, the link and firewalls"
        ) from None
    except OSError as error:
        raise SourceError(f"{address} cannot be reached ({in_words(error)})", "check the link") from None
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if server.tls is None:
        return plain
    try:
        return _context(server.tls).wrap_socket(plain, server_hostname=server.host)
    except ssl.SSLCertVerificationError as error:
        plain.close()
        raise SourceError(*refusal(address, error, "tls.ca_file of this server")) from None
    except ssl.SSLError as error:
        plain.close()
        raise SourceError(
            f"{address} does not speak TLS ({error.reason or error})",
            "check the port (SeedLink with TLS: 18500), or remove the section tls",
        ) from None
    except OSError as error:
        plain.close()
        raise SourceError(
            f"{address} broke off the TLS hand-shake ({in_words(error)})",
            "check the port (SeedLink with TLS: 18500), or remove the section tls",
        ) from None


def _context(tls: TlsConfig) -> ssl.SSLContext:
    try:
        return client_context(tls.ca_file, tls.cert_file, tls.key_file)
    except (OSError, ValueError) as error:
        named = ", ".join(str(path) for path in (tls.ca_file, tls.cert_file, tls.key_file) if path is not None)
        reason = in_words(error)
        raise SourceError(
            f"the certificates for SeedLink cannot be used ({reason})", f"check {named}: PEM is needed"
        ) from None


def _lost(address: str, error: OSError) -> SourceError:
    return SourceError(f"the connection to {address} is lost ({in_words(error)})", "")


def _foreign(address: str, found: bytes) -> SourceError:
    shown = found[:40].decode("ascii", "replace").encode("unicode_escape").decode()
    return SourceError(f"what answers at {address} is not a SeedLink server (it sent '{shown}')", "check host and port")


def _advice(command: str) -> str:
    if command.startswith("STATION"):
        return "check the station's code; not every server takes wildcards"
    if command.startswith("SELECT"):
        return "check the selector: HH?, 00HH? or 00_H_H_?"
    return "see the server's log"


@dataclass(frozen=True, slots=True)
class Subscribed:
    """What a server accepted: the stations asked for, and from where on it sends those that are known.

    ``reasons`` says of each station why it is asked for by time. ``cursor`` is the packet after which the connection
    goes on, None if that is not one packet.
    """

    requests: list[SeedLinkStationConfig]
    beginnings: dict[str, Beginning]
    reasons: Mapping[str, str]
    cursor: Cursor | None


def subscribe(
    connection: Connection,
    requests: Sequence[SeedLinkStationConfig],
    past: Past,
    distrusted: Collection[str],
    refused: Callable[[str, SourceError], None],
) -> Subscribed:
    """Ask for everything, each station from where it was left.

    Args:
        connection: after its greeting; data flow when this returns.
        requests: the stations to ask for.
        past: what was received earlier.
        distrusted: stations whose sequence numbers were found to be out of date.
        refused: called for each station or selector that the server does not accept.

    Raises:
        SourceError: the connection is lost, or nothing at all was accepted.
    """
    requests = _expanded(requests, past)
    known = {
        request.station: past.stations[request.station] for request in requests if request.station in past.stations
    }
    holdings = held(connection, list(known)) if known else None
    planned = plan(connection.version, replace(past, stations=known), holdings, distrusted, time.time_ns())
    accepted: list[SeedLinkStationConfig] = []
    beginnings: dict[str, Beginning] = {}
    reason: SourceError | None = None
    # A server with one place to read from takes a number beside a time for the place, if its packet is of that time.
    one_place = past.numbering == "together" or ringserver(connection.software) is not None
    for request in requests:
        holding = None if one_place else (holdings or {}).get(request.station)
        try:
            beginning = _ask(connection, request, planned, holding, refused)
        except RefusedError as error:
            reason = error
            refused(request.station, error)
            continue
        accepted.append(request)
        if request.station in known:
            beginnings[request.station] = beginning
    if reason is not None and not accepted:
        raise reason
    connection.start()
    exact = all(beginning.kind == "number" for beginning in beginnings.values())
    return Subscribed(accepted, beginnings, planned.reasons, planned.cursor if exact else None)


def _expanded(requests: Sequence[SeedLinkStationConfig], past: Past) -> list[SeedLinkStationConfig]:
    """Stations known by name come first and each with its own position; a pattern stands for the rest."""
    named = [request for request in requests if not request.is_pattern]
    patterns = [request for request in requests if request.is_pattern]
    asked = {request.station for request in named}
    for pattern in patterns:
        fits = match(pattern.station)
        for station in sorted(past.stations):
            if station not in asked and fits(station):
                named.append(pattern.model_copy(update={"station": station}))
                asked.add(station)
    return named + patterns


def _ask(
    connection: Connection,
    request: SeedLinkStationConfig,
    planned: Plan,
    holding: Holding | None,
    refused: Callable[[str, SourceError], None],
) -> Beginning:
    """Ask for one station; returns from where on the server accepted it.

    Raises:
        RefusedError: the server does not have it.
    """
    network, _, code = request.station.partition("_")
    connection.command(f"STATION {request.station}" if connection.version >= 4 else f"STATION {code} {network}")
    selectors = [in_notation(selector, connection.version) for selector in request.selectors]
    unsaid = [given for given, said in zip(request.selectors, selectors, strict=True) if said is None]
    for given in unsaid:
        refused(f"{request.station} {given}", SourceError(
            f"selector {given!r} cannot be said in SeedLink {connection.version}", "write it as LLCCC, such as 00HH?"
        ))  # fmt: skip
    said = [selector for selector in selectors if selector is not None]
    refusals = connection.commands([f"SELECT {selector}" for selector in said])
    if request.selectors and len(refusals) + len(unsaid) == len(request.selectors):
        # Without any selector the server would send all channels, which was not asked for.
        raise refusals[0] if refusals else RefusedError(f"{request.station}: no selector can be used", "see above")
    for error in refusals:
        refused(f"{request.station} {error.message}", error)
    *attempts, last = planned.attempts.get(request.station, (Beginning("next"),))
    for beginning in attempts:
        try:
            connection.command(beginning.command(connection.version, holding))
        except RefusedError as error:
            refused(f"{request.station} {error.message}", error)
        else:
            return beginning
    connection.command(last.command(connection.version, holding))
    return last


def held(connection: Connection, stations: Sequence[str] = ()) -> dict[str, Holding] | None:
    """What the server holds of each station: of those named at least, of all if none is; None if it does not tell.

    Raises:
        SourceError: the connection is lost, or there was no answer.
    """
    found: dict[str, Holding] = {}
    few = connection.version >= 4 and 0 < len(stations) <= _MAX_NAMED
    try:
        for item in [f"STATIONS {name}" for name in stations] if few else ["STATIONS"]:
            answer = connection.info(item)
            told = holdings(answer, connection.version, connection.software)
            if told is None:
                return None
            found |= told
    except RefusedError:
        return None
    return found
