"""Commands: the record of an event, a test alarm, a self-test, a model taken or given back. Few, and answered each.

A command is an envelope of the kind ``command`` with the content ``{"do": NAME, ...}``. Its answer names the command by
the SHA-256 of the message that brought it, and gives its correlation data back. It goes to the station's ``response``
whatever response topic a request names: what is not signed does not decide where a station writes.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from agent.alert.evidence import EvidenceStore
from agent.backoff import RateLimit
from agent.errors import ControlError, TalusError
from agent.messages.payloads import MAX_EVIDENCE, Message, Stamp, alert_message, evidence_messages, response_message
from agent.messages.schema import TEXT_LIMIT, Response
from agent.remote.gate import Request
from agent.remote.models import ModelUpdates
from agent.types import (
    UNKNOWN_QUALITY,
    Alert,
    Detection,
    Event,
    Quality,
    StationId,
    event_id,
    format_ns,
)

NAMES = ("evidence", "test_alarm", "self_test", "promote_model", "roll_back_model")
TEST_EXPIRY_S = 600
_FIELDS: Mapping[str, Collection[str]] = {"evidence": ("do", "event")}


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What commands may reach."""

    station: StationId
    prefix: str
    updates: ModelUpdates
    evidence: EvidenceStore | None
    stamp: Callable[[], Stamp]
    health: Callable[[], Mapping[str, Any]]
    self_test: Callable[[], str]


class Commands:
    """Owned by the main thread."""

    def __init__(self, context: CommandContext, allowed: Collection[str], per_min: int) -> None:
        self._context = context
        self.allow(allowed, per_min)

    def allow(self, allowed: Collection[str], per_min: int) -> None:
        """Obey these from now on, and so many a minute."""
        self._allowed, self._rate_limit = allowed, RateLimit(per_min)

    def obey(self, request: Request, key: str, content: Mapping[str, Any], now: float) -> list[Message]:
        """Carry out one command; what is to be sent because of it, the answer last."""
        name = content.get("do")
        try:
            if not isinstance(name, str) or name not in NAMES or content.keys() - _FIELDS.get(name, ("do",)):
                raise ControlError("malformed", f"no command, or a field too many; there are {', '.join(NAMES)}")
            if name not in self._allowed:
                raise ControlError("not_allowed", f"{name} is not in control.commands of this station")
            if not self._rate_limit.allow(now):
                raise ControlError("rate", f"more than {self._rate_limit.per_min} commands a minute; try again later")
            messages, result = self._do(name, key, content)
        except ControlError as error:
            return [self.refusal(request, error, str(name) if name in NAMES else None)]
        except TalusError as error:
            return [self._answer(request, name, "failed", reason=error.message)]
        return [*messages, self._answer(request, name, "done", result=result)]

    def refusal(self, request: Request, error: ControlError, name: str | None = None) -> Message:
        """The answer to a command that is not carried out."""
        return self._answer(request, name, "refused", kind=error.kind, reason=error.message)

    def _do(self, name: str, key: str, content: Mapping[str, Any]) -> tuple[list[Message], dict[str, Any]]:
        match name:
            case "evidence":
                return self._evidence(content.get("event"))
            case "test_alarm":
                return self._test_alarm(key)
            case "self_test":
                began = time.monotonic()
                model = self._context.self_test()
                seconds = round(time.monotonic() - began, 3)
                return [], {"model": model, "seconds": seconds, **self._context.health()}
            case "promote_model":
                self._context.updates.promote()
            case _:
                self._context.updates.roll_back()
        return [], {"phase": self._context.updates.progress.phase}

    def _evidence(self, event: object) -> tuple[list[Message], dict[str, Any]]:
        store = self._context.evidence
        raw = store.read(event) if store is not None and isinstance(event, str) else None
        if raw is None or not isinstance(event, str):
            raise ControlError("no_evidence", "there is no record of that event (any more)")
        if len(raw) > MAX_EVIDENCE:
            raise ControlError("too_large", f"the record has {len(raw)} bytes, at most {MAX_EVIDENCE} are sent")
        messages = evidence_messages(event, raw, self._context.station, self._context.prefix)
        return messages, {"sha256": hashlib.sha256(raw).hexdigest(), "bytes": len(raw), "pieces": len(messages)}

    def _test_alarm(self, key: str) -> tuple[list[Message], dict[str, Any]]:
        """On the whole way that a real alarm goes from the outbox on, marked as an exercise."""
        now_ns = time.time_ns()
        event = Event(
            id=event_id(self._context.station, now_ns),
            revision=0,
            phase="end",
            station=self._context.station,
            onset_ns=now_ns,
            detection=Detection(0.0, 0.0, 0.0, None),
            classification=None,
            quality=Quality(0.0, "", UNKNOWN_QUALITY),
            data_ns=now_ns,
            reason="there is no event: a test",
            exercise=True,
        )
        alert = Alert(event, "raise", "severe", "landslide", f"test alarm, ordered by {key}")
        return [alert_message(alert, self._context.stamp(), self._context.prefix, TEST_EXPIRY_S)], {"alert": event.id}

    def _answer(
        self,
        request: Request,
        name: str | None,
        status: Literal["done", "refused", "failed"],
        *,
        kind: str | None = None,
        reason: str | None = None,
        result: Mapping[str, Any] | None = None,
    ) -> Message:
        stamp = self._context.stamp()
        body = Response(
            station=self._context.station.short,
            boot_id=stamp.boot_id,
            seq=stamp.seq,
            time=format_ns(time.time_ns()),
            request=request.envelope,
            command=name,
            status=status,
            kind=kind,
            reason=None if reason is None else reason[:TEXT_LIMIT],
            result=dict(result or {}),
        )
        return response_message(body, self._context.station, self._context.prefix, request.correlation)
