"""What an operator can do when a broker cannot be reached or refuses."""

from __future__ import annotations

import socket
import ssl

from agent.config.broker import MqttSettings
from agent.errors import DeliveryError
from agent.host.tls import refusal

_HINTS = {
    0x81: "the peer does not speak MQTT as expected: check the port",
    0x85: "set mqtt.client_id to one that the broker accepts",
    0x86: "check the user and the password",
    0x87: "check the user and the password, and what the broker's access list allows that user",
    0x88: "the broker is there but not in service: see its log",
    0x89: "the broker is overloaded; the agent keeps trying",
    0x8A: "the broker has banned this client",
    0x8E: "another client uses the same mqtt.client_id: give each agent its own",
    0x95: "the broker's limit for the size of a packet is too low",
    0x97: "the broker's quota for this client is used up",
    0x9A: "the broker must support retained messages",
    0x9B: "the broker must support QoS 1",
    0x9F: "the broker limits the rate of connections; the agent keeps trying",
}


def refusal_hint(code: int) -> str:
    """For a refusal with this MQTT 5 reason code."""
    return _HINTS.get(code, "see the broker's log")


def unreachable(settings: MqttSettings, error: Exception) -> DeliveryError:
    """The error to raise for what the socket, the resolver or TLS raised."""
    address = settings.address
    if isinstance(error, socket.gaierror):
        text, hint = f"no address for {settings.host!r}: {error.strerror}", "check the name of the broker, and the DNS"
    elif isinstance(error, ssl.SSLCertVerificationError):
        text, hint = refusal(address, error, "mqtt.tls.ca_file, or --ca")
    elif isinstance(error, ssl.SSLError):
        text, hint = f"TLS with {address} fails: {error.reason or error}", "is this the broker's TLS port?"
    elif isinstance(error, ConnectionRefusedError):
        text, hint = f"{address} refused the connection", "is the broker running, and is this its port?"
    elif isinstance(error, ConnectionResetError):
        text, hint = f"{address} closed the connection", "is this the broker's port, and with or without TLS?"
    elif isinstance(error, TimeoutError):
        text, hint = f"{address} does not answer", "check the network, the firewall, and the name of the broker"
    else:
        text, hint = f"{address} cannot be reached: {error}", "check the network and the mqtt section"
    return DeliveryError(text, hint)
