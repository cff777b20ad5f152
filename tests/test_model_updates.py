"""A remote model: every step leaves a station that answers, and one that knows which model it trusts."""

from __future__ import annotations

import socket
import threading
import time
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from inference_support import edit_manifest, replace_file, small_bundle, stored_windows, window
from onnx import TensorProto, helper, numpy_helper
from seedlink_server import authority

from agent.config.remote import ControlConfig, ModelsConfig
from agent.errors import BackendError, ControlError
from agent.inference import Classifier, LiveClassifier, Shadow, load, open_bundle
from agent.inference.bundle import pack
from agent.remote.model_order import CHUNK_BYTES, KIND, Download, ModelOrder, fetch, parse
from agent.remote.models import MOST_BEGUN, ModelUpdates, Progress
from agent.remote.slots import ModelSlots
from agent.remote.trial import try_bundle
from agent.types import LABELS, WINDOW_SAMPLES, Classification, Window
from desk.push.models import order_of
from quantize.quantise.infer import INPUT, IR_VERSION, OPSET, OUTPUT

LABELS_OFF = dict.fromkeys(LABELS, 1.0)


def rules(probation_s: float = 0.0, **changes: float) -> ControlConfig:
    """Settings that are over sooner than a file may have them."""
    models = ModelsConfig().model_copy(update={"shadow_windows": 4, "shadow_s": 60.0, **changes})
    return ControlConfig().model_copy(update={"probation_s": probation_s, "models": models})


