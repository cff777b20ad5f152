"""Several stations of one site: who must agree, how their verdicts become one, and that no dead one costs an alert."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from agent_support import running_agent, talus, write_config
from broker_support import Collector, needs_mosquitto, running, wait_for
from hypothesis import given, settings
from hypothesis import strategies as st
from site_support import START_NS, packets, write_site

from agent.alert.coincidence import FLOOR, Blindness, CoincidenceJudge, blindness, fuse
from agent.config.file import ClassifierConfig, TunablesConfig, check
from agent.config.policy import CoincidenceConfig
from agent.detect.resume import PendingPackets, decode
from agent.health.report import Health, Identity
from agent.messages.payloads import Message, Priority
from agent.messages.schema import AlertMessage, EventMessage, parse
from agent.service import threads as feeding
from agent.service.assemble import build_line
from agent.types import (
    LABELS,
    NS,
    Classification,
    Detection,
    Event,
    Quality,
    SampleBlock,
    Samples,
    StationId,
    StreamId,
    Vote,
    event_id,
)

T0 = 1_772_366_400 * NS
SITE = StationId("XX", "SITE", "", "")
NAMES = ("XX.A", "XX.B", "XX.C")
WARM_S = 30.0


def sensor(name: str, band: str = "HH") -> StationId:
    network, station = name.split(".")
    return StationId(network, station, "00", band)


def verdict(label: str, probability: float, window_s: float = 3.0, *, abstained: bool = False) -> Classification:
    rest = (1.0 - probability) / (len(LABELS) - 1)
    shares = tuple(probability if name == label else rest for name in LABELS)
    return Classification(label, probability, shares, abstained, window_s, "m", "0" * 64, "constant", "none")


def event(
    name: str,
    onset_s: float,
    after_s: float = 3.0,
    said: Classification | None = None,
    *,
    number: int = 0,
    phase: str = "",
    band: str = "HH",
) -> Event:
    """A revision that says landslide 0.9, ``after_s`` seconds after the onset, unless told otherwise."""
    onset_ns = T0 + round(onset_s * NS)
    station = sensor(name, band)
    return Event(
        id=event_id(station, onset_ns),
        revision=number,
        phase=phase or ("update" if number else "new"),  # type: ignore[arg-type]
        station=station,
        onset_ns=onset_ns,
        detection=Detection(8.0, min(after_s, 10.0), 1000.0, 5.0),
        classification=said or verdict("landslide", 0.9, after_s),
        quality=Quality(0.0, "ENZ"),
        data_ns=onset_ns + round(after_s * NS),
    )


class Bench:
    """A site whose stations are heard when the test says so; times in seconds after ``T0``."""

    def __init__(self, **changes: Any) -> None:
        wanted = CoincidenceConfig(**{"stations": NAMES, "required": 2, "window_s": 10.0, "max_lag_s": 15.0, **changes})
        self.site = CoincidenceJudge(wanted, SITE, Blindness(3.0, WARM_S))

    def hear(self, names: Sequence[str], from_s: float, to_s: float) -> list[Event]:
        """These stations record from here to there, in packets of a second, and the site decides after each."""
        found = []
        for second in np.arange(from_s, to_s, 1.0):
            for name in names:
                block = SampleBlock(StreamId(sensor(name), "Z"), T0 + round(second * NS), 1.0, np.zeros(1, np.int32))
                self.site.heard(block, block.end_ns)
                found += self.site.decide()
        return found

    def take(self, *events: Event) -> list[Event]:
        for one in events:
            self.site.add(one)
        return self.site.decide()


def running_bench(**changes: Any) -> Bench:
    """All three have recorded for a minute and a half, up to second 100."""
    bench = Bench(**changes)
    assert bench.hear(NAMES, 0, 100) == []
    return bench


def degraded(found: Sequence[Event]) -> list[str]:
    return [one.coincidence.degraded or "" for one in found if one.coincidence is not None]


# What enough stations have seen


def test_two_of_three_stations_make_one_event_that_names_them_and_their_votes() -> None:
    bench = running_bench(weights={"XX.B": 2.0})
    [found] = bench.take(event("XX.A", 90), event("XX.B", 94, said=verdict("landslide", 0.6)))
    assert (found.id, found.revision, found.phase) == (event_id(SITE, T0 + 90 * NS), 0, "new")
    assert (found.station, found.onset_ns, found.data_ns) == (SITE, T0 + 90 * NS, T0 + 97 * NS)
    assert found.coincidence is not None
    assert found.coincidence.degraded is None
    assert [(str(v.station)[:4], v.weight, v.classification.probability) for v in found.coincidence.votes] == [
        ("XX.A", 1.0, 0.9),
        ("XX.B", 2.0, 0.6),
    ]


def test_revisions_follow_as_members_join_and_change_and_end() -> None:
    """Each station's newest verdict counts; the last revision comes when all have ended and nobody can join."""
    bench = running_bench()
    found = bench.take(event("XX.A", 90), event("XX.B", 91)) + bench.hear(NAMES, 100, 103)
    found += bench.take(event("XX.A", 90, 10, verdict("collapse", 0.9, 10), number=1), event("XX.C", 97))
    found += bench.hear(NAMES, 103, 120)
    found += bench.take(event("XX.A", 90, 28, number=2, phase="end"), event("XX.B", 91, 28, number=1, phase="end"))
    found += bench.hear(NAMES, 120, 123)
    found += bench.take(event("XX.C", 97, 26, number=1, phase="end"))
    found += bench.hear(NAMES, 123, 130)
    seen = [(one.revision, one.phase, len(one.coincidence.votes)) for one in found if one.coincidence]
    assert seen == [
        (0, "new", 2), (1, "update", 2), (2, "update", 3), (3, "update", 3), (4, "update", 3), (5, "end", 3)
    ]  # fmt: skip
    assert [vote.revision for vote in found[-1].coincidence.votes] == [2, 1, 1]  # type: ignore[union-attr]


