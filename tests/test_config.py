"""The configuration file: what is refused, in which words, and what is kept secret."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
from config_support import BASE, BROKEN, STATION
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.config.broker import MqttSettings
from agent.config.explain import validate
from agent.config.file import Config, ConfigFileError, TunablesConfig, check, digest, load
from agent.config.policy import SIZE_STEPS
from agent.config.reference import catalogue
from agent.config.station import stations_of
from agent.errors import ConfigError
from agent.remote.doubts import about_file
from agent.types import LABELS
from demo.pages import rewrite

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted(path for path in (ROOT / "configs").glob("*.yaml") if path.name != "desk.yaml")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TALUS_MQTT_PASSWORD", raising=False)


def told(text: str | bytes) -> list[str]:
    """The messages about a file ``site.yaml`` with this content."""
    Path("site.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    return [str(problem) for problem in check("site.yaml")]


def loaded(text: str) -> Config:
    Path("site.yaml").write_text(text, encoding="utf-8")
    return load("site.yaml")


# Broken files, and what a stranger is told


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_explained_completely(name: str) -> None:
    """Every error at once, each with line, field, reason and value; nothing else is claimed."""
    text, messages = BROKEN[name]
    assert sorted(told(text)) == sorted(messages)
    with pytest.raises(ConfigFileError) as caught:
        load("site.yaml")
    assert sorted(str(problem) for problem in caught.value.problems) == sorted(messages)
    assert "hunter2" not in str(caught.value)


def test_problems_come_in_the_order_of_the_lines() -> None:
    told(str(BROKEN["rules"][0]))
    lines = [problem.line for problem in check("site.yaml")]
    assert lines == sorted(lines)


def test_a_file_that_is_not_there_or_is_a_folder() -> None:
    assert [str(p) for p in check("none.yaml")] == ["none.yaml: cannot be read: No such file or directory"]
    assert [str(p) for p in check(".")] == [".: cannot be read: Is a directory"]
    with pytest.raises(ConfigError, match=r"No such file or directory\n  hint: check the path"):
        load("none.yaml")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
            f"{k}: &{k} [{','.join(['*' + chr(ord(k) - 1)] * 9)}]\n" for k in "bcdefgh"
        ), "more than 10000 values; does an alias multiply itself?"),
        ("a: &a [*a]\n", "an anchor that contains its own alias"),
        ("[" * 100_000, "is nested more than 20 levels deep"),
        ("{a: " * 50_000, "is nested more than 20 levels deep"),
    ],
)  # fmt: skip
def test_hostile_yaml_is_refused_at_once(text: str, reason: str) -> None:
    """Alias bombs, loops and towers of brackets end with one message, not with the memory or the stack."""
    (message,) = told(text)
    assert reason in message


@settings(max_examples=150)
@given(st.text(st.sampled_from("stationork: {}[]&*!|>'\"#%@-,\n\t 01.e~\\?<é\x07\u2028INFafUu"), max_size=80))
def test_any_text_gives_problems_and_no_exception(text: str) -> None:
    """No text crashes the reading; whatever is wrong comes back as printable one-line problems."""
    problems = told(text)
    assert problems
    assert all(message.isprintable() for message in problems)


WORDS = [
    ".inf", ".Inf", ".INF", "-.Inf", "+.INF", ".nan", ".NaN", ".NAN", "1e999", "-1e999", "4.9e-324", "1e308", "5.",
    ".5", "-0", "0o17", "0x1F", "1_000", "1:30", "2026-01-01", "9" * 15, "9" * 30, "[.Inf]", "{on: .NaN}", "~", "Null",
    "yes", "true", "[]", "{}", "[[]]", "{a: b}", "{? a : b}", "a: b: c", "''", "'", '"', '""', "|", ">", "-", "?", ":",
    "&", "*", "!", "@", "%", "`", "#", "&x", "*x", "<<", "---", "...", "!!int", "!!float .Inf", "!!str", "!!x/y",
    r'"\0"', r'"/a\0b"', r'"\ud800"', r'"/\udc80"', r'"\x07"', r'"\uFFFE"', "é", "\u2028", "\U0001f600",
    "a" * 300, "/" + "a" * 5000, "/", "//", ".", "..", "~/x", "$HOME", "/dev/null", "/**", "[a-", "0.0.0.0:1", "::1",
    "1.2.3.4/99", "!!binary aGk=",
]  # fmt: skip
"""What a hand or a program may put where a value belongs."""
ANY = "station: {network: XX, station: A}, source: {kind: archive, paths: [/]}"
PLACES = (
    "{station: {network: V, station: V, name: V, latitude_deg: V}, source: {kind: archive, paths: [V]}, state_dir: V}",
    "{source: {kind: seedlink, servers: [{host: V, port: V, tls: {ca_file: V}, stations: [{station: V}]}]}}",
    "{source: {kind: shake_udp, senders: [{address: V}], rate_hz: V}, health: {prometheus: V}}",
    "{source: {kind: folder, paths: [V], backlog_s: V}, mqtt: {host: V, port: V, password_file: V, username: V}}",
    "{source: {kind: simulator, start: V, seed: V}, mqtt: {host: h, tls: {cert_file: V, key_file: V}}}",
    f"{{{ANY}, tunables: {{trigger: {{on: V, sta_s: V}}, verdict: {{at_s: [V, V]}}, policy: {{landslide: V}}}}}}",
    f"{{{ANY}, site: {{coincidence: {{stations: [V, V], window_s: V}}}}, evidence: {{max_mb: V}}, log: {{level: V}}}}",
    f"{{{ANY}, control: {{keys: [{{name: V, file: V}}], probation_s: V}}, classifier: {{bundle: V}}, client_id: V}}",
)


@settings(max_examples=150)
@given(st.sampled_from(PLACES), st.lists(st.sampled_from(WORDS), min_size=12, max_size=12))
def test_any_word_in_any_place_of_the_file_gives_problems_and_no_exception(place: str, words: list[str]) -> None:
    """As text, through YAML, the sections, and what they refer to: an agent that runs must not end of its own file."""
    text = re.sub(r"\bV\b", lambda _: words.pop(), place)
    for message in told(text):
        assert message.isprintable()
        message.encode()
    try:
        load("site.yaml")
    except ConfigError as error:
        assert error.hint


def test_a_fault_of_the_reading_itself_is_an_error_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """No exception but ConfigError leaves it: one would end the agent at SIGHUP, and again at every start."""

    def broken(_: object) -> None:
        raise ZeroDivisionError("a fault of our own")

    monkeypatch.setattr("agent.config.file.remarks", broken)
    with pytest.raises(ConfigFileError, match=r"cannot be checked \(ZeroDivisionError: a fault of our own\)"):
        loaded(BASE)


SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 10**20), st.floats(), st.text(max_size=8), st.just([]), st.just({})
)


@settings(max_examples=150)
@given(st.sampled_from([path for path in catalogue() if path and not re.search(r"\[\]|:\w+$", path)]), SCALARS)
def test_any_value_in_any_field_is_taken_or_told_at_that_field(path: str, value: object) -> None:
    """One value of any type anywhere: either it is accepted as it is, or the message names that very field."""
    document: dict[str, Any] = {
        "station": {"network": "XX", "station": "SLOPE"},
        "source": {"kind": "archive", "paths": ("/",)},
    }
    section, _, setting = path.partition(":")
    kind, _, setting = setting.partition(".")
    if setting:
        required = {e.path: e.example for e in catalogue().values() if e.required and "[]" not in e.path}
        document[section] = {
            name: example for (owner, _, name), example in ((p.rpartition("."), e) for p, e in required.items())
            if owner == f"{section}:{kind}"
        }  # fmt: skip
        path = f"{section}.{setting}"
    place = document
    *parents, last = path.split(".")
    for parent in parents:
        place = place.setdefault(parent, {})
    if parents[:1] == ["mqtt"]:
        document["mqtt"]["host"] = "localhost"
    place[last] = tuple(value) if isinstance(value, list) else value
    config, findings = validate(Config, document, {"base": "/"})
    assert (config is None) == bool(findings)
    # A section that is set may lack what it requires, and one bound may collide with another field's default.
    assert all(".".join(map(str, f.loc)).startswith((path, path.rpartition(".")[0])) for f in findings)


# What is taken


def test_the_smallest_file_gives_the_defaults() -> None:
    config = loaded(BASE)
    assert config.tunables == TunablesConfig()
    assert config.mqtt is None
    assert (config.tunables.trigger.on, config.tunables.trigger.off) == (4.0, 1.5)
    assert config.tunables.verdict.at_s == (3.0, 5.0, 7.0, 10.0, 13.0, 16.0, 20.0, 40.0, 80.0)
    assert config.outbox_path == Path("/var/lib/talus/outbox.sqlite3")
    assert config.client_id == "talus-XX.SLOPE"


def test_scalars_are_those_of_yaml_1_2() -> None:
    """YAML 1.1 would read NO as false, 'on' as true and 1e1 as text."""
    config = loaded("station: {network: NO, station: '0123'}\nsource: {kind: archive, paths: [on]}\n"
                    "tunables: {trigger: {on: 1e1, off: 2}}\n")  # fmt: skip
    assert config.station.network == "NO"
    assert Path(config.source.paths[0]).name == "on"
    assert config.tunables.trigger.on == 10.0


def test_a_partial_rule_keeps_the_other_defaults_of_its_label() -> None:
    rules = loaded(BASE + "tunables: {policy: {rules: {landslide: {refractory_s: 60}}}}\n").tunables.policy.rules
    assert (rules.landslide.severity, rules.landslide.min_probability) == ("moderate", 0.7)
    assert rules.landslide.refractory_s == 60.0
    assert rules.collapse.severity == "moderate"
    assert rules.landslide.escalate == rules.collapse.escalate == SIZE_STEPS


def test_anchors_may_be_used() -> None:
    text = "tunables: {policy: {rules: {landslide: {confirm: &two {k: 2, n: 2}}, collapse: {confirm: *two}}}}\n"
    rules = loaded(BASE + text).tunables.policy.rules
    assert rules.landslide.confirm == rules.collapse.confirm


def test_a_byte_order_mark_and_windows_line_ends_are_taken() -> None:
    Path("site.yaml").write_bytes(b"\xef\xbb\xbf" + BASE.replace("\n", "\r\n").encode())
    assert load("site.yaml").station.station == "SLOPE"


def test_relative_paths_start_at_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service started elsewhere finds the same files; brackets in a folder's name are no wildcard."""
    folder = tmp_path / "etc [1]"
    folder.mkdir()
    (folder / "a.mseed").touch()
    (folder / "site.yaml").write_text(
        STATION + "source: {kind: archive, paths: ['*.mseed', a.mseed, /abs, ~/x]}\nstate_dir: state\n",
        encoding="utf-8",
    )
    monkeypatch.chdir("/")
    monkeypatch.setenv("HOME", "/home/slope")
    config = load(folder / "site.yaml")
    assert config.state_dir == folder / "state"
    assert config.outbox_path == folder / "state" / "outbox.sqlite3"
    assert config.source.paths[1:] == (str(folder / "a.mseed"), "/abs", "/home/slope/x")
    assert [p.value for p in check(folder / "site.yaml") if "paths" in p.field] == ["/abs", "~/x"]


