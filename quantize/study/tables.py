"""The tables of a comparison, for a terminal and for the model card alike, from its plain values alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from agent.types import LABELS
from quantize.data.records import FULL_S, LENGTHS_S
from quantize.study.by_region import POOLED
from quantize.study.evaluate import FIGURES

Values = Mapping[str, Any]

TITLES = {
    "stft": "STFT network of the paper",
    "boosting": "boosting on hand features",
    "alone": "student, labels alone",
    "mixed": "student, labels and generator",
    "prime": "PRIME-DP, pre-trained, transferred",
    "teachers": "the teachers' mean",
    "distilled": "student, distilled, FP32",
    "int8": "student, distilled, INT8",
    # Of the default bundle's own comparison; no build compares them any more.
    "scratch": "PRIME-DP, not pre-trained",
    "without_prime": "the same without PRIME-DP",
    "without_generator": "the same without generator",
}
_HEADS = ("records: accuracy", "balanced", "events: accuracy", "balanced")
"""Of ``FIGURES``."""
VIEWS = {
    "neutral": "Neutral view (vertical only, 1-16 Hz, random placement, same filling): what counts",
    "recorded": "As recorded: flattered by how each source was recorded",
}


def studies(found: Mapping[str, Any]) -> Iterator[str]:
    """A section for each study that is there."""
    for name, (heading, render) in _STUDIES.items():
        if name in found:
            yield from (f"## {heading}", "", *render(found[name]).splitlines(), "")


def comparison(values: Values) -> str:
    """Every table of a comparison (see ``quantize.study.compare``), as Markdown that reads well in a terminal too."""
    return "\n".join(_lines(values)).rstrip() + "\n"


def _lines(values: Values) -> Iterator[str]:
    counts = ", ".join(f"{label} {n}/{e}" for label, (n, e) in values["classes"].items() if label != "collapse")
    yield f"{values['records']} records of {values['events']} events (records/events: {counts}), each answered by the"
    yield f"network of one of {values['folds']} folds that learned from no label of its event, nor from anything of its"
    yield f"time: {values['overlapping']} records that share some are left out. Pre-training, without labels, saw the"
    yield "whole training split and the streams. Per cent, with 95 % intervals from drawing events; the noise before an"
    yield "event counts apart from it. Four classes: collapse, with one record in all, is apart."
    for view, title in VIEWS.items():
        methods = {name: by_view[view] for name, by_view in values["methods"].items() if view in by_view}
        if not methods:
            continue
        yield from ("", f"**{title}**", "")
        yield from _accuracy(methods)
        yield from ("", "Recall of each class, records / events:", "")
        yield from _recall(methods)
        yield from ("", "Early verdicts: balanced accuracy, records / events, and its share of the whole window's:", "")
        yield from _early(methods)
        yield from ("", "Noise and confidence, whole window (noise: called noise / called noise or withheld):", "")
        yield from _confidence(methods)
        yield from _gains([d for d in values["differences"] if d["view"] == view])


def _accuracy(methods: Mapping[str, Any]) -> Iterator[str]:
    rows = [(title(name), *(figure(_full(method)[key]) for key in FIGURES)) for name, method in methods.items()]
    yield from table(("method", *_HEADS), rows)


def _recall(methods: Mapping[str, Any]) -> Iterator[str]:
    labels = [label for label in LABELS if any(label in m["whole"]["recall"] for m in methods.values())]
    rows = []
    for name, m in methods.items():
        recall = m["whole"]["recall"]
        cells = [" / ".join(percent(x) for x in recall[label]) if label in recall else "-" for label in labels]
        right, count = m["whole"]["local"]
        rows.append((title(name), *cells, f"{right} of {count}"))
    yield from table(("method", *labels, "slope's own"), rows)


def _early(methods: Mapping[str, Any]) -> Iterator[str]:
    lengths = [f"{s:g}" for s in LENGTHS_S]
    rows = []
    for name, m in methods.items():
        cells = []
        for length in lengths:
            both = [percent(m[length][f"{unit}_balanced_accuracy"][0]) for unit in ("record", "event")]
            share = [f"{100 * m[length][f'{unit}_early_share']:.0f}" for unit in ("record", "event")]
            cells.append(f"{' / '.join(both)} ({' / '.join(share)})")
        rows.append((title(name), *cells))
    yield from table(("method", *(f"{length} s" for length in lengths[:-1]), "whole"), rows)


def _confidence(methods: Mapping[str, Any]) -> Iterator[str]:
    rows = []
    for name, m in methods.items():
        full = _full(m)
        noise = [
            f"{percent(full[f'noise_{kind}']['right'])} / {percent(full[f'noise_{kind}']['right_or_withheld'])}"
            for kind in ("triggering", "quiet")
        ]
        shares = [percent(full[key]) for key in ("calibration_error", "answered", "answered_accuracy")]
        rows.append((title(name), *noise, *shares))
    heads = ("method", "noise that triggers", "other noise", "calibration error", "answered", "right of answered")
    yield from table(heads, rows)


def _gains(differences: Sequence[Values]) -> Iterator[str]:
    if not differences:
        return
    yield from ("", "Differences in points, paired bootstrap over events, whole window:", "")
    rows = [
        (f"{title(d['first'])} - {title(d['second'])}", *(figure(d[key], signed=True) for key in FIGURES))
        for d in differences
    ]
    yield from table(("first less second", *_HEADS), rows)


def curve(values: Values) -> str:
    """The learning curve: figures by number of landslide events."""
    rows = [
        (
            title(row["method"]),
            str(row["events"]),
            figure(row["record_balanced_accuracy"]),
            figure(row["event_balanced_accuracy"]),
            percent(row["landslide_recall"]),
        )
        for row in values["points"]
    ]
    heads = ("method", "landslide events", "records: balanced", "events: balanced", "landslides found, records")
    said = (
        f"Networks of {values['folds']} fold(s); all other classes keep all their records. Neutral view, whole window."
    )
    return "\n".join([said, "", *table(heads, rows)]) + "\n"


def seeds(values: Values) -> str:
    """The student from several random numbers."""
    rows = [
        (f"{title(name)}, seed {seed}", *(percent(value) for value in run))
        for name, runs in values["methods"].items()
        for seed, run in enumerate(runs)
    ]
    first, second = values["methods"]
    means = (figure(values["difference"][name], signed=True) for name in values["figures"])
    rows.append((f"{title(first)} - {title(second)}, mean of the seeds", *means))
    said = f"Networks of {values['folds']} fold(s), the same teachers in each. Neutral view, whole window."
    return "\n".join([said, "", *table(("run", *_HEADS), rows)]) + "\n"


def probe(values: Values) -> str:
    """What a classifier reaches that sees the recording and no sample of it."""
    rows = [(" + ".join(row["sees"]), *(figure(row[key]) for key in FIGURES)) for row in values["classifiers"]]
    return "\n".join(table(("a tree that sees only", *_HEADS), rows)) + "\n"


def layers(values: Values) -> str:
    """What INT8 does to each layer, in both files."""
    heads = ("layer", "weights", "CPU file: dB", "error, %", "TensorRT file: dB", "error, %")
    rows = [
        (row["layer"], str(row["weights"]), *(cell for kind in ("cpu", "trt") for cell in _decibel(row[kind])))
        for row in values["layers"]
    ]
    said = f"Signal over error of each layer's output against FP32, on {values['windows']} windows that gave no ranges."
    return "\n".join([said, "", *table(heads, rows)]) + "\n"


def by_region(values: Values) -> str:
    """What a new site sees: over all regions, by region, and each method against the first."""
    methods = values["methods"]
    first, *others = methods
    regions = len(values["regions"])
    said = [
        f"{values['records']} records of {values['events']} events in {regions} regions, each answered by a network",
        "that learned nothing from its region. Neutral view, whole window; per cent, with 95 % intervals from",
        "drawing events. Regions that were never left out are not judged.",
    ]
    rows = [(words, *(_counted(m["pooled"][key]) for m in methods.values())) for key, words in POOLED.items()]
    lines = [*said, "", *table(("", *(title(name) for name in methods)), rows), ""]
    if others:
        gained = [
            (words, *(_counted(values["differences"][n][key], signed=True) for n in others))
            for key, words in POOLED.items()
        ]
        lines += [f"Less {title(first)}, in points, by a paired bootstrap:", ""]
        lines += [*table(("", *(title(name) for name in others)), gained), ""]
    lines += ["Events found, by region and class (and what they are called most often otherwise):", ""]
    lines += [*table(("region", "class", "records / events", *(title(name) for name in methods)), _by_region(values))]
    return "\n".join(lines) + "\n"


def _by_region(values: Values) -> list[tuple[str, ...]]:
    rows = []
    for region in values["regions"]:
        for label, (records, events) in values["counts"][region].items():
            found = [method["regions"][region][label] for method in values["methods"].values()]
            cells = [figure(f["events"]) + (f" ({f['else']})" if f["else"] else "") for f in found]
            rows.append((region, label, f"{records} / {events}", *cells))
    return rows


def _counted(triple: Sequence[float], *, signed: bool = False) -> str:
    """A figure, or a dash where nothing is counted."""
    nothing = list(triple) == [-1.0, -1.0, -1.0] and not signed
    return "-" if nothing else figure(triple, signed=signed)


def _decibel(pair: Sequence[float]) -> tuple[str, str]:
    return f"{pair[0]:.1f}", f"{100 * pair[1]:.2f}"


def _full(method: Mapping[str, Any]) -> Values:
    found: Values = method[f"{FULL_S:g}"]
    return found


def title(name: str) -> str:
    """A method's name in words."""
    return TITLES.get(name, name)


def percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def figure(triple: Sequence[float], *, signed: bool = False) -> str:
    """Value and interval in per cent."""
    value, low, high = (f"{100 * x:+.1f}" if signed else f"{100 * x:.1f}" for x in triple)
    return f"{value} [{low}, {high}]"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table with columns padded to their widest cell."""
    widths = [max(len(row[i]) for row in (heads, *rows)) for i in range(len(heads))]
    yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(heads, widths, strict=True)) + " |"
    yield "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    for row in rows:
        yield "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"


_STUDIES: Mapping[str, tuple[str, Callable[[Values], str]]] = MappingProxyType(
    {
        "regions": ("At a new site: regions left out", by_region),
        "comparison": ("All methods, trained and tried alike", comparison),
        "probe": ("What the recording alone gives away", probe),
        "layers": ("What INT8 does to each layer", layers),
        "learning_curve": ("How many landslides it takes", curve),
        "seeds": ("How much is luck", seeds),
    }
)
