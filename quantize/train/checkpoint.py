"""Weights of PRIME-DP from a file: the published checkpoints, or any that hold the same entries.

A checkpoint is a pickle, and pickles run code when opened; this one is opened by PyTorch's reader that takes tensors
and plain containers only. Nothing is guessed: every entry must be there with its shape and type, and no other.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from agent.errors import BundleError
from quantize.train.prime_dp import VARIANTS, PrimeDP, shape_of

log = logging.getLogger("quantize.train.checkpoint")

SOURCE = "https://github.com/cangyeone/seismicxm (folder ckpt, Git LFS)"

PUBLISHED: Mapping[str, str] = MappingProxyType(
    {
        "5139a755a1db98c7483d0e95bedbeb5e2185bb5a8ebd770ab3d3fca6b669c9f9": "tinny",
        "3f051c950ef26110f922c30a3c7d11ed5a73b84bb98e99c2b7943a2a0908b174": "middle",
        "d91b746a727932c701f09e7e18714f4828eac9aa5e0b285cc585eaa6dd90fddf": "middle.classification",
        "816d3a784277125f4b0c3a2f6f7feb862f986c3ba6493515a53ef16610d008b0": "rnn",
        "671d02d677c25c3d075963889602299ec71f52c724470f2fa85bb28035fe1528": "middle (second copy)",
    }
)
"""SHA-256 of a known file and its name. The last was recorded by third parties, not by the authors."""

_NESTED = ("state_dict", "model_state_dict", "model")
_PREFIX = "module."
_LFS = b"version https://git-lfs"
_MAGIC = (b"PK", b"\x80")
"""How a checkpoint begins: as a zip archive, or as a pickle (the form before PyTorch 1.6)."""

Entry = tuple[tuple[int, ...], torch.dtype]
Entries = dict[str, Entry]


@dataclass(frozen=True, slots=True, eq=False)
class Checkpoint:
    """A loaded network in evaluation mode, the file's SHA-256, and its published name (None: not a known file)."""

    model: PrimeDP
    sha256: str
    published: str | None


def load_checkpoint(path: Path, variant: str | None = None, published: Mapping[str, str] = PUBLISHED) -> Checkpoint:
    """Load weights strictly; ``variant`` is what the caller expects, without it the entries decide.

    The state dict may be plain or nested under ``state_dict``, ``model_state_dict`` or ``model``, and its names may
    carry the prefix ``module.``. A file whose SHA-256 is not in ``published`` is taken with a warning in the log.

    Raises:
        BundleError: missing, truncated, not weights, of another variant, or with entries that do not fit.
        ConfigError: no such variant.
    """
    if variant is not None:
        shape_of(variant)
    digest = _digest(path)
    state = _state_dict(path, _read(path))
    got = _entries(state)
    wanted = variant or _closest(path, got)
    differences = _differences(got, _expected(wanted))
    if differences:
        fitting = next((name for name in VARIANTS if got == _expected(name)), None)
        if fitting:
            raise BundleError(
                f"{path} holds the weights of PRIME-DP {fitting!r}, not of {wanted!r}",
                f"set `pretrain: {{variant: {fitting}}}` in the file of --config, or fetch the file of {wanted!r} from "
                f"{SOURCE}",
            )
        raise BundleError(
            f"{path} does not fit PRIME-DP {wanted!r}: {'; '.join(differences)}",
            f"use an unchanged checkpoint from {SOURCE}; a network with other heads or layers cannot be loaded",
        )
    broken = [name for name, value in state.items() if value.is_floating_point() and not bool(value.isfinite().all())]
    if broken:
        raise BundleError(
            f"{path} holds values that are not finite: {_some(broken)}",
            "the training behind it diverged or the file is damaged: take an earlier one, or fetch it again",
        )
    if digest not in published:
        log.warning("%s (sha256 %s) is none of the published checkpoints: be sure where it comes from", path, digest)
    model = PrimeDP(wanted)
    model.load_state_dict(state, strict=True)
    return Checkpoint(model.eval(), digest, published.get(digest))


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read: {error.strerror}", f"give a checkpoint file, from {SOURCE}"
        ) from None
    return digest.hexdigest()


def _read(path: Path) -> object:
    again = f"fetch it again from {SOURCE} and compare its size and SHA-256"
    with path.open("rb") as file:
        head = file.read(200)
    if head.startswith(_LFS):
        raise BundleError(
            f"{path} is a Git LFS pointer, not the weights", "run `git lfs install` and `git lfs pull` in that checkout"
        )
    size = path.stat().st_size
    if size and not head.startswith(_MAGIC):
        raise BundleError(
            f"{path} is not a PyTorch checkpoint", f"{again}; a web page may have been saved in its place"
        )
    try:
        content: object = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        # PyTorch's own text recommends weights_only=False here, which is what must not be done.
        raise BundleError(
            f"{path} holds Python objects other than tensors, which may run code when opened; it was not opened",
            "never unpickle it here; ask its author for the state dict alone: torch.save(model.state_dict(), FILE)",
        ) from None
    except Exception as error:  # the reader raises a dozen types for a damaged file; all of them mean the same here
        raise BundleError(f"{path} is truncated or damaged ({size} bytes, {type(error).__name__})", again) from error
    return content


def _state_dict(path: Path, content: object) -> dict[str, torch.Tensor]:
    hint = f"expected is a state dict, plain or under one of the keys {', '.join(_NESTED)}"
    if not isinstance(content, Mapping):
        raise BundleError(f"{path} holds a {type(content).__name__}, not a state dict", hint)
    nested = [content[key] for key in _NESTED if isinstance(content.get(key), Mapping)]
    entries: Mapping[Any, Any] = nested[0] if nested else content
    odd = [str(name) for name, value in entries.items() if not (isinstance(name, str) and _is_dense(value))]
    if odd or not entries:
        raise BundleError(f"{path} holds entries that are no weights: {_some(odd) or 'it is empty'}", hint)
    bare = all(name.startswith(_PREFIX) for name in entries)
    return {name[len(_PREFIX) :] if bare else name: value for name, value in entries.items()}


def _is_dense(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.is_quantized


def _expected(variant: str) -> Entries:
    with torch.device("meta"):
        return _entries(PrimeDP(variant).state_dict())


def _entries(state: Mapping[str, torch.Tensor]) -> Entries:
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def _closest(path: Path, got: Entries) -> str:
    """The variant that shares most entries, shapes included; fewest others settles a tie."""
    expected = {name: _expected(name) for name in VARIANTS}
    shared = {name: len(got.items() & entries.items()) for name, entries in expected.items()}
    if not any(shared.values()):
        raise BundleError(
            f"{path} shares no entry with PRIME-DP: {_some(list(got))}", f"fetch a checkpoint from {SOURCE}"
        )
    return max(shared, key=lambda name: (shared[name], -len(expected[name])))


def _differences(got: Entries, expected: Entries) -> list[str]:
    """What keeps the entries from being the expected ones, in words; empty when nothing does."""
    missing = [name for name in expected if name not in got]
    unexpected = [name for name in got if name not in expected]
    unlike = [
        f"{name} {_describe(got[name])} instead of {_describe(entry)}"
        for name, entry in expected.items()
        if name in got and got[name] != entry
    ]
    found = (("missing", missing), ("unexpected", unexpected), ("unlike", unlike))
    return [f"{len(names)} {kind}: {_some(names)}" for kind, names in found if names]


def _describe(entry: Entry) -> str:
    return f"{str(entry[1]).removeprefix('torch.')} {list(entry[0])}"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