RULES = rules()


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("installed"))


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A zip of the same network under another version."""
    folder = tmp_path_factory.mktemp("newer")
    return zipped(small_bundle(folder, version="2.0.0"))


def zipped(bundle: Path) -> Path:
    bundle.with_suffix(".zip").write_bytes(pack(bundle))
    return bundle.with_suffix(".zip")


class Desk:
    """Someone who sends the pieces that the station asks for, and remembers what it said."""

    def __init__(self, folder: Path, installed: Path, rules: ControlConfig = RULES) -> None:
        self.installed = installed
        self.rules = rules
        self.live = LiveClassifier(self.open(None))
        self.said: list[Progress] = []
        self.raw = b""
        self.spoil: set[int] = set()
        self.updates = ModelUpdates(ModelSlots(folder), self.live, self.open, rules, self.hear)

    def open(self, path: Path | None, final: bool = True) -> Classifier:
        return load(path or self.installed, ["onnxruntime"])[0]

    def send(self, raw: bytes, order: ModelOrder, revision: int = 1) -> None:
        self.raw = raw
        self.updates.order(revision, order)

    def see(self, count: int = 6) -> list[Classification]:
        windows, seconds = stored_windows()
        return [self.live.classify(window(windows[i], float(seconds[i]))) for i in range(count)]

    def until(self, phase: str) -> Progress:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for progress in self.said:
                if progress.phase == phase:
                    return progress
            time.sleep(0.02)
        raise AssertionError([(p.phase, p.reason) for p in self.said])

    def hear(self, progress: Progress) -> None:
        self.said.append(progress)
        for index in progress.missing:
            data = self.raw[index * CHUNK_BYTES : (index + 1) * CHUNK_BYTES]
            if index in self.spoil:
                self.spoil.remove(index)
                self.updates.chunk(index, b"\0" * len(data))
            self.updates.chunk(index, data)


@pytest.fixture
def desk(tmp_path: Path, installed: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "models", installed)
    made.updates.start()
    yield made
    made.updates.close()


def order_for(path: Path, version: str = "2.0.0", **fields: object) -> tuple[bytes, ModelOrder]:
    raw = path.read_bytes()
    return raw, order_of(raw, "small", version, **fields)  # type: ignore[arg-type]


def test_a_good_model_is_fetched_tried_shadowed_and_kept(desk: Desk, newer: Path, tmp_path: Path) -> None:
    desk.see()
    desk.spoil = {0}
    desk.send(*order_for(newer))
    kept = desk.until("kept")
    phases = list(dict.fromkeys(p.phase for p in desk.said))
    assert phases == ["installed", "fetching", "trying", "shadow", "probation", "kept"]
    assert kept.agreement is not None and kept.agreement.same == kept.agreement.windows == 6
    assert desk.see(1)[0].model == "small 2.0.0"
    after = ModelSlots(tmp_path / "models")
    assert after.chosen.kept == order_for(newer)[1].sha256 and after.path(after.chosen.kept).is_file()


def test_a_model_that_disagrees_is_refused_and_never_answers(desk: Desk, installed: Path, tmp_path: Path) -> None:
    """Thresholds under which it withholds everything: a sound bundle, and of no use."""
    other = small_bundle(tmp_path, version="3.0.0", thresholds=LABELS_OFF)
    desk.see()
    desk.send(*order_for(zipped(other), "3.0.0"))
    refused = desk.until("refused")
    assert "agrees" in str(refused.reason) or refused.agreement is not None
    assert desk.see(1)[0].model == "small 1.2.3"
    assert not list((tmp_path / "models").glob("*.zip")), "a refused bundle does not stay"


@pytest.mark.parametrize("how", ["version", "preparation", "crash", "zip", "hash"])
def test_a_bundle_that_is_not_what_it_should_be_is_refused(desk: Desk, tmp_path: Path, how: str) -> None:
    bundle = small_bundle(tmp_path, version="2.0.0")
    if how == "version":
        edit_manifest(bundle, lambda manifest: manifest.update(version="2.0.1"))
    if how == "preparation":
        edit_manifest(bundle, lambda manifest: manifest["preparation"].update(highpass_hz=2.0))
    if how == "crash":
        replace_file(bundle, "model.cpu.onnx", b"\x08\x07" + b"\xff" * 5000)
    path = zipped(bundle)
    if how == "hash":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("model.cpu.onnx", b"another one")
    if how == "zip":
        path.write_bytes(path.read_bytes()[:-100])
    desk.see()
    desk.send(*order_for(path))
    assert desk.until("refused").reason
    assert desk.see(1)[0].model == "small 1.2.3"


def test_hold_waits_for_the_command_and_can_be_ordered_back(desk: Desk, newer: Path) -> None:
    desk.see()
    desk.send(*order_for(newer, promote="hold"))
    desk.until("ready")
    assert desk.see(1)[0].model == "small 1.2.3"
    desk.updates.promote()
    desk.until("kept")
    assert desk.see(1)[0].model == "small 2.0.0"
    desk.updates.roll_back()
    desk.until("rolled_back")
    assert desk.see(1)[0].model == "small 1.2.3"


def test_windows_are_kept_where_candidates_may_come(tmp_path: Path, installed: Path) -> None:
    """Protects the memory of a station that takes no models, and the proof of one that does."""
    windows, seconds = stored_windows()
    alone = LiveClassifier(load(installed, ["onnxruntime"])[0])
    alone.classify(window(windows[0], float(seconds[0])))
    assert alone.recent() == []
    desk = Desk(tmp_path, installed)
    desk.see(3)
    assert len(desk.live.recent()) == 3


def test_few_windows_are_no_proof(tmp_path: Path, installed: Path, newer: Path) -> None:
    desk = Desk(tmp_path / "models", installed, rules(shadow_windows=100, shadow_s=0.2))
    desk.updates.start()
    desk.send(*order_for(newer))
    assert "too few" in str(desk.until("ready").reason)
    desk.updates.close()


class Fails:
    """A runtime that dies after a few windows, as a driver may."""

    def __init__(self, inner: Classifier, after: int) -> None:
        self.model, self.sha256, self.preparation = inner.model, inner.sha256, inner.preparation
        self.backend, self.precision = inner.backend, inner.precision
        self._inner, self._left = inner, after

    def classify(self, asked: Window) -> Classification:
        self._left -= 1
        if self._left < 0:
            raise BackendError("the driver is gone", "")
        return self._inner.classify(asked)


def test_a_failure_on_probation_costs_no_verdict(tmp_path: Path, installed: Path, newer: Path) -> None:
    desk = Desk(tmp_path / "models", installed, rules(probation_s=3600.0))
    plain = desk.open
    opener = lambda path, final: Fails(plain(path), 8) if final else plain(path)  # noqa: E731
    desk.updates = ModelUpdates(ModelSlots(tmp_path / "models"), desk.live, opener, desk.rules, desk.hear)
    desk.updates.start()
    desk.see()
    desk.send(*order_for(newer))
    desk.until("probation")
    models = [verdict.model for _ in range(2) for verdict in desk.see(6)]
    assert models == ["small 2.0.0"] * 8 + ["small 1.2.3"] * 4, "each window has its verdict"
    assert "driver" in str(desk.until("rolled_back").reason)
    desk.updates.close()
    assert ModelSlots(tmp_path / "models").chosen.kept is None


def test_a_model_taken_back_while_it_answers_costs_no_verdict(installed: Path, newer: Path) -> None:
    """Its process is closed under the window that it has in hand."""
    live = LiveClassifier(load(installed, ["onnxruntime"])[0])
    candidate = Fails(load(newer, ["onnxruntime"])[0], 0)
    plain = candidate.classify

    def closed(asked: Window) -> Classification:
        live.revert("ordered")
        return plain(asked)

    candidate.classify = closed  # type: ignore[method-assign]
    live.promote(candidate)
    windows, seconds = stored_windows()
    assert live.classify(window(windows[0], float(seconds[0]))).model == "small 1.2.3"
    assert live.failed == "ordered"


@pytest.mark.parametrize("phase", ["fetching", "shadow"])
def test_ordered_back_gives_up_what_is_on_its_way(tmp_path: Path, installed: Path, newer: Path, phase: str) -> None:
    folder = tmp_path / "models"
    first = Desk(folder, installed)
    first.updates.start()
    first.see()
    first.send(*order_for(newer))
    first.until("kept")
    first.updates.close()
    desk = Desk(folder, installed, rules(shadow_windows=10_000))
    desk.updates.start()
    (tmp_path / "third").mkdir()
    third = zipped(small_bundle(tmp_path / "third", version="3.0.0"))
    raw, order = order_for(third, "3.0.0")
    desk.send(raw if phase == "shadow" else b"", order, 2)
    desk.until(phase)
    desk.updates.roll_back()
    desk.until("rolled_back")
    assert desk.live._shadow is None and desk.updates._download is None
    assert not list(folder.glob("*.part"))
    desk.updates.close()


def test_ordered_back_gives_up_the_first_candidate_of_all(desk: Desk, newer: Path, tmp_path: Path) -> None:
    desk.see()
    desk.send(*order_for(newer, promote="hold"))
    desk.until("ready")
    desk.updates.roll_back()
    desk.until("rolled_back")
    assert ModelSlots(tmp_path / "models").chosen.order is None
    assert desk.see(1)[0].model == "small 1.2.3"


def test_what_was_on_probation_at_a_crash_is_not_tried_again(tmp_path: Path, installed: Path, newer: Path) -> None:
    folder = tmp_path / "models"
    first = Desk(folder, installed, rules(probation_s=3600.0))
    first.updates.start()
    first.see()
    first.send(*order_for(newer))
    first.until("probation")
    first.updates.close()
    again = Desk(folder, installed)
    again.updates.start()
    assert "stopped before" in str(again.until("rolled_back").reason)
    again.updates.close()
    assert ModelSlots(folder).chosen.trial is None


def test_a_model_that_ends_the_agent_is_not_tried_for_ever(tmp_path: Path, installed: Path, newer: Path) -> None:
    """What passes in the child may still end the agent that runs it in the shadow, and would at every start."""
    folder = tmp_path / "models"

    def start() -> Desk:
        desk = Desk(folder, installed, rules(shadow_windows=10_000))
        desk.updates.start()
        return desk

    first = start()
    first.send(*order_for(newer))
    first.until("shadow")
    first.updates.close()
    stopped_in_order = start()
    stopped_in_order.until("shadow")
    stopped_in_order.updates.close()
    for _ in range(MOST_BEGUN):
        died = start()
        died.until("shadow")  # and this process is left as a crash leaves it: nothing more is written
        lost = (folder / "selected.json").read_bytes()
        died.updates.close()
        (folder / "selected.json").write_bytes(lost)
    last = start()
    assert "did not survive it 3 times" in str(last.until("refused").reason)
    last.updates.close()
    assert ModelSlots(folder).chosen.order is None and not list(folder.glob("*.zip"))


def test_a_download_goes_on_where_it_was_broken_off(tmp_path: Path, newer: Path) -> None:
    raw, order = order_for(newer)
    part = Download(tmp_path, order)
    assert part.put(0, raw[:CHUNK_BYTES])
    assert not part.put(0, raw[:CHUNK_BYTES]), "a duplicate is nothing new"
    assert not part.put(1, raw[:CHUNK_BYTES]), "another piece's content"
    assert not part.put(len(order.chunks), b"") and not part.put(-1, b"")
    again = Download(tmp_path, order)
    assert again.got == 1 and again.missing(99) == list(range(1, len(order.chunks)))
    for index in again.missing(99):
        assert again.put(index, raw[slice(*order.span(index))])
    again.finish(tmp_path / "whole.zip")
    assert (tmp_path / "whole.zip").read_bytes() == raw
    assert open_bundle(tmp_path / "whole.zip").manifest.version == "2.0.0"


def test_another_order_leaves_nothing_of_the_one_before(tmp_path: Path, newer: Path) -> None:
    _, order = order_for(newer)
    Download(tmp_path, order)
    Download(tmp_path, order.model_copy(update={"sha256": "0" * 64}))
    assert [path.stem for path in tmp_path.glob("*.part")] == ["0" * 64]


class _Files(BaseHTTPRequestHandler):
    """One file, with ranges; each connection breaks off after as many bytes as ``cuts`` has next."""

    raw = b""
    cuts: ClassVar[list[int]] = []
    ranges: ClassVar[list[str]] = []
    elsewhere = ""
    status = 206
    tells_length = True

    def do_GET(self) -> None:
        cls = type(self)
        if cls.elsewhere:
            self.send_response(302)
            self.send_header("Location", cls.elsewhere)
            self.end_headers()
            return
        asked = self.headers.get("Range", "bytes=0-")
        cls.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if cls.status == 206 else 0
        self.send_response(cls.status)
        if cls.tells_length:
            self.send_header("Content-Length", str(len(cls.raw) - start))
        if cls.status == 206:
            self.send_header("Content-Range", f"bytes {start}-{len(cls.raw) - 1}/{len(cls.raw)}")
        self.end_headers()
        part = cls.raw[start:]
        if cls.cuts:
            part = part[: cls.cuts.pop(0)]
        self.wfile.write(part)
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def https(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    cert, context = authority(tmp_path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Files)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    _Files.cuts, _Files.ranges, _Files.elsewhere, _Files.status, _Files.tells_length = [], [], "", 206, True
    yield f"https://127.0.0.1:{server.server_port}/bundle.zip", cert
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("tells_length", [True, False])
def test_https_resumes_with_a_range(https: tuple[str, Path], newer: Path, tmp_path: Path, tells_length: bool) -> None:
    """A connection that breaks off is told as that, and not as another file; it goes on where it was."""
    url, cert = https
    raw, order = order_for(newer, url=url)
    _Files.raw, _Files.cuts, _Files.tells_length = raw, [CHUNK_BYTES + 100], tells_length
    part = Download(tmp_path / "d", order)
    with pytest.raises(ControlError, match=f"broke off after {CHUNK_BYTES + 100} of {len(raw)} bytes") as caught:
        fetch(part, lambda: False, cert)
    assert "goes on where it was" in caught.value.hint
    assert part.got == 1
    fetch(part, lambda: False, cert)
    assert not part.missing(1) and _Files.ranges == ["bytes=0-", f"bytes={CHUNK_BYTES}-"]


def test_a_model_comes_over_https_that_breaks_off_again_and_again(
    https: tuple[str, Path], newer: Path, tmp_path: Path, installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt brings a few pieces; the next follows at once, as long as they do."""
    url, cert = https
    raw, order = order_for(newer, url=url)
    _Files.raw, _Files.cuts = raw, [CHUNK_BYTES + 7] * 4
    monkeypatch.setattr("agent.remote.models.FETCH_ON_S", 0.0)
    monkeypatch.setattr("agent.remote.models.fetch", lambda download, stop: fetch(download, stop, cert))
    desk = Desk(tmp_path / "models", installed)
    desk.updates.start()
    try:
        desk.updates.order(1, order)
        desk.until("trying")
    finally:
        desk.updates.close()
    assert len(_Files.ranges) == 5
    assert any("broke off after" in (progress.reason or "") for progress in desk.said)


