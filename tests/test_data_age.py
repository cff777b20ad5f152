"""The age of data: who tells it, what it says while the clock cannot be trusted, and what old data may raise."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from agent_support import running_agent, talus, write_config
from broker_support import own_port, wait_for
from records_support import trace, write
from site_support import ground
from test_cli import digitizer, shake
from test_formats import cap
from test_formats import said as element

from agent.alert.policy import Policy
from agent.alert.reporter import Reporter
from agent.config.file import ClassifierConfig, TunablesConfig
from agent.host.clock import EARLIEST_NS, HostClock, MachineClock
from agent.host.data_age import DAY_S, ROLLOVER_S, STEADY_S, DataAges, rollovers, span
from agent.messages.payloads import Message, Priority
from agent.messages.schema import AlertMessage, EventMessage, SummaryMessage, parse
from agent.messages.text import describe
from agent.reasons import Reason
from agent.service.assemble import build_line
from agent.types import (
    NS,
    Classification,
    Detection,
    Event,
    Quality,
    SampleBlock,
    StationId,
    StreamId,
    event_id,
    parse_ns,
)
from desk.formats.cap import Cap

NOW_NS = parse_ns("2026-11-27T03:00:00Z")
STATION = StationId("XX", "SLOPE", "00", "HH")
SYNCHRONISED = HostClock("chrony", 0.0001, True)
NOBODY_KEEPS_IT = HostClock(None, None, False)
NOT_YET = HostClock("chrony", None, False)
"""A time service that has not set the clock since the start: it shows 1970, or the last shutdown."""


def machine(said: HostClock = SYNCHRONISED, now_ns: int = NOW_NS) -> MachineClock:
    return MachineClock(lambda: said, lambda: now_ns)


def ages(said: HostClock = SYNCHRONISED, now_ns: int = NOW_NS) -> DataAges:
    return DataAges(machine(said, now_ns))


def packet(end_ns: int, station: StationId = STATION) -> SampleBlock:
    return SampleBlock(StreamId(station, "Z"), end_ns - NS, 100.0, np.zeros(100, np.int32))


# Whether this machine's clock is set


@pytest.mark.parametrize(
    ("said", "now_ns", "trust"),
    [
        (SYNCHRONISED, NOW_NS, "synchronised"),
        (HostClock("chrony", 0.7, True), NOW_NS, "synchronised"),
        (HostClock("chrony", -86400.0, True), NOW_NS, "not_set"),
        (NOT_YET, NOW_NS, "not_set"),
        (HostClock("systemd-timesyncd", None, False), NOW_NS, "not_set"),
        (NOBODY_KEEPS_IT, NOW_NS, "unsynchronised"),
        (HostClock(None, None, None), NOW_NS, "unsynchronised"),
        (NOBODY_KEEPS_IT, 100 * NS, "not_set"),
        (SYNCHRONISED, EARLIEST_NS - 1, "not_set"),
    ],
)
def test_a_clock_is_set_when_its_service_says_so_or_when_it_has_none_and_the_time_is_possible(
    said: HostClock, now_ns: int, trust: str
) -> None:
    assert machine(said, now_ns).now().trust == trust


def test_the_earliest_time_is_past() -> None:
    assert time.time_ns() > EARLIEST_NS


# The age of data


def test_data_are_as_old_as_their_newest_sample() -> None:
    assert ages().age(NOW_NS - 700 * NS).seconds == 700.0
    assert ages().age(NOW_NS + 3 * NS).seconds == -3.0


@pytest.mark.parametrize("now_ns", [100 * NS, NOW_NS])
def test_without_a_clock_that_is_set_the_age_is_not_known_but_of_data_older_than_this_software(now_ns: int) -> None:
    unset = ages(NOT_YET, now_ns)
    told = "the age of the data is not known: this machine's clock is not set"
    assert (unset.age(NOW_NS).seconds, unset.age(NOW_NS).unknown) == (None, told)
    old = unset.age(EARLIEST_NS - 3600 * NS)
    assert (old.seconds, old.at_least) == (3600.0, True)


@pytest.mark.parametrize("times", [-1, 1, 2, 3])
def test_a_week_rollover_of_the_recorder_s_gps_is_not_its_data_s_age(times: int) -> None:
    """Whoever is in danger now must be woken though the recorder believes in another decade."""
    behind_ns = round((times * ROLLOVER_S + 2.5) * NS)
    assert ages().age(NOW_NS - behind_ns).seconds == pytest.approx(2.5)
    assert rollovers(times * ROLLOVER_S + 0.9 * DAY_S) == times
    assert rollovers(times * ROLLOVER_S + 1.1 * DAY_S) == 0


def shown(keeper: DataAges, lag_s: Callable[[float], float], seconds: int, station: StationId = STATION) -> DataAges:
    """Packets of a second each, in the last so many seconds of the monotonic clock."""
    begin_s = time.monotonic() - seconds
    for second in range(seconds):
        received_ns = NOW_NS - (seconds - second) * NS
        keeper.saw(packet(received_ns - round(lag_s(second) * NS), station), received_ns, begin_s + second)
    return keeper


def test_live_data_behind_a_clock_that_nothing_synchronises_are_of_unknown_age() -> None:
    """A machine without a time service is twelve minutes ahead after a year. Its alerts must not all be late."""
    drifted = shown(ages(NOBODY_KEEPS_IT), lambda _: 720.0, 2 * round(STEADY_S))
    assert drifted.age(NOW_NS - 720 * NS).seconds is None
    told = drifted.age(NOW_NS - 720 * NS).unknown
    assert told == "data 12 min old by this machine's clock, which nothing synchronises"
    assert drifted.age(NOW_NS - 3 * 86_400 * NS).seconds == 3 * DAY_S, "no clock drifts that far"
    made_up_for = shown(ages(NOBODY_KEEPS_IT), lambda second: 7200.0 - 50 * second, 2 * round(STEADY_S))
    assert made_up_for.age(NOW_NS - 1300 * NS).seconds == 1300.0
    just_begun = shown(ages(NOBODY_KEEPS_IT), lambda _: 720.0, round(STEADY_S / 2))
    assert just_begun.age(NOW_NS - 720 * NS).seconds == 720.0
    known = shown(ages(), lambda _: 720.0, 2 * round(STEADY_S))
    assert known.age(NOW_NS - 720 * NS).seconds == 720.0


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0.4 s"),
        (90, "90 s"),
        (-130, "2.2 min"),
        (7200, "2.0 h"),
        (172_800, "2.0 d"),
        (6.6 * 365 * DAY_S, "2409 d"),
    ],
)
def test_spans_have_the_unit_that_suits_them(seconds: float, words: str) -> None:
    assert span(seconds) == words


# Reasons in health


def reasons(said: HostClock, *lags_s: float) -> list[Reason]:
    keeper = ages(said)
    for number, lag_s in enumerate(lags_s):
        shown(keeper, lambda _, lag_s=lag_s: lag_s, 5, replace(STATION, station=f"S{number}"))  # type: ignore[misc]
    return keeper.reasons(600.0)


@pytest.mark.parametrize(
    ("lag_s", "code", "words"),
    [
        (ROLLOVER_S, "gps_rollover", "the recorder's clock is 1024 weeks behind (GPS week rollover): XX.S0.00.HH"),
        (2 * ROLLOVER_S - 7000, "gps_rollover", "the recorder's clock is 2048 weeks behind (GPS week rollover): "),
        (-ROLLOVER_S, "gps_rollover", "the recorder's clock is 1024 weeks ahead (GPS week rollover): "),
        (3 * DAY_S, "data_late", "samples come 3.0 d late, and alerts on them are late (policy.max_age_s: 600): "),
        (601.0, "data_late", "samples come 10 min late"),
        (-2 * DAY_S, "data_early", "samples are 2.0 d ahead of this machine's clock: "),
    ],
)
def test_data_that_are_far_from_the_clock_are_a_reason_by_name(lag_s: float, code: str, words: str) -> None:
    [found] = reasons(SYNCHRONISED, lag_s)
    assert found.code == code
    assert found.text.startswith(words)
    assert found.about == "XX.S0.00.HH"
    [unknown] = reasons(NOBODY_KEEPS_IT, lag_s)
    assert unknown.code == "data_age_unknown"
    assert "which of the two clocks is wrong cannot be judged" in unknown.text
    assert reasons(NOT_YET, lag_s) == []


def test_a_sensor_whose_files_come_once_an_hour_is_judged_by_the_oldest_of_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The end of each file is new, and its begin, on which most alerts rest, is not."""
    keeper = shown(ages(), lambda second: 3500.0 - 35 * second, 100)
    assert keeper.reasons(600.0) == [], (
        "while they come, the newest counts: a backlog that has been made up for is over"
    )
    monotonic = time.monotonic
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 1800.0)
    [found] = keeper.reasons(600.0)
    assert (found.code, found.text[:22]) == ("data_late", "samples come 58 min la")
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + 7300.0)
    assert keeper.reasons(600.0) == [], "then it is silent, which is a reason of its own"


