"""``talus simulate --scenario crisis``: the scorecard counts what it should, and is the same for the same seed."""

from __future__ import annotations

from pathlib import Path

import pytest
from broker_support import needs_mosquitto

from agent.cli import main
from agent.config.file import ClassifierConfig, TunablesConfig
from desk.crisis.card import lines, make_card
from desk.crisis.plan import make_plan
from desk.crisis.run import Facts, play

MUFFLED = (11, 14)


@pytest.fixture(scope="module")
def crises() -> list[Facts]:
    """A quarter of an hour with a power cut, and three minutes that no station could know to be deaf; twice."""
    plan = make_plan(2, 0.25, kinds=("power cut",), muffled=MUFFLED)
    return [play(plan, TunablesConfig(), ClassifierConfig(backends=("constant:landslide",))) for _ in range(2)]


@needs_mosquitto
def test_the_same_seed_gives_the_same_score_and_a_deafness_that_nobody_reports_is_counted(crises: list[Facts]) -> None:
    """The power cut is known, from the broker or from the time that was not armed; the muffled sensor is not."""
    first, again = (make_card(facts).score for facts in crises)
    assert first == again
    [power_cut] = [span for span in crises[0].plan.troubles if span.kind == "power cut"]
    assert first.deaf.minutes == power_cut.end - power_cut.begin + 3
    assert first.deaf.unreported == 3
    assert first.deaf.named_after[-1] is None
    assert (first.lost, first.unended) == (0, 0)
    assert not first.is_met
    assert first.kinds["rockfall"].detected > 0
    assert crises[0].starts == 2


@needs_mosquitto
def test_what_did_not_arrive_is_lost(crises: list[Facts]) -> None:
    """A card that could not tell a loss would be worth nothing."""
    facts = crises[0]
    event = next(arrival for arrival in facts.arrived.values() if arrival.name == "event").body["id"]
    kept = {key: one for key, one in facts.arrived.items() if one.body["id"] != event}
    try:
        whole, facts.arrived = facts.arrived, kept
        card = make_card(facts)
    finally:
        facts.arrived = whole
    # Its revisions that were put on disk, and the event that the same data give without strikes.
    assert card.score.lost == len(whole) - len(kept) + 1
    assert any(line.startswith("lost ") and f" {card.score.lost} " in line for line in lines(card))


def test_a_crisis_too_short_for_its_troubles_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Also what makes no sense for one."""
    assert main(["simulate", "--scenario", "crisis", "--hours", "0.2"]) == 2
    assert "too short" in capsys.readouterr().err
    assert main(["simulate", "--scenario", "crisis", "--fault", "gap"]) == 2
    assert "not for a crisis" in capsys.readouterr().err
    assert main(["simulate", "--scenario", "crisis", "--records", str(tmp_path)]) == 2
    assert "no records can be read" in capsys.readouterr().err