def test_one_station_alone_is_local_when_the_others_could_have_seen_it() -> None:
    bench = running_bench()
    bench.take(event("XX.A", 90), event("XX.A", 90, 5, number=1))
    assert bench.hear(NAMES, 100, 140) == []
    assert not bench.site.is_waiting()


def test_a_station_s_event_says_how_it_stands_with_the_site() -> None:
    """Waiting, a member, local, or believed alone: why its own messages carry no alert."""
    bench = running_bench()
    first, second = event("XX.A", 90), event("XX.B", 94)
    bench.take(first)
    assert bench.site.standing(first).code == "site_waits"
    bench.take(second)
    assert bench.site.standing(first).code == "site_member"
    assert (
        bench.site.standing(first).words
        == f"judged with the other stations of the site, as {event_id(SITE, T0 + 90 * NS)}"
    )
    bench = running_bench()
    bench.take(first)
    bench.hear(NAMES, 100, 120)
    assert bench.site.standing(first).code == "site_local"
    bench = Bench()
    bench.hear(("XX.A",), 0, 100)
    assert degraded(bench.take(first))
    assert "coincidence not possible" in bench.site.standing(first).words


def test_the_messages_of_a_local_event_say_that_the_site_did_not_have_it() -> None:
    bench = running_bench()
    classifier = ClassifierConfig(backends=("constant:landslide",))
    reporter = build_line(TunablesConfig(), classifier, "talus/v1", site=bench.site).reporter
    assert bench.hear(NAMES, 100, 103) == []
    messages = reporter.report(event("XX.A", 100), 0)
    assert bench.hear(NAMES, 103, 159) == []
    messages += reporter.report(event("XX.A", 100, 58.0, number=1, phase="end"), 0)
    said = [parse(EventMessage, message.payload) for message in messages if message.name == "event"]
    assert [body.decision.code for body in said if body.decision] == ["site_waits", "site_local"]


def test_onsets_that_lie_too_far_apart_are_two_local_events() -> None:
    bench = running_bench()
    bench.take(event("XX.A", 80), event("XX.B", 90.1))
    assert bench.hear(NAMES, 100, 140) == []


def test_two_sensors_of_one_station_are_one_station() -> None:
    bench = running_bench()
    bench.take(event("XX.A", 90), event("XX.A", 90.5, band="HN"))
    assert bench.hear(NAMES, 100, 140) == []