def test_data_that_come_later_and_later_are_a_reason_long_before_alerts_on_them_are_late() -> None:
    """A link that carries less than the recorder sends: it takes twenty minutes until alerts count as late."""
    keeper = shown(ages(), lambda second: 1.0 + 0.5 * max(0, second - 60), 400)
    [found] = keeper.reasons(600.0)
    assert (found.code, found.text[:12], found.about) == ("data_late", "samples come", "XX.SLOPE.00.HH")
    assert "later than before" in found.text
    assert shown(ages(), lambda _: 300.0, 400).reasons(600.0) == [], "a way that has always been slow is known"
    caught_up = shown(ages(), lambda second: max(1.0, 500.0 - 5 * second), 400)
    assert caught_up.reasons(600.0) == [], "what was made up for is over"
    put_right = shown(ages(), lambda second: -3600.0 if second < 100 else 1.0, 400)
    assert put_right.reasons(600.0) == [], "a clock that was ahead makes no later data late"


def test_reasons_are_grouped_and_what_is_well_is_not_named() -> None:
    assert reasons(SYNCHRONISED, 1.0, -1.0, 599.0) == []
    both, late = reasons(SYNCHRONISED, ROLLOVER_S, ROLLOVER_S, 2.0, 3 * DAY_S)
    assert both.text.endswith(": XX.S0.00.HH, XX.S1.00.HH")
    assert both.about is None
    assert late.about == "XX.S3.00.HH"


