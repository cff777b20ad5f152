"""A checkpoint comes from elsewhere: it must load exactly or be refused with the file's name and a way out."""

from __future__ import annotations

import hashlib
import logging
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import learning_support
import numpy as np
import pytest
import torch

from agent.errors import BundleError, ConfigError
from quantize.train.checkpoint import load_checkpoint
from quantize.train.prime_dp import PrimeDP
from quantize.train.teacher_check import fill, reference_input

pytestmark = [learning_support.TRAIN, pytest.mark.filterwarnings("ignore:Detected pickle protocol")]

State = dict[str, torch.Tensor]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads on a busy machine wait for each other longer than they work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def model() -> PrimeDP:
    """The smallest variant with weights whose outputs are known to be alive."""
    return fill(PrimeDP("picker"))


@pytest.fixture
def state(model: PrimeDP) -> State:
    return dict(model.state_dict())


def _save(path: Path, content: object, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def _refused(path: Path, *words: str, variant: str | None = None) -> None:
    """Refused in words that name the file and what is wrong, with a remedy."""
    with pytest.raises(BundleError) as caught:
        load_checkpoint(path, variant)
    assert str(path) in caught.value.message
    assert caught.value.hint
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model_state_dict": state},
        lambda state: {"model": state, "loss": 0.1},
        lambda state: {f"module.{name}": value for name, value in state.items()},
        lambda state: {"state_dict": {f"module.{name}": value for name, value in state.items()}},
    ],
    ids=["plain", "state_dict", "model_state_dict", "model", "prefix", "nested prefix"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_every_published_form_loads(
    tmp_path: Path, model: PrimeDP, state: State, wrap: Callable[[State], object], zipped: bool
) -> None:
    path = _save(tmp_path / "weights.pt", wrap(state), _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path, "picker")
    assert not loaded.model.training
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x = torch.from_numpy(reference_input()[:, :, :640].copy())
    with torch.inference_mode():
        for ours, theirs in zip(loaded.model(x), model(x), strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize("variant", ["picker", "tinny"])
def test_the_entries_tell_the_variant(tmp_path: Path, variant: str) -> None:
    path = _save(tmp_path / "weights.pt", PrimeDP(variant).state_dict())
    assert load_checkpoint(path).model.variant == variant


def test_an_unknown_file_is_warned_about_and_a_known_one_is_not(
    tmp_path: Path, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    path = _save(tmp_path / "weights.pt", state)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    with caplog.at_level(logging.WARNING, "quantize.train.checkpoint"):
        assert load_checkpoint(path, published={digest: "ours"}).published == "ours"
        assert caplog.text == ""
        assert load_checkpoint(path).published is None
    assert str(path) in caplog.text
    assert digest in caplog.text


def test_the_wrong_variant_is_named(tmp_path: Path, state: State) -> None:
    _refused(_save(tmp_path / "weights.pt", state), "'picker'", "not of 'tinny'", variant="tinny")
    with pytest.raises(ConfigError, match="large"):
        load_checkpoint(tmp_path / "weights.pt", "large")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, state: State, zipped: bool, share: float) -> None:
    path = _save(tmp_path / "weights.pt", state, _use_new_zipfile_serialization=zipped)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    _refused(path, f"truncated or damaged ({path.stat().st_size} bytes", "fetch it again")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_damaged_file_never_ends_in_another_error(tmp_path: Path, zipped: bool) -> None:
    """Random bytes changed in the part that is read as instructions: PyTorch's reader fails in a dozen ways."""
    path = _save(
        tmp_path / "weights.pt", {"a": torch.zeros(2), "b": torch.ones(3)}, _use_new_zipfile_serialization=zipped
    )
    content, draw, kinds = path.read_bytes(), np.random.default_rng(0), set()
    for _ in range(60):
        damaged = bytearray(content)
        for place in draw.integers(2, len(content), 3):
            damaged[place] = draw.integers(256)
        path.write_bytes(damaged)
        with pytest.raises(BundleError) as caught:
            load_checkpoint(path, "picker")
        kinds.add(caught.value.message.partition("weights.pt ")[2].split()[1])
    assert "truncated" in kinds


class _Code:
    """What an attacker would put into a pickle."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("form", ["zip", "legacy", "bare pickle"])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, state: State, form: str) -> None:
    path, marker = tmp_path / "weights.pt", tmp_path / "was-run"
    content = {**state, "extra": _Code(marker)}
    if form == "bare pickle":
        path.write_bytes(pickle.dumps({"extra": _Code(marker)}, protocol=2))
    else:
        _save(path, content, _use_new_zipfile_serialization=form == "zip")
    _refused(path, "may run code", "state dict alone")
    assert not marker.exists()


def test_a_whole_saved_network_is_refused(tmp_path: Path, model: PrimeDP) -> None:
    _refused(_save(tmp_path / "weights.pt", model), "objects other than tensors", "model.state_dict()")


def test_files_that_are_something_else(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    _refused(path, "No such file")
    _refused(tmp_path, "directory")
    path.write_bytes(b"")
    _refused(path, "truncated or damaged (0 bytes")
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:5139\nsize 34377834\n")
    _refused(path, "Git LFS pointer", "git lfs pull")
    path.write_text("<!DOCTYPE html><html>Sign in to continue</html>")
    _refused(path, "not a PyTorch checkpoint", "web page")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no weights")
    _refused(path, "damaged")
    for content in (torch.zeros(3), [torch.zeros(3)], "text"):
        _refused(_save(path, content), "not a state dict")
    _refused(_save(path, {}), "it is empty")
    _refused(_save(path, {"epoch": 3}), "no weights: epoch")
    _refused(_save(path, {"conv.weight": torch.zeros(3)}), "shares no entry", "conv.weight")


@pytest.mark.parametrize("variant", ["picker", None])
def test_entries_that_do_not_fit_are_named(tmp_path: Path, state: State, variant: str | None) -> None:
    """The variant is not known to the caller: the closest one is the measure."""
    path = tmp_path / "weights.pt"
    head = "decoder_event_type.weight"
    count = "embedding_wave.layers.0.layers.1.num_batches_tracked"
    cases: list[tuple[State, tuple[str, ...]]] = [
        ({n: v for n, v in state.items() if n != head}, ("1 missing", head)),
        ({**state, "extra.weight": torch.zeros(1)}, ("1 unexpected", "extra.weight")),
        ({**state, head: torch.zeros(3, 64)}, (head, "float32 [3, 64] instead of float32 [8, 64]")),
        ({**state, head: state[head].half()}, (head, "float16 [8, 64] instead of float32")),
        ({n: v for n, v in state.items() if n != count}, ("1 missing", count)),
        ({**state, head: torch.full((8, 64), torch.nan)}, ("not finite", head)),
        ({**state, head: state[head].to_sparse()}, ("no weights", head)),
    ]
    for content, words in cases:
        _refused(_save(path, content), *words, variant=variant)
    renamed = {name.replace("decoder_phase", "decoder_picks"): value for name, value in state.items()}
    _refused(_save(path, renamed), "44 missing", "44 unexpected", "and 41 more", variant=variant)