def test_a_station_has_one_vote_in_each_of_two_events_that_follow_closely() -> None:
    """Two rockfalls eight seconds apart are two events of the site, and each takes its own."""
    bench = running_bench()
    found = bench.take(event("XX.A", 80), event("XX.B", 81), event("XX.A", 88), event("XX.B", 89))
    assert [one.id for one in found] == [event_id(SITE, T0 + 80 * NS), event_id(SITE, T0 + 88 * NS)]
    members = [[vote.event_id for vote in one.coincidence.votes] for one in found if one.coincidence]
    assert members == [[event(n, s).id for n, s in pair] for pair in ([("XX.A", 80), ("XX.B", 81)],
                                                                      [("XX.A", 88), ("XX.B", 89)])]  # fmt: skip


def test_a_station_that_comes_later_than_anyone_waited_for_still_joins() -> None:
    """Its event finds the others', although these were taken to be local."""
    bench = Bench(max_lag_s=5.0, required=3)
    bench.hear(NAMES, 0, 100)
    bench.take(event("XX.A", 90), event("XX.B", 91))
    found = bench.hear(NAMES[:2], 100, 130)
    assert degraded(found) == ["coincidence not possible: 2 of 3 stations could see it; not XX.C"] * 2
    bench.hear(NAMES[2:], 100, 110)
    [late] = bench.take(event("XX.C", 92))
    assert late.station == SITE
    assert [vote.station.station for vote in late.coincidence.votes] == ["A", "B", "C"]  # type: ignore[union-attr]


# What becomes of an event when others cannot see


def test_when_the_others_are_dead_a_station_is_believed_alone_at_once() -> None:
    bench = running_bench()
    bench.hear(NAMES[:1], 100, 150)
    found = bench.take(event("XX.A", 145), event("XX.A", 145, 4, number=1))
    assert [one.id for one in found] == [event("XX.A", 145).id] * 2
    assert degraded(found) == ["coincidence not possible: 1 of 2 stations could see it; not XX.B, XX.C"] * 2


def test_a_station_that_dies_while_it_is_waited_for_costs_nothing_but_the_wait() -> None:
    bench = running_bench(stations=NAMES[:2])
    bench.take(event("XX.A", 99))
    assert bench.hear(NAMES[:1], 100, 115) == []
    found = bench.hear(NAMES[:1], 115, 117)
    assert [one.station for one in found] == [sensor("XX.A")]


def test_a_station_that_has_just_started_could_not_have_seen_it() -> None:
    """Its averages are not warm yet; thirty seconds later it counts."""
    bench = Bench(stations=NAMES[:2])
    bench.hear(NAMES[:1], 0, 60)
    bench.hear(NAMES[1:2], 50, 60)
    bench.hear(NAMES[:2], 60, 75)
    assert degraded(bench.take(event("XX.A", 70)))
    bench.hear(NAMES[:2], 75, 130)
    assert bench.take(event("XX.A", 120)) == bench.hear(NAMES[:2], 130, 150) == []


@pytest.mark.parametrize(("gap_s", "alone"), [(0.9, False), (3.0, True)])
def test_a_station_with_a_gap_about_the_onset_could_not_have_seen_it(gap_s: float, *, alone: bool) -> None:
    bench = Bench(stations=NAMES[:2])
    bench.hear(NAMES[:2], 0, 90)
    bench.hear(NAMES[:1], 90, 91)
    bench.hear(NAMES[1:2], 90 + gap_s, 98)
    bench.hear(NAMES[:1], 91, 98)
    found = bench.take(event("XX.A", 93)) + bench.hear(NAMES[:2], 98, 120)
    assert bool(degraded(found)) is alone


def test_required_stays_what_it_is_while_enough_stations_are_left() -> None:
    """With one of three dead, the other two must still agree."""
    bench = running_bench()
    bench.hear(NAMES[:2], 100, 150)
    assert bench.take(event("XX.A", 140)) == bench.hear(NAMES[:2], 150, 180) == []
    assert [one.station for one in bench.take(event("XX.A", 170), event("XX.B", 172))] == [SITE]


def test_later_revisions_of_an_event_that_is_believed_alone_pass_at_once() -> None:
    """So that its alert can be escalated and withdrawn."""
    bench = running_bench()
    bench.hear(NAMES[:1], 100, 150)
    assert len(bench.take(event("XX.A", 145))) == 1
    bench.hear(NAMES[:1], 150, 156)
    assert degraded(bench.take(event("XX.A", 145, 10, number=1)))


