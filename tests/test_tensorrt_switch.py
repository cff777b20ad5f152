"""The station is never blind: ONNX Runtime serves while TensorRT is made ready, and whenever TensorRT fails."""

from __future__ import annotations

import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from agent_support import running_agent, write_config, write_records
from broker_support import Collector, needs_mosquitto, running, wait_for
from inference_support import small_bundle, stored_windows, window
from tensorrt_support import FakeJetson, children, compile_driver, fake_environment, make_jetson

from agent.config.station import ClassifierConfig
from agent.errors import ModelError
from agent.inference import Bundle, open_bundle, open_classifier
from agent.inference.tensorrt import child as probe_module
from agent.inference.tensorrt.switch import SwitchingClassifier
from agent.service.assemble import open_classifier as open_configured


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(small_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def jetson(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> FakeJetson:
    made = make_jetson(tmp_path)
    for name, value in fake_environment(compile_driver(tmp_path), made.script).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAKE_CUDA_NO_GRAPH", "1")  # so that the stand-in counts every run
    return made


@pytest.fixture
def switching(jetson: FakeJetson, bundle: Bundle) -> Iterator[Callable[..., SwitchingClassifier]]:
    made: list[SwitchingClassifier] = []

    def make(**engine_settings: object) -> SwitchingClassifier:
        made.append(
            SwitchingClassifier(
                open_classifier(bundle, "onnxruntime"), bundle, jetson.engine_settings(**engine_settings)
            )
        )
        return made[-1]

    yield make
    for classifier in made:
        classifier.close()
    assert children() == []


def classify_until(
    classifier: SwitchingClassifier, done: Callable[[], bool], seconds: float = 100.0
) -> list[tuple[str, str]]:
    """Backend and precision of one verdict after the other, until ``done``."""
    windows = [window(data) for data in stored_windows()[0]]
    seen = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        verdict = classifier.classify(windows[len(seen) % len(windows)])
        seen.append((verdict.backend, verdict.precision))
        if done():
            return seen
        time.sleep(0.01)
    raise AssertionError(f"not within {seconds} s: {classifier.backend_status()}")


def settled(classifier: SwitchingClassifier) -> Callable[[], bool]:
    return lambda: classifier.backend_status().activity is None


def test_onnx_runtime_serves_until_the_engine_is_ready(
    jetson: FakeJetson, switching: Callable[..., SwitchingClassifier], tmp_path: Path
) -> None:
    jetson.tell(build_until=str(tmp_path / "go"))
    classifier = switching()
    assert classifier.backend_status().activity is not None
    windows = [window(data) for data in stored_windows()[0]]
    for number in range(50):
        assert classifier.classify(windows[number % len(windows)]).backend == "onnxruntime"
    (tmp_path / "go").touch()
    seen = classify_until(classifier, settled(classifier))
    assert seen[0] == ("onnxruntime", "int8")
    assert seen[-1] == ("tensorrt", "int8")
    assert len(set(seen)) == 2
    assert seen == sorted(seen), "once TensorRT serves, it serves every window"
    backend_status = classifier.backend_status()
    assert (backend_status.backend, backend_status.precision, backend_status.reason()) == ("tensorrt", "int8", "")


def test_progress_of_a_build_can_be_told(jetson: FakeJetson, switching: Callable[..., SwitchingClassifier]) -> None:
    jetson.tell(build="hang")
    classifier = switching()
    wait_for(lambda: re.search(r"[1-9]\d* s, building the engine", classifier.backend_status().activity or ""))
    activity = classifier.backend_status().activity
    assert activity is not None
    assert activity.startswith("building the int8 engine for TensorRT 10.3.0 on Orin")
    assert "onnxruntime serves while TensorRT is made ready" in classifier.backend_status().reason()


@pytest.mark.parametrize(
    ("script", "rungs", "told"),
    [
        ({"import": "segv"}, 0, "SIGSEGV while importing TensorRT"),
        ({"runtime": "segv"}, 0, "SIGSEGV while opening TensorRT's runtime"),
        ({"builder": "raise"}, 0, "factory function returned nullptr"),
        ({"build": "segv"}, 2, "ended by SIGSEGV while building the engine (TensorRT: about to crash)"),
        ({"build": "none"}, 2, "TensorRT built no engine"),
        ({"parse": "none"}, 2, "parser refuses the network: only activation types"),
        ({"corrupt": True}, 2, "cannot load the engine: made by another version or for another GPU (IRuntime: "
                               "the engine cannot run on this GPU)"),
        ({"run": "segv"}, 2, "serve ended by SIGSEGV while running the engine for the first time"),
        ({"run": "none"}, 2, "could not start the network"),
        ({"wrong": ["int8", "float"]}, 2, "golden windows are off by"),
    ],
)  # fmt: skip
def test_whatever_fails_leaves_onnx_runtime_serving_and_each_rung_gives_its_reason(
    jetson: FakeJetson, switching: Callable[..., SwitchingClassifier], script: dict[str, object], rungs: int, told: str
) -> None:
    jetson.tell(**script)
    classifier = switching()
    seen = classify_until(classifier, settled(classifier))
    assert set(seen) == {("onnxruntime", "int8")}
    reason = classifier.backend_status().reason()
    assert reason.startswith("tensorrt: int8: " if rungs else "tensorrt: ")
    assert [told in part for part in reason.split("; fp16: ")] == [True] * max(rungs, 1)


def test_lower_rung_tells_why(jetson: FakeJetson, switching: Callable[..., SwitchingClassifier]) -> None:
    jetson.tell(wrong=["int8"])
    classifier = switching()
    seen = classify_until(classifier, settled(classifier))
    assert seen[-1] == ("tensorrt", "fp16")
    assert classifier.backend_status().reason().startswith("tensorrt int8: golden windows are off by")


@pytest.mark.parametrize("how", ["segv", "hang", "none"])
def test_engine_that_fails_in_service_costs_no_verdict(
    jetson: FakeJetson, bundle: Bundle, switching: Callable[..., SwitchingClassifier], how: str
) -> None:
    """The window on which TensorRT failed is answered by ONNX Runtime, and so is every one after it."""
    jetson.tell(run=how, run_after=60)
    classifier = switching(answer_s=5.0 if how == "hang" else 60.0)
    alone = open_classifier(bundle, "onnxruntime")
    classify_until(classifier, settled(classifier))
    windows = [window(data) for data in stored_windows()[0]]
    verdicts = [classifier.classify(windows[number % len(windows)]) for number in range(60)]
    backends = [verdict.backend for verdict in verdicts]
    assert backends[0] == "tensorrt"
    assert backends[-1] == "onnxruntime"
    turned = backends.index("onnxruntime")
    assert set(backends[turned:]) == {"onnxruntime"}
    assert verdicts[turned] == alone.classify(windows[turned % len(windows)])
    assert classifier.backend_status().reason().startswith("tensorrt served and failed: ")
    assert classifier.backend == "onnxruntime"


def test_window_at_fault_is_no_fault_of_tensorrt(
    jetson: FakeJetson, switching: Callable[..., SwitchingClassifier]
) -> None:
    classifier = switching()
    classify_until(classifier, settled(classifier))
    broken = np.full((3, 10240), np.nan, np.float32)
    with pytest.raises(ModelError, match="finite"):
        classifier.classify(window(broken))
    assert classifier.classify(window(stored_windows()[0][0])).backend == "tensorrt"


def test_close_ends_a_build(jetson: FakeJetson, switching: Callable[..., SwitchingClassifier]) -> None:
    jetson.tell(build="hang")
    classifier = switching()
    wait_for(lambda: "building the engine" in (classifier.backend_status().activity or ""))
    begin = time.monotonic()
    classifier.close()
    assert time.monotonic() - begin < 60
    assert classifier.classify(window(stored_windows()[0][0])).backend == "onnxruntime"


def test_what_the_configuration_says_decides(
    jetson: FakeJetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By default TensorRT is tried by the service only: a replay gives the same verdicts from beginning to end."""
    monkeypatch.setattr(probe_module, "DEVICES", ("dev/null",))
    path = Path(bundle.origin)
    settings = ClassifierConfig(bundle=path)
    assert open_configured(settings)[0].backend == "onnxruntime"
    plain = ClassifierConfig(bundle=path, backends=("onnxruntime",))
    assert not isinstance(open_configured(plain, jetson.state)[0], SwitchingClassifier)
    classifier, reasons = open_configured(settings, jetson.state)
    assert isinstance(classifier, SwitchingClassifier)
    assert reasons == []
    try:
        assert classify_until(classifier, settled(classifier))[-1][0] == "tensorrt"
        assert list((jetson.state / "tensorrt").glob("*.engine"))
    finally:
        classifier.close()


# The whole service

RUN = (
    "import sys; from agent.inference.tensorrt import child; child.DEVICES = ('dev/null',)\n"
    "from agent.cli import main; sys.exit(main(sys.argv[1:]))"
)
"""``talus`` on a machine that has a device node, whatever the machine under the test has."""


@needs_mosquitto
@pytest.mark.parametrize("fails", [False, True])
def test_service_tells_which_backend_serves(jetson: FakeJetson, tmp_path: Path, fails: bool) -> None:
    """Verdicts from the first event on; the retained state changes when, and only when, there is something to tell."""
    go, records = tmp_path / "go", tmp_path / "records"
    jetson.tell(build_until=str(go), **({"build": "segv"} if fails else {}))
    records.mkdir()
    write_records(records, copies=40)
    source = f"{{kind: archive, paths: ['{records}'], speed: 40}}"
    with running(tmp_path) as broker, Collector(broker.settings()) as collector:

        def states() -> list[tuple[str, str, str | None]]:
            return [(body["backend"], body["precision"], body["backend_reason"]) for body in collector.bodies("/state")]

        def used() -> list[str]:
            return [body["classification"]["backend"] for body in collector.bodies("/event")]

        config = write_config(tmp_path, records, broker.port, source=source)
        with running_agent("run", "--config", config, command=(sys.executable, "-c", RUN)) as agent:
            wait_for(used)
            go.touch()
            wait_for(lambda: len(states()) > 1)
            before = len(used())
            wait_for(lambda: len(used()) > before + 3)
            agent.signal(signal.SIGTERM)
            assert agent.end() == 0, agent.log
        said, serving = states(), used()
    assert said[0] == ("onnxruntime", "int8", "onnxruntime serves while TensorRT is made ready")
    assert said[1:] == [("onnxruntime", "int8", said[1][2]) if fails else ("tensorrt", "int8", None)]
    if fails:
        assert "int8: build ended by SIGSEGV while building the engine" in str(said[1][2])
    assert serving == sorted(serving)
    assert set(serving) == ({"onnxruntime"} if fails else {"onnxruntime", "tensorrt"})
