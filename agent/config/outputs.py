"""What tells others, beside the broker: outputs of messages, and health for this machine. An output's sink is named in
``agent.deliver.delivery.SINKS``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import AfterValidator, Field

from agent.config.section import ConfigPath, Disagreement, Section


class FileOutputConfig(Section):
    """Every message as a line of JSON in a file, which is rotated by size."""

    path: ConfigPath = Field(
        examples=["/var/log/talus/messages.jsonl"], description="the file; older ones are PATH.1, PATH.2 and so on"
    )
    max_mb: float = Field(
        default=10, ge=0.001, le=10_000, description="size at which the next file is begun, megabytes"
    )
    older_files: int = Field(default=10, ge=0, le=1_000, description="older files that are kept")


class OutputsConfig(Section):
    """Ways out beside the broker: each gets every message."""

    file: FileOutputConfig | None = Field(default=None, description="a file of JSON lines; without this section, none")


def _address(text: str) -> str:
    host, port = split_address(text)
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", host) or not 1 <= port <= 65_535:
        raise ValueError("must be ADDRESS:PORT, such as 127.0.0.1:9464 or [::1]:9464")
    return text


def split_address(text: str) -> tuple[str, int]:
    """Host and port of ``ADDRESS:PORT``; port 0 where there is none."""
    host, _, port = text.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port) if port.isascii() and port.isdigit() else 0


def is_loopback(host: str) -> bool:
    """Whether only this machine itself can reach the address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class HealthConfig(Section):
    """Health for others on this machine."""

    prometheus: Annotated[str, AfterValidator(_address)] | None = Field(
        default=None, description="ADDRESS:PORT at which Prometheus may read /metrics; without it, nowhere"
    )
    prometheus_remote: bool = Field(
        default=False,
        description="allow an address of prometheus that others on the network can reach; nothing there asks who reads",
    )

    hearing_limit_counts: float | None = Field(
        default=None,
        gt=0,
        description="the station is degraded when the smallest event that would trigger is larger than this, "
        "counts (see operations.md); without it, only what is ten times the usual counts",
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if self.prometheus is not None and not self.prometheus_remote:
            host, _ = split_address(self.prometheus)
            if not is_loopback(host):
                reason = "is not a loopback address; give 127.0.0.1:PORT, or set prometheus_remote: true"
                yield Disagreement(("prometheus", "prometheus_remote"), reason)
