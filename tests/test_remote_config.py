"""Remote configuration step by step: what is accepted, tried, kept, rolled back and refused, and what is on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from control_support import control, envelope, key
from detector_support import T0, ground, packets

from agent.alert.evidence import EvidenceStore
from agent.config.file import ControlConfig, TunablesConfig
from agent.deliver.connection import Received
from agent.detect.pipeline import Pipeline
from agent.dsp.window import BEFORE_NS
from agent.errors import DataError
from agent.inference import load
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.messages.payloads import Stamp
from agent.messages.schema import ConfigReport
from agent.remote.configuration import RemoteConfig, TrialInputs
from agent.remote.gate import CAPACITY, MAX_BYTES, Gate, Refused
from agent.remote.trigger_watch import RECORDS, TriggerWatch, compare
from agent.types import NS, Event, StationId
from desk.push.signing import SigningKey

HERE = StationId("XX", "SLP", "", "")
TOPIC = "talus/v1/XX/SLP/config/set"
WELL = TrialInputs(link_up=True)
NOISE = load(DEFAULT_BUNDLE, ["constant:noise"])[0]
RATE = 100


class Site:
    """A station's remote configuration over a real pipeline and a real store, with a clock that the test moves."""

    def __init__(self, folder: Path, signing: SigningKey, base: TunablesConfig | None = None, **limits: float) -> None:
        self.folder = folder
        self.signing = signing
        self.base = base or TunablesConfig()
        self.control = control(signing, **{"probation_s": 100.0, **limits})
        settings = ControlConfig.model_validate_json(self.control)
        self.remote = RemoteConfig(settings, HERE, self.base, folder)
        trigger = self.remote.effective.trigger
        self.pipeline = Pipeline(trigger, self.remote.effective.verdict.at_s, NOISE)
        self.applied: list[TunablesConfig] = []
        self.now = 0.0
        self.report: ConfigReport | None = None
        self.remote.start(self.apply)
        self.tick()

    def apply(self, tunables: TunablesConfig, then: Callable[[], None]) -> Future[None]:
        done: Future[None] = Future()
        try:
            self.pipeline.retune(tunables.trigger, tunables.verdict.at_s)
        except DataError as error:
            done.set_exception(error)
            return done
        then()
        self.applied.append(tunables)
        done.set_result(None)
        return done

    def tick(self, seconds: float = 2.0, around: TrialInputs = WELL) -> None:
        self.now += seconds
        self.remote.tick(self.now, around)
        self.report = self.remote.report(self.now, lambda: Stamp("0" * 16, 1, 0, 0)) or self.report

    def hears(self, payload: bytes) -> ConfigReport:
        self.remote.gate.offer(Received(TOPIC, payload, retain=True))
        self.tick()
        self.tick()
        assert self.report is not None
        return self.report

    def feed(self, seconds: int, factor: float = 1.0, at_s: int = 0) -> None:
        """Noise; with a factor every other two seconds are louder by it."""
        bursts = [(RATE * s, 2 * RATE, factor) for s in range(4, seconds, 4)] if factor > 1 else []
        for packet in packets({"Z": ground(seconds * RATE, bursts, at_s)}, [RATE], first=at_s * RATE):
            outputs = self.pipeline.feed(packet)
            self.remote.watch.fed(packet, self.pipeline.stations, outputs)

    def again(self) -> Site:
        """After a restart."""
        return Site(self.folder, self.signing, self.base)


@pytest.fixture
def signing(tmp_path: Path) -> SigningKey:
    return key(tmp_path)


@pytest.fixture
def site(tmp_path: Path, signing: SigningKey) -> Site:
    return Site(tmp_path / "control", signing)


def outcomes(site: Site) -> list[tuple[int | None, str, str | None]]:
    assert site.report is not None
    return [(line.revision, line.result, line.kind) for line in site.report.history]


def refusal(site: Site) -> str | None:
    assert site.report is not None
    return site.report.refused[-1].kind if site.report.refused else None