def test_at_the_end_of_the_data_nobody_is_waited_for() -> None:
    bench = running_bench()
    assert bench.take(event("XX.A", 96)) == []
    assert degraded(bench.site.finish())
    assert not bench.site.is_waiting()


def test_a_site_none_of_whose_stations_comes_is_told_of() -> None:
    """As where all its names are mistyped, and what comes alerts by itself."""
    bench = Bench()
    for second in (0, 50, 80):
        assert bench.site.problem() == ""
        start_ns = T0 + second * NS
        bench.site.passed(SampleBlock(StreamId(sensor("XX.X"), "Z"), start_ns, 1.0, np.zeros(1, np.int32)))
    assert bench.site.problem() == "nothing has come from XX.A, XX.B, XX.C of the site since the start"


def test_trouble_is_named_while_no_coincidence_is_possible() -> None:
    bench = Bench()
    assert bench.site.problem() == ""
    bench.hear(NAMES[:2], 0, 50)
    assert bench.site.problem() == ""
    bench.hear(NAMES[:2], 50, 80)
    assert bench.site.problem() == "nothing has come from XX.C of the site since the start"
    bench.hear(NAMES[:1], 80, 110)
    assert bench.site.problem() == (
        "no coincidence is possible, stations alert alone: 1 of 2 stations could see it; not XX.B, XX.C"
    )


@pytest.mark.parametrize("apart_s", [-14.0, 12.0, 60.0])
def test_clocks_that_differ_are_told_of_and_cost_no_alert(apart_s: float) -> None:
    """Each event then counts as local at both stations, and none alerts."""
    bench, chance = Bench(stations=NAMES[:2]), np.random.default_rng(3)

    def happen(at_s: float, apart_s: float) -> list[Event]:
        both = sorted([("XX.A", at_s), ("XX.B", at_s + apart_s + chance.normal(0, 0.3))], key=lambda one: one[1])
        found: list[Event] = []
        for name, onset_s in both:
            found += bench.hear(NAMES[:2], bench_s[0], onset_s + 3) + bench.take(event(name, onset_s))
            bench_s[0] = onset_s + 3
        found += bench.hear(NAMES[:2], bench_s[0], bench_s[0] + 40)
        bench_s[0] += 40
        return found

    bench_s = [0.0]
    for number in range(4):
        assert happen(200 + 400 * number, apart_s) == []
        assert (bench.site.problem() != "") == (number == 3)
    assert "XX.A and XX.B keep a distance of " in bench.site.problem()
    assert len(degraded(happen(2000, apart_s))) == 2
    together = happen(2400, 0.0)  # it was put right
    assert {one.station for one in together} >= {SITE}
    assert bench.site.problem() == ""
    assert happen(2800, apart_s) == []


@pytest.mark.parametrize("seed", range(20))
def test_events_that_have_nothing_to_do_with_each_other_keep_no_distance(seed: int) -> None:
    bench, chance = running_bench(stations=NAMES[:2]), np.random.default_rng(seed)
    onsets = [(name, at) for name in NAMES[:2] for at in chance.uniform(100, 20_000, 100)]
    for name, at in sorted(onsets, key=lambda one: one[1]):
        bench.site._pairing.add(name, T0 + round(at * NS))
    assert bench.site.problem() == ""


# The order in which data come in


@settings(max_examples=60)
@given(st.data())
def test_latencies_change_nothing_as_long_as_everyone_is_waited_for(data: st.DataObject) -> None:
    """Verdicts come in by any order of stations; what follows, and the order of it, is the same."""
    onsets = data.draw(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(50, 90)), max_size=6, unique=True))
    revisions = [event(n, s, a, number=i) for n, s in onsets for i, a in enumerate((3.0, 5.0, 10.0))]
    lags = {name: data.draw(st.floats(0, 14)) for name in NAMES}
    assert play(revisions, lags) == play(revisions, dict.fromkeys(NAMES, 0.0))


