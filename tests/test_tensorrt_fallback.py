"""From the probe to an engine that serves: every failure ends in a reason, never in the agent's own death. The children
are real processes; only the GPU and TensorRT are stand-ins (see ``tensorrt_support``)."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from inference_support import edit_manifest, small_bundle, stored_windows, window
from tensorrt_support import FAKE, FakeJetson, children, compile_driver, fake_environment, make_jetson

from agent.errors import BackendError
from agent.inference import Bundle, load, open_bundle, open_classifier
from agent.inference.bundle import FP16_MODEL, TRT_MODEL
from agent.inference.tensorrt import child as probe_module
from agent.inference.tensorrt import fallback as fallback_module
from agent.inference.tensorrt import open_backend
from agent.inference.tensorrt.cache import EngineCache, key_of
from agent.inference.tensorrt.child import Child, Places, jetpack_release, probe
from agent.inference.tensorrt.fallback import PRECISIONS, PrecisionFallback, best_engine


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_driver(tmp_path_factory.mktemp("driver"))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(small_bundle(tmp_path_factory.mktemp("bundle")))


@pytest.fixture
def jetson(tmp_path: Path, driver: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJetson:
    made = make_jetson(tmp_path)
    for name, value in fake_environment(driver, made.script).items():
        monkeypatch.setenv(name, value)
    return made


# The probe


def test_without_a_device_node_no_process_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the probe costs where there is no GPU."""

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a child was started")

    monkeypatch.setattr(Child, "__init__", refuse)
    with pytest.raises(BackendError, match="no NVIDIA GPU"):
        probe(Places(root=tmp_path))


def test_probe_tells_what_an_engine_depends_on(jetson: FakeJetson) -> None:
    found = probe(jetson.engine_settings().places)
    assert (found.tensorrt, found.gpu, found.sm) == ("10.3.0", "Orin (fake)", "8.7")
    assert (found.jetpack, found.cuda, found.memory_mb) == ("36.4.3", "12.6", 8192)
    assert found.strongly_typed
    assert children() == []