def on_disk(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_signed_change_is_tried_and_kept(site: Site) -> None:
    said = site.hears(envelope(site.signing, 1, {"trigger": {"on": 6.0}}))
    assert (said.status, said.revision) == ("trial", 1)
    assert said.trial_left_s == pytest.approx(98, abs=3)
    assert site.remote.effective.trigger.on == 6.0
    site.feed(70)
    site.tick(99)
    site.tick()
    assert site.report is not None
    assert (site.report.status, site.report.revision) == ("kept", 1)
    assert outcomes(site) == [(1, "trial", None), (1, "kept", None)]
    again = site.again()
    assert again.remote.effective == site.remote.effective
    assert (again.remote.revision, again.remote.effective.trigger.off) == (1, 1.5)


def test_what_the_file_says_stands_where_nothing_was_laid_over_it(tmp_path: Path, signing: SigningKey) -> None:
    base = TunablesConfig.model_validate({"trigger": {"on": 5.0, "off": 2.0}, "verdict": {"at_s": [4.0, 8.0]}})
    site = Site(tmp_path / "control", signing, base)
    site.hears(envelope(signing, 1, {"trigger": {"on": 7}, "verdict": {"at_s": [6]}}))
    assert (site.remote.effective.trigger.on, site.remote.effective.trigger.off) == (7.0, 2.0)
    assert site.remote.effective.verdict.at_s == (6.0,)
    site.hears(envelope(signing, 2, {}))
    assert site.remote.effective == base


@pytest.mark.parametrize(
    "content",
    [
        {"trigger": {"on": 0.1}},
        {"trigger": {"on": "4"}},
        {"trigger": {"on": 1.4}},
        {"trigger": None},
        {"trigger": {"threshold": 4}},
        {"mqtt": {"host": "evil.example"}},
        {"classifier": {"bundle": "/home/x"}},
        {"reporting": {"health_interval_s": 0}},
        {"policy": {"rules": {"landslide": {"confirm": {"k": 3, "n": 2}}}}},
        {"verdict": {"at_s": []}},
        {"trigger": {"max_duration_s": 1.5}},
        {"policy": {"rules": {"landslide": {"min_duration_s": 301}}}},
        {"policy": {"slow": {"min_duration_s": 600}}, "trigger": {"slow": {"max_duration_s": 300}}},
        {"trigger": {"on": 6.0, "off": 3.0}, "verdict": {"at_s": [5, 3]}},
    ],
)
def test_settings_are_valid_as_a_whole_or_refused_as_a_whole(site: Site, content: dict[str, Any]) -> None:
    before = on_disk(site.folder)
    said = site.hears(envelope(site.signing, 1, content))
    assert said.refused[-1].kind == "invalid"
    assert (said.status, said.revision, said.highest, said.history) == ("file", None, 0, [])
    assert site.applied == []
    assert on_disk(site.folder) == before


def test_whatever_is_not_a_genuine_order_for_here_is_refused_and_leaves_no_trace(tmp_path: Path, site: Site) -> None:
    order = envelope(site.signing, 5, {"trigger": {"on": 6.0}})
    site.hears(order)
    before, applied = on_disk(site.folder), len(site.applied)
    stranger, past = key(tmp_path, "stranger"), T0
    bad = {
        "unknown_key": envelope(stranger, 6, {}),
        "signature": envelope(site.signing, 6, {}).replace(b'"body":"ey', b'"body":"eY'),
        "old_revision": envelope(site.signing, 4, {}),
        "other_station": envelope(site.signing, 6, {}, stations=("XX.ELSE",)),
        "expired": envelope(site.signing, 6, {}, issued_ns=past, expires_ns=past + NS),
        "other_kind": envelope(site.signing, 6, {}, kind="model"),
        "malformed": b"{",
    }
    for number, (kind, payload) in enumerate(bad.items(), 1):
        said = site.hears(payload)
        assert refusal(site) == kind
        assert said.refused[-1].envelope == hashlib.sha256(payload).hexdigest()
        assert said.refusals == number
        assert (said.status, said.revision) == ("trial", 5)
    assert on_disk(site.folder) == before
    assert len(site.applied) == applied


def test_a_message_that_comes_again_is_refused_once_and_never_obeyed_again(site: Site) -> None:
    """Retained orders come with every connection: neither a restart nor a roll back makes them new."""
    first, second = (envelope(site.signing, n, {"trigger": {"on": 5.0 + n}}) for n in (1, 2))
    for order in (first, second, second):
        site.hears(order)
    assert outcomes(site) == [(1, "trial", None), (1, "rolled_back", "superseded"), (2, "trial", None)]
    for _ in range(3):
        assert site.hears(b"rubbish").refusals == 1
    again = site.again()
    again.hears(second)
    assert outcomes(again)[3:] == [(2, "rolled_back", "restart")]
    again.hears(first)
    assert (refusal(again), again.remote.revision) == ("old_revision", None)


def test_a_flood_of_events_rolls_back(site: Site) -> None:
    site.feed(120, 3.0)
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 1.6, "off": 1.2, "merge_s": 0.0, "sta_s": 0.2}}))
    site.feed(50, 3.0, at_s=120)
    site.tick()
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "flood")
    assert site.report is not None
    assert "events in" in str(site.report.history[-1].reason)
    assert (site.report.status, site.remote.effective.trigger.on) == ("file", 4.0)
    assert site.applied[-1] == site.base