def play(revisions: Sequence[Event], lags: dict[str, float]) -> list[Event]:
    """What the site says if each station's packets and verdicts come in so many seconds late."""
    bench = Bench()
    found: list[Event] = []
    arrivals = sorted((second + lags[name], name, second) for name in NAMES for second in range(130))
    for _, name, second in arrivals:
        for one in revisions:
            if one.station.short == name and second < (one.data_ns - T0) / NS <= second + 1:
                bench.site.add(one)
        found += bench.hear([name], second, second + 1)
    return found + bench.site.finish()


# Fusion


def vote(said: Classification | None, weight: float = 1.0, name: str = "XX.A") -> Vote:
    return Vote(sensor(name), event(name, 0).id, 0, "new", T0, weight, said)


def test_the_fused_verdict_is_the_weighted_geometric_mean() -> None:
    one, two = verdict("landslide", 0.8), verdict("earthquake", 0.5, 5.0)
    fused = fuse([vote(one), vote(two, 3.0)])
    logs = (np.log(one.probabilities) + 3 * np.log(two.probabilities)) / 4
    wanted = np.exp(logs) / np.exp(logs).sum()
    assert fused is not None
    assert fused.probabilities == pytest.approx(tuple(wanted))
    assert (fused.label, fused.window_s) == (LABELS[int(wanted.argmax())], 5.0)


def test_no_station_can_rule_a_label_out_alone() -> None:
    sure = replace(verdict("noise", 1.0), probabilities=(0.0, 0.0, 0.0, 0.0, 1.0))
    fused = fuse([vote(verdict("landslide", 0.98))] * 3 + [vote(sure)])
    assert fused is not None
    assert fused.label == "landslide"
    assert math.log(FLOOR) / 4 > -2


def test_stations_without_a_verdict_have_no_vote_and_all_must_abstain() -> None:
    doubtful = verdict("landslide", 0.4, abstained=True)
    assert fuse([vote(None), vote(None)]) is None
    assert fuse([vote(None), vote(doubtful)]).abstained  # type: ignore[union-attr]
    assert not fuse([vote(verdict("landslide", 0.9)), vote(doubtful)]).abstained  # type: ignore[union-attr]


@given(st.permutations([(0.9, 1.0), (0.5, 2.0), (0.3, 0.5)]))
def test_the_order_of_votes_does_not_matter(order: list[tuple[float, float]]) -> None:
    fused, same = (fuse([vote(verdict("collapse", p), w) for p, w in votes]) for votes in (order, sorted(order)))
    assert fused is not None
    assert same is not None
    assert fused.probabilities == pytest.approx(same.probabilities)
    assert sum(fused.probabilities) == pytest.approx(1.0)


# The whole line


BURSTS = {"S1": (400.0, [100.0, 200.0, 330.0]), "S2": (250.0, [103.0]), "S3": (250.0, [105.0])}
"""All three at 100 s; S1 alone at 200 s; S1 at 330 s, when the others are dead."""
TOGETHER = "{coincidence: {stations: [XX.S1, XX.S2, XX.S3], required: 2, weights: {XX.S2: 0.5}}}"


def site_config(folder: Path, records: Path, port: int | None = None, label: str = "landslide", **changes: str) -> Path:
    sections = {
        "station": "{network: XX, station: SITE}",
        "classifier": f"{{backends: ['constant:{label}']}}",
        "site": TOGETHER,
    }
    return write_config(folder, records, port, **{**sections, **changes})


def test_a_replay_alerts_once_for_the_site_and_alone_only_when_it_must(tmp_path: Path) -> None:
    records = write_site(tmp_path / "records", BURSTS)
    status, out, err = talus("replay", "--json", "--config", site_config(tmp_path, records))
    assert status == 0, err
    bodies = [json.loads(line) for line in out.splitlines()]
    alerts = [parse(AlertMessage, json.dumps(b).encode()) for b in bodies if b["schema"] == "talus/alert/1"]
    assert [(a.station[:7], a.onset[11:16], a.action) for a in alerts] == [
        ("XX.SITE", "00:01", "raise"),
        ("XX.S1.0", "00:05", "raise"),
    ]
    site, alone = (alert.coincidence for alert in alerts)
    assert site is not None
    assert alone is not None
    assert [(m.station, m.label, m.weight) for m in site.members] == [
        ("XX.S1.00.HH", "landslide", 1.0),
        ("XX.S2.00.HH", "landslide", 0.5),
    ], "the first two suffice; the third is among the members at the end"
    assert alone.members == []
    assert alone.degraded == "coincidence not possible: 1 of 2 stations could see it; not XX.S2, XX.S3"
    assert alerts[1].reason.endswith(alone.degraded)
    events = [parse(EventMessage, json.dumps(b).encode()) for b in bodies if b["schema"] == "talus/event/1"]
    assert {e.station[:5] for e in events} == {"XX.S1", "XX.S2", "XX.S3", "XX.SI"}
    last = [e for e in events if e.station == "XX.SITE"][-1]
    assert last.phase == "end"
    assert last.coincidence is not None
    assert len(last.coincidence.members) == 3


