"""What a drill shows: whether the final slide of a crisis raises its own alert, and how soon.

    python bench/drill.py [--seeds 20] [--hours 1]

``talus simulate --seed N --speed 0`` for each seed. The goal: in 18 of 20 seeds an event that began with the slide
alerts within 20 s of the slide's onset, and in none is it held back by a smaller event. A slope about to fail is never
quiet: where an event of before goes on into the slide, its alert is counted apart.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re

from support import row

from agent.cli import main as talus

WITHIN_S = 20


def drill(seed: int, hours: float) -> str:
    """The line about the final slide."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
        talus(
            ["simulate", "--quiet", "--speed", "0", "--hours", str(hours), "--seed", str(seed),
             "--start", "2026-03-01T00:00:00Z"]
        )  # fmt: skip
    return next(line for line in out.getvalue().splitlines() if line.startswith("slide of"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--hours", type=float, default=1.0)
    args = parser.parse_args()
    soon = held = early = 0
    for seed in range(1, args.seeds + 1):
        line = drill(seed, args.hours)
        match = re.search(r": (alert|an event of before) .* (\d+) s after its onset", line)
        if match is not None and int(match[2]) <= WITHIN_S:
            soon += match[1] == "alert"
            early += match[1] != "alert"
        held += "refractory:" in line
        print(f"seed {seed:>2}  {line}", flush=True)
    goal = round(0.9 * args.seeds)
    row("own alert within 20 s of the onset", f"{soon} of {args.seeds}", f"goal: {goal}", soon >= goal)
    row("alert of an event that began before, within 20 s", str(early))
    row("held back by a smaller event", str(held), "goal: 0", held == 0)


if __name__ == "__main__":
    main()
