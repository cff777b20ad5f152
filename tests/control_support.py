"""An operator's side for tests: keys, envelopes, and a configuration that trusts them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from agent.remote.gate import Body
from agent.types import NS
from desk.push.signing import SigningKey, seal

STATION = "XX.SLP"


def key(folder: Path, name: str = "key") -> SigningKey:
    """The key in a folder, made at the first call."""
    path = folder / f"{name}.pem"
    return SigningKey.load(path) if path.exists() else SigningKey.create(path)


def envelope(signing: SigningKey, revision: int, content: dict[str, Any], **changes: Any) -> bytes:
    now_ns = time.time_ns()
    body = {
        "kind": "config",
        "stations": (STATION,),
        "revision": revision,
        "issued_ns": now_ns,
        "expires_ns": now_ns + 3600 * NS,
        "content": content,
    }
    return seal(Body(**{**body, **changes}), signing)


def control(signing: SigningKey, **settings: float) -> str:
    """The section of the configuration file."""
    keys = [{"name": "control-room", "public": signing.trusted("own").public}]
    return json.dumps({"keys": keys, **settings})