# What an alert says


def event(
    number: int = 0, age_s: float = 0.0, *, name: float = 0.0, duration_s: float = 10.0, **changes: object
) -> Event:
    """A revision whose newest sample is so old by this machine's time ``NOW_NS``."""
    data_ns = NOW_NS - round(age_s * NS)
    onset_ns = data_ns - round((5.0 + number) * NS) - round(name * NS)
    shares = (0.025, 0.025, 0.025, 0.9, 0.025)
    verdict = Classification("landslide", 0.9, shares, False, 5.0 + number, "m", "0" * 64, "constant", "none")
    made = Event(
        event_id(STATION, onset_ns), number, "update" if number else "new", STATION, onset_ns,
        Detection(8.0, duration_s, 1000.0, 5.0, 50.0), verdict, Quality(0.0, "ENZ"), data_ns,
    )  # fmt: skip
    return replace(made, **changes)  # type: ignore[arg-type]


def tunables(**policy: object) -> TunablesConfig:
    rules = {"landslide": {"confirm": {"k": 1, "n": 1}}}
    return TunablesConfig.model_validate({"policy": {"rules": rules, **policy}})


def reporter(said: HostClock | None = SYNCHRONISED, **policy: object) -> Reporter:
    settings = tunables(**policy)
    judge = None if said is None else ages(said)
    return Reporter(Policy(settings.policy), "talus/v1", 3600, ages=judge)


def alerts(messages: Sequence[Message]) -> list[AlertMessage]:
    return [parse(AlertMessage, message.payload) for message in messages if message.name == "alert"]


