"""Write a taught bundle, and add a replay bank to one that has none: manifest, hashes, golden answers and card anew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue

from agent.errors import BundleError
from agent.inference.bundle import (
    CPU_MODEL,
    FP16_MODEL,
    GOLDEN,
    MANIFEST,
    TRT_MODEL,
    Bundle,
    Calibration,
    FileEntry,
    Manifest,
    TemperatureAt,
)
from agent.inference.selftest import read_golden
from agent.types import LABELS
from quantize.quantise import infer
from quantize.quantise.golden import VARIOUS, golden_file
from quantize.quantise.infer import ExportError
from quantize.quantise.place import place, sha256, tools
from quantize.teach.head import Head, replace_head
from quantize.teach.learn import Lesson, text
from quantize.teach.replay import REPLAY, Replay, read_replay, write_replay
from quantize.teach.site import slug

CARD = "MODEL_CARD.md"
NETWORKS = (CPU_MODEL, TRT_MODEL, FP16_MODEL)
_ROW = "| {name} | {bytes} bytes, SHA-256 `{sha256}` |"


@dataclass(frozen=True, slots=True)
class Taught:
    """What a manifest says of a taught network, under ``training.taught``."""

    site: str
    base: str
    parent: str
    events: dict[str, int]
    learned: tuple[str, ...]
    """First 12 hexadecimal digits of the SHA-256 of each event's name: a later lesson must know them all."""


