"""How often the alarm on the event rate is false, and how long before a failure it comes.

    python bench/acceleration.py [--years 10] [--crises 20]

Events are drawn, not detected: a Poisson process for a steady site; for a crisis the simulator's own script, whose rate
grows as the inverse of the time left, over two days after three quiet ones. The peer is what is easily written instead
and often is: an alarm whenever the last hour has at least five events and three times the rate of the day before.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from support import row

from agent.alert.rate_alerts import RateWatch
from agent.config.policy import AccelerationConfig, LandslideRule, RulesConfig
from agent.sources.simulator import Planned, Rates, Scenario, crisis, steady
from agent.types import NS, Classification, Detection, Event, Quality, StationId, event_id

HOUR, DAY = 3600.0, 86_400.0
STATION = StationId("XX", "SLP", "00", "HH")
VERDICT = Classification(
    "landslide", 0.9, (0.02, 0.03, 0.03, 0.9, 0.02), False, 80.0, "drawn", "0" * 64, "none", "none"
)  # fmt: skip
T0 = 1_772_323_200 * NS
DEFAULTS = AccelerationConfig()
RULES = {
    "the default, chance <= 1e-5": DEFAULTS,
    "chance <= 1e-4": DEFAULTS.model_copy(update={"max_chance": 1e-4}),
    "the peer: the ratio alone": DEFAULTS.model_copy(update={"max_chance": 1.0}),
}


def raised_s(times_s: list[float], settings: AccelerationConfig) -> list[float]:
    """When the alarm is raised, seconds."""
    watch = RateWatch(RulesConfig(landslide=LandslideRule(acceleration=settings)))
    event = Event("", 0, "end", STATION, 0, Detection(9.0, 5.0, 1.0, 5.0), VERDICT, Quality(), 0)
    found = []
    for at_s in times_s:
        onset_ns = T0 + round(at_s * NS)
        one = dataclasses.replace(event, id=event_id(STATION, onset_ns), onset_ns=onset_ns, recorded_s=at_s)
        found += [at_s for alert in watch.consider(one) if alert.action == "raise"]
    return found


def own_events(seed: int, rates: Rates, seconds: float) -> list[float]:
    scenario = Scenario(seed, rates, 1)
    cells = (what for number in range(int(seconds // 60)) for what in scenario.cell(number))
    return [what.at_s for what in cells if isinstance(what, Planned) and what.kind in ("slopequake", "rockfall")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--years", type=float, default=10.0, help="of a steady site at up to 1 event an hour")
    parser.add_argument("--crises", type=int, default=20)
    args = parser.parse_args()
    for name, settings in RULES.items():
        row(name, "")
        for per_hour in (0.05, 0.2, 1.0, 2.0, 5.0, 18.0):
            days = args.years * 365 / max(1.0, per_hour)
            rng = np.random.default_rng(7)
            times = np.sort(rng.uniform(0, days * DAY, rng.poisson(per_hour * 24 * days)))
            false = len(raised_s(times.tolist(), settings)) / days * 365
            row(f"  false alarms a year, steady {per_hour:g} an hour", f"{false:.2f}")
        leads = []
        for seed in range(args.crises):
            ramp, quiet_s, length_s = crisis(2 * DAY), 3 * DAY, 1.8 * DAY
            calm = own_events(seed, steady(ramp(0.0)), quiet_s)
            rising = [quiet_s + at_s for at_s in own_events(seed + 100, ramp, length_s)]
            first = [at_s for at_s in raised_s([*calm, *rising], settings) if at_s > quiet_s]
            leads.append((quiet_s + length_s - first[0]) / HOUR if first else 0.0)
        row(f"  hours before the failure, {args.crises} crises: least, median, most",
            f"{min(leads):.1f}, {float(np.median(leads)):.1f}, {max(leads):.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
