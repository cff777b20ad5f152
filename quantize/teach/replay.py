"""The replay bank: features of what a network learned from, and of what it did not, small enough to travel in a bundle.

A layer that is fitted to one site alone forgets every other. So it is always fitted to the site's features *and* to
these; and on those that no layer is ever fitted to, it is judged whether other regions lose. The bank also keeps the
layer that came with the network: teaching always starts from that one, never from a taught one.

The file holds features as eight bits, a scale for each feature; no sample of any record is in it.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import BundleError
from agent.types import LABELS
from quantize.teach.head import Head

REPLAY = "replay.npz"
"""Name in a bundle."""
MAX_EXAMPLES = 8192
_LEVELS = 255
_ROWS = ("label", "seconds", "event", "region", "learned")


@dataclass(frozen=True, slots=True, eq=False)
class Replay:
    """``features`` float32 ``[n, features]``; of each its label index, seconds of the window, numbers of its event and
    region, and whether layers may be ``learned`` from it (else they are judged by it). ``head``: the network's own."""

    features: NDArray[np.float32]
    label: NDArray[np.int64]
    seconds: NDArray[np.float64]
    event: NDArray[np.int64]
    region: NDArray[np.int64]
    learned: NDArray[np.bool_]
    head: Head

    def __len__(self) -> int:
        return len(self.label)

    def take(self, which: NDArray[Any]) -> Replay:
        """Some of the examples."""
        return Replay(
            self.features[which],
            self.label[which],
            self.seconds[which],
            self.event[which],
            self.region[which],
            self.learned[which],
            self.head,
        )


def write_replay(replay: Replay) -> bytes:
    """The content of ``replay.npz``."""
    top = np.maximum(replay.features.max(axis=0), 1e-6)
    rows: dict[str, Any] = {
        "features": np.rint(np.clip(replay.features, 0, None) / top * _LEVELS).astype(np.uint8),
        "top": top.astype(np.float32),
        "label": replay.label.astype(np.int8),
        "seconds": replay.seconds.astype(np.float32),
        "event": replay.event.astype(np.int16),
        "region": replay.region.astype(np.int8),
        "learned": replay.learned,
        "weight": replay.head.weight.astype(np.float32),
        "bias": replay.head.bias.astype(np.float32),
    }
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, values in rows.items():
            one = io.BytesIO()
            np.save(one, values, allow_pickle=False)
            entry = zipfile.ZipInfo(f"{name}.npy")  # without a time, so that the same bank gives the same bytes
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, one.getvalue())
    return buffer.getvalue()


def read_replay(content: bytes) -> Replay:
    """The bank in ``replay.npz``.

    Raises:
        BundleError: it is damaged, or larger than a bank may be.
    """
    hint = "fetch the bundle again, or rebuild the bank: python -m quantize replay"
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            count, width = arrays["features"].shape
            if count > MAX_EXAMPLES or width > 4096:
                raise ValueError(f"it holds {count} x {width} features")
            rows = {name: arrays[name] for name in _ROWS}
            if any(values.shape != (count,) for values in rows.values()):
                raise ValueError("its columns differ in length")
            features = arrays["features"].astype(np.float32) * (arrays["top"] / np.float32(_LEVELS))
            head = Head(arrays["weight"].astype(np.float64), arrays["bias"].astype(np.float64))
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise BundleError(f"{REPLAY} cannot be read: {error}", hint) from None
    label = rows["label"].astype(np.int64)
    if head.weight.shape != (len(LABELS), width) or not count or label.min() < 0 or label.max() >= len(LABELS):
        raise BundleError(f"{REPLAY} is not of a network with these labels", hint)
    return Replay(
        features,
        label,
        rows["seconds"].astype(np.float64),
        rows["event"].astype(np.int64),
        rows["region"].astype(np.int64),
        rows["learned"].astype(np.bool_),
        head,
    )