def test_an_alert_on_old_data_is_late_and_says_so_everywhere() -> None:
    messages = reporter().report(event(age_s=7200.0), NOW_NS)
    [body] = alerts(messages)
    assert (body.late, body.severity, body.age_s) == (True, "severe", 7200.0)
    assert body.reason.endswith("; late: the data are 2.0 h old")
    assert body.expires == "2026-11-27T02:00:00.000000000Z", "an hour after the time of its data"
    assert describe(body).startswith("LATE ALERT raise severe")
    summary = next(parse(SummaryMessage, m.payload) for m in messages if m.name == "last_alert")
    assert summary.late
    assert {m.name: m.priority for m in messages if not m.retain} == {"alert": Priority.EVENT, "event": Priority.EVENT}
    root = cap(Cap().document(body))
    assert element(root, "info/urgency") == "Past"
    assert element(root, "info/expires") == "2026-11-27T02:00:00-00:00"
    assert str(element(root, "info/headline")).startswith("LATE, from old data. ")


def test_an_alert_on_new_data_is_not_late() -> None:
    messages = reporter().report(event(age_s=599.0), NOW_NS)
    [body] = alerts(messages)
    assert (body.late, body.age_s) == (False, 599.0)
    assert "late" not in body.reason
    assert next(m for m in messages if m.name == "alert").priority is Priority.ALERT
    assert describe(body).startswith("ALERT raise severe")


@pytest.mark.parametrize("said", [None, SYNCHRONISED])
def test_replays_and_exercises_are_never_late(said: HostClock | None) -> None:
    """A replay shows what the station did; a drill over old records is marked as one."""
    [body] = alerts(reporter(said).report(event(age_s=1e7, exercise=said is not None), NOW_NS))
    assert (body.late, body.age_s) == (False, None)


def test_while_the_clock_is_not_set_an_alert_wakes_and_says_that_its_age_is_not_known() -> None:
    [body] = alerts(reporter(NOT_YET).report(event(age_s=7200.0), NOW_NS))
    assert (body.late, body.age_s) == (False, None)
    assert body.reason.endswith("; the age of the data is not known: this machine's clock is not set")
    [old] = alerts(reporter(NOT_YET).report(event(age_s=(NOW_NS - EARLIEST_NS) / NS + 86_400), NOW_NS))
    assert old.late
    assert old.reason.endswith("; late: the data are at least 24 h old")


def test_late_alerts_can_be_withheld_and_their_events_say_so() -> None:
    messages = reporter(late="withhold").report(event(age_s=7200.0), NOW_NS)
    assert [message.name for message in messages] == ["event", "last_event"]
    decision = parse(EventMessage, messages[0].payload).decision
    assert decision is not None
    assert decision.code == "late"
    assert decision.reason.startswith("withheld, the data are 2.0 h old (policy.late: withhold): landslide 0.90")


def test_a_late_alert_holds_back_no_alert_that_is_not_late() -> None:
    """An hour's backlog is made up for: a rockfall of an hour ago must not silence the one of now."""
    told = reporter()
    small, same = event(age_s=650.0, duration_s=20.0), event(age_s=590.0)
    assert alerts(told.report(small, NOW_NS))[0].late
    [body] = alerts(told.report(same, NOW_NS))
    assert not body.late
    assert alerts(told.report(event(age_s=640.0, name=1.0), NOW_NS)) == [], "while late alerts hold back late ones"


@pytest.mark.parametrize("late", ["mark", "withhold"])
def test_an_event_that_goes_on_into_new_data_is_raised_for_real(late: str) -> None:
    """Its first verdict came of old data; the one that is new must wake someone, as a raise."""
    told = reporter(late=late)
    first = event(age_s=610.0)
    told.report(first, NOW_NS)
    second = replace(event(1, age_s=590.0), id=first.id)
    [body] = alerts(told.report(second, NOW_NS))
    assert (body.action, body.late, body.revision) == ("raise", False, 1)
    assert body.reason.startswith("its alert was late, and the event goes on in new data: ")
    assert alerts(told.report(replace(event(2, age_s=580.0), id=first.id), NOW_NS)) == []


def test_the_retraction_of_an_alert_that_was_withheld_is_withheld() -> None:
    told = reporter(late="withhold")
    first = event(age_s=610.0)
    told.report(first, NOW_NS)
    noise = replace(first.classification, label="noise", probabilities=(0.0, 0.0, 0.0, 0.05, 0.95), window_s=20.0)  # type: ignore[type-var]
    later = replace(event(1, age_s=590.0), id=first.id, classification=noise)
    assert alerts(told.report(later, NOW_NS)) == []


