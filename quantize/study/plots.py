"""Pictures for the documentation, drawn with matplotlib without a display."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.sources.synthesis.events import KINDS
from agent.sources.synthesis.medium import SAMPLES
from agent.types import LABELS, WINDOW_RATE_HZ
from quantize.data.generator import ONSET, generate
from quantize.data.generator.transients import TRANSIENTS
from quantize.study import tables
from quantize.study.evaluate import CLASSES


def _figure(rows: int, columns: int, width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot.subplots(rows, columns, figsize=(width, height), squeeze=False, layout="constrained")


def _save(figure: Any, path: Path) -> Path:
    from matplotlib import pyplot
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    # No date and no version in the file: the same figures give the same bytes.
    figure.savefig(path, dpi=80, metadata={"Software": None})
    pyplot.close(figure)
    with Image.open(path) as image:
        # A quarter of the size, and nobody sees the difference.
        image.convert("RGB").quantize(64).save(path, optimize=True)
    return path


def generator_picture(path: Path, seed: int = 4) -> Path:
    """One vertical of each kind that the generator makes, above its spectrogram."""
    kinds = [(label, name) for label in KINDS for name, _, _ in KINDS[label]]
    kinds += [("noise", name) for name, _, _ in TRANSIENTS]
    columns = 5
    rows = 2 * -(-len(kinds) // columns)
    figure, axes = _figure(rows, columns, 14, 1.5 * rows)
    for axis in axes.flat:
        axis.axis("off")
    for number, (label, name) in enumerate(kinds):
        wave, spectrum = (
            axes[2 * (number // columns)][number % columns],
            axes[2 * (number // columns) + 1][number % columns],
        )
        vertical = _example(label, name, seed)
        vertical = vertical[ONSET - 1500 : min(SAMPLES, ONSET + 8000)]
        t = np.arange(len(vertical)) / WINDOW_RATE_HZ - 15
        wave.axis("on")
        wave.plot(t, vertical, linewidth=0.4, color="black")
        wave.set_title(f"{label}: {name}" if name != label else label, fontsize=9)
        wave.set_yticks([])
        wave.set_xlim(t[0], t[-1])
        spectrum.axis("on")
        spectrum.specgram(vertical, NFFT=256, Fs=WINDOW_RATE_HZ, noverlap=192, cmap="magma")
        spectrum.set_ylabel("Hz", fontsize=7)
        for axis in (wave, spectrum):
            axis.tick_params(labelsize=6)
    return _save(figure, path)


def _example(label: str, name: str, seed: int) -> NDArray[np.float32]:
    """The first vertical of that kind among the records that follow from ``seed``."""
    for turn in range(1000):
        made = generate(np.random.default_rng((seed, turn)), label)
        if made.subtype.endswith(name):
            vertical: NDArray[np.float32] = made.data[2]
            return vertical
    raise AssertionError(name)


def losses_picture(path: Path, log: Path) -> Path:
    """The loss curves of pre-training, from its ``log.jsonl``."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line["step"] for line in lines]
    figure, axes = _figure(1, 2, 9, 3)
    for axis, key, title in zip(
        axes[0],
        ("phase", "wave"),
        ("phases, weighted cross-entropy", "hidden waveform, weighted squared error"),
        strict=True,
    ):
        axis.plot(steps, [line[key] for line in lines], color="black")
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("step", fontsize=8)
        axis.set_ylim(bottom=0)
    return _save(figure, path)


def confusion_picture(path: Path, matrices: Mapping[str, NDArray[np.int64]]) -> Path:
    """Confusion matrices side by side, rows scaled to the class."""
    names = [LABELS[i] for i in CLASSES]
    figure, axes = _figure(1, len(matrices), 3.4 * len(matrices), 3.4)
    for axis, (title, matrix) in zip(axes[0], matrices.items(), strict=True):
        counts = matrix[np.ix_(CLASSES, CLASSES)]
        share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axis.imshow(share, cmap="Greys", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            axis.text(
                column,
                row,
                str(count),
                ha="center",
                va="center",
                fontsize=8,
                color="white" if share[row, column] > 0.5 else "black",
            )
        axis.set_xticks(range(len(names)), names, fontsize=7, rotation=30)
        axis.set_yticks(range(len(names)), names, fontsize=7)
        axis.set_title(title, fontsize=9)
    return _save(figure, path)


def reliability_picture(path: Path, methods: Mapping[str, Mapping[str, Any]]) -> Path:
    """Reliability (share right by top probability) and risk over coverage; ``methods``: title to ``reliability`` and
    ``risk_coverage`` of a comparison."""
    figure, axes = _figure(1, 2, 9, 3.5)
    for title, whole in methods.items():
        full = [(sure, right) for count, sure, right in whole["reliability"] if count >= 5]
        axes[0][0].plot([sure for sure, _ in full], [right for _, right in full], "o-", label=title)
        curve = sorted((coverage, risk) for _, coverage, risk in whole["risk_coverage"])
        axes[0][1].plot([coverage for coverage, _ in curve], [risk for _, risk in curve], "o-", label=title)
    axes[0][0].plot([0, 1], [0, 1], ":", color="grey")
    axes[0][0].set_xlabel("top probability", fontsize=8)
    axes[0][0].set_ylabel("share right", fontsize=8)
    axes[0][1].set_xlabel("coverage (share answered)", fontsize=8)
    axes[0][1].set_ylabel("risk (share wrong of the answered)", fontsize=8)
    axes[0][0].legend(fontsize=7)
    return _save(figure, path)


SHOWN = ("stft", "alone", "prime", "distilled", "int8")
"""Methods in the pictures of a comparison."""


def comparison_pictures(folder: Path, found: Mapping[str, Any]) -> list[Path]:
    """Confusion of records and of events, reliability and risk, in the neutral view, of a comparison's plain values."""
    whole = {
        tables.title(name): found["methods"][name]["neutral"]["whole"] for name in SHOWN if name in found["methods"]
    }
    made = [reliability_picture(folder / "reliability.png", whole)]
    for unit in ("records", "events"):
        matrices = {name: np.array(values[f"confusion_{unit}"]) for name, values in whole.items()}
        made.append(confusion_picture(folder / f"confusion_{unit}.png", matrices))
    return made