def test_a_trigger_that_hardly_ever_ends_rolls_back(site: Site) -> None:
    site.feed(60)
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 1.1, "off": 0.1}}))
    site.feed(58, at_s=60)
    site.tick()
    assert outcomes(site)[-1] == (1, "trial", None)
    site.feed(4, at_s=118)
    site.tick()
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "flood")
    assert site.report is not None
    assert "triggered for" in str(site.report.history[-1].reason)


@pytest.mark.parametrize(
    "trigger",
    [
        {"on": 400.0},
        {"min_duration_s": 60.0},
        {"on": 20.0},
        {"low_hz": 0.1, "high_hz": 0.5},
        {"high_hz": 2.0},
        {"low_hz": 30.0, "high_hz": 40.0},
    ],
)
def test_settings_that_hear_nothing_any_more_roll_back(site: Site, trigger: dict[str, float]) -> None:
    site.feed(300)
    site.hears(envelope(site.signing, 1, {"trigger": trigger}))
    site.feed(40, at_s=300)
    site.tick()
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "deaf")
    assert site.applied[-1] == site.base


@pytest.mark.parametrize("trigger", [{"on": 8.0, "lta_s": 60.0}, {"low_hz": 5.0}, {"low_hz": 0.5, "high_hz": 40.0}])
def test_a_threshold_that_is_raised_with_measure_is_kept(site: Site, trigger: dict[str, float]) -> None:
    site.feed(300)
    site.hears(envelope(site.signing, 1, {"trigger": trigger}))
    site.feed(120, at_s=300)
    site.tick(101)
    site.tick()
    assert outcomes(site)[-1] == (1, "kept", None)


def recorded(folder: Path, seconds: int = 1200) -> list[Path]:
    """The records of six events at a station, as it keeps them."""
    pipeline = Pipeline(TunablesConfig().trigger, (3.0,), NOISE)
    store = EvidenceStore(folder, 10)
    bursts = [(RATE * s, 5 * RATE, 12.0) for s in range(100, seconds - 100, 190)]
    for packet in packets({c: ground(seconds * RATE, bursts, seed) for seed, c in enumerate("ENZ")}, [RATE]):
        for output in pipeline.feed(packet):
            if isinstance(output, Event) and output.phase == "end":
                station = pipeline.stations[output.station]
                store.keep(output.id, station.recorded(output.onset_ns - BEFORE_NS, output.data_ns))
    return store.newest(RECORDS)