@pytest.mark.parametrize("fault", ["other file", "other length", "no such file", "unknown certificate", "redirect"])
def test_https_that_cannot_be_trusted(https: tuple[str, Path], newer: Path, tmp_path: Path, fault: str) -> None:
    url, cert = https
    raw, order = order_for(newer, url=url)
    _Files.raw = {"other file": b"?" * len(raw), "other length": raw[:-1]}.get(fault, raw)
    _Files.elsewhere = "http://127.0.0.1/" if fault == "redirect" else ""
    _Files.status = 404 if fault == "no such file" else 206
    words = {
        "other file": "holds another file: its piece 0 has another hash",
        "other length": f"holds another file: it has {len(raw) - 1} bytes, the bundle has {len(raw)}",
        "no such file": "answers 404",
        "unknown certificate": "certificate",
        "redirect": "not https",
    }
    part = Download(tmp_path / "d", order)
    with pytest.raises(ControlError, match=words[fault]):
        fetch(part, lambda: False, None if fault == "unknown certificate" else cert)
    assert part.got == 0


def test_a_server_without_ranges_sends_all_from_the_beginning(
    https: tuple[str, Path], newer: Path, tmp_path: Path
) -> None:
    url, cert = https
    raw, order = order_for(newer, url=url)
    _Files.raw, _Files.status = raw, 200
    part = Download(tmp_path / "d", order)
    part.put(0, raw[:CHUNK_BYTES])
    fetch(part, lambda: False, cert)
    assert not part.missing(1)