# The digest


def test_the_digest_sees_what_is_meant_not_how_it_is_written() -> None:
    plain = digest(loaded(BASE))
    assert digest(loaded("# note\n" + BASE + "tunables: {trigger: {on: 4}}\nlog: {level: info}\n")) == plain
    assert digest(loaded(BASE + "tunables: {trigger: {on: 4.1}}\n")) != plain
    assert digest(loaded(BASE).tunables) == digest(TunablesConfig())


def test_the_digest_holds_no_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same digest whatever the password: it cannot be used to guess it."""
    text = BASE + "mqtt: {host: localhost, username: me, password_env: TALUS_MQTT_PASSWORD}\n"
    monkeypatch.setenv("TALUS_MQTT_PASSWORD", "one")
    first = digest(loaded(text))
    monkeypatch.setenv("TALUS_MQTT_PASSWORD", "two")
    assert digest(loaded(text)) == first


# Secrets and surroundings

BROKER = BASE + "mqtt: {host: 127.0.0.1, username: me, password_file: secret}\n"


def test_a_password_comes_from_a_file() -> None:
    Path("secret").write_text("hunter2\n", encoding="utf-8")
    Path("secret").chmod(0o600)
    assert told(BROKER) == []
    mqtt = loaded(BROKER).mqtt
    assert mqtt is not None
    password = mqtt.password()
    assert password is not None
    assert password.get_secret_value() == "hunter2"
    assert "hunter2" not in f"{password!r} {mqtt!r} {mqtt.settings('id')!r}"
    assert mqtt.settings("id").password == "hunter2"  # noqa: S105


def test_a_password_file_that_others_may_read_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    Path("secret").write_text("hunter2", encoding="utf-8")
    Path("secret").chmod(0o644)
    (message,) = told(BROKER)
    assert message == (
        "site.yaml:3: warning: mqtt.password_file: others than its owner may use this file (mode 0644); chmod 600"
    )
    assert loaded(BROKER).mqtt is not None
    assert message in caplog.text


def test_a_password_that_is_not_there() -> None:
    """A missing file is an error; a variable may yet be set by the service, so its absence is one at the start only."""
    assert told(BROKER) == ["site.yaml:3: mqtt.password_file: cannot be read: No such file or directory"]
    text = BASE + "mqtt: {host: '::1', username: me, password_env: TALUS_MQTT_PASSWORD}\n"
    assert told(text) == [
        "site.yaml:3: warning: mqtt.password_env: this variable is not set here; the agent needs it when it starts"
    ]
    mqtt = loaded(text).mqtt
    assert mqtt is not None
    with pytest.raises(ConfigError, match="TALUS_MQTT_PASSWORD is not set or empty"):
        mqtt.settings("id")


def test_an_ipv6_address_stands_in_brackets() -> None:
    assert MqttSettings.from_url("mqtt://[::1]").address == "[::1]:1883"


def test_a_credential_of_the_service_is_asked_for_in_the_service_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """It exists while the service runs, and nobody else may look: no warning that nobody can follow."""
    credential = "/run/credentials/talus-agent.service/mqtt"
    text = BASE + f"mqtt: {{host: localhost, username: me, password_file: {credential}}}\n"
    monkeypatch.delenv("SYSTEMD_EXEC_PID", raising=False)
    assert told(text) == []
    monkeypatch.setenv("SYSTEMD_EXEC_PID", str(os.getpid()))
    (message,) = told(text)
    assert message.startswith(
        "site.yaml:3: mqtt.password_file: cannot be read: No such file or directory; LoadCredential"
    )


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_shipped_example_is_good_as_it_is(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the folder of the project, as the README has it, and from any other; without a single warning."""
    for name in ("TALUS_MQTT_PASSWORD", "SYSTEMD_EXEC_PID"):
        monkeypatch.delenv(name, raising=False)
    assert check(path) == []
    monkeypatch.chdir(ROOT)
    assert check(path.relative_to(ROOT)) == []


