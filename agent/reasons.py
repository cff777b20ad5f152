"""The reasons for which a station is degraded.

A reason has a code for programs, which stays the same when its words change, and a text for people. ``CODES`` is the
list of all codes; docs/operations.md has a row for each (tested).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Code: TypeAlias = Literal[
    "broker_unreachable",
    "channels_silent",
    "clock",
    "coincidence",
    "control",
    "data_clock",
    "disk_low",
    "disk_refuses",
    "hot",
    "memory_low",
    "more",
    "no_samples",
    "outbox_unreadable",
    "packets_refused",
    "prometheus",
    "source",
    "stage_ended",
    "stage_stuck",
    "state_in_memory",
]

CODES: Mapping[Code, str] = {
    "broker_unreachable": "there is no connection to the broker",
    "channels_silent": "channels deliver nothing for longer than they should",
    "clock": "this machine's clock is wrong or not synchronised",
    "coincidence": "too few stations of the site have data: stations alert alone",
    "control": "changes from afar cannot be taken or kept",
    "data_clock": "a recorder's clock is in doubt",
    "disk_low": "little of the disk is left",
    "disk_refuses": "the disk does not take messages: they are held in memory",
    "hot": "the machine is near the temperature at which it throttles",
    "memory_low": "little of the machine's memory is left",
    "more": "there are more reasons than the message holds",
    "no_samples": "nothing has come from the source since the start",
    "outbox_unreadable": "the outbox cannot be read",
    "packets_refused": "the pipeline cannot use the packets that come",
    "prometheus": "the page for Prometheus cannot be served",
    "source": "the source reports a fault",
    "stage_ended": "a thread of the agent has ended",
    "stage_stuck": "a thread of the agent does nothing although packets wait for it",
    "state_in_memory": "state_dir cannot be written: what waits is held in memory",
}
"""Each code and what it stands for."""


@dataclass(frozen=True, slots=True)
class Reason:
    """One reason. ``about`` names the one sensor, channel, topic or file that it is about, None for several or none."""

    code: Code
    text: str
    about: str | None = None


def of(code: Code, texts: Iterable[str]) -> list[Reason]:
    """One reason of this code for each of the texts."""
    return [Reason(code, text) for text in texts]
