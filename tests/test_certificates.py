"""Private authorities: those that the page makes are accepted by any Python; one that will not be is named."""

from __future__ import annotations

import datetime
import os
import re
import socket
import ssl
import subprocess
from pathlib import Path

import pytest
from agent_support import running_agent, write_config
from broker_support import needs_mosquitto, own_port, running, wait_for
from certificates_support import DAY, Authority
from test_mosquitto_configs import Example

from agent.config.broker import MqttSettings, TlsConfig
from agent.config.file import Config, check
from agent.deliver.connection import Connection, unreachable
from agent.deliver.sockets import Waker
from agent.errors import DeliveryError
from agent.health.certificates import LOOK, Certificates
from agent.host.tls import client_context, refusal

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "mqtt.md"


def strict(ca: Path, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """The agent's context with the verification of Python 3.13, whatever Python runs the tests."""
    context = client_context(ca, cert, key)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    return context


def shake_hands(port: int, context: ssl.SSLContext) -> None:
    with socket.create_connection(("127.0.0.1", port), 5) as plain, context.wrap_socket(
        plain, server_hostname="127.0.0.1"
    ) as secured:  # fmt: skip
        secured.do_handshake()


def page_lines() -> str:
    """The shell lines of the page's section on certificates."""
    section = PAGE.read_text("utf-8").split("### Certificates\n", 1)[1]
    found = re.search(r"```sh\n(.*?)```", section, re.DOTALL)
    assert found
    return found[1]


@needs_mosquitto
def test_the_lines_of_the_page_make_certificates_that_any_python_accepts(tmp_path: Path) -> None:
    """The very lines, with a folder and an address of the test; then both listeners of the example's broker."""
    group = os.getegid()  # stands in for mosquitto's
    lines = page_lines().replace("/etc/mosquitto/talus", str(tmp_path)).replace("chgrp mosquitto", f"chgrp {group}")
    done = subprocess.run(
        ["sh", "-eu", "-c", lines.replace("DNS:broker.example.org", "IP:127.0.0.1")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    own = tmp_path / "station.pem", tmp_path / "station.key"
    with_password, mutual = own_port(), own_port()
    (tmp_path / "passwords").touch(0o600)
    (tmp_path / "acl").write_text("topic write talus/#\n")
    ports = {"8883": str(with_password), "8884": str(mutual)}
    broker = Example(tmp_path, "broker.conf", with_password, ports)
    broker.start()
    try:
        shake_hands(with_password, strict(tmp_path / "ca.pem"))
        shake_hands(mutual, strict(tmp_path / "ca.pem", *own))
        tls = TlsConfig(ca_file=tmp_path / "ca.pem", cert_file=own[0], key_file=own[1])
        Connection.open(MqttSettings(host="127.0.0.1", port=mutual, tls=tls), "station-abc", Waker()).close()
    finally:
        broker.stop()


@needs_mosquitto
def test_the_page_s_lines_keep_every_user_of_the_broker(tmp_path: Path) -> None:
    """With -c twice the second user would wipe the first; passwords are typed, and given here."""
    lines = [line for line in PAGE.read_text("utf-8").splitlines() if line.startswith("mosquitto_passwd ")]
    assert len(lines) > 1
    for line in lines:
        command = line.partition("#")[0].replace("/etc/mosquitto/talus", str(tmp_path)).split()
        subprocess.run([command[0], "-b", *command[1:], "secret"], check=True, capture_output=True)
    users = [line.partition(":")[0] for line in (tmp_path / "passwords").read_text().splitlines()]
    assert users == ["station-abc", "control-room"]


@needs_mosquitto
@pytest.mark.parametrize("missing", ["keyUsage", "subjectKeyIdentifier", "authorityKeyIdentifier"])
def test_the_error_names_the_missing_extension_and_the_command_that_makes_a_good_one(
    tmp_path: Path, missing: str
) -> None:
    issuer = Authority(tmp_path, without=(missing,))
    certificate, key = issuer.issue("broker")
    with running(tmp_path, f"certfile {certificate}", f"keyfile {key}") as broker:
        with pytest.raises(ssl.SSLCertVerificationError) as caught:
            shake_hands(broker.port, strict(issuer.ca))
        told = unreachable(MqttSettings(host="127.0.0.1", port=broker.port), caught.value)
    assert f"has no {missing}" in told.message
    assert "not trusted" not in told.message
    assert "openssl req -x509" in told.hint
    assert "talus docs mqtt" in told.hint


@needs_mosquitto
@pytest.mark.parametrize(
    ("host", "days", "words", "todo"),
    [
        ("digitizer.example", 2, "issued for another name", "set host to that name"),
        ("127.0.0.1", -1, "not valid now", "check this machine's clock"),
        ("127.0.0.1", 2, "not trusted", "mqtt.tls.ca_file"),
    ],
)
def test_each_kind_of_refusal_has_a_hint_of_its_own(
    tmp_path: Path, host: str, days: int, words: str, todo: str
) -> None:
    issuer = Authority(tmp_path, days=days)
    certificate, key = issuer.issue("broker", host)
    trusted = issuer.ca
    if words == "not trusted":
        (tmp_path / "other").mkdir()
        trusted = Authority(tmp_path / "other").ca
    with (
        running(tmp_path, f"certfile {certificate}", f"keyfile {key}") as broker,
        pytest.raises(DeliveryError, match=words) as caught,
    ):
        settings = MqttSettings(host="127.0.0.1", port=broker.port, tls=TlsConfig(ca_file=trusted))
        Connection.open(settings, "station", Waker())
    assert todo in caught.value.hint


def test_check_warns_of_certificates_that_will_be_refused(tmp_path: Path) -> None:
    """Before an upgrade to Debian 13 makes the station mute, and with any version of Python."""
    cases = {
        "good": (Authority, {}, ""),
        "bare": (Authority, {"without": ("keyUsage",)}, "has no keyUsage, which Python 3.13 and later require"),
        "old": (Authority, {"days": -3}, "has expired on "),
        "soon": (Authority, {"days": 9}, "expires on "),
    }
    for name, (make, options, words) in cases.items():
        (tmp_path / name).mkdir()
        issuer = make(tmp_path / name, **options)
        config = tmp_path / name / "station.yaml"
        config.write_text(
            "station: {network: XX, station: ABC}\nsource: {kind: simulator}\n"
            f"mqtt: {{host: localhost, tls: {{ca_file: {issuer.ca}}}}}\n"
        )
        told = check(config)
        assert all(problem.level == "warning" for problem in told)
        assert [words in str(problem) for problem in told] == ([True] if words else [])
    (tmp_path / "good" / "ca.pem").write_text("no certificate")
    (told_once,) = check(tmp_path / "good" / "station.yaml")
    assert "holds no certificate in PEM" in str(told_once)


def test_a_certificate_that_ends_soon_is_a_reason_until_the_file_is_replaced(tmp_path: Path) -> None:
    """The connection stands, and the next one will not: the station says so while it is heard."""
    now = datetime.datetime.now(datetime.timezone.utc)
    (tmp_path / "ca").mkdir()
    authority = Authority(tmp_path / "ca", days=100)
    own, secret = Authority(tmp_path, days=20).issue("station")
    config = Config.model_validate(
        {
            "station": {"network": "XX", "station": "ABC"},
            "source": {"kind": "simulator"},
            "mqtt": {
                "host": "localhost",
                "tls": {"ca_file": str(authority.ca), "cert_file": str(own), "key_file": str(secret)},
            },
        }
    )
    watched = Certificates(config)
    assert watched.reasons(now) == []
    (soon,) = watched.reasons(now + 7 * DAY)
    assert soon.code == "certificate"
    assert f"mqtt.tls.cert_file ({own}) expires on {now + 20 * DAY:%Y-%m-%d}" in soon.text
    (past,) = watched.reasons(now + 21 * DAY)
    assert "has expired on" in past.text
    Authority(tmp_path, days=100).issue("station")
    assert watched.reasons(now + 21 * DAY + LOOK) == []
    (tmp_path / "ca" / "ca.pem").unlink()
    assert watched.reasons(now + 22 * DAY) == [], "the connection tells of a file that is gone"


def test_a_station_says_that_its_certificate_ends(tmp_path: Path) -> None:
    issuer = Authority(tmp_path, days=3)
    mqtt = f"{{host: 127.0.0.1, port: 1, tls: {{ca_file: {issuer.ca}}}}}"
    config = write_config(tmp_path, "", source="{kind: simulator, speed: 1}", mqtt=mqtt)
    with running_agent("run", "--config", config):
        status = tmp_path / "state" / "status.json"
        wait_for(lambda: status.exists() and '"code":"certificate"' in status.read_text())


def test_an_unknown_refusal_is_told_in_openssl_s_words() -> None:
    error = ssl.SSLCertVerificationError()
    error.verify_code, error.verify_message = 23, "certificate revoked"
    text, hint = refusal("broker:8883", error, "mqtt.tls.ca_file")
    assert text == "the certificate of broker:8883 is not trusted: certificate revoked"
    assert hint
