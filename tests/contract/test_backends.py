"""What every backend must hold: a new one gets an opener here, and runs the same tests.

It answers each window with five numbers and nothing that lingers from another window, proves itself on the
golden windows, says what it is, and refuses in words.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from inference_support import small_bundle, stored_windows, window
from tensorrt_support import compile_driver, fake_environment, make_jetson

from agent.config.station import BACKENDS
from agent.errors import BackendError
from agent.inference import Backend, Bundle, NetworkClassifier, open_bundle, open_classifier
from agent.inference.constant import ConstantBackend
from agent.inference.onnxruntime import open_backend as open_onnxruntime
from agent.inference.selftest import check_golden
from agent.inference.tensorrt.fallback import best_engine
from agent.types import LABELS


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(small_bundle(tmp_path_factory.mktemp("bundle")))


@contextlib.contextmanager
def _tensorrt(bundle: Bundle, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Backend]:
    """The child process, against the stand-in of a GPU."""
    jetson = make_jetson(folder)
    for name, value in fake_environment(compile_driver(folder), jetson.script).items():
        monkeypatch.setenv(name, value)
    with contextlib.closing(best_engine(bundle, jetson.engine_settings()).backend) as backend:
        yield backend


Opener = Callable[[Bundle, Path, pytest.MonkeyPatch], contextlib.AbstractContextManager[Backend]]
OPENERS: dict[str, Opener] = {
    "onnxruntime": lambda bundle, *_: contextlib.nullcontext(open_onnxruntime(bundle, 1, "")),
    "constant": lambda *_: contextlib.nullcontext(ConstantBackend("landslide")),
    "tensorrt": _tensorrt,
}


@pytest.fixture(params=OPENERS)
def backend(
    request: pytest.FixtureRequest, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Backend]:
    with OPENERS[request.param](bundle, tmp_path, monkeypatch) as opened:
        assert opened.name == request.param
        yield opened


def test_every_backend_that_can_be_configured_is_held_to_this() -> None:
    assert set(OPENERS) == set(BACKENDS)


def test_each_window_gets_five_finite_numbers_of_its_own(backend: Backend) -> None:
    """Whatever came before, and whoever holds on to an answer or a window."""
    windows = stored_windows()[0]
    held = [backend.logits(data) for data in windows]
    forwards = [answer.copy() for answer in held]
    for data in windows[::-1]:
        before = data.copy()
        backend.logits(data)
        np.testing.assert_array_equal(data, before)
    for data, first, kept in zip(windows, forwards, held, strict=True):
        assert (kept.shape, kept.dtype) == ((len(LABELS),), np.float32)
        assert np.isfinite(kept).all()
        np.testing.assert_array_equal(kept, first)
        np.testing.assert_array_equal(backend.logits(data), first)


def test_a_window_that_is_a_view_or_in_double_precision_is_the_same_window(backend: Backend) -> None:
    data = stored_windows()[0][3]
    expected = backend.logits(data).copy()
    doubled = np.repeat(data, 2, axis=1)[:, ::2]
    assert not doubled.flags.c_contiguous
    np.testing.assert_array_equal(backend.logits(doubled), expected)
    np.testing.assert_array_equal(backend.logits(data.astype(np.float64)), expected)  # type: ignore[arg-type]


def test_it_says_what_it_is_and_its_golden_windows_pass(backend: Backend, bundle: Bundle) -> None:
    classifier = NetworkClassifier(backend, bundle)
    if backend.model_file is not None:
        assert bundle.file(backend.model_file)
        check_golden(classifier, bundle, backend.model_file)
    verdict = classifier.classify(window(stored_windows()[0][0]))
    assert (verdict.backend, verdict.precision) == (backend.name, backend.precision)
    assert verdict.label in LABELS
    assert sum(verdict.probabilities) == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize("name", BACKENDS)
def test_an_argument_that_it_does_not_know_is_refused_with_a_hint(name: str, bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BackendError) as caught:
        open_classifier(bundle, f"{name}:{tmp_path / 'nonsense'}")
    assert caught.value.hint
