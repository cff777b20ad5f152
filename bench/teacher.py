"""What one window costs the teacher: all outputs beside the event path, on one thread and on two.

The two paths take turns, so whatever else the machine does disturbs both alike.

    python bench/teacher.py [--variants tinny middle] [--samples 10240] [--rounds 20]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from agent.types import WINDOW_SAMPLES
from quantize.train.fill import reference_input
from quantize.train.prime_dp import PrimeDP

WARM_UP = 3


def measure(model: PrimeDP, window: torch.Tensor, rounds: int) -> dict[str, np.ndarray]:
    """Milliseconds of every call of each path."""
    times: dict[str, list[float]] = {"full": [], "event": []}
    with torch.inference_mode():
        for turn in range(-WARM_UP, rounds):
            for name, run in (("full", model), ("event", model.event_logits)):
                begin = time.perf_counter()
                run(window)
                if turn >= 0:
                    times[name].append((time.perf_counter() - begin) * 1e3)
    return {name: np.array(values) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--variants", nargs="+", default=["tinny", "middle"])
    parser.add_argument("--samples", type=int, default=WINDOW_SAMPLES)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()

    window = torch.from_numpy(reference_input()[:1, :, : options.samples].copy())
    print(f"torch {torch.__version__}, {options.samples} samples, median (min-max) of {options.rounds}, ms")
    print(f"{'variant':<8} {'threads':>7} {'full':>22} {'event path':>22} {'ratio of medians':>17}")
    for variant in options.variants:
        model = PrimeDP(variant).eval()
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = measure(model, window, options.rounds)
            cells = [f"{np.median(t):.1f} ({t.min():.1f}-{t.max():.1f})" for t in times.values()]
            ratio = np.median(times["full"]) / np.median(times["event"])
            print(f"{variant:<8} {threads:>7} {cells[0]:>22} {cells[1]:>22} {ratio:>17.2f}", flush=True)


if __name__ == "__main__":
    main()
