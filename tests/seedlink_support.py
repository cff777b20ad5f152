"""A SeedLink source at work in a thread, and records to send it."""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from broker_support import wait_for
from numpy.typing import NDArray
from seedlink_server import SeedLinkServer, made

from agent.config.broker import TlsConfig
from agent.config.sources import SeedLinkConfig, SeedLinkServerConfig, SeedLinkStationConfig
from agent.sources import SourceProblem
from agent.sources.seedlink.source import SeedLinkSource
from agent.types import NS, SampleBlock

START_NS = 1_700_000_000 * NS
QUICK = {"connect_timeout_s": 60.0, "receive_timeout_s": 60.0, "stalled_s": 120.0, "retry_s": 0.5}


def request(station: str, *selectors: str) -> SeedLinkStationConfig:
    return SeedLinkStationConfig(station=station, selectors=selectors)


REQUEST = request("XX_A")


def server_at(
    port: int, *stations: SeedLinkStationConfig, protocol: Any = "auto", ca: Path | None = None
) -> SeedLinkServerConfig:
    tls = None if ca is None else TlsConfig(ca_file=ca)
    return SeedLinkServerConfig(
        host="127.0.0.1", port=port, stations=stations or (REQUEST,), protocol=protocol, tls=tls
    )


def configured(*servers: SeedLinkServerConfig, **timing: float) -> SeedLinkConfig:
    """Time-outs may be shorter than a file may have them."""
    return SeedLinkConfig(kind="seedlink", servers=servers).model_copy(update={**QUICK, **timing})


def packets(number: int, first: int = 0, station: str = "XX_A", component: str = "Z", **changes: Any) -> list[bytes]:
    """Records of 100 samples each, one a second; every sample is its own number, so none can be missed unnoticed."""
    found = []
    for k in range(first, first + number):
        name = f"FDSN:{station}_00_H_H_{component}"
        found += made(name, START_NS + k * NS, np.arange(100 * k, 100 * k + 100), **changes)
    return found


class Reception:
    """What a source gives."""

    def __init__(self, source: SeedLinkSource, *, take: bool = True) -> None:
        self.source, self.take = source, take
        self.blocks: list[SampleBlock] = []
        self.failed: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            for block in self.source.blocks():
                self.blocks.append(block)
                if self.take:
                    self.source.acknowledge(block)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.failed = error

    def wait(self, blocks: int, timeout_s: float = 100.0) -> None:
        wait_for(lambda: len(self.blocks) >= blocks or self.failed, timeout_s, f"{len(self.blocks)} of {blocks} blocks")
        assert self.failed is None, self.failed

    def samples(self) -> dict[str, NDArray[Any]]:
        """All samples by channel, in the order in which they came."""
        found = defaultdict(list)
        for block in self.blocks:
            found[block.stream.seed].append(block.samples)
        return {name: np.concatenate(parts) for name, parts in found.items()}

    def end(self) -> None:
        self.source.close()
        self._thread.join(60)
        assert not self._thread.is_alive(), "close() did not end blocks()"


class Heard(list[SourceProblem]):
    """Problems, to be searched by what they say."""

    def said(self, *words: str) -> bool:
        return any(all(word in str(problem) for word in words) for problem in list(self))


def source_of(
    *servers: SeedLinkServer,
    requests: tuple[SeedLinkStationConfig, ...] = (REQUEST,),
    state: Path | None = None,
    heard: Heard | None = None,
    protocol: str = "auto",
    **timing: float,
) -> SeedLinkSource:
    asked = [server_at(server.port, *requests, protocol=protocol) for server in servers]
    sink = Heard() if heard is None else heard
    return SeedLinkSource(configured(*asked, **timing), state, on_problem=sink.append)


@contextlib.contextmanager
def receiving(source: SeedLinkSource, *, take: bool = True) -> Iterator[Reception]:
    reception = Reception(source, take=take)
    try:
        yield reception
    finally:
        reception.end()


def streaming(server: SeedLinkServer, times: int = 1) -> None:
    """Until a client has ended its hand-shake for the ``times``-th time."""
    wait_for(lambda: server.commands.count("END") >= times, what=f"hand-shake {times} in {server.commands}")
