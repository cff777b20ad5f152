"""A model bundle: the manifest, and the files whose hashes it states.

A bundle is a folder, or a zip with the same files at its root. Everything is read into memory once, within fixed
limits, and hashed there, so the bytes that were checked are the bytes that run, and nothing is extracted to the disk.

Its temperatures make of logits probabilities that mean what they say (``Calibration``): a network trained on hard
labels is surer than it is right, and surer still of a window that has hardly begun. Dividing the logits by a
temperature, fitted on held-out windows of each length, corrects that and never changes the order (Guo et al. 2017, "On
Calibration of Modern Neural Networks").
"""

from __future__ import annotations

import hashlib
import io
import math
import re
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from agent.dsp.window import Preparation
from agent.errors import BundleError
from agent.types import COMPONENTS, LABELS, WINDOW_ONSET, WINDOW_RATE_HZ, WINDOW_SAMPLES

DEFAULT_BUNDLE = Path(__file__).parents[1] / "models" / "default"
MANIFEST = "manifest.json"
GOLDEN = "golden.npz"
CPU_MODEL = "model.cpu.onnx"
TRT_MODEL = "model.trt.onnx"
FP16_MODEL = "model.fp16.onnx"
"""The network in half precision, where a bundle has it: for a GPU that gets INT8 wrong."""
MAX_FILE_BYTES = 16 << 20
MAX_BUNDLE_BYTES = 32 << 20
MAX_RATIO = 200
"""Largest expansion of a zip entry: weights compress by a few, a text by about ten, a bomb by a thousand."""
_OUTSIDE = b"location"
"""Key under which an ONNX file says where weights of its own lie outside it, in a file of the machine's."""
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_REBUILD = "rebuild it with `make model`, or fetch it again"
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class FileEntry(_Strict):
    """One file of the bundle: SHA-256 in lower-case hexadecimal, and its length."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)]


class TemperatureAt(_Strict):
    """The temperature that calibrates windows with ``seconds`` of signal after the onset."""

    seconds: Positive
    temperature: Positive


class PreparationSpec(_Strict):
    """How the windows were prepared in training; the agent prepares them the same way."""

    highpass_hz: Positive | None
    highpass_order: Annotated[int, Field(ge=1, le=8)]


class Quantization(_Strict):
    """What the two INT8 files were made with. ``weight_bits`` is 7 where full 8 bits could saturate on AVX2."""

    ranges: str
    cpu_weight_bits: Literal[7, 8]
    trt_weight_bits: Literal[8]
    calibration_windows: Annotated[int, Field(ge=1)]


class GoldenFile(_Strict):
    """One network file on the golden windows: ``tolerance`` is the largest difference in any probability that a backend
    may show against the file computed as it is written; ``from_fp32`` is how far that is from the FP32 network."""

    tolerance: Annotated[float, Field(gt=0, le=0.2)]
    from_fp32: Share


class GoldenSpec(_Strict):
    """How many golden windows there are, and what to expect of each network file on them."""

    windows: Annotated[int, Field(ge=1)]
    files: dict[str, GoldenFile]


class Manifest(_Strict):
    """``manifest.json``. Unknown keys are refused: a newer bundle may mean by them what this agent would not do."""

    format: Literal["talus/bundle/1"]
    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{0,63}$")]
    version: Annotated[str, Field(pattern=r"^[0-9A-Za-z][0-9A-Za-z.+-]{0,31}$")]
    labels: tuple[str, ...]
    rate_hz: int
    samples: int
    onset_sample: int
    components: tuple[str, ...]
    preparation: PreparationSpec
    temperature: Annotated[tuple[TemperatureAt, ...], Field(min_length=1)]
    thresholds: dict[str, Share]
    files: dict[str, FileEntry]
    golden: GoldenSpec
    quantization: Quantization
    training: dict[str, JsonValue]
    metrics: dict[str, JsonValue]
    tools: dict[str, str]


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle. ``sha256`` is that of ``manifest.json``, which pins every other file."""

    manifest: Manifest
    sha256: str
    origin: str
    files: Mapping[str, bytes]

    @property
    def preparation(self) -> Preparation:
        spec = self.manifest.preparation
        return Preparation(highpass_hz=spec.highpass_hz, highpass_order=spec.highpass_order)

    def file(self, name: str) -> bytes:
        """Content of ``name``.

        Raises:
            BundleError: the bundle has no such file.
        """
        if name not in self.files:
            raise BundleError(f"{self.origin} holds no {name}", "use a backend whose file is there, or " + _REBUILD)
        return self.files[name]