def test_a_server_that_is_gone_is_tried_again_and_the_order_stands(newer: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    _, order = order_for(newer, url=f"https://127.0.0.1:{port}/bundle.zip")
    with pytest.raises(ControlError, match=r"cannot be reached: Connection refused"):
        fetch(Download(tmp_path / "d", order), lambda: False)


@pytest.mark.parametrize(
    "change",
    [
        {"bytes": 0}, {"bytes": 17 << 20}, {"bytes": True}, {"chunks": []}, {"chunks": ["0"]}, {"sha256": "X" * 64},
        {"name": "../x"}, {"version": "1 2"}, {"promote": "now"}, {"url": "http://x"}, {"url": "file:///etc/passwd"},
        {"url": "https://x y"}, {"extra": 1}, {"chunks": "0" * 64},
    ],
)  # fmt: skip
def test_an_order_that_makes_no_sense_is_refused(change: dict[str, object]) -> None:
    good = order_of(b"x" * 100, "small", "1.0.0").content()
    assert parse(good).content() == good and KIND == "model"
    with pytest.raises(ControlError):
        parse({**good, **change})


def crafted(kind: str) -> bytes:
    """A network that swells to 4 GB, or computes for ever, when it runs."""
    answer = [1, len(LABELS)]
    node, value, float_ = helper.make_node, helper.make_tensor_value_info, TensorProto.FLOAT
    constants: dict[str, Any] = {"zeros": np.zeros(answer, np.float32), "yes": np.array(True)}
    nodes = [node("ReduceMax", [INPUT], ["largest"], keepdims=0)]
    if kind == "swells":
        constants |= {"shape": np.array([1 << 15, 1 << 15]), "axes": np.array([0, 1])}
        nodes += [
            node("Expand", ["largest", "shape"], ["huge"]),
            node("ReduceSum", ["huge", "axes"], ["sum"], keepdims=0),
            node("Add", ["zeros", "sum"], [OUTPUT]),
        ]
    else:
        constants["times"] = np.array(1 << 62)
        flag = TensorProto.BOOL
        body = helper.make_graph(
            [node("Identity", ["go"], ["on"]), node("Sin", ["before"], ["after"])],
            "body",
            [value("number", TensorProto.INT64, []), value("go", flag, []), value("before", float_, answer)],
            [value("on", flag, []), value("after", float_, answer)],
        )
        nodes += [
            node("Add", ["zeros", "largest"], ["begin"]),
            node("Loop", ["times", "yes", "begin"], [OUTPUT], body=body),
        ]
    graph = helper.make_graph(
        nodes,
        "crafted",
        [value(INPUT, float_, [1, 3, 1, WINDOW_SAMPLES])],
        [value(OUTPUT, float_, answer)],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("kind", "words"), [("swells", "failed: .* running Expand"), ("computes for ever", "longer than")]
)
def test_a_crafted_network_is_ended_with_its_child(tmp_path: Path, kind: str, words: str) -> None:
    bundle = small_bundle(tmp_path)
    replace_file(bundle, "model.cpu.onnx", crafted(kind))
    with pytest.raises(ControlError, match=words):
        try_bundle(bundle, limit_s=5.0 if kind == "computes for ever" else 100.0)


def test_what_kills_the_reader_kills_a_child_only(installed: Path, tmp_path: Path) -> None:
    assert try_bundle(installed).model == "small 1.2.3"
    with pytest.raises(ControlError, match="longer than"):
        try_bundle(installed, limit_s=0.05)
    with pytest.raises(ControlError, match="does not exist"):
        try_bundle(tmp_path / "nothing.zip")


def test_a_slow_shadow_never_holds_the_live_model(installed: Path) -> None:
    gate = threading.Event()

    class Slow(Fails):
        def classify(self, asked: Window) -> Classification:
            gate.wait(60)
            return super().classify(asked)

    live = load(installed, ["onnxruntime"])[0]
    windows, _ = stored_windows()
    asked = window(windows[0])
    verdict = live.classify(asked)
    shadow = Shadow(Slow(live, 10_000))
    for _ in range(200):
        shadow.see(asked, verdict)
    assert shadow.agreement().passed_over >= 200 - 65
    gate.set()
    shadow.close()


def test_the_choice_survives_nonsense_on_the_disk_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    slots = ModelSlots(tmp_path)
    assert not caplog.records, "a station that was never sent a model has nothing to tell"
    slots.change(kept="a" * 64, revision=4)
    raw = (tmp_path / "selected.json").read_bytes()
    for cut in range(len(raw)):
        (tmp_path / "selected.json").write_bytes(raw[:cut])
        caplog.clear()
        assert ModelSlots(tmp_path).chosen.kept is None
        assert "the installed model serves" in caplog.text
    (tmp_path / "selected.json").write_bytes(raw)
    assert ModelSlots(tmp_path).chosen == slots.chosen
