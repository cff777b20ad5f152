"""The reasons for which a station is degraded, or still starting.

A reason has a code for programs, which stays the same when its words change, and a text for people. ``CODES`` is the
list of all codes; docs/operations.md has a row for each (tested).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

Code: TypeAlias = Literal[
    "alert_refused",
    "alert_unheard",
    "always_triggered",
    "broker_unreachable",
    "cannot_alert",
    "cannot_trigger",
    "certificate",
    "channels_silent",
    "clipped",
    "clock",
    "coincidence",
    "component_late",
    "config_file",
    "connection_unstable",
    "constant",
    "control",
    "copies",
    "data_age_unknown",
    "data_clock",
    "data_early",
    "data_late",
    "disconnected",
    "disk_low",
    "disk_refuses",
    "disk_slow",
    "filled",
    "gps_rollover",
    "hot",
    "last_bit",
    "listening",
    "louder",
    "memory_low",
    "messages_dropped",
    "messages_lost",
    "messages_set_aside",
    "messages_wait",
    "mixed",
    "more",
    "no_component",
    "no_network",
    "no_output",
    "no_samples",
    "no_verdict",
    "not_armed",
    "not_confirmed",
    "nothing_acknowledged",
    "orders_ignored",
    "orders_refused",
    "outbox_corrupt",
    "outbox_full",
    "outbox_unreadable",
    "output_failed",
    "packet_limit",
    "packets_refused",
    "prometheus",
    "quieter",
    "rate_wrong",
    "records_not_kept",
    "repeats",
    "source",
    "stage_ended",
    "stage_stuck",
    "state_in_memory",
    "threshold_high",
    "threshold_limit",
    "topic_refused",
]

CODES: Mapping[Code, str] = {
    "alert_refused": "the broker refuses alerts; they wait",
    "alert_unheard": "the broker had no subscriber for the last alert",
    "always_triggered": "a sensor's trigger does not end: one event cannot be told from the next",
    "broker_unreachable": "there is no connection to the broker",
    "cannot_alert": "with these rules no event raises an alert",
    "cannot_trigger": "with these trigger settings no event below 50 times the noise would trigger",
    "certificate": "a certificate for TLS has expired, or will in two weeks: there will be no new connection",
    "channels_silent": "channels deliver nothing for longer than they should",
    "clipped": "a waveform is cut off at the recorder's largest value",
    "clock": "this machine's clock is wrong or not synchronised",
    "coincidence": "too few stations of the site have data: stations alert alone; or one has never sent any",
    "component_late": "a component comes too late for the trigger, which leaves it out",
    "config_file": "the configuration file was read anew and is not used, or not all of it: previous settings apply",
    "connection_unstable": "the connection to the broker is lost again and again",
    "constant": "a component's samples never change",
    "control": "remote changes cannot be accepted or kept",
    "copies": "two components have the same samples",
    "data_age_unknown": "data and this machine's clock differ, and the clock is not synchronised",
    "data_clock": "a recorder's clock is in doubt",
    "data_early": "data are ahead of this machine's clock",
    "data_late": "data come so late that alerts on them are late, or much later than before",
    "disconnected": "a component records the noise of the recorder alone, as without a sensor",
    "disk_low": "little of the disk is left",
    "disk_refuses": "the disk does not take messages: they are held in memory",
    "disk_slow": "the disk takes long to store messages, or hangs: alerts are sent past it",
    "filled": "a component stands still between motion: the recorder fills gaps",
    "gps_rollover": "the recorder's clock is a multiple of 1024 weeks off",
    "hot": "the machine is near the temperature at which it throttles",
    "last_bit": "a component's amplitude in the trigger's band is below one count",
    "listening": "a sensor's averages are not warm yet; no fault while the status is starting",
    "louder": "a component is a thousand times louder than the others, or than in its last day",
    "memory_low": "little of the machine's memory is left",
    "messages_dropped": "events or alerts were dropped before they were delivered",
    "messages_lost": "events or alerts were lost: neither disk nor memory had room",
    "messages_set_aside": "the broker refused messages for good: they are set aside",
    "messages_wait": "messages wait for more than a minute although the broker is there",
    "mixed": "a channel has packets of the same time with other samples: two recorders under one name",
    "more": "there are more reasons than the message holds",
    "no_component": "no channel is a component that the trigger uses",
    "no_network": "every event gets the same label, as no network is in use (classifier.backends: constant)",
    "no_output": "neither a broker nor an output is configured: nobody is told of events",
    "no_verdict": "the network failed on events: they have no label",
    "no_samples": "nothing has come from the source since the start",
    "not_armed": "a sensor's detector could not trigger for more than a tenth of the last ten minutes",
    "not_confirmed": "MQTT 3.1.1: what is sent does not come back, so that the broker may drop it without a word",
    "nothing_acknowledged": "the broker accepts the connection and acknowledges nothing",
    "orders_ignored": "orders are not listened to for a while: too much was sent",
    "orders_refused": "the broker does not let the station listen to orders",
    "outbox_corrupt": "the outbox was corrupt; the damaged file was moved aside and is still there",
    "outbox_full": "the outbox is nearly full",
    "outbox_unreadable": "the outbox cannot be read",
    "output_failed": "a way out beside the broker does not take messages: they wait for it",
    "packet_limit": "the broker takes no packets of the size of an alert",
    "packets_refused": "the pipeline cannot use the packets that come",
    "prometheus": "the page for Prometheus cannot be served",
    "quieter": "a component is a thousand times quieter than the others, or than in its last day",
    "rate_wrong": "a channel's time stamps do not go with the sampling rate that it states",
    "records_not_kept": "the records of events cannot be written to the disk",
    "repeats": "a component's samples are those of a moment before, again and again",
    "source": "the source reports a fault",
    "stage_ended": "a thread of the agent has ended",
    "stage_stuck": "a thread of the agent does nothing although packets wait for it",
    "state_in_memory": "state_dir cannot be written: pending messages are held in memory",
    "threshold_high": "the smallest event that would trigger is more than ten times as large as usual",
    "threshold_limit": "the smallest event that would trigger is larger than health.hearing_limit_counts",
    "topic_refused": "the broker refuses a topic",
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
