"""A bundle that is not exactly what its manifest says, or not made for this agent, is refused before anything runs."""

from __future__ import annotations

import io
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from inference_support import edit_manifest, replace_file, small_bundle, small_files, spec
from onnx import numpy_helper

from agent.dsp.window import Preparation
from agent.errors import BundleError, ModelError
from agent.inference.bundle import MANIFEST, open_bundle, pack
from agent.inference.selftest import read_golden
from quantize.quantise.bundle import write_bundle
from quantize.quantise.infer import IR_VERSION, OPSET, ExportError
from quantize.quantise.int8 import Int8Files

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_bundle(tmp_path_factory.mktemp("original"))


@pytest.fixture
def bundle(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def refusal(path: Path) -> str:
    with pytest.raises(BundleError) as caught:
        open_bundle(path)
    assert caught.value.hint, "an error without a next step"
    return caught.value.message


def test_folder_and_zip_are_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bundle.zip").write_bytes(pack(bundle))
    folder, packed = open_bundle(bundle), open_bundle(tmp_path / "bundle.zip")
    assert folder.sha256 == packed.sha256
    assert folder.manifest == packed.manifest
    assert dict(folder.files) == dict(packed.files)
    assert folder.preparation == Preparation(highpass_hz=0.5, highpass_order=2)


MISMATCHES: list[tuple[str, Edit]] = [
    ("labels", lambda m: m["labels"].reverse()),
    ("rate_hz", lambda m: m.update(rate_hz=50)),
    ("samples", lambda m: m.update(samples=6000)),
    ("onset_sample", lambda m: m.update(onset_sample=1000)),
    ("components", lambda m: m.update(components=["Z", "N", "E"])),
    ("format", lambda m: m.update(format="talus/bundle/2")),
    ("surprise", lambda m: m.update(surprise=1)),
    ("preparation.taper", lambda m: m["preparation"].update(taper=0.1)),
    ("preparation.highpass_hz", lambda m: m["preparation"].update(highpass_hz=50.0)),
    ("temperature", lambda m: m.pop("temperature")),
    ("temperature", lambda m: m.update(temperature=[])),
    ("temperature", lambda m: m["temperature"].reverse()),
    ("temperature.0.temperature", lambda m: m["temperature"][0].update(temperature=0.0)),
    ("thresholds", lambda m: m["thresholds"].pop("landslide")),
    ("thresholds.noise", lambda m: m["thresholds"].update(noise=1.5)),
    ("rate_hz", lambda m: m.update(rate_hz="100")),
    ("golden.npz", lambda m: m["files"].pop("golden.npz")),
    ("tolerance", lambda m: m["golden"]["files"]["model.cpu.onnx"].update(tolerance=1.0)),
    ("golden.files", lambda m: m["golden"]["files"].update(other=m["golden"]["files"]["model.cpu.onnx"])),
    ("bytes", lambda m: m["files"]["model.cpu.onnx"].update(bytes=1 << 40)),
    ("sha256", lambda m: m["files"]["model.cpu.onnx"].update(sha256="abc")),
    ("../model.cpu.onnx", lambda m: m["files"].update({"../model.cpu.onnx": m["files"]["model.cpu.onnx"]})),
    ("/etc/hostname", lambda m: m["files"].update({"/etc/hostname": m["files"]["model.cpu.onnx"]})),
    ("manifest.json", lambda m: m["files"].update({"manifest.json": m["files"]["model.cpu.onnx"]})),
]


@pytest.mark.parametrize(("named", "edit"), MISMATCHES, ids=[f"{i}-{name}" for i, (name, _) in enumerate(MISMATCHES)])
def test_mismatch_is_refused_by_name(bundle: Path, named: str, edit: Edit) -> None:
    edit_manifest(bundle, edit)
    assert named in refusal(bundle)


@pytest.mark.parametrize("name", ["model.cpu.onnx", "model.trt.onnx", "golden.npz", "MODEL_CARD.md"])
def test_one_changed_bit_is_refused(bundle: Path, name: str) -> None:
    raw = bytearray((bundle / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (bundle / name).write_bytes(raw)
    assert name in refusal(bundle)


def test_cut_missing_and_grown_files_are_refused(bundle: Path) -> None:
    path = bundle / "model.cpu.onnx"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert "model.cpu.onnx" in refusal(bundle)
    path.write_bytes(whole + b"\0")
    assert "model.cpu.onnx" in refusal(bundle)
    path.unlink()
    assert "model.cpu.onnx" in refusal(bundle)


def test_absent_and_foreign_paths(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")
    assert "manifest.json" in refusal(tmp_path)
    (tmp_path / "text.zip").write_text("no zip")
    assert "text.zip" in refusal(tmp_path / "text.zip")


def test_a_manifest_cut_anywhere_is_refused(bundle: Path) -> None:
    whole = (bundle / MANIFEST).read_bytes()
    for length in range(0, len(whole) - 2, 97):
        (bundle / MANIFEST).write_bytes(whole[:length])
        assert MANIFEST in refusal(bundle)


def test_a_network_that_would_read_other_files_of_the_machine_is_refused(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX lets weights lie in a file that is named beside them, and ONNX Runtime would read it."""
    weight = onnx.TensorProto(
        name="w", data_type=onnx.TensorProto.FLOAT, dims=[16], data_location=onnx.TensorProto.EXTERNAL
    )
    weight.external_data.add(key="location", value="secret")
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [16]) for name in "xy"]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Add", ["x", "w"], ["y"])], "reads", *[[e] for e in ends], [weight]
    )
    opsets = [onnx.helper.make_opsetid("", OPSET)]
    raw = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION).SerializeToString()
    (tmp_path / "secret").write_bytes(np.arange(16, dtype=np.float32).tobytes())
    monkeypatch.chdir(tmp_path)  # a service's is /
    session = onnxruntime.InferenceSession(raw, providers=["CPUExecutionProvider"])
    assert session.run(None, {"x": np.zeros(16, np.float32)})[0][3] == 3.0, "the danger is real"
    replace_file(bundle, "model.cpu.onnx", raw)
    assert "refers to another file" in refusal(bundle)


def test_golden_windows_that_would_fill_the_memory_are_not_unpacked(bundle: Path) -> None:
    packed = io.BytesIO()
    np.savez_compressed(packed, windows=np.zeros((64, 3, 10240 * 8), np.int8), seconds=np.zeros(64, np.float32))
    replace_file(bundle, "golden.npz", packed.getvalue())
    with pytest.raises(BundleError, match="would unpack"):
        read_golden(open_bundle(bundle))


def test_files_that_the_manifest_does_not_name_are_never_read(bundle: Path) -> None:
    (bundle / "notes.txt").symlink_to("/dev/zero")  # reading it would not end
    assert "notes.txt" not in open_bundle(bundle).files


def rezip(bundle: Path, *extra: tuple[str, bytes]) -> Path:
    target = bundle.parent / "made.zip"
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(bundle.iterdir()):
            archive.write(path, path.name)
        for name, raw in extra:
            archive.writestr(name, raw)
    return target


@pytest.mark.parametrize("name", ["../escape", "/absolute", "folder/model.cpu.onnx", "a\\b", ".hidden"])
def test_zip_entries_outside_the_root_are_refused(bundle: Path, name: str) -> None:
    assert "root of the zip" in refusal(rezip(bundle, (name, b"x")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_two_entries_of_one_name_is_refused(bundle: Path) -> None:
    assert "twice" in refusal(rezip(bundle, ("golden.npz", b"other")))


def test_zip_bomb_is_refused_before_it_is_unpacked(bundle: Path) -> None:
    assert "would unpack" in refusal(rezip(bundle, ("bomb", bytes(8 << 20))))


def test_zip_whose_header_understates_the_size_is_refused(bundle: Path) -> None:
    made = rezip(bundle)
    with zipfile.ZipFile(made) as archive:
        size = archive.getinfo("model.cpu.onnx").file_size
    made.write_bytes(made.read_bytes().replace(struct.pack("<L", size), struct.pack("<L", 10)))
    assert "model.cpu.onnx" in refusal(made)


def test_encrypted_zip_is_refused(bundle: Path) -> None:
    made = rezip(bundle)
    raw = bytearray(made.read_bytes())
    directory = raw.index(b"PK\x01\x02")
    raw[directory + 8] |= 1  # the central directory's flag for an encrypted entry
    raw[6] |= 1
    made.write_bytes(raw)
    assert "encrypted" in refusal(made)


def test_a_damaged_zip_never_opens_as_something_else(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "good.zip").write_bytes(pack(bundle))
    good, whole = open_bundle(tmp_path / "good.zip"), (tmp_path / "good.zip").read_bytes()
    rng = np.random.default_rng(1)
    headers = [i for i in range(len(whole) - 4) if whole[i : i + 2] == b"PK"]
    damaged = tmp_path / "damaged.zip"
    for trial in range(300):
        raw = bytearray(whole)
        near = headers[rng.integers(len(headers))] + rng.integers(60) if trial % 2 else rng.integers(len(raw))
        raw[min(near, len(raw) - 1)] ^= 1 << rng.integers(8)
        damaged.write_bytes(raw if trial % 5 else raw[: rng.integers(len(raw))])
        try:
            found = open_bundle(damaged)
        except BundleError:
            continue
        assert dict(found.files) == dict(good.files)
        assert found.sha256 == good.sha256


def test_bundles_and_zips_are_reproducible(bundle: Path, tmp_path: Path) -> None:
    again = small_bundle(tmp_path / "again")
    assert {p.name: p.read_bytes() for p in bundle.iterdir()} == {p.name: p.read_bytes() for p in again.iterdir()}
    assert pack(bundle) == pack(again)


def test_a_new_bundle_replaces_the_old_one_and_leaves_nothing_else(bundle: Path) -> None:
    write_bundle(bundle, small_files(), spec(version="9"))
    assert open_bundle(bundle).manifest.version == "9"
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_a_refused_bundle_leaves_the_old_one(bundle: Path) -> None:
    before = open_bundle(bundle).sha256
    files = small_files()
    broken = type(files.cpu)()
    broken.CopyFrom(files.cpu)
    head = next(w for w in broken.graph.initializer if w.name == "head.weight")
    head.CopyFrom(numpy_helper.from_array(-numpy_helper.to_array(head), head.name))
    with pytest.raises(ExportError, match="differs from FP32"):
        write_bundle(bundle, Int8Files(files.fp32, broken, files.trt, files.choice, 1), spec())
    with pytest.raises(ModelError, match="thresholds"):
        write_bundle(bundle, files, spec(thresholds={"noise": 0.5}))
    assert open_bundle(bundle).sha256 == before
    assert [p.name for p in bundle.parent.iterdir()] == ["bundle"]


def test_golden_file_that_is_not_what_it_should_be(bundle: Path) -> None:
    """Shapes, types and pickles; hashes agree, so only the reader of golden windows stands in the way."""
    from agent.inference.selftest import read_golden

    good = dict(np.load(bundle / "golden.npz"))
    objects = np.array([{}] * len(good["seconds"]), dtype=object)
    wrong: list[dict[str, Any]] = [
        {**good, "windows": good["windows"][:, :2]},
        {**good, "windows": good["windows"].astype(np.float32)},
        {**good, "seconds": objects},
        {**good, "model.cpu.onnx": good["model.cpu.onnx"] * np.float32(np.nan)},
        {"windows": good["windows"]},
    ]
    for arrays in wrong:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **arrays)
        replace_file(bundle, "golden.npz", buffer.getvalue())
        with pytest.raises(BundleError, match=r"golden\.npz"):
            read_golden(open_bundle(bundle))
    replace_file(bundle, "golden.npz", b"PK nothing")
    with pytest.raises(BundleError, match=r"golden\.npz"):
        read_golden(open_bundle(bundle))