def test_a_password_in_the_clear_is_a_warning() -> None:
    os.environ["TALUS_MQTT_PASSWORD"] = "x"  # noqa: S105 - removed by the fixture
    text = BASE + "mqtt: {host: 10.0.0.1, username: me, password_env: TALUS_MQTT_PASSWORD%s}\n"
    assert told(text % "") == [
        "site.yaml:3: warning: mqtt.username: goes over the network in the clear with its password; add a tls section "
        "(given: me)"
    ]
    assert told(text % ", tls: {}") == []
    mqtt = loaded(text % ", tls: {}").mqtt
    assert mqtt is not None
    assert mqtt.settings("id").port == 8883


QUOTE = "'"
SEEDLINK = """station: {network: XX, station: SLOPE}
source: {kind: seedlink, servers: [{host: h, stations: [{station: %s}]}]}
"""


@pytest.mark.parametrize("name", ["XX_SLOPE", "XX_*", "'*_*'"])
def test_the_stations_own_data_are_expected(name: str) -> None:
    assert told(SEEDLINK % name) == []


@pytest.mark.parametrize("name", ["TW_LH02", "'TW_LH0?'"])
def test_another_station_is_a_warning_unless_it_is_declared(name: str) -> None:
    """Its alerts go out under its own topics: without the right to write there they never arrive."""
    (warning,) = told(SEEDLINK % name)
    place = "site.yaml:2: warning: source.servers[0].stations[0].station: "
    assert warning.startswith(f"{place}is not this agent's own station (XX.SLOPE)")
    assert f"under {name.strip(QUOTE).replace('_', '/')}" in warning
    declared = SEEDLINK % name + "stations: [{station: TW.LH02, latitude_deg: 23.5, longitude_deg: 121.2}]\n"
    assert told(declared) == []
    agreeing = SEEDLINK % name + "site: {coincidence: {stations: [TW.LH01, TW.LH02]}}\n"
    assert told(agreeing) == []