def published(lag_s: dict[str, float]) -> list[tuple[Any, ...]]:
    """What the site and its alerts say when packets come in with these latencies."""
    wanted = CoincidenceConfig(stations=("XX.S1", "XX.S2", "XX.S3"), max_lag_s=15.0)
    site = CoincidenceJudge(wanted, SITE, Blindness(3.0, WARM_S))
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
    messages: list[Message] = []
    for block in packets(BURSTS, lag_s):
        messages += line.feed(block, 0).messages
    bodies = [json.loads(m.payload) for m in messages if not m.retain]
    return [
        (b["id"], b["revision"], b.get("action"), b["classification"]["probability"], b["coincidence"])
        for b in bodies
        if b["coincidence"] is not None
    ]


def test_the_same_packets_with_other_latencies_give_the_same_alerts() -> None:
    wanted = published({})
    assert len([one for one in wanted if one[2] == "raise"]) == 2
    assert published({"S1": 0.5, "S2": 6.0, "S3": 2.2}) == wanted
    assert published({"S1": 7.3, "S2": 0.1, "S3": 4.0}) == wanted


def degraded_alerts(change: Callable[[SampleBlock, float], SampleBlock | None], required: int = 2) -> list[str]:
    """Alerts, with the words of those that a station raised alone, when S1 has events at 300 and 700 s, S2 has none,
    and S2's packets are changed; the change is also told the second."""
    wanted = CoincidenceConfig(stations=("XX.S1", "XX.S2"), required=required, max_lag_s=15.0)
    site = CoincidenceJudge(wanted, SITE, blindness(TunablesConfig()))
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
    messages: list[Message] = []
    for block in packets({"S1": (900.0, [300.0, 700.0]), "S2": (900.0, [])}, {}):
        second = (block.start_ns - START_NS) / NS
        changed = change(block, second) if block.stream.station.station == "S2" else block
        if changed is not None:
            messages += line.feed(changed, 0).messages
    messages += line.finish(0).messages
    bodies = [json.loads(message.payload) for message in messages if message.priority is Priority.ALERT]
    return [body["coincidence"]["degraded"] for body in bodies]


def _repeated(block: SampleBlock) -> Samples:
    """The same noise for each packet of a component."""
    return np.random.default_rng(ord(block.stream.component)).normal(0, 200, len(block.samples)).astype(np.int32)


WAYS_TO_BE_DEAF: dict[str, Callable[[SampleBlock, float], SampleBlock | None]] = {
    "zeros": lambda block, s: replace(block, samples=block.samples * (s < 120)),
    "full scale": lambda block, s: replace(block, samples=np.where(s < 120, block.samples, 8_388_607)),
    "one packet for ever": lambda block, s: block if s < 120 else replace(block, samples=_repeated(block)),
    "dead shortly before": lambda block, s: replace(block, samples=block.samples * (s < 285)),
    "dead at the onset": lambda block, s: replace(block, samples=block.samples * (s < 301)),
    "a gap in every packet": lambda block, s: replace(block, samples=block.samples[: 100 if s < 120 else 60]),
    "a thousand times the noise": lambda block, s: replace(block, samples=block.samples * (1 if s < 660 else 1000)),
}


@pytest.mark.parametrize("way", WAYS_TO_BE_DEAF)
def test_a_station_that_could_not_have_heard_an_event_holds_back_no_alert(way: str) -> None:
    found = degraded_alerts(WAYS_TO_BE_DEAF[way])
    assert found
    assert all(why is not None and "not XX.S2" in why for why in found), found


