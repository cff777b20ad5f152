"""Agreement of our PRIME-DP with the original, on stored outputs of the original under name-derived weights.

The facts folder holds per variant a manifest of the state dict, a check of the fill, and a reference file with the
input, all outputs and some activations in between. No trained weights are needed for any of it: weights and input
follow from names alone. Every value comes from numpy's PCG64 seeded by the SHA-256 of the entry's name, so that an
entry under a wrong name or of a wrong shape gets other numbers. The scales keep activations where errors show.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from agent.errors import DataError
from agent.types import WINDOW_RATE_HZ, WINDOW_SAMPLES
from quantize.train.prime_dp import VARIANTS, PrimeDP

TOLERANCE = 2e-5
"""Largest absolute difference that counts as agreement; float32 summation order alone makes up to about 6e-6."""

STAGES = {
    "act_encoder": "embedding_wave",
    "act_emb_pos": "emb_pos",
    **{f"act_layer{i}": f"transformer.layers.{i}" for i in range(3)},
}
"""Stored activations and the modules that they come out of."""

CHECKED = ("tinny", "middle")
"""Variants with stored outputs; of the others the manifest alone is known."""

Manifest = list[tuple[str, tuple[int, ...], str, str]]


class Agreement(NamedTuple):
    """One compared quantity of a variant. ``difference`` is the maximum of the absolute differences (infinite: the
    manifest differs, or the shape of an array)."""

    variant: str
    output: str
    difference: float

    @property
    def agrees(self) -> bool:
        return self.difference <= TOLERANCE


def facts_folder() -> Path:
    """Where the facts are expected: the environment variable TALUS_FACTS, else beside the repository."""
    default = Path(__file__).resolve().parents[3] / "shared" / "facts" / "prime_dp"
    return Path(os.environ.get("TALUS_FACTS") or default)


def check(facts_dir: Path, variants: Sequence[str] = CHECKED) -> list[Agreement]:
    """Compare the manifest of every variant that there is, and all stored outputs and activations of ``variants``.

    Raises:
        DataError: the folder lacks a file, or one cannot be read.
    """
    rows = []
    for variant in VARIANTS:
        with torch.device("meta"):
            blank = PrimeDP(variant)
        same = manifest(blank) == read_manifest(facts_dir, variant)
        rows.append(Agreement(variant, "manifest", 0.0 if same else float("inf")))
    for variant in variants:
        rows += [Agreement(variant, "fill", _fill_difference(facts_dir, variant)), *_compare(facts_dir, variant)]
    return rows


def table(rows: Sequence[Agreement]) -> str:
    """The rows as aligned text with a verdict on the last line."""
    lines = [f"{'variant':<8} {'output':<27} {'max abs difference':>18}"]
    lines += [f"{r.variant:<8} {r.output:<27} {r.difference:>18.1e}{'' if r.agrees else '  DIFFERS'}" for r in rows]
    failed = sum(not r.agrees for r in rows)
    verdict = f"{failed} of {len(rows)} differ" if failed else f"all {len(rows)} agree"
    return "\n".join([*lines, f"{verdict} (tolerance {TOLERANCE:g})"])


def manifest(model: PrimeDP) -> Manifest:
    """Name, shape, dtype and kind of every state-dict entry, in order."""
    parameters = {name for name, _ in model.named_parameters()}
    return [
        (name, tuple(t.shape), str(t.dtype).removeprefix("torch."), "parameter" if name in parameters else "buffer")
        for name, t in model.state_dict().items()
    ]


def read_manifest(facts_dir: Path, variant: str) -> Manifest:
    """The original's manifest."""
    entries = _json(facts_dir / f"state_dict.{variant}.json")["entries"]
    return [(name, tuple(e["shape"]), e["dtype"], e["kind"]) for name, e in entries.items()]


def _fill_difference(facts_dir: Path, variant: str) -> float:
    worst = 0.0
    shapes = {name: shape for name, shape, dtype, _ in read_manifest(facts_dir, variant) if dtype == "float32"}
    for name, (first, last, total) in _json(facts_dir / f"fill_check.{variant}.json")["entries"].items():
        if name in shapes:
            value = fill_value(name, shapes[name]).astype(np.float64).ravel()
            worst = max(worst, abs(value[0] - first), abs(value[-1] - last), abs(value.sum() - total))
    return worst


def _compare(facts_dir: Path, variant: str) -> list[Agreement]:
    path = facts_dir / f"reference.{variant}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            reference = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    model = fill(PrimeDP(variant))
    ours: dict[str, NDArray[Any]] = {"input": reference_input()}
    ours |= outputs(model, reference) | activations(model, reference)
    return [Agreement(variant, name, _difference(value, reference[name.split()[0]])) for name, value in ours.items()]


