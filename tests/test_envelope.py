"""Signed envelopes: what a station takes for genuine, and everything that it does not."""

from __future__ import annotations

import base64
import json
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from schema_support import JSON

from agent.config.remote import TrustedKey
from agent.errors import ControlError
from agent.remote.gate import MAX_BYTES, Body, admit, unseal
from agent.types import NS, StationId
from desk.push.signing import SigningKey, seal

HERE = StationId("XX", "SLP", "", "")
NOW_NS = 1_800_000_000 * NS
ORDER = Body(
    kind="config",
    stations=("XX.SLP",),
    revision=7,
    issued_ns=NOW_NS,
    expires_ns=NOW_NS + 3600 * NS,
    content={"trigger": {"on": 5.0}, "name": "Nordhang ±"},
)


HEAD = '{"kind":"config","issued":"2027-01-15T08:00:00Z","expires":"2027-01-16T08:00:00Z",'
"""Of a body; stations, revision and content follow."""
KEY = SigningKey(Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> SigningKey:
    return SigningKey.create(tmp_path_factory.mktemp("keys") / "key.pem")


@pytest.fixture(scope="module")
def trusted(key: SigningKey) -> list[TrustedKey]:
    return [key.trusted("control-room")]


def refusal(payload: bytes, trusted: list[TrustedKey]) -> str:
    """In one word."""
    with pytest.raises(ControlError) as caught:
        unseal(payload, trusted)
    assert caught.value.hint
    return caught.value.kind


def altered(payload: bytes, **changes: Any) -> bytes:
    return json.dumps({**json.loads(payload), **changes}).encode()


def test_what_was_sealed_comes_out_as_it_went_in(key: SigningKey, trusted: list[TrustedKey]) -> None:
    opened = unseal(seal(ORDER, key), trusted)
    assert opened.body == ORDER
    assert opened.key.name == "control-room"
    admit(opened.body, HERE, "config", 6, NOW_NS)


@pytest.mark.parametrize(
    ("kind", "content", "scope"),
    [
        ("config", {}, "config"),
        ("model", {}, "model"),
        ("command", {"do": "evidence", "event": "x"}, "evidence"),
        ("command", {"do": "test_alarm"}, "test_alarm"),
        ("command", {"do": "promote_model"}, "model"),
        ("command", {"do": "roll_back_model"}, "model"),
        ("command", {"do": "self_test"}, None),
        ("command", {"do": 7}, None),
        ("other", {}, None),
    ],
)
def test_a_key_orders_only_what_it_is_trusted_with(
    key: SigningKey, kind: str, content: dict[str, Any], scope: str | None
) -> None:
    payload = seal(ORDER.model_copy(update={"kind": kind, "content": content}), key)
    for may in (("config",), ("model",), ("evidence",), ("test_alarm",)):
        only = [key.trusted("desk").model_copy(update={"may": may})]
        if scope is None or scope in may:
            assert unseal(payload, only).body.kind == kind
        else:
            assert refusal(payload, only) == "scope"


def test_no_byte_of_body_or_signature_can_be_changed(key: SigningKey, trusted: list[TrustedKey]) -> None:
    payload = seal(ORDER, key)
    for name in ("body", "signature"):
        raw = base64.b64decode(json.loads(payload)[name])
        for at in range(len(raw)):
            broken = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
            assert refusal(altered(payload, **{name: base64.b64encode(broken).decode()}), trusted) == "signature"


def test_a_signature_of_something_else_by_the_same_key_is_worth_nothing(
    key: SigningKey, trusted: list[TrustedKey]
) -> None:
    payload = seal(ORDER, key)
    bare = key.sign(base64.b64decode(json.loads(payload)["body"]))
    assert refusal(altered(payload, signature=base64.b64encode(bare).decode()), trusted) == "signature"


def test_an_unknown_key_is_refused_even_under_a_trusted_name(
    tmp_path: Path, key: SigningKey, trusted: list[TrustedKey]
) -> None:
    payload = seal(ORDER, SigningKey.create(tmp_path / "other.pem"))
    assert refusal(payload, trusted) == "unknown_key"
    assert refusal(altered(payload, key=trusted[0].id), trusted) == "signature"
    assert refusal(payload, []) == "unknown_key"


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"above": 7}, "old_revision"),
        ({"above": 2000}, "old_revision"),
        ({"now_ns": NOW_NS + 3600 * NS}, "expired"),
        ({"now_ns": NOW_NS - 3601 * NS}, "ahead"),
        ({"kind": "model"}, "other_kind"),
        ({"station": StationId("XX", "SL", "", "")}, "other_station"),
        ({"station": StationId("XX", "SLPX", "", "")}, "other_station"),
    ],
)
def test_a_genuine_envelope_is_not_for_everyone_nor_for_ever(
    key: SigningKey, trusted: list[TrustedKey], changes: dict[str, Any], kind: str
) -> None:
    opened = unseal(seal(ORDER, key), trusted)
    with pytest.raises(ControlError) as caught:
        admit(opened.body, **{"station": HERE, "kind": "config", "above": 6, "now_ns": NOW_NS, **changes})
    assert caught.value.kind == kind


def test_a_star_is_for_every_station(key: SigningKey, trusted: list[TrustedKey]) -> None:
    opened = unseal(seal(ORDER.model_copy(update={"stations": ("*",)}), key), trusted)
    admit(opened.body, StationId("YY", "ELSE", "", ""), "config", 0, NOW_NS)