def open_bundle(path: Path) -> Bundle:
    """Read and check the bundle at ``path`` (a folder, or a zip of its files).

    Raises:
        BundleError: absent, unreadable, over the limits, not what its manifest says, or not made for this agent.
    """
    try:
        if path.is_dir():
            return _check(str(path), lambda name, limit: _read_plain(path / name, limit))
        with zipfile.ZipFile(path) as archive:
            entries = _entries(archive, path)
            return _check(str(path), lambda name, limit: _read_entry(archive, entries, name, limit))
    except FileNotFoundError as error:
        raise BundleError(f"{error.filename} does not exist", "give the folder or zip of a model bundle") from None
    except (
        OSError,
        zipfile.BadZipFile,
        zipfile.LargeZipFile,
        NotImplementedError,
        RuntimeError,
        EOFError,
        zlib.error,
    ) as error:
        # zipfile raises RuntimeError for an encrypted entry, NotImplementedError for an unknown compression
        raise BundleError(f"{path} cannot be read as a bundle: {error}", "give a folder or a plain zip") from error


def pack(path: Path) -> bytes:
    """The bundle at ``path`` as a zip; that of a folder depends on its contents only.

    Raises:
        BundleError: it is not a bundle that the agent accepts.
    """
    bundle = open_bundle(path)
    if not path.is_dir():
        return path.read_bytes()
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for name, content in ((MANIFEST, (path / MANIFEST).read_bytes()), *bundle.files.items()):
            entry = zipfile.ZipInfo(name)  # without a time, so 1980-01-01
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return packed.getvalue()


def _check(origin: str, read: Callable[[str, int], bytes]) -> Bundle:
    raw = read(MANIFEST, 1 << 20)
    manifest = parse_manifest(raw, origin)
    _require_fit(manifest, origin)
    files = {}
    total = len(raw)
    for name, entry in manifest.files.items():
        total += entry.bytes
        if total > MAX_BUNDLE_BYTES:
            raise BundleError(f"{origin} is larger than {MAX_BUNDLE_BYTES >> 20} MiB", _REBUILD)
        content = read(name, entry.bytes)
        if len(content) != entry.bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
            raise BundleError(
                f"{origin}: {name} is not the file that the manifest names (its SHA-256 or length differs)",
                "the file was changed or cut short: " + _REBUILD,
            )
        if name.endswith(".onnx") and _OUTSIDE in content:
            raise BundleError(
                f"{origin}: {name} refers to another file for its weights", "a network must hold its weights itself"
            )
        files[name] = content
    return Bundle(manifest, hashlib.sha256(raw).hexdigest(), origin, MappingProxyType(files))


def parse_manifest(raw: bytes, origin: str) -> Manifest:
    """Parse ``manifest.json``.

    Raises:
        BundleError: not JSON, a field missing, unknown, of the wrong type or out of range; the message names each.
    """
    try:
        return Manifest.model_validate_json(raw)
    except ValidationError as error:
        faults = "; ".join(_fault(e) for e in error.errors(include_url=False)[:5])
        raise BundleError(
            f"{origin}: {MANIFEST}: {faults}", "the bundle is of another format or was edited: " + _REBUILD
        ) from None


def _fault(error: Any) -> str:
    where = ".".join(str(part) for part in error["loc"])
    return f"{where}: {error['msg']}" if where else str(error["msg"])