def test_a_shake_with_other_codes_is_a_warning() -> None:
    text = "station: {network: XX, station: SLOPE}\nsource: {kind: shake_udp, senders: [{address: 10.0.0.2%s}]}\n"
    assert told(text % "") == []
    (warning,) = told(text % ", station: R1234")
    assert "source.senders[0]: is not this agent's own station" in warning


def test_declared_stations_are_each_another_one_with_a_whole_position() -> None:
    assert [line.partition(": ")[2] for line in told(BASE + "stations: [{station: XX.B, latitude_deg: 1}]\n")] == [
        "stations[0].latitude_deg: is given without longitude_deg; give both or neither (given: 1)"
    ]
    twice = "stations: [{station: XX.SLOPE}, {station: XX.B}, {station: XX.B}]\n"
    assert [line.partition(": ")[2] for line in told(BASE + twice)] == [
        "stations[0].station: is the agent's own: see section station (given: XX.SLOPE)",
        "stations[2].station: is stations[1] too (given: XX.B)",
    ]


@pytest.mark.parametrize(
    ("text", "known", "complete"),
    [
        ("source: {kind: archive, paths: [.]}\nstations: [{station: XX.B}]", ["XX.SLOPE", "XX.B"], False),
        ("source: {kind: simulator, stations: 2}", ["XX.SLOPE", "XX.SLOPE01", "XX.SLOPE02"], True),
        ("source: {kind: shake_udp, senders: [{address: 10.0.0.2}]}", ["XX.SLOPE"], True),
        ("source: {kind: seedlink, servers: [{host: h, stations: [{station: XX_B}, {station: YY_B}]}]}",
         ["XX.SLOPE", "XX.B", "YY.B"], True),
        ("source: {kind: seedlink, servers: [{host: h, stations: [{station: XX_*}]}]}", ["XX.SLOPE"], False),
    ],
)  # fmt: skip
def test_the_stations_under_whose_topics_an_agent_writes_are_known_beforehand(
    text: str, known: list[str], complete: bool
) -> None:
    found = stations_of(loaded(f"station: {{network: XX, station: SLOPE}}\n{text}\n"))
    assert (list(found.known), found.complete) == (known, complete)


