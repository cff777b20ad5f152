"""How to reach a broker: plain values, free of any client library."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast
from urllib.parse import parse_qsl, unquote, urlsplit

from agent.config.tls import TlsConfig
from agent.errors import ConfigError

DEFAULT_PREFIX = "talus/v1"
"""Root of all topics."""


@dataclass(frozen=True, slots=True)
class MqttSettings:
    """How to reach a broker. An empty ``client_id`` becomes ``talus-NET.STA``."""

    host: str
    port: int = 1883
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    client_id: str = ""
    prefix: str = DEFAULT_PREFIX
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    tls: TlsConfig | None = None
    keepalive_s: int = 60
    connect_timeout_s: float = 10.0
    ack_timeout_s: float = 30.0
    inflight: int = 20
    backoff_min_s: float = 1.0
    backoff_max_s: float = 60.0

    @classmethod
    def from_url(cls, url: str, password: str | None = None) -> MqttSettings:
        """``mqtt://[user[:password]@]host[:port][/prefix][?protocol=5|3.1.1]``; ``mqtts://`` for TLS; ``host`` will do.

        Raises:
            ConfigError: not such an address.
        """
        parts = urlsplit(url if "://" in url else f"mqtt://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        protocol = query.pop("protocol", "auto")
        known = protocol in ("auto", "5", "3.1.1") and not query
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == -1 or not known:
            raise ConfigError("not the address of a broker", "write mqtt://user@host:1883 or mqtts://host:8883")
        secure = parts.scheme == "mqtts"
        return cls(
            host=parts.hostname,
            port=port or (8883 if secure else 1883),
            username=unquote(parts.username) if parts.username else None,
            password=password or (unquote(parts.password) if parts.password else None),
            prefix=parts.path.strip("/") or DEFAULT_PREFIX,
            protocol=cast("Literal['auto', '5', '3.1.1']", protocol),
            tls=TlsConfig() if secure else None,
        )

    @property
    def address(self) -> str:
        """``host:port``, for people."""
        return f"{self.host}:{self.port}"
