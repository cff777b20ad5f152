"""How to reach a broker, from the file or from an address: plain values, free of any client library."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError

from agent.config.section import ConfigPath, Disagreement, Section, address
from agent.errors import ConfigError

DEFAULT_PREFIX = "talus/v1"
"""Root of all topics."""


def _host(text: str) -> str:
    if "://" in text or "/" in text or "@" in text:
        raise ValueError("must be a host name or address alone, without mqtt://, user or path")
    if text.count(":") == 1:
        raise ValueError("must not hold a port; write that as mqtt.port")
    if not re.fullmatch(r"[A-Za-z0-9._:%-]{1,253}", text):
        raise ValueError("must be a host name or an IP address")
    return text


def _topic(text: str) -> str:
    if not re.fullmatch(r"[^+#$/\s\x00][^+#\s\x00]{0,126}", text) or text.endswith("/") or "//" in text:
        raise ValueError("must be a topic without '+', '#' or blanks that neither begins nor ends with '/'")
    return text


def _client_id(text: str) -> str:
    if not re.fullmatch(r"[\x21-\x7e]{1,128}", text):
        raise ValueError("must be 1 to 128 printable ASCII characters without blanks")
    return text


def _variable(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", text):
        raise ValueError("must be the name of an environment variable, such as TALUS_MQTT_PASSWORD, not its value")
    return text


def _protocol(value: object) -> object:
    return str(value) if value == 5 and isinstance(value, int) else value


def _first_line(path: Path) -> str:
    return path.read_text("utf-8").split("\n", 1)[0].rstrip("\r")


class TlsConfig(Section):
    """TLS; an empty section (``tls: {}``) trusts the system's authorities."""

    ca_file: ConfigPath | None = Field(default=None, description="certificates to trust, PEM (the system's)")
    cert_file: ConfigPath | None = Field(default=None, description="this client's certificate, PEM")
    key_file: ConfigPath | None = Field(default=None, description="its private key, PEM, without a passphrase")

    def disagreements(self) -> Iterator[Disagreement]:
        if (self.cert_file is None) != (self.key_file is None):
            given, absent = ("cert_file", "key_file") if self.key_file is None else ("key_file", "cert_file")
            yield Disagreement((given, absent), f"is given without {absent}; give both or neither")


def _discovery(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}(/[A-Za-z0-9_-]{1,64})*", text):
        raise ValueError("must be a topic of letters, digits, '_', '-' and '/'")
    return text


class HomeAssistantConfig(Section):
    """Announce the station to Home Assistant (MQTT discovery)."""

    prefix: Annotated[str, AfterValidator(_discovery)] = Field(
        default="homeassistant", description="topic under which Home Assistant looks for devices"
    )


class BrokerConfig(Section):
    """How a broker is reached."""

    host: Annotated[str, AfterValidator(_host)] = Field(
        examples=["localhost"], description="name or address of the broker"
    )
    port: int | None = Field(default=None, ge=1, le=65_535, description="TCP port (8883 with tls, else 1883)")
    username: str | None = Field(default=None, min_length=1, max_length=256, description="user at the broker")
    tls: TlsConfig | None = Field(default=None, description="TLS; without this section the connection is in the clear")
    client_id: Annotated[str, AfterValidator(_client_id)] | None = Field(
        default=None, description="MQTT client identifier, unique at the broker (talus-NETWORK.STATION)"
    )
    keepalive_s: int = Field(default=30, ge=5, le=3_600, description="MQTT keep-alive, seconds")
    prefix: Annotated[str, AfterValidator(_topic)] = Field(default=DEFAULT_PREFIX, description="root of all topics")
    protocol: Annotated[Literal["auto", "5", "3.1.1"], BeforeValidator(_protocol)] = Field(
        default="auto", description="MQTT version; auto: 5, and 3.1.1 if the broker refuses that"
    )

    @property
    def broker_port(self) -> int:
        """``port`` with its default put in."""
        return self.port or (8883 if self.tls is not None else 1883)