@pytest.mark.parametrize(
    ("trigger", "share"),
    [
        ({"on": 5.0}, 0.0),
        ({"on": 3.0, "lta_s": 300.0}, 0.0),
        ({"combine": "coincidence"}, 0.0),
        ({"on": 400.0}, 1.0),
        ({"on": 1.1, "off": 0.1}, 1.0),
        ({"min_duration_s": 30.0}, 1.0),
        ({"on": 1.2, "off": 0.5, "merge_s": 60.0}, 1.0),
    ],
)
def test_known_events_are_found_again_or_named(tmp_path: Path, trigger: dict[str, Any], share: float) -> None:
    records = recorded(tmp_path)
    assert len(records) == 6
    after = TunablesConfig.model_validate({"trigger": trigger}).trigger
    *_, known = compare(records, TunablesConfig().trigger, after)
    assert (known.events, known.share) == (6, share), known
    assert set(known.lost) <= {path.stem for path in records}


def test_a_change_that_loses_known_events_rolls_back_and_one_that_loses_none_is_kept(
    tmp_path: Path, site: Site
) -> None:
    records = recorded(tmp_path / "evidence")
    (tmp_path / "evidence" / "XX.SLP..HH-20260301T000000.000Z.mseed").write_bytes(b"no record")
    site.remote.start(site.apply, lambda before, after: compare([*records, *tmp_path.glob("evidence/*000Z.mseed")],
                                                                before, after))  # fmt: skip
    site.feed(100)
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 1.1, "off": 0.1}}))
    for _ in range(9):
        site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "known_events")
    assert site.report is not None
    assert "6 of 6 events on record would be lost, such as XX." in str(site.report.history[-1].reason)
    site.hears(envelope(site.signing, 2, {"trigger": {"on": 5.0}}))
    site.feed(70, at_s=100)
    site.tick(101)
    assert outcomes(site)[-1] == (2, "trial", None), "not before all records are tried"
    for _ in range(9):
        site.tick()
    assert outcomes(site)[-1] == (2, "kept", None)


def test_a_lively_slope_is_no_flood(tmp_path: Path, signing: SigningKey) -> None:
    """As many events as before are the slope's doing, not the settings'."""
    watch = TriggerWatch()
    pipeline = Pipeline(TunablesConfig().trigger, (3.0,), NOISE)

    def feed(seconds: int, at_s: int) -> None:
        bursts = [(RATE * s, RATE, 12.0) for s in range(10, seconds, 8)]
        for packet in packets({"Z": ground(seconds * RATE, bursts, at_s)}, [RATE], first=at_s * RATE):
            watch.fed(packet, pipeline.stations, pipeline.feed(packet))

    feed(180, 0)
    watch.begin(ControlConfig())
    feed(180, 180)
    assert watch.sanity.harm is None
    assert watch.sanity.data_s == pytest.approx(180, abs=1)


def test_a_link_that_goes_down_in_the_trial_and_stays_down_rolls_back(site: Site) -> None:
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 6.0}}))
    down = TrialInputs(link_up=False)
    site.tick(10, down)
    site.tick(30, down)
    site.tick(10)
    site.tick(10, down)
    assert outcomes(site)[-1] == (1, "trial", None)
    site.tick(51, down)
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "link")


def test_a_channel_that_falls_silent_in_the_trial_rolls_back(site: Site) -> None:
    silent = TrialInputs(link_up=True, silent={"FDSN:XX_SLP__H_H_E"})
    site.tick(around=silent)
    site.remote.gate.offer(Received(TOPIC, envelope(site.signing, 1, {}), retain=True))
    for _ in range(3):
        site.tick(around=silent)
    assert outcomes(site)[-1] == (1, "trial", None)
    site.tick(around=TrialInputs(link_up=True, silent={*silent.silent, "FDSN:XX_SLP__H_H_Z"}))
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "source")
    assert "H_H_Z" in str(site.report and site.report.history[-1].reason)


def test_without_data_a_trial_is_neither_kept_nor_rolled_back(site: Site) -> None:
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 6.0}}))
    site.tick(5000)
    assert outcomes(site)[-1] == (1, "trial", None)
    site.feed(70)
    site.tick()
    site.tick()
    assert outcomes(site)[-1] == (1, "kept", None)