def test_max_age_is_a_setting_that_may_change_while_the_agent_runs() -> None:
    told = reporter()
    told.retune(tunables(max_age_s=10_000.0))
    assert not alerts(told.report(event(age_s=7200.0), NOW_NS))[0].late


def test_the_journal_keeps_that_an_alert_was_late(tmp_path: Path) -> None:
    """After a restart it still holds back nothing that is new."""
    line = build_line(tunables(), ClassifierConfig(backends=("constant",)), "talus/v1", ages=ages())
    line.reporter.resume([])
    messages = line.reporter.report(event(age_s=650.0, duration_s=20.0), NOW_NS)
    journal = [json.loads(message.journal) for message in messages if message.journal]
    assert [record["event"]["late"] for record in journal] == [True]


# The whole service


def keeper(folder: Path, leap: str = "Normal") -> dict[str, str]:
    """An environment in which chrony says that it keeps the clock, or does not yet."""
    program = folder / "bin" / "chronyc"
    program.parent.mkdir()
    stratum = "3" if leap == "Normal" else "0"
    program.write_text(f"#!/bin/sh\necho 'C0A80101,ntp,{stratum},0.0,0.0001,0.0,0.0,0.0,0.0,0.0,1.0,1.0,0.0,{leap}'\n")
    program.chmod(0o755)
    return {"PATH": f"{program.parent}:{os.environ['PATH']}"}


def reported(config: Path) -> dict[str, str]:
    """Reasons of the running agent, by code."""
    body = json.loads(talus("status", "--config", config, "--json")[1] or "{}")
    return {reason["code"]: reason["text"] for reason in body.get("health", {}).get("reasons", [])}


def test_an_event_of_half_an_hour_ago_in_a_new_file_is_told_and_wakes_nobody(tmp_path: Path) -> None:
    """It is younger than the folder's backlog and older than an alert may be."""
    folder = tmp_path / "records"
    folder.mkdir()
    begin_ns = time.time_ns() - 1800 * NS
    everything = "{severity: severe, min_probability: 0.01, min_duration_s: 0, min_window_s: 0, confirm: {k: 1, n: 1}}"
    config = write_config(
        tmp_path, "", source=f"{{kind: folder, paths: ['{folder}']}}",
        classifier="{backends: ['constant:landslide']}",
        tunables=f"{{policy: {{rules: {{landslide: {everything}}}}}}}",
    )  # fmt: skip
    for component, samples in zip("ENZ", ground("SLP", 120.0, [60.0]), strict=True):
        write(folder / component, trace(samples, f"HH{component}", begin_ns))
    with running_agent("run", "--config", config, env=keeper(tmp_path)) as agent:
        wait_for(lambda: any('"talus/alert/' in line for line in agent.printed), what="the alert")
        body = json.loads(next(line for line in agent.printed if '"talus/alert/' in line))
        agent.wait_for("LATE ALERT raise")
    assert (body["late"], body["exercise"]) == (True, False)
    assert 1600 < body["age_s"] < 3000
    assert body["reason"].endswith("min old")
    assert parse_ns(body["expires"]) == parse_ns(body["timing"]["data"]) + 86_400 * NS


@pytest.mark.parametrize(
    ("leap", "code", "words"),
    [
        ("Normal", "gps_rollover", "the recorder's clock is 1024 weeks behind (GPS week rollover): XX.SLP..EH"),
        ("Not synchronised", "clock", "it is not set, and the age of the data is not known"),
    ],
)
def test_a_digitizer_whose_gps_weeks_have_rolled_over_is_named(
    tmp_path: Path, leap: str, code: str, words: str
) -> None:
    """As long as this machine's clock is set; else that is what the station says."""
    port = own_port()
    config = write_config(tmp_path, "", source=shake(port))
    with running_agent("run", "--config", config, env=keeper(tmp_path, leap)), digitizer(port, -ROLLOVER_S):
        wait_for(lambda: code in reported(config), what=code)
        found = reported(config)
    assert words in found[code]
    assert ("gps_rollover" in found) == (leap == "Normal")