def taught_of(bundle: Bundle) -> Taught | None:
    """What the bundle's manifest says of its lessons; None where its network is nobody's pupil.

    Raises:
        BundleError: the entry is not what ``write_taught`` writes.
    """
    entry = bundle.manifest.training.get("taught")
    if entry is None:
        return None
    try:
        if not isinstance(entry, dict):
            raise TypeError("no mapping")
        return Taught(
            str(entry["site"]),
            str(entry["base"]),
            str(entry["parent"]),
            {str(label): int(count) for label, count in entry["events"].items()},  # type: ignore[union-attr,arg-type]
            tuple(str(name) for name in entry["learned"]),  # type: ignore[union-attr]
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BundleError(
            f"{bundle.origin}: {MANIFEST}: training.taught cannot be read ({error})", "teach from the shipped bundle"
        ) from None


def require_bank(bundle: Bundle) -> Replay:
    """The bundle's replay bank.

    Raises:
        BundleError: there is none, or it is damaged.
    """
    if REPLAY not in bundle.files:
        raise BundleError(
            f"{bundle.origin} holds no {REPLAY}: a network taught without it would forget all other regions",
            "use a bundle that has one, or add it: python -m quantize replay --bundle BUNDLE",
        )
    return read_replay(bundle.file(REPLAY))


def digest(event: str) -> str:
    """How a manifest names an event that was learned from."""
    return sha256(event.encode())[:12]


def patched(parent: Bundle, head: Head) -> dict[str, bytes]:
    """The bundle's networks with another last layer."""
    return {name: replace_head(parent.file(name), head) for name in NETWORKS if name in parent.files}


def write_taught(target: Path, parent: Bundle, lesson: Lesson, site: str, events: tuple[str, ...]) -> Manifest:
    """Write the bundle of a lesson to the folder ``target``, replacing one that is there.

    ``events``: the names of all events that were learned from.

    Raises:
        BundleError, BackendError: the agent refuses the result; ExportError: INT8 strays too far from FP16.
    """
    before = parent.manifest
    networks = patched(parent, lesson.head)
    points = tuple(TemperatureAt(seconds=s, temperature=t) for s, t in lesson.temperature)
    exact = networks.get(FP16_MODEL, networks[CPU_MODEL])
    golden, spec = golden_file(exact, networks, Calibration(points))
    require_agreement(parent, networks, Calibration(points))
    earlier = taught_of(parent)
    taught: dict[str, JsonValue] = {
        "site": site,
        "base": earlier.base if earlier else parent.sha256,
        "parent": parent.sha256,
        "events": {**lesson.events},
        "learned": [digest(event) for event in sorted(events)],
        "on": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
    }
    contents = {**parent.files, **networks, GOLDEN: golden}
    base_version = before.version.partition("+")[0]
    mark = sha256(b"".join(networks.values()))[:8]
    version = f"{base_version}+{slug(site)[:12].rstrip('-')}.{mark}"
    contents[CARD] = _card(parent, lesson, site, version, contents).encode()
    training = {name: value for name, value in before.training.items() if name != "taught"}
    manifest = before.model_copy(
        update={
            "version": version,
            "temperature": points,
            "thresholds": {label: lesson.thresholds[label] for label in LABELS},
            "files": _entries(contents),
            "golden": spec,
            "training": {**training, "taught": taught},
            "metrics": {"tolerances": before.metrics.get("tolerances", {}), "taught": _metrics(lesson)},
            "tools": tools(),
        }
    )
    place(target, {**contents, MANIFEST: _json(manifest)})
    return manifest


_STEPS = ((FP16_MODEL, CPU_MODEL, "student -> CPU INT8"), (CPU_MODEL, TRT_MODEL, "CPU INT8 -> TensorRT file"))
_DEFAULT_MEAN, _DEFAULT_SAME = 0.01, 0.97


def require_agreement(parent: Bundle, networks: Mapping[str, bytes], calibration: Calibration) -> None:
    """Refuse files whose answers to the golden windows are further apart than the manifest allows: a head may lean on
    what eight bits get wrong.

    Raises:
        ExportError: they are.
    """
    golden = read_golden(parent).windows[:VARIOUS]  # another head has its boundaries elsewhere
    windows = np.stack([window.data for window in golden])
    stated: Any = parent.manifest.metrics.get("tolerances", {})
    answers = {
        name: np.stack(
            [
                calibration.probabilities(row, window.seconds)
                for row, window in zip(infer.logits(raw, windows), golden, strict=True)
            ]
        )
        for name, raw in networks.items()
    }
    for first, second, step in _STEPS:
        if first in answers and second in answers:
            limit = stated.get(step, {})
            mean = float(np.abs(answers[first] - answers[second]).mean())
            same = float((answers[first].argmax(axis=1) == answers[second].argmax(axis=1)).mean())
            if mean > limit.get("mean", _DEFAULT_MEAN) or same < limit.get("same", _DEFAULT_SAME):
                raise ExportError(
                    f"{step}: answers to the golden windows differ by {mean:.3f} in the mean, "
                    f"{100 * same:.0f} % are the same",
                    "hold the layer more strongly to the old one",
                )


def add_replay(target: Path, bundle: Bundle, replay: Replay, without: Sequence[str]) -> Manifest:
    """Write ``bundle`` with another replay bank to the folder ``target``, and the data sets it was made ``without``;
    nothing else of it changes, its networks keep their bytes."""
    contents = {**bundle.files, REPLAY: write_replay(replay)}
    contents[CARD] = _with_hashes(bundle.files[CARD].decode(), contents).encode()
    training = {**bundle.manifest.training, "without": sorted(without)}
    manifest = bundle.manifest.model_copy(update={"files": _entries(contents), "training": training})
    place(target, {**contents, MANIFEST: _json(manifest)})
    return manifest


def _entries(contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
    return {name: FileEntry(sha256=sha256(raw), bytes=len(raw)) for name, raw in contents.items()}


def _json(manifest: Manifest) -> bytes:
    return (manifest.model_dump_json() + "\n").encode()


def _metrics(lesson: Lesson) -> dict[str, JsonValue]:
    gains = {"over_control": lesson.over_control, "over_shipped": lesson.over_shipped}
    return {
        "right": {label: [round(x, 4) for x in shares] for label, shares in lesson.right.items()},
        "balanced": [round(x, 4) for x in lesson.balanced],
        **{name: [round(x, 4) for x in (gain.value, gain.low, gain.high)] for name, gain in gains.items()},
        "others": [round(x, 4) for x in lesson.others],
        "curve": [[size, value] for size, value in lesson.curve],
        "share": lesson.share,
    }


def _card(parent: Bundle, lesson: Lesson, site: str, version: str, contents: Mapping[str, bytes]) -> str:
    old = parent.files[CARD].decode() if CARD in parent.files else ""
    head, _, rest = old.partition("\n## ")
    title = f"# {parent.manifest.name} {version}"
    head = re.sub(r"\A# .*", title, head) if head else title
    confidence = ", ".join(f"{label} {lesson.thresholds[label]:.2f}" for label in LABELS)
    seconds = ", ".join(f"{s:g} s {t:.2f}" for s, t in lesson.temperature)
    rest = re.sub(r"(?s)\ATaught at .*?\n## ", "", rest)
    section = "\n".join(
        [
            f"## Taught at {site}",
            "",
            "The last layer was fitted to labels of this site and to the replay bank of the parent bundle (manifest's",
            f"SHA-256 `{parent.sha256}`). The rest of the network is the parent's, byte for byte.",
            "",
            "```",
            text(lesson, site),
            "```",
            "",
            f"Temperature by window length: {seconds}.",
            f"Below these probabilities the verdict abstains: {confidence}.",
            "",
            "All that follows was written of the network before it was taught.",
            "",
            "",
        ]
    )
    return _with_hashes(head.rstrip() + "\n", contents) + "\n" + section + ("## " + rest if rest else "")


def _with_hashes(card: str, contents: Mapping[str, bytes]) -> str:
    """The card with the sizes and hashes of its files as they are now; a file without a line gets one."""
    for name, raw in contents.items():
        if name == CARD:
            continue
        line = _ROW.format(name=name, bytes=len(raw), sha256=sha256(raw))
        pattern = re.compile(rf"^\| {re.escape(name)} \| \d+ bytes, SHA-256 `[0-9a-f]+` \|$", re.MULTILINE)
        if pattern.search(card):
            card = pattern.sub(line, card, count=1)
        else:
            last = list(re.finditer(r"^\| \S+ \| \d+ bytes, SHA-256 `[0-9a-f]+` \|$", card, re.MULTILINE))
            if last:
                card = card[: last[-1].end()] + "\n" + line + card[last[-1].end() :]
    return card