def test_settings_that_the_pipeline_cannot_use_are_rolled_back(site: Site) -> None:
    site.feed(10)
    site.hears(envelope(site.signing, 1, {"trigger": {"low_hz": 45.0, "high_hz": 60.0}}))
    site.tick()
    site.tick()
    assert outcomes(site)[-1] == (1, "rolled_back", "unusable")
    assert site.remote.effective == site.base
    site.feed(10, at_s=10)


def test_settings_of_the_file_that_the_pipeline_cannot_use_are_a_problem_and_the_former_stay(site: Site) -> None:
    site.feed(10)
    band = TunablesConfig.model_validate({"trigger": {"low_hz": 45.0, "high_hz": 60.0}})
    site.remote.reload(ControlConfig.model_validate_json(site.control), band)
    for _ in range(3):
        site.tick()
    assert site.remote.effective == site.base
    (problem,) = site.remote.problems()
    assert problem.startswith("the settings of the file cannot be used")
    site.feed(10, at_s=10)


def test_the_file_may_change_below_what_was_laid_over_it(site: Site) -> None:
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 6.0}}))
    site.feed(70)
    site.tick(101)
    settings = ControlConfig.model_validate_json(control(site.signing))
    site.remote.reload(settings, TunablesConfig.model_validate({"trigger": {"off": 2.0}}))
    site.tick()
    assert (site.remote.effective.trigger.on, site.remote.effective.trigger.off) == (6.0, 2.0)
    site.remote.reload(settings, TunablesConfig.model_validate({"trigger": {"on": 9.0, "off": 7.0}}))
    site.tick()
    site.tick()
    assert site.remote.effective.trigger.on == 9.0
    assert "does not fit" in site.remote.problems()[0]


def test_a_key_that_is_taken_from_the_file_is_not_obeyed(site: Site) -> None:
    site.remote.reload(ControlConfig(), TunablesConfig())
    site.tick()
    site.tick()
    site.hears(envelope(site.signing, 1, {}))
    assert refusal(site) == "unknown_key"


def test_a_damaged_store_is_reported_and_the_file_is_active(site: Site) -> None:
    site.hears(envelope(site.signing, 1, {"trigger": {"on": 6.0}}))
    site.feed(70)
    site.tick(101)
    (stored,) = site.folder.iterdir()
    stored.write_bytes(stored.read_bytes()[:-5])
    again = site.again()
    assert "damaged" in again.remote.problems()[0]
    assert again.remote.effective == site.base
    again.hears(envelope(site.signing, 2, {"trigger": {"on": 7.0}}))
    assert again.remote.effective.trigger.on == 7.0


def test_what_waits_at_the_gate_is_bounded_and_the_newest_counts(
    tmp_path: Path, signing: SigningKey, caplog: pytest.LogCaptureFixture
) -> None:
    gate = Gate("config", HERE, tmp_path, [], lambda content: content)
    for payload in (b"", b"x" * (MAX_BYTES + 1)):
        assert gate.offer(Received(TOPIC, payload, retain=True))
    assert gate.next() is None
    assert "1 messages" in caplog.text
    sent = [b"%d" % number for number in range(10 * CAPACITY)]
    for payload in sent:
        assert gate.offer(Received(TOPIC, payload, retain=False))
    judged = [refused.outcome.envelope for refused in iter(gate.next, None) if isinstance(refused, Refused)]
    assert judged == [hashlib.sha256(payload).hexdigest() for payload in sent[-CAPACITY:]]


def test_a_storm_of_rubbish_makes_few_reports(site: Site) -> None:
    reports = 0
    for number in range(500):
        site.remote.gate.offer(Received(TOPIC, b"%d" % number, retain=False))
        site.now += 0.01
        site.remote.tick(site.now, WELL)
        reports += site.remote.report(site.now, lambda: Stamp("0" * 16, 1, 0, 0)) is not None
    assert reports <= 6
    assert site.remote.report(site.now + 2, lambda: Stamp("0" * 16, 1, 0, 0)) is not None