def _require_fit(manifest: Manifest, origin: str) -> None:
    """Refuse a network that reads its input, or answers, in another order or scale than the agent does."""
    expected: tuple[tuple[str, object, object], ...] = (
        ("labels", manifest.labels, LABELS),
        ("rate_hz", manifest.rate_hz, WINDOW_RATE_HZ),
        ("samples", manifest.samples, WINDOW_SAMPLES),
        ("onset_sample", manifest.onset_sample, WINDOW_ONSET),
        ("components", manifest.components, COMPONENTS),
    )
    for field, found, needed in expected:
        if found != needed:
            raise BundleError(
                f"{origin}: {field} is {found!r}, this agent needs {needed!r}",
                "use a bundle made for this version of Talus",
            )
    if set(manifest.thresholds) != set(LABELS):
        raise BundleError(f"{origin}: thresholds must name each of {', '.join(LABELS)}", _REBUILD)
    seconds = [entry.seconds for entry in manifest.temperature]
    if seconds != sorted(set(seconds)):
        raise BundleError(f"{origin}: temperature must rise in seconds, each once", _REBUILD)
    highpass = manifest.preparation.highpass_hz
    if highpass is not None and highpass >= WINDOW_RATE_HZ / 2:
        raise BundleError(f"{origin}: preparation.highpass_hz {highpass} is not below half the rate", _REBUILD)
    if not set(manifest.golden.files) <= set(manifest.files):
        raise BundleError(f"{origin}: golden.files names a file that is not in the bundle", _REBUILD)
    if GOLDEN not in manifest.files:
        raise BundleError(f"{origin}: the manifest lists no {GOLDEN}, so no backend could be checked", _REBUILD)
    for name in manifest.files:
        if not _NAME.match(name) or name == MANIFEST:
            raise BundleError(f"{origin}: {name!r} cannot be the name of a bundle's file", _REBUILD)


def _read_plain(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit + 1)


def _entries(archive: zipfile.ZipFile, path: Path) -> dict[str, zipfile.ZipInfo]:
    """The archive's entries by name, every one of them acceptable."""
    entries: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        if not _NAME.match(info.filename):
            raise BundleError(
                f"{path}: entry {info.filename!r} is not a plain file at the root of the zip",
                "zip the files themselves: cd BUNDLE && zip ../bundle.zip *",
            )
        if info.filename in entries:
            raise BundleError(f"{path}: {info.filename} is in the zip twice", "zip the bundle again")
        if info.file_size > MAX_FILE_BYTES or info.file_size > MAX_RATIO * max(info.compress_size, 64):
            raise BundleError(
                f"{path}: {info.filename} would unpack to {info.file_size} bytes from {info.compress_size}",
                "no bundle does that: do not trust this file",
            )
        entries[info.filename] = info
    if sum(info.file_size for info in entries.values()) > MAX_BUNDLE_BYTES:
        raise BundleError(f"{path} is larger than {MAX_BUNDLE_BYTES >> 20} MiB", _REBUILD)
    return entries


def _read_entry(archive: zipfile.ZipFile, entries: Mapping[str, zipfile.ZipInfo], name: str, limit: int) -> bytes:
    if name not in entries:
        raise BundleError(f"{archive.filename} holds no {name}", _REBUILD)
    with archive.open(entries[name]) as file:
        return file.read(limit + 1)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    """Probabilities over the last axis."""
    shifted = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(axis=-1, keepdims=True))


class Calibration:
    """A temperature for every window length: linear in log seconds, constant beyond the shortest and longest fitted."""

    def __init__(self, points: Sequence[TemperatureAt]) -> None:
        self._log_seconds = [math.log(point.seconds) for point in points]
        self._temperatures = [point.temperature for point in points]

    def temperature(self, seconds: float) -> float:
        at, known, values = math.log(max(seconds, 1e-3)), self._log_seconds, self._temperatures
        after = bisect_right(known, at)
        if after in {0, len(known)}:
            return values[min(after, len(known) - 1)]
        share = (at - known[after - 1]) / (known[after] - known[after - 1])
        return values[after - 1] + share * (values[after] - values[after - 1])

    def probabilities(self, logits: NDArray[np.float32], seconds: float) -> NDArray[np.float64]:
        """Calibrated probabilities ``[5]`` of ``logits`` ``[5]`` for a window of ``seconds`` after the onset."""
        scaled: list[float] = (logits / self.temperature(seconds)).tolist()  # of five numbers Python has the sum sooner
        largest = max(scaled)
        shares = [math.exp(value - largest) for value in scaled]
        return np.array(shares) / sum(shares)