@pytest.mark.parametrize(
    "body",
    [
        '{"kind":"config"}',
        HEAD + '"stations":[],"revision":1,"content":{}}',
        HEAD + '"stations":["*"],"revision":1,"content":{},"more":1}',
        HEAD + '"stations":["*"],"revision":1,"revision":2,"content":{}}',
        *(
            HEAD + f'"stations":["*"],"revision":{number},"content":{{}}}}'
            for number in ("true", "1.0", "0", "-1", '"1"', 2**54, 2**64, 2**10_000)
        ),
        HEAD + '"stations":[["*"]],"revision":1,"content":{}}',
        HEAD + '"stations":["../.."],"revision":1,"content":{}}',
        HEAD + '"stations":["*"],"revision":1,"content":[]}',
        HEAD.replace("2027-01-15T08:00:00Z", "soon") + '"stations":["*"],"revision":1,"content":{}}',
        HEAD.replace('"2027-01-15T08:00:00Z"', "1800000000") + '"stations":["*"],"revision":1,"content":{}}',
        HEAD.replace("2027-01-16", "2001-01-01") + '"stations":["*"],"revision":1,"content":{}}',
        *(
            HEAD + f'"stations":["*"],"revision":1,"content":{{"on":{value}}}}}'
            for value in (
                "NaN", "Infinity", "-Infinity", "1e999", "9007199254740993", "9" * 9_000, '1,"on":2', '{"a":1,"a":1}',
                '"\\ud800"', '"\xff"', "[" * 15_000 + "]" * 15_000, "01", "1,",
            )
        ),
        "[]", "null", "", "{",
    ],
)  # fmt: skip
def test_a_trusted_signer_must_still_write_proper_bodies(key: SigningKey, trusted: list[TrustedKey], body: str) -> None:
    raw = body.encode("latin-1")
    envelope = {
        "schema": "talus/envelope/1",
        "key": trusted[0].id,
        "body": base64.b64encode(raw).decode(),
        "signature": base64.b64encode(key.sign(b"talus/envelope/1\x00" + raw)).decode(),
    }
    assert refusal(json.dumps(envelope).encode(), trusted) == "malformed"


@pytest.mark.parametrize(
    "payload",
    [
        b"", b"\xff\xfe", b"[" * 60_000, b'{"a":' * 10_000, b'"' + b"\\" * 60_000, b'"\\' * 30_000,
        b"1" * 60_000, b"{}", b"null",
        b'{"schema":"talus/envelope/1","key":"","body":"","signature":"","x":1}',
        b'{"schema":"talus/envelope/1","key":1,"body":"","signature":""}',
        b'{"schema":"talus/envelope/2","key":"","body":"","signature":""}',
        b'{"schema":"talus/envelope/1","key":"","body":"$$$$","signature":""}',
        b'{"schema":"talus/envelope/1","key":"","body":"","signature":"AA=="}',
        b"x" * (MAX_BYTES + 1), b"[" + b"[]," * 20_000 + b"[]]", b'{"a":"\\ud800"}',
    ],
)  # fmt: skip
def test_rubbish_is_refused_in_words(trusted: list[TrustedKey], payload: bytes) -> None:
    assert refusal(payload, trusted) == "malformed"


@given(st.binary(max_size=300))
def test_no_bytes_raise_anything_else(payload: bytes) -> None:
    with pytest.raises(ControlError):
        unseal(payload, [])


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_any_content_that_json_can_hold_comes_out_as_it_went_in(content: dict[str, Any]) -> None:
    order = ORDER.model_copy(update={"content": content})
    assert unseal(seal(order, KEY), [KEY.trusted("me")]).body.content == content


def test_an_order_too_large_for_a_station_is_not_signed(key: SigningKey) -> None:
    with pytest.raises(ControlError):
        seal(ORDER.model_copy(update={"content": {"text": "x" * MAX_BYTES}}), key)


def test_a_private_key_is_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    mask = os.umask(0)
    try:
        key = SigningKey.create(path)
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SigningKey.load(path).trusted("me") == key.trusted("me")
    assert path.read_text().splitlines()[1] not in repr(key)
    before = path.read_bytes()
    with pytest.raises(ControlError, match="there already"):
        SigningKey.create(path)
    assert path.read_bytes() == before
    for mode in (0o640, 0o604, 0o660):
        path.chmod(mode)
        with pytest.raises(ControlError, match="others than its owner"):
            SigningKey.load(path)


def test_what_is_no_private_key_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    for text in ("", "hello", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"):
        path.write_text(text)
        path.chmod(0o600)
        with pytest.raises(ControlError, match="no private Ed25519 key"):
            SigningKey.load(path)
    with pytest.raises(ControlError, match="No such file"):
        SigningKey.load(tmp_path / "none.pem")


def test_keys_for_which_anyone_can_sign_are_not_trusted() -> None:
    """A signature of zeros verifies under the neutral point; a placeholder in a configuration must open no door."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    neutral = (1).to_bytes(32, "little")
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"anything")
    for public in (neutral, bytes(32), bytes(31) + b"\x80", bytes.fromhex("ec" + 30 * "ff" + "7f")):
        with pytest.raises(ValueError, match="anyone can sign"):
            TrustedKey(name="placeholder", public=base64.b64encode(public).decode())


def test_public_keys_are_read_strictly(key: SigningKey) -> None:
    good = key.trusted("a")
    assert TrustedKey(name="a", public=good.public) == good
    for text in ("", "AAAA", good.public[:-1], good.public + "=", "?" * 44):
        with pytest.raises(ValueError, match="public"):
            TrustedKey(name="a", public=text)


def test_an_agent_that_trusts_nobody_does_not_load_the_cryptography() -> None:
    code = "import sys, agent.remote.gate; sys.exit('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