def test_a_station_that_hears_and_has_no_event_is_a_vote_against() -> None:
    assert degraded_alerts(lambda block, s: block) == []
    one_dead = degraded_alerts(
        lambda block, s: replace(block, samples=block.samples * (block.stream.component != "N" or s < 120))
    )
    assert one_dead == [], "two of its three components would have heard it"


def test_a_deaf_station_of_a_site_is_named_while_it_lasts() -> None:
    site = CoincidenceJudge(CoincidenceConfig(stations=("XX.S1", "XX.S2")), SITE, blindness(TunablesConfig()))
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
    told = []
    for block in packets({"S1": (300.0, []), "S2": (300.0, [])}, {}):
        second = (block.start_ns - START_NS) / NS
        dead = block.stream.station.station == "S2" and 120 <= second < 200
        line.feed(replace(block, samples=block.samples * (not dead)), 0)
        if second in (60.0, 190.0, 290.0) and block.stream.component == "Z":
            told.append(site.problem())
    while_dead = told[2:4]
    assert all("not XX.S2" in words for words in while_dead), told
    assert [*told[:2], *told[4:]] == [""] * 4, told


class Given:
    """A source that gives packets and then says nothing."""

    def __init__(self, blocks: list[SampleBlock]) -> None:
        self._blocks, self._end = blocks, threading.Event()

    def blocks(self) -> Iterator[SampleBlock]:
        yield from self._blocks
        self._end.wait(60)

    def close(self) -> None:
        self._end.set()


@pytest.mark.parametrize(("max_lag_s", "other_until_s", "alone"), [(2.0, 111.0, True), (100.0, 90.0, False)])
def test_a_silent_site_is_waited_for_as_long_as_its_stations_may_be_late(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_lag_s: float, other_until_s: float, alone: bool
) -> None:
    """Recorders that deliver a minute at a time are silent in between; that is no reason to alert alone."""
    monkeypatch.setattr(feeding, "SILENT_S", 0.3)
    monkeypatch.setattr(feeding, "TICK_S", 0.1)
    site = CoincidenceJudge(
        CoincidenceConfig(stations=("XX.S1", "XX.S2"), max_lag_s=max_lag_s), SITE, Blindness(3.0, WARM_S)
    )
    line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
    source = Given(packets({"S1": (112.0, [100.0]), "S2": (other_until_s, [])}, {}))
    sent: list[Message] = []
    work = feeding.Runner(source, line, Health(Identity(SITE, "0" * 16), tmp_path), sent.extend)
    work.start()
    if alone:
        wait_for(lambda: any(message.topic.endswith("/alert") for message in sent))
    else:
        wait_for(site.is_waiting)
        time.sleep(1.0)
        assert site.is_waiting()
    work.stop(100)
    assert work.failure() is None


@needs_mosquitto
def test_site_event_and_alert_reach_a_broker_and_name_their_members(tmp_path: Path) -> None:
    records = write_site(tmp_path / "records", {"S1": (200.0, [100.0]), "S2": (200.0, [102.0])})
    config = "{coincidence: {stations: [XX.S1, XX.S2]}}"
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:
        path = site_config(tmp_path, records, broker.port, site=config)
        with running_agent("run", "--config", path) as agent:
            assert agent.end() == 0, agent.log
        wait_for(lambda: collector.bodies("XX/SITE/alert"))
        wait_for(lambda: [b for b in collector.bodies("XX/SITE/event") if b["phase"] == "end"])
    [alert] = collector.bodies("XX/SITE/alert")
    assert alert["action"] == "raise"
    assert [m["station"] for m in alert["coincidence"]["members"]] == ["XX.S1.00.HH", "XX.S2.00.HH"]
    assert collector.bodies("XX/S1/alert") == collector.bodies("XX/S2/alert") == []
    assert collector.bodies("XX/S1/event")
    assert collector.bodies("XX/S2/event")