def test_tensorrt_for_rtx_serves_where_tensorrt_is_not(
    jetson: FakeJetson, bundle: Bundle, driver: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its engines are no engines of TensorRT's, though the version's number may be the same."""
    both = probe(jetson.engine_settings().places)
    (tmp_path / "rtx").mkdir()
    (tmp_path / "rtx" / "tensorrt_rtx").symlink_to(FAKE / "tensorrt")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "rtx"))
    served = best_engine(bundle, jetson.engine_settings())
    served.backend.close()
    assert served.platform.tensorrt == "RTX 10.3.0"
    assert key_of(served.platform, b"", "int8").digest != key_of(both, b"", "int8").digest


def test_probe_that_hangs_is_ended(jetson: FakeJetson) -> None:
    jetson.tell(runtime="hang")
    with pytest.raises(BackendError, match="took more than 3 s while opening TensorRT's runtime"):
        probe(replace(jetson.engine_settings().places, timeout_s=3.0))
    assert children() == []


def test_driver_without_a_device_is_asked_before_tensorrt(jetson: FakeJetson, monkeypatch: pytest.MonkeyPatch) -> None:
    """``trt.Runtime`` would end in SIGSEGV there; the driver only returns an error."""
    monkeypatch.setenv("FAKE_CUDA_DEVICES", "0")
    jetson.tell(**{"import": "segv"})
    with pytest.raises(BackendError, match="cuInit: CUDA_ERROR_NO_DEVICE"):
        probe(jetson.engine_settings().places)


def test_every_interpreter_is_asked_and_each_reason_kept(jetson: FakeJetson, tmp_path: Path) -> None:
    places = replace(jetson.engine_settings().places, pythons=(str(tmp_path / "none"), sys.executable))
    assert probe(places).python == sys.executable
    jetson.tell(**{"import": "raise"})
    with pytest.raises(BackendError, match=r"none cannot be started: No such file.*; .*TypeError"):
        probe(places)


def test_jetpack_release_from_the_file_or_the_package(tmp_path: Path) -> None:
    assert jetpack_release(tmp_path) == "none"
    (tmp_path / "var/lib/dpkg").mkdir(parents=True)
    (tmp_path / "var/lib/dpkg/status").write_text(
        "Package: nano\nVersion: 6.2\n\nPackage: nvidia-l4t-core\nStatus: install ok installed\nVersion: 38.2.0-2025\n"
    )
    assert jetpack_release(tmp_path) == "38.2.0"
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/nv_tegra_release").write_text("# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n")
    assert jetpack_release(tmp_path) == "35.4.1"


# The fallback of precisions


@pytest.mark.parametrize("version", ["8.5.2.2", "8.6.2", "10.3.0", "11.4.0.106"])
def test_engine_answers_as_the_file_is_written(jetson: FakeJetson, bundle: Bundle, version: str) -> None:
    """The stand-in refuses the flags that a version does not want, or misses those that it needs."""
    jetson.tell(version=version)
    served = best_engine(bundle, jetson.engine_settings())
    try:
        assert served.reasons == ()
        assert served.drift < 1e-5
        for data in stored_windows()[0][:3]:
            verdict = served.classifier.classify(window(data))
            assert (verdict.backend, verdict.precision) == ("tensorrt", "int8")
            assert sum(verdict.probabilities) == pytest.approx(1)
    finally:
        served.backend.close()
    assert children() == []


@pytest.mark.parametrize("without_graph", [False, True])
def test_cuda_graph_is_used_only_where_it_works(
    jetson: FakeJetson, bundle: Bundle, without_graph: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if without_graph:
        monkeypatch.setenv("FAKE_CUDA_NO_GRAPH", "1")
    served = best_engine(bundle, jetson.engine_settings())
    served.backend.close()
    assert (served.backend.timing["graph_ms"] is None) == without_graph
    assert served.drift < 1e-5


def test_engine_is_built_once_and_again_for_another_version(jetson: FakeJetson, bundle: Bundle) -> None:
    def told() -> str:
        heard: list[str] = []
        best_engine(bundle, jetson.engine_settings(), heard.append).backend.close()
        return " ".join(heard)

    assert "building" in told()
    assert "building" not in told()
    jetson.tell(version="10.7.0")
    assert "building" in told()
    (jetson.root / "etc/nv_tegra_release").write_text("# R36 (release), REVISION: 5.0,\n")
    assert "building" in told()
    assert len(list((jetson.state / "tensorrt").glob("*.engine"))) == 3
    assert not list((jetson.state / "tensorrt").glob(".new-*"))


def test_bundle_without_fp16_has_one_rung_less(jetson: FakeJetson, tmp_path: Path) -> None:
    path = small_bundle(tmp_path)
    edit_manifest(path, lambda m: (m["files"].pop(FP16_MODEL), m["golden"]["files"].pop(FP16_MODEL)))
    jetson.tell(build="none")
    with pytest.raises(BackendError, match=r"int8: .*; fp16: .* holds no model\.fp16\.onnx"):
        best_engine(open_bundle(path), jetson.engine_settings())


def test_build_that_fails_twice_is_not_tried_for_ever(jetson: FakeJetson, bundle: Bundle) -> None:
    jetson.tell(build="segv")
    for _ in range(2):
        with pytest.raises(BackendError, match="SIGSEGV"):
            best_engine(bundle, jetson.engine_settings())
    jetson.tell()
    with pytest.raises(BackendError, match="the build failed 2 times, last: build ended by SIGSEGV"):
        best_engine(bundle, jetson.engine_settings())
    served = best_engine(bundle, jetson.engine_settings(again=True))
    served.backend.close()
    assert served.reasons == ()
    best_engine(bundle, jetson.engine_settings()).backend.close()


def test_build_too_long_or_too_large_is_ended(
    jetson: FakeJetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    jetson.tell(build="hang")
    with pytest.raises(BackendError, match="build took more than 3 s while building the engine"):
        best_engine(bundle, jetson.engine_settings(build_s=3.0))
    with pytest.raises(BackendError, match="ended for want of memory: it had"):
        best_engine(bundle, jetson.engine_settings(build_mb=1.0, again=True))
    monkeypatch.setattr(fallback_module, "SPARE_MB", 1e12)
    with pytest.raises(BackendError, match="MB were left"):
        best_engine(bundle, jetson.engine_settings(again=True))
    assert children() == []


def test_build_takes_only_time_that_is_left_over_and_goes_first(jetson: FakeJetson, bundle: Bundle) -> None:
    jetson.tell(build="hang")
    engine_settings = jetson.engine_settings(niceness=19)
    seen: list[tuple[int, str]] = []

    def tell(text: str) -> None:
        if text.endswith("building the engine"):
            child = children()[0]
            seen.append((child.nice(), Path(f"/proc/{child.pid}/oom_score_adj").read_text().strip()))
            engine_settings.stop.set()

    with pytest.raises(BackendError, match="stopped"):
        best_engine(bundle, engine_settings, tell)
    assert seen == [(19, "1000")]
    assert children() == []
    assert (
        EngineCache(engine_settings.folder).failures(
            key_of(probe(engine_settings.places), bundle.file(TRT_MODEL), "int8")
        )[0]
        == 0
    )


def test_build_dies_with_the_agent(jetson: FakeJetson, tmp_path: Path) -> None:
    """Nothing must go on building for ten minutes beside the next agent."""
    (tmp_path / "n.onnx").write_bytes(b"onnx")
    jetson.tell(build="hang")
    paths = [str(tmp_path / name) for name in ("n.onnx", "out", "timing")]
    script = (
        "import sys\nfrom agent.inference.tensorrt.child import Child\n"
        "def check(elapsed_s):\n"
        "    if child.stage == 'building the engine': print(child.process.pid, flush=True)\n"
        "child = Child(sys.executable, 'build', *sys.argv[1:], 'int8', niceness=1)\nchild.result(60.0, check)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, *paths], stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdout is not None
        build = psutil.Process(int(agent.stdout.readline()))
        agent.kill()
    gone, _ = psutil.wait_procs([build], timeout=60)
    assert gone == [build]


def test_folder_that_cannot_be_written_is_a_reason(jetson: FakeJetson, bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BackendError, match="engines cannot be kept in"):
        best_engine(bundle, jetson.engine_settings(folder=tmp_path / "file" / "tensorrt"))


# The backend


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("segv", "serve ended by SIGSEGV"),
        ("hang", "did not answer within 5 s"),
        ("none", "TensorRT failed: TensorRT could not start"),
    ],
)
def test_worker_that_dies_hangs_or_refuses_is_an_error(
    jetson: FakeJetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch, how: str, told: str
) -> None:
    monkeypatch.setenv("FAKE_CUDA_NO_GRAPH", "1")  # the stand-in counts the calls that a graph makes no more
    silent = np.zeros((3, 10240), np.float32)
    jetson.tell(run=how, run_after=100)
    served = best_engine(bundle, jetson.engine_settings(answer_s=5.0 if how == "hang" else 60.0))
    with pytest.raises(BackendError, match=told):
        for _ in range(100):
            served.backend.logits(silent)
    with pytest.raises(BackendError, match="has ended"):
        served.backend.logits(silent)
    assert children() == []


def test_backend_by_name_uses_a_built_engine_and_builds_none(
    jetson: FakeJetson, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(BackendError, match="needs the folder"):
        open_backend(bundle, 1, "")
    monkeypatch.setattr(probe_module, "DEVICES", ("dev/null", "dev/nvhost-gpu"))
    monkeypatch.setattr(probe_module, "jetpack_release", lambda root: "36.4.3")
    name = f"tensorrt:{jetson.state / 'tensorrt'}"
    classifier, reasons = load(Path(bundle.origin), [name, "onnxruntime"])
    assert classifier.backend == "onnxruntime"
    assert "there is no engine yet" in reasons[0]
    best_engine(bundle, jetson.engine_settings()).backend.close()
    classifier = open_classifier(bundle, name)
    assert (classifier.backend, classifier.precision) == ("tensorrt", "int8")
    del classifier
    assert children() == []


def test_rungs_can_be_served_side_by_side(jetson: FakeJetson, bundle: Bundle) -> None:
    engine_settings = jetson.engine_settings()
    steps = PrecisionFallback(bundle, engine_settings, probe(engine_settings.places))
    served = [steps.open(step) for step in PRECISIONS]
    data = window(stored_windows()[0][0])
    first, second = (each.classifier.classify(data) for each in served)
    for each in served:
        each.backend.close()
    assert (first.precision, second.precision) == ("int8", "fp16")
    assert first.probabilities != second.probabilities


def test_child_code_is_python_3_8_and_imports_only_what_every_python_has() -> None:
    """It runs under the system's interpreter, where the agent's own dependencies are not."""
    folder = Path(fallback_module.__file__).parents[2] / "tensorrt_child"
    outside = set()
    for path in folder.glob("*.py"):
        tree = ast.parse(path.read_text(), feature_version=(3, 8))
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            outside |= {name.split(".")[0] for name in names if not name.startswith("agent.tensorrt_child")}
    assert outside - set(sys.stdlib_module_names) == {"tensorrt", "tensorrt_rtx"}


def test_agent_never_imports_tensorrt_itself(jetson: FakeJetson, bundle: Bundle) -> None:
    best_engine(bundle, jetson.engine_settings()).backend.close()
    assert "tensorrt" not in sys.modules


# The cache


def test_damaged_engine_is_built_anew(jetson: FakeJetson, bundle: Bundle) -> None:
    engine_settings = jetson.engine_settings()
    best_engine(bundle, engine_settings).backend.close()
    (path,) = engine_settings.folder.glob("*.engine")
    whole = path.read_bytes()
    damages = {
        "cut": whole[:-100],
        "one bit": whole[:5000] + bytes([whole[5000] ^ 1]) + whole[5001:],
        "empty": b"",
        "no header": b"x" * 1000,
        "header only": b"talus-engine/1\n",
        "not an object": b"talus-engine/1\n[]\nxx",
    }
    for name, raw in damages.items():
        path.write_bytes(raw)
        heard: list[str] = []
        best_engine(bundle, engine_settings, heard.append).backend.close()
        assert "building" in " ".join(heard), name
        assert path.read_bytes() == whole, name


def test_whole_engine_that_cannot_be_loaded_is_built_anew(jetson: FakeJetson, bundle: Bundle, tmp_path: Path) -> None:
    """As after a driver update that the key does not show."""
    engine_settings = jetson.engine_settings()
    key = key_of(probe(engine_settings.places), bundle.file(TRT_MODEL), "int8")
    (tmp_path / "raw").write_bytes(b"made by something else")
    EngineCache(engine_settings.folder).put(key, tmp_path / "raw")
    served = best_engine(bundle, engine_settings)
    served.backend.close()
    assert (served.classifier.precision, served.reasons) == ("int8", ())


def test_cache_stays_within_its_limits_and_keeps_the_engine_in_use(jetson: FakeJetson, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines", max_mb=1)
    platform = probe(jetson.engine_settings().places)
    (tmp_path / "raw").write_bytes(bytes(400_000))
    keys = [key_of(platform, bytes([number]), "int8") for number in range(5)]
    for number, key in enumerate(keys):
        cache.put(key, tmp_path / "raw")
        for stored in (tmp_path / "engines").glob("*.engine"):
            assert stored.stat().st_size > 400_000
        if number > 0:
            assert cache.find(keys[0]), "the engine that is asked for is the last to go"
        time.sleep(0.02)
    kept = [number for number, key in enumerate(keys) if cache.find(key)]
    assert kept == [0, 4]
    (tmp_path / "raw").write_bytes(bytes(3_000_000))
    cache.put(keys[1], tmp_path / "raw")
    assert [number for number, key in enumerate(keys) if cache.find(key)] == [1]


def test_leftovers_of_a_killed_build_go_and_those_of_a_living_one_stay(jetson: FakeJetson, tmp_path: Path) -> None:
    cache = EngineCache(tmp_path / "engines")
    dead, living = cache.folder / ".new-999999999-1.out", cache.folder / ".new-1-1.out"
    for path in (dead, living):
        path.write_bytes(b"x")
    (tmp_path / "raw").write_bytes(b"engine")
    cache.put(key_of(probe(jetson.engine_settings().places), b"", "int8"), tmp_path / "raw")
    assert not dead.exists()
    assert living.exists()


def test_timing_cache_is_handed_on_from_build_to_build(jetson: FakeJetson, bundle: Bundle) -> None:
    engine_settings = jetson.engine_settings()
    best_engine(bundle, engine_settings).backend.close()
    (timing,) = engine_settings.folder.glob("*.timing")
    assert timing.read_bytes() == b"t"
    best_engine(bundle, replace(engine_settings, again=True)).backend.close()
    assert timing.read_bytes() == b"tt"