def test_missing_certificates_and_bundles_are_errors() -> None:
    text = BASE + "mqtt: {host: localhost, tls: {ca_file: ca.pem}}\nclassifier: {bundle: models/new}\n"
    assert told(text) == [
        "site.yaml:3: mqtt.tls.ca_file: cannot be read: No such file or directory (given: ca.pem)",
        "site.yaml:4: classifier.bundle: there is no such file or folder (given: models/new)",
    ]


def test_terminal_controls_and_long_values_do_not_reach_the_terminal() -> None:
    (message,) = told(BASE + 'log: {level: "\\e[2J\\n' + "x" * 200 + '"}\n')
    assert "\\x1b[2J\\nxxx" in message
    assert message.endswith("...)")
    assert message.isprintable()


SERVER = """
station: {network: XX, station: SLOPE}
source:
  kind: seedlink
  servers:
    - host: 192.168.1.10
      stations: [%s]
"""


@pytest.mark.parametrize("selectors", ["[HH?]", "[HH?, BH?]", "[?H?]", "[ ??Z ]", "?HZ", "HH?", "[*]"])
def test_a_wildcard_without_quotes_is_told_that_it_needs_them(selectors: str) -> None:
    (message,) = told(SERVER % f"{{station: XX_SLOPE, selectors: {selectors}}}")
    assert message.startswith("site.yaml:7: column ")
    assert "needs quotes" in message