class Runs:
    """Agents one after another on a source that gives again what was not taken; each has the journal of all before."""

    def __init__(self, stations: dict[str, tuple[float, Sequence[float]]], **wanted: Any) -> None:
        self._blocks = packets(stations, {"S1": 0.3, "S2": 1.1, "S3": 2.4})
        self._wanted = CoincidenceConfig(stations=tuple(f"XX.{name}" for name in stations), **wanted)
        self._position = 0
        self._journal: list[bytes] = []
        self.messages: list[Message] = []

    def run(self, until_s: float | None = None) -> None:
        """To this second of the data, then ``kill -9``; None: to the end."""
        site = CoincidenceJudge(self._wanted, SITE, Blindness(3.0, WARM_S))
        line = build_line(TunablesConfig(), ClassifierConfig(backends=("constant:landslide",)), "talus/v1", site=site)
        line.reporter.resume([decode(record) for record in self._journal])
        numbers = {(block.stream, block.end_ns): number for number, block in enumerate(self._blocks)}
        done = set(range(self._position))
        holdback = PendingPackets(line.pipeline, lambda block: done.add(numbers[block.stream, block.end_ns]))
        for block in self._blocks[self._position :]:
            if until_s is not None and block.end_ns > START_NS + until_s * NS:
                break
            messages = line.feed(block, 0).messages
            self.messages += messages
            self._journal += [message.journal for message in messages if message.journal is not None]
            holdback.add(block)
            holdback.release()
        self._position = next(number for number in count() if number not in done)

    def told(self) -> list[tuple[Any, ...]]:
        bodies = [json.loads(message.payload) for message in self.messages if not message.retain]
        return sorted({
            (b["id"], b["revision"], b.get("action", ""), b["phase"], str((b["coincidence"] or {}).get("degraded")))
            for b in bodies
        })  # fmt: skip

    def alerts(self) -> list[tuple[str, str]]:
        bodies = [json.loads(m.payload) for m in self.messages if m.topic.endswith("/alert")]
        return [(body["id"], body["action"]) for body in bodies]


TOGETHER_AND_ALONE = {"S1": (600.0, [300.0, 500.0]), "S2": (400.0, [303.0]), "S3": (400.0, [305.0])}


@pytest.fixture(scope="module")
def whole() -> Runs:
    runs = Runs(TOGETHER_AND_ALONE)
    runs.run()
    return runs


@pytest.mark.parametrize("second", [304, 307, 311, 320, 395, 420, 504, 507, 520])
def test_kill_9_at_any_moment_changes_nothing_that_is_told(second: int, whole: Runs) -> None:
    """What waits, what was put together and what alerted alone goes on: the same alerts, each once."""
    broken = Runs(TOGETHER_AND_ALONE)
    assert [action for _, action in whole.alerts()] == ["raise", "raise"]
    broken.run(second)
    broken.run()
    assert broken.alerts() == whole.alerts()
    assert broken.told() == whole.told()


def test_kill_9_while_a_local_event_waits_raises_no_alert() -> None:
    """The data that came again say that the others could have seen it."""
    runs = Runs({"S1": (500.0, [300.0]), "S2": (500.0, [])})
    runs.run(309)
    runs.run()
    assert runs.alerts() == []


def test_what_waited_alerts_alone_when_its_data_do_not_come_again() -> None:
    """A sender that repeats nothing, such as a Shake: nobody can say now who else saw it."""
    runs = Runs({"S1": (500.0, [300.0]), "S2": (500.0, [])})
    runs.run(309)
    assert runs.alerts() == []
    runs._position = len(runs._blocks) - 6 * 100
    runs.run()
    assert [action for _, action in runs.alerts()] == ["raise"]


# In the configuration


@pytest.mark.parametrize(
    ("site", "reason"),
    [
        ("{stations: [XX.A, XX.B], required: 3}", "must not exceed the number of stations (2)"),
        ("{stations: [XX.A, XX.A]}", "names the same station twice"),
        ("{stations: [XX.A, XX.B], weights: {XX.C: 2}}", "names XX.C, which is not among the stations"),
        ("{stations: [XX.A, B]}", "must be NETWORK.STATION"),
        ("{stations: [XX.A, XX.SITE]}", "must not be one of the site's stations"),
    ],
)
def test_a_site_that_makes_no_sense_is_named(tmp_path: Path, site: str, reason: str) -> None:
    file = tmp_path / "site.yaml"
    head = "station: {network: XX, station: SITE}\nsource: {kind: archive, paths: [x]}\n"
    file.write_text(f"{head}site: {{coincidence: {site}}}\n")
    assert any(reason in str(problem) for problem in check(file))