class MqttSettings(BrokerConfig):
    """How to reach a broker, with the password. Without a ``client_id``, a station is ``talus-NET.STA``."""

    port: int = Field(default=1883, ge=1, le=65_535)
    password: str | None = Field(default=None, repr=False)
    password_file: Path | None = None
    connect_timeout_s: float = 10.0
    ack_timeout_s: float = 30.0
    inflight: int = 20
    backoff_min_s: float = 1.0
    backoff_max_s: float = 60.0

    def newest_password(self) -> str | None:
        """What the password file holds now, so that a password that was changed needs no restart; what it held at the
        start where it cannot be read."""
        if self.password_file is None:
            return self.password
        try:
            return _first_line(self.password_file) or self.password
        except (OSError, UnicodeDecodeError):
            return self.password

    @classmethod
    def from_url(cls, url: str, password: str | None = None) -> MqttSettings:
        """``mqtt://[user[:password]@]host[:port][/prefix][?protocol=5|3.1.1]``; ``mqtts://`` for TLS; ``host`` will do.

        Raises:
            ConfigError: not such an address.
        """
        wrong = ConfigError("not the address of a broker", "write mqtt://user@host:1883 or mqtts://host:8883")
        try:
            parts = urlsplit(url if "://" in url else f"mqtt://{url}")
            port = parts.port
        except ValueError:  # no port, or no IPv6 address
            raise wrong from None
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        protocol, secure = query.pop("protocol", "auto"), parts.scheme == "mqtts"
        if parts.scheme not in ("mqtt", "mqtts") or query:
            raise wrong
        try:
            return cls.model_validate(
                {
                    "host": parts.hostname,
                    "port": port or (8883 if secure else 1883),
                    "username": unquote(parts.username) if parts.username else None,
                    "password": password or (unquote(parts.password) if parts.password else None),
                    "prefix": parts.path.strip("/") or DEFAULT_PREFIX,
                    "protocol": protocol,
                    "tls": TlsConfig() if secure else None,
                }
            )
        except ValidationError:
            raise wrong from None

    @property
    def address(self) -> str:
        """``host:port``, for people."""
        return address(self.host, self.port)


class MqttConfig(BrokerConfig):
    """The broker."""

    password_file: ConfigPath | None = Field(
        default=None, description="file whose first line is the password; only its owner may read it"
    )
    password_env: Annotated[str, AfterValidator(_variable)] | None = Field(
        default=None, description="name of the environment variable that holds the password"
    )
    home_assistant: HomeAssistantConfig | None = Field(
        default=None, description="announce the station to Home Assistant; without this section it is withdrawn"
    )

    def disagreements(self) -> Iterator[Disagreement]:
        if self.password_file is not None and self.password_env is not None:
            yield Disagreement(("password_env", "password_file"), "is given beside password_file; keep one of them")
        for name in ("password_file", "password_env"):
            if getattr(self, name) is not None and self.username is None:
                yield Disagreement((name, "username"), "is given without username; a broker wants both or neither")

    def password(self) -> SecretStr | None:
        """Read the password; it is kept nowhere else.

        Raises:
            ConfigError: the file or the variable is not there, unreadable or empty.
        """
        if self.password_env is not None:
            found = os.environ.get(self.password_env, "")
            where = f"the environment variable {self.password_env}"
        elif self.password_file is not None:
            where = f"the file {self.password_file}"
            try:
                found = _first_line(self.password_file)
            except (OSError, UnicodeDecodeError) as error:
                reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
                raise ConfigError(
                    f"mqtt.password_file: {where}: {reason}", "write the password into it, one line"
                ) from None
        else:
            return None
        if not found:
            raise ConfigError(f"the broker's password: {where} is not set or empty", "set it before the agent starts")
        return SecretStr(found)

    def settings(self, client_id: str) -> MqttSettings:
        """The settings of a connection, with the password read.

        Raises:
            ConfigError: the password cannot be read.
        """
        password, shared = self.password(), {name: getattr(self, name) for name in BrokerConfig.model_fields}
        shared |= {"port": self.broker_port, "client_id": client_id, "password_file": self.password_file}
        return MqttSettings(**shared, password=None if password is None else password.get_secret_value())
