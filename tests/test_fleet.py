"""``talus fleet``: all stations of a broker, and orders in waves that stop by themselves."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from broker_support import needs_mosquitto, running
from control_support import envelope, key
from fleet_support import OLD, Stations

from agent.cli import main
from agent.inference.bundle import DEFAULT_BUNDLE, open_bundle

pytestmark = needs_mosquitto
NAMES = [f"XX.S{number}" for number in range(6)]


def fleet(port: int, *words: object) -> int:
    return main(["fleet", *map(str, words), "--broker", f"mqtt://127.0.0.1:{port}"])


def test_the_list_says_who_is_not_well_and_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Protects the glance: whoever is away, deaf or silent is not OK, and the exit status says so to a script."""
    with running(tmp_path) as broker:
        assert fleet(broker.port) == 1  # nobody is no fleet
        with Stations(broker, NAMES[:3]) as stations:
            assert fleet(broker.port) == 0
            told = capsys.readouterr().out.splitlines()[2].split()
            assert told[:-2] == ["XX.S0", "ok", "0.2.0", "net", OLD[:8], "file", "100", "%", "ok"]
            stations.health("XX.S1", "sensor_deaf", armed=0.25)
            stations.retain("XX.S2", "availability", "offline").wait_for_publish(60)
            stations.retain("XX.SIMULATE", "availability", "stopped").wait_for_publish(60)  # what a drill leaves
            stations.retain("XX.\x1bS", "availability", "online").wait_for_publish(60)
            assert fleet(broker.port, "--json") == 1
            told = {one["station"]: one for one in json.loads(capsys.readouterr().out)}
            assert {name: one["fault"] for name, one in told.items()} == {
                "XX.S0": None, "XX.S1": "sensor_deaf", "XX.S2": "offline"
            }  # fmt: skip
            assert (told["XX.S1"]["hearing"], told["XX.S1"]["ok"]) == (0.25, False)


def test_a_rollout_stops_in_the_wave_that_fails_and_goes_on_where_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Protects the fleet from a change that does harm: what a wave has not kept, no later one is given."""
    order = tmp_path / "order.json"
    order.write_bytes(envelope(key(tmp_path), int(time.time()), {"trigger": {"on": 5.0}}, stations=("*",)))
    push = ("push", "config", order, "--wave", 2, "--wait", 60)
    with running(tmp_path) as broker, Stations(broker, NAMES, harmed={"XX.S3"}) as stations:
        assert fleet(broker.port, *push, "--all") == 1
        assert sorted(stations.orders) == NAMES[:4]
        said = capsys.readouterr()
        assert "XX.S2: kept" in said.out
        assert "stopped: XX.S3 rolled back: harm" in said.err
        assert "2 stations not begun" in said.err
        # Without the one that was harmed; those that have kept it are passed over.
        stations.orders.clear()
        assert fleet(broker.port, *push, "--all", "--except", "XX.S3") == 0
        assert sorted(stations.orders) == NAMES[4:]
        assert "kept by 2 stations now, by 3 before" in capsys.readouterr().err
        # Nobody is given an order while one of its wave is away.
        stations.retain("XX.S5", "availability", "offline").wait_for_publish(60)
        order.write_bytes(envelope(key(tmp_path), int(time.time()) + 1, {"trigger": {"on": 6.0}}, stations=("*",)))
        stations.orders.clear()
        assert fleet(broker.port, *push, "--stations", "XX.S4,XX.S5") == 1
        assert stations.orders == []
        assert "XX.S5 is not online" in capsys.readouterr().err


def test_a_model_goes_the_same_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key(tmp_path)
    push = ("push", "model", DEFAULT_BUNDLE, "--key", tmp_path / "key.pem", "--wave", 2, "--wait", 60)
    with running(tmp_path) as broker, Stations(broker, NAMES[:3], harmed={"XX.S2"}) as stations:
        stations.serving = open_bundle(DEFAULT_BUNDLE).sha256
        assert fleet(broker.port, *push, "--all") == 1
        assert "stopped: XX.S2 rolled back: harm" in capsys.readouterr().err
        stations.orders.clear()
        stations.harmed.clear()
        assert fleet(broker.port, *push, "--all") == 0
        assert stations.orders == ["XX.S2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("push", "config", "absent.json", "--all"), "absent.json: No such file"),
        (("push", "model", "bundle.zip", "--all"), "give --key FILE"),
        (("pull",), "is not a command"),
        (("push", "config", "absent.json", "--all", "--wave", "0"), "--wave must be positive, not 0"),
    ],
)
def test_wrong_use_is_answered_in_words(words: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert fleet(1, *words) in (1, 2)
    assert said in capsys.readouterr().err
