"""Why what is sent may not arrive: the reasons that follow from the state of the outbox and of the connection.

Whatever is refused, set aside, dropped or not acknowledged is counted where it happens. This file decides which of
these figures make the station degraded, and since when.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from agent.deliver.outbox import OutboxStats
from agent.reasons import Reason
from agent.types import counted

WAIT_S = 60.0
"""How long messages may wait while the broker is connected."""
GRACE_S = 10.0
"""How long a broker may take to acknowledge the first message of a connection."""
LOSS_S = 86_400.0
"""How long a loss is reported."""
UNHEARD_S = 3600.0
"""How long an alert without a subscriber is reported."""
UNSTABLE = 5
"""Connections lost in ten minutes from which on they are reported."""
FULL_SHARE = 0.9
"""Share of the outbox's size from which on it counts as full: soon the newest messages push out the oldest."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """A topic that the broker refuses: why, how many messages in a row, and when first (monotonic clock, s)."""

    topic: str
    reason: str
    count: int
    since: float


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """``connected`` only after an accepted CONNACK; then for ``connected_s`` seconds, short interruptions included.
    ``answered``: whether this connection has acknowledged anything; ``unanswered``: how many before it, one after the
    other, did not. ``losses``: connections lost in the last ten minutes.

    ``unheard`` counts what the broker acknowledged with the remark that nobody subscribes to it (MQTT 5),
    ``unheard_alerts`` the alerts among it, the newest of them ``unheard_alert_s`` ago (None: the newest had a
    subscriber). ``refusals`` are the topics that the broker refuses now; ``unseen`` those that it may refuse without a
    word (MQTT 3.1.1: nothing comes back), and ``kept`` the alerts that it may have dropped so. ``packet_limit`` is the
    size of the largest packet that it takes (None: it told no limit). ``orders``: whether it lets the station listen;
    ``ignored``: it sent more than can be held. ``error`` is why the link is down, or what the broker refused last."""

    connected: bool = False
    connected_s: float = 0.0
    answered: bool = False
    unanswered: int = 0
    losses: int = 0
    protocol: str | None = None
    connects: int = 0
    acknowledged: int = 0
    unheard: int = 0
    unheard_alerts: int = 0
    unheard_alert_s: float | None = None
    refused: int = 0
    refusals: tuple[Refusal, ...] = ()
    unseen: tuple[str, ...] = ()
    kept: int = 0
    packet_limit: int | None = None
    orders: Literal["none", "heard", "refused", "ignored"] = "none"
    error: str | None = None


def of_connection(link: LinkStatus, alert_bytes: int) -> list[Reason]:
    """What the broker or the way to it does; ``alert_bytes`` is the size of the station's largest alert's packet."""
    return [*_connection(link), *_refusals(link, alert_bytes)]


def of_outbox(outbox: OutboxStats, link: LinkStatus | None) -> list[Reason]:
    """What is wrong with what waits; ``link``: how the connection is, None where no broker is configured."""
    return list(_outbox(outbox, link))


def _connection(link: LinkStatus) -> Iterator[Reason]:
    if not link.connected:
        yield Reason("broker_unreachable", f"no connection to the broker: {link.error or 'trying'}")
    elif not link.answered and (link.unanswered or link.connected_s > GRACE_S):
        text = f"the broker accepts the connection and has acknowledged nothing for {link.connected_s:.0f} s"
        yield Reason("nothing_acknowledged", text)
    if link.losses >= UNSTABLE:
        text = f"the connection to the broker was lost {link.losses} times in the last 10 minutes"
        yield Reason("connection_unstable", text)
    if link.orders == "refused":
        yield Reason("orders_refused", "the broker refuses the subscription to orders: nothing can be changed remotely")
    elif link.orders == "ignored":
        text = "orders are not listened to for 10 minutes: somebody sends more than can be held"
        yield Reason("orders_ignored", text)


def _refusals(link: LinkStatus, alert_bytes: int) -> Iterator[Reason]:
    for refusal in link.refusals:
        is_alert = refusal.topic.rsplit("/", 1)[-1] == "alert"
        times = "" if refusal.count == 1 else f" ({refusal.count} times)"
        text = f"the broker refuses {refusal.topic}: {refusal.reason}{times}"
        yield Reason("alert_refused" if is_alert else "topic_refused", text, refusal.topic)
    if link.unseen:
        names = ", ".join(name.rsplit("/", 1)[-1] for name in link.unseen)
        kept = f"; {counted(link.kept, 'alert')} kept" if link.kept else ""
        text = f"MQTT 3.1.1 does not tell what the broker drops, and nothing comes back of {names}{kept}"
        own = link.unseen[0].rsplit("/", 1)[0]
        yield Reason("not_confirmed", f"{text}: let this account read {own}/#, or use MQTT 5")
    if link.packet_limit is not None and link.packet_limit < alert_bytes:
        text = f"the broker takes packets of {link.packet_limit} bytes at most; an alert may have {alert_bytes}"
        yield Reason("packet_limit", text)
    if link.unheard_alert_s is not None and link.unheard_alert_s < UNHEARD_S:
        minutes = round(link.unheard_alert_s / 60)
        yield Reason("alert_unheard", f"nobody was subscribed to the last alert ({minutes} min ago)")


def _outbox(outbox: OutboxStats, link: LinkStatus | None) -> Iterator[Reason]:
    if outbox.set_aside:
        aside = counted(outbox.set_aside, "message")
        what = f"{aside} refused for good by the broker, {outbox.set_aside_alerts} of them alerts"
        yield Reason("messages_set_aside", f"{what}: {outbox.set_aside_reason} (see `talus outbox`)")
    if link and link.connected and outbox.depth and min(outbox.oldest_s, link.connected_s) > WAIT_S:
        waiting = counted(outbox.depth, "message")
        text = f"{waiting} waiting although the broker is there, the oldest for {outbox.oldest_s:.0f} s"
        yield Reason("messages_wait", text)
    if outbox.bytes >= FULL_SHARE * outbox.max_bytes:
        share = 100 * outbox.bytes / outbox.max_bytes
        yield Reason(
            "outbox_full", f"the outbox is {share:.0f} % full: the oldest messages are dropped when it is full"
        )
    if outbox.lost_age_s is not None and outbox.lost_age_s < LOSS_S:
        text = f"events or alerts dropped undelivered: {outbox.lost}, the last {_ago(outbox.lost_age_s)} ago"
        yield Reason("messages_dropped", text)
    if outbox.in_memory is not None:
        text = f"the disk refuses the outbox ({outbox.in_memory}): pending messages are held in memory"
        yield Reason("state_in_memory", f"{text} and will be lost when the agent stops or the power fails")
    for path in outbox.moved_aside:
        text = f"a corrupt outbox was moved aside to {path}: keep it for analysis elsewhere, or delete it"
        yield Reason("outbox_corrupt", text, str(path))


def _ago(seconds: float) -> str:
    return f"{seconds / 3600:.0f} h" if seconds >= 7200 else f"{seconds / 60:.0f} min"