def outputs(model: PrimeDP, reference: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
    """What ``model`` gives for the stored input, under the names of the reference file and with its channel strides;
    the event path's answer stands beside the full one's."""
    stride = model.width // 64
    x = torch.from_numpy(reference["input"])
    with torch.inference_mode():
        full = model(x)
        short = model(x[:1, :, 1024:4096])
        task_info, task_wave = model.task_hidden(x[:1], torch.from_numpy(reference["task_id"]))
        ours = {
            **full._asdict(),
            "hidden": full.hidden[:, :: model.width // 256],
            "feature_token0": full.hidden[:, :, 0],
            "task_hidden_einfo": task_info,
            "task_hidden_wave": task_wave[:, ::stride],
            **{f"short_{name}": value for name, value in short._asdict().items()},
            "short_hidden": short.hidden[:, ::stride],
            "event_type (event path)": model.event_logits(x),
        }
    return {name: value.numpy() for name, value in ours.items()}


def activations(model: PrimeDP, reference: dict[str, NDArray[Any]]) -> dict[str, NDArray[np.float64]]:
    """The same for what passes between the stages, computed in float64.

    These values reach 31, where two float32 convolution algorithms already differ by 4e-5; in float64 what remains is
    the rounding of the original.
    """
    stride = model.width // 64
    seen: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(module).register_forward_hook(lambda _m, _in, out, name=name: seen.update({name: out}))
        for name, module in STAGES.items()
    ]
    with torch.inference_mode():
        model.double().hidden(torch.from_numpy(reference["input"]).double())
    model.float()
    for handle in handles:
        handle.remove()
    channels_first = {"act_encoder": seen.pop("act_encoder")[:, ::stride]}
    strided = channels_first | {name: tokens[..., ::stride] for name, tokens in seen.items()}
    return {name: value.numpy() for name, value in strided.items()}


def _difference(ours: NDArray[Any], reference: NDArray[Any]) -> float:
    if ours.shape != reference.shape:
        return float("inf")
    return float(np.abs(ours.astype(np.float64) - reference).max())


def _json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise _unusable(path, error) from error
    return content


def _unusable(path: Path, error: Exception) -> DataError:
    return DataError(
        f"{path} cannot be used: {error}", "give the folder with the PRIME-DP facts by --facts or TALUS_FACTS"
    )


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    return np.random.default_rng(seed).standard_normal(shape)


def fill_value(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The value of one float entry of a state dict."""
    z = _normal(name, shape)
    leaf = name.rpartition(".")[2]
    if leaf == "running_mean":
        value = 0.1 * z
    elif leaf == "running_var":
        value = 0.25 + 0.1 * np.abs(z) if name.startswith("embedding_wave.") else 0.7 + 0.2 * np.abs(z)
    elif leaf.startswith("bias") or leaf.endswith("bias"):
        value = 0.05 * z
    elif len(shape) == 1:
        value = 1 + 0.1 * z
    elif name == "embedding_info.weight":
        value = z
    elif len(shape) == 3 and name.startswith("decoder_") and name.endswith(".layers.0.weight"):
        value = z * math.sqrt(1.5 / (shape[0] * shape[2] / 2))
    else:
        value = z * math.sqrt(1.5 / math.prod(shape[1:]))
    return value.astype(np.float32)


def fill(model: PrimeDP) -> PrimeDP:
    """Give every float parameter and statistic of ``model`` its name-derived value; returns it in evaluation mode."""
    with torch.no_grad():
        for name, entry in model.state_dict().items():
            if entry.is_floating_point():
                entry.copy_(torch.from_numpy(fill_value(name, tuple(entry.shape))))
    return model.eval()


def reference_input() -> NDArray[np.float32]:
    """Two windows ``[2, 3, 10240]`` with a P and an S wave train each on a little noise, demeaned, scaled to 1."""
    t = np.arange(WINDOW_SAMPLES) / WINDOW_RATE_HZ
    windows = np.empty((2, 3, WINDOW_SAMPLES))
    for b, c in np.ndindex(2, 3):
        p, s = t - (20.48 + 1.5 * b), t - (31 + 4 * b)
        wave = (1.0 if c == 2 else 0.5) * _train(p, 4, 7 + c) + (0.6 if c == 2 else 1.0) * _train(s, 9, 2.5 + 0.5 * c)
        wave += 0.02 * _normal(f"input/{b}/{c}", t.shape)
        wave -= wave.mean()
        windows[b, c] = wave / (np.abs(wave).max() + 1e-6)
    return windows.astype(np.float32)


def _train(t: NDArray[np.float64], decay_s: float, hz: float) -> NDArray[np.float64]:
    after = np.maximum(t, 0)
    return np.where(t >= 0, np.exp(-after / decay_s) * np.sin(2 * np.pi * hz * after), 0.0)
