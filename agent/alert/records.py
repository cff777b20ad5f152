"""Records of events that alerted, sent without being asked for: each once, when alert and record are both there."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable

from agent.messages.payloads import MAX_EVIDENCE, Message, evidence_messages
from agent.types import Event, StationId

_KEPT = 1024
"""Events that are remembered."""
_log = logging.getLogger(__name__)


class AlertRecords:
    """Owned by one thread."""

    def __init__(self, read: Callable[[str], bytes | None], agent: StationId, prefix: str) -> None:
        """``read`` gives the record of an event by its identifier; the pieces go out under the topics of ``agent``."""
        self._read, self._agent, self._prefix = read, agent, prefix
        self._alerted: OrderedDict[str, None] = OrderedDict()
        self._kept: OrderedDict[str, None] = OrderedDict()

    def alerted(self, event: Event) -> list[Message]:
        """There was an alert on this event; on an event of the site, also on those of its members."""
        members = () if event.coincidence is None else event.coincidence.votes
        messages: list[Message] = []
        for name in dict.fromkeys([event.id, *(vote.event_id for vote in members)]):
            if name in self._alerted:
                continue
            _remember(self._alerted, name)
            if name in self._kept:
                messages += self._send(name)
        return messages

    def kept(self, event: Event) -> list[Message]:
        """The record of this event is there."""
        if event.id in self._kept:
            return []
        _remember(self._kept, event.id)
        return self._send(event.id) if event.id in self._alerted else []

    def _send(self, event: str) -> list[Message]:
        raw = self._read(event)
        if raw is None:
            return []
        if len(raw) > MAX_EVIDENCE:
            _log.warning("the record of %s has %d bytes and is not sent: at most %d are", event, len(raw), MAX_EVIDENCE)
            return []
        return evidence_messages(event, raw, self._agent, self._prefix)


def _remember(names: OrderedDict[str, None], name: str) -> None:
    names[name] = None
    if len(names) > _KEPT:
        names.popitem(last=False)