def test_a_bracket_that_is_not_closed_is_still_named() -> None:
    (message,) = told(SERVER % "{station: XX_SLOPE, selectors: [HHZ, BHZ")
    assert "a bracket that is opened here is not closed" in message


def test_a_station_is_listed_once() -> None:
    """Twice, its second selectors would replace the first, or its packets come twice."""
    (message,) = told(
        SERVER % "{station: XX_A, selectors: ['HH?']}, {station: XX_B}, {station: XX_A, selectors: ['EH?']}"
    )
    assert "is listed already as stations[0]; join their selectors" in message


@pytest.mark.parametrize("kind", ["archive", "folder"])
def test_a_path_is_listed_once(kind: str) -> None:
    Path("a").mkdir()
    (message,) = told(f"{STATION}source: {{kind: {kind}, paths: [a, ./a]}}\n")
    assert "source.paths[1]: is listed already as paths[0]; name it once" in message


@pytest.mark.parametrize("selector", ["LH?", "LHZ", "00LHZ", "00_L_H_?", "VHZ.D"])
def test_channels_that_are_too_slow_for_the_trigger_are_a_warning(selector: str) -> None:
    (message,) = told(SERVER % f"{{station: XX_SLOPE, selectors: ['{selector}', 'HH?', '!LHZ', '*HZ']}}")
    assert "warning: source.servers[0].stations[0].selectors[0]: has at most" in message
    assert "too few for a trigger from 1 Hz on" in message


def test_slow_channels_are_good_for_a_trigger_that_is_slow_too() -> None:
    text = SERVER % "{station: XX_SLOPE, selectors: ['MHZ']}"
    assert told(text + "tunables: {trigger: {low_hz: 0.5, high_hz: 2}}\n") == []


SHAKE = STATION + "source: {kind: shake_udp, senders: [{address: 10.0.0.2}], %s}\n"
SITE_OF_TWO = "site: {coincidence: {stations: [XX.A, XX.B], required: 2%s}}\n"
CHANNELS = "{station: XX_SLOPE, selectors: [%s]}"


@pytest.mark.parametrize(
    ("text", "place", "words"),
    [
        (SERVER % CHANNELS % "BDF", "servers[0].stations[0].selectors", "no component of ground motion"),
        (SERVER % CHANNELS % "'HH?', '!??Z', '!HH?'", "stations[0].selectors", "excludes what it asks for"),
        (SHAKE % "rate_hz: 20" + "tunables: {trigger: {low_hz: 9}}\n", "source.rate_hz", "too few for a trigger"),
        (SHAKE % "timeout_s: 3600", "source.timeout_s", "for 60 min nobody is told that nothing comes"),
        (SERVER % "{station: XX_A}" + SITE_OF_TWO % "", "coincidence.stations", "not bring XX.B: too few are left"),
        (SERVER % "{station: XX_A}, {station: XX_B}" + SITE_OF_TWO % ", window_s: 0.1", "window_s", "held back"),
        (SHAKE % "" + "tunables: {policy: {slow: {stations: 2}}}\n", "policy.slow.stations", "the source brings 1"),
        (SHAKE % "" + "classifier: {backends: [constant]}\n", "classifier.backends", "the same label"),
        (SHAKE % "" + "outputs: {file: {path: .}}\n", "outputs.file.path", "is no file"),
        (SHAKE % "" + "mqtt: {host: h, keepalive_s: 3600}\n", "mqtt.keepalive_s", "after 90 min"),
        (SHAKE % "", "", "without a section mqtt or outputs"),
        (STATION + "source: {kind: folder, paths: [absent]}\n", "source.paths[0]", "nothing is there at the moment"),
        (SERVER % CHANNELS % "'00HH?', '!10HH?', '!00HH?.L', '!LOG'" + "mqtt: {host: h}\n", "", ""),
    ],
)  # fmt: skip
def test_what_makes_a_station_deaf_or_mute_is_a_warning(text: str, place: str, words: str) -> None:
    Path("site.yaml").write_text(text)
    found = [str(problem) for problem in check("site.yaml", about_file) if "not this agent's" not in problem.reason]
    assert all("warning: " in problem for problem in found)
    assert any(place in problem and words in problem for problem in found) == bool(words), found


# The models against what they stand for


def test_every_setting_is_described_and_carries_its_unit() -> None:
    """A number without a unit in its name is a count or a ratio, and those are listed here."""
    plain = {"order", "on", "off", "components_needed", "k", "n", "min_events", "speed", "threads", "port", "min_ratio"}
    plain |= {"min_amplitude", "min_stations", "seed", "hours", "stations", "required", "shadow_windows", "older_files"}
    units = ("_hz", "_s", "_m", "_deg", "_mb", "_probability", "retract_below", "_counts", "_per_hour", "max_chance")
    units += ("_per_min", "_share")
    for path, entry in catalogue().items():
        assert entry.description, path
        if "number" in entry.kind and "[]" not in path.rpartition(".")[2]:
            name = path.rpartition(".")[2]
            assert name in plain or name.endswith(units), path
            assert entry.bounds, path


def test_what_is_required_has_an_example_that_would_do() -> None:
    """The examples stand in for wrong values while the rest of a file is checked."""
    entries = catalogue()
    required = [entry for entry in entries.values() if entry.required and not entry.children]
    assert all(entry.example is not None for entry in required)
    required = [entry for entry in required if ":" not in entry.path]
    text = (
        "tunables: {policy: {rules: {landslide: {confirm_events: {}, escalate: [{min_probability: 1}], "
        "acceleration: {escalate: [{}]}}}}}\nmqtt: {}\nsite: {coincidence: {}}\ncontrol: {keys: [{}]}\nstations: [{}]\n"
        "outputs: {file: {}}\n"
    ).replace("{policy: {rules", "{policy: {slow: {escalate: [{}]}, rules")
    messages = told("station: {}\nsource: {}\n" + text)
    assert len(messages) == len(required) - 5 * (len(LABELS) - 1)
    assert all("is required" in message for message in messages)


def test_a_section_of_an_unknown_kind_is_one_fault() -> None:
    """What else it holds belongs to a kind that nobody knows, and gives no message of its own; its neighbours do."""
    of_kind, of_level = told(STATION + "source: {kind: shake_upd, host: x, paths: 3}\nlog: {level: 1}\n")
    assert of_kind.startswith("site.yaml:2: source.kind: must be archive, ")
    assert of_kind.endswith("did you mean shake_udp? (given: shake_upd)")
    assert of_level.startswith("site.yaml:3: log.level")


def test_the_settings_of_the_given_kind_are_suggested() -> None:
    messages = told(STATION + "source: {kind: shake_udp, sender: 3, senders: [{address: 10.0.0.300}]}\n")
    assert sorted(messages) == [
        "site.yaml:2: source.sender: is not a setting; did you mean senders?",
        "site.yaml:2: source.senders[0].address: must be an IP address or a network such as 192.168.1.0/24 "
        "(given: 10.0.0.300)",
    ]


# The documentation


def test_the_reference_is_the_models() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert rewrite(page) == page, "run: python -m demo.pages docs"


def test_the_smallest_file_of_the_documentation_works() -> None:
    page = (ROOT / "docs/configuration.md").read_text("utf-8")
    assert loaded(page.split("```yaml\n")[1].split("```")[0]).station.network == "XX"


def test_the_errors_shown_in_the_documentation_are_real() -> None:
    shown = (ROOT / "docs/configuration.md").read_text("utf-8").split("```\n")[2].split("```")[0].splitlines()
    text = BASE + "\n" * 4 + "tunables:\n  trigger:\n    of: 1\n\n    low_hz: 30\n\nmqtt:\n  password: x\n"
    assert set(shown) <= {line.replace("site.yaml", "station.yaml") for line in told(text)}
    assert len(shown) == 3
