"""A bundle learns a site's own labels by its last layer alone, and none is written where that does not help."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from agent_support import talus
from inference_support import small_bundle
from obspy import Stream, Trace, UTCDateTime
from onnx import numpy_helper
from teach_support import write_labels, write_site

from agent.errors import BundleError, DataError, UsageError
from agent.inference import load
from agent.inference.bundle import CPU_MODEL, DEFAULT_BUNDLE, FP16_MODEL, GOLDEN, TRT_MODEL, open_bundle
from agent.types import LABELS
from quantize.data.records import read_segments
from quantize.quantise.rules import lint
from quantize.quantise.verify import verify
from quantize.teach.head import Features, Head, read_head, replace_head, with_features
from quantize.teach.lesson import teach
from quantize.teach.refit import Scale, refit
from quantize.teach.replay import REPLAY, read_replay, write_replay
from quantize.teach.site import read_site, site_windows, together
from quantize.teach.taught import require_bank, taught_of

NETWORKS = (CPU_MODEL, TRT_MODEL, FP16_MODEL)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_site(tmp_path_factory.mktemp("labels"))


@pytest.fixture(scope="module")
def lesson(site: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The taught bundle and the report."""
    target = tmp_path_factory.mktemp("taught") / "bundle"
    report, refused = teach(DEFAULT_BUNDLE, site, None, target, "Peculiar Slope")
    assert refused == (), report
    return target, report


@pytest.mark.parametrize("name", NETWORKS)
def test_the_last_layer_of_every_file_is_read_and_replaced_as_onnx_would(name: str) -> None:
    """In the bytes of the file, without the package onnx; nothing else moves."""
    raw = open_bundle(DEFAULT_BUNDLE).file(name)
    head = read_head(raw)
    known = {w.name: numpy_helper.to_array(w) for w in onnx.load_from_string(raw).graph.initializer}
    assert np.array_equal(head.weight, known["head.weight"].astype(float))
    assert replace_head(raw, head) == raw
    other = Head(head.weight + 1, head.bias - 1)
    changed = onnx.load_from_string(replace_head(raw, other))
    for weight in changed.graph.initializer:
        moved = not np.array_equal(numpy_helper.to_array(weight), known[weight.name])
        assert moved is (weight.name in ("head.weight", "head.bias"))


def test_features_times_the_layer_are_the_logits() -> None:
    raw = open_bundle(DEFAULT_BUNDLE).file(CPU_MODEL)
    network = Features(raw)
    window = np.random.default_rng(0).standard_normal((1, 3, 10240)).astype(np.float32)
    window /= np.abs(window).max()
    classifier, _ = load(DEFAULT_BUNDLE, ["onnxruntime"])
    logits = classifier._runtime.logits(window[0])  # type: ignore[attr-defined]
    assert np.allclose(network.head.logits(network.of(window))[0], logits, atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no network at all", b"\x3a\xff\xff\xff\xff\x0f"])
def test_a_file_that_is_no_network_cannot_be_taught(content: bytes) -> None:
    with pytest.raises(BundleError):
        with_features(content)


def test_a_layer_is_moved_by_what_it_is_shown_and_by_nothing_else() -> None:
    rng = np.random.default_rng(0)
    old = Head(rng.standard_normal((5, 8)), rng.standard_normal(5))
    features = rng.standard_normal((200, 8))
    labels = np.where(features[:, 0] > 0, 1, 3)
    scale = Scale.of(features, np.zeros((1, 8)), 0.0)
    weights = np.ones(200)
    free = refit(features, labels, weights, old, scale, pull=1e-3)
    assert (free.logits(features).argmax(axis=1) == labels).mean() > 0.97
    again = refit(features, labels, weights, old, scale, pull=1e-3, start=free)
    assert np.allclose(again.logits(features), free.logits(features), atol=0.1), "the start decides nothing"
    held = refit(features, labels, weights, old, scale, pull=1e6)
    assert np.allclose(held.weight, old.weight, atol=1e-3)
    collapse = LABELS.index("collapse")
    assert np.allclose(free.weight[collapse], old.weight[collapse])


def test_no_weight_grows_on_a_feature_that_eight_bits_get_wrong() -> None:
    rng = np.random.default_rng(1)
    features = rng.standard_normal((300, 2))
    features[:, 1] = features[:, 0] + 0.01 * rng.standard_normal(300)
    labels = np.where(features[:, 0] > 0, 1, 3)
    old = Head(np.zeros((5, 2)), np.zeros(5))
    scale = Scale.of(features, np.array([[1.0, 0.0], [-1.0, 0.0]]), 100.0)
    weight = np.abs(refit(features, labels, np.ones(300), old, scale, pull=1e-3).weight)
    assert weight[1, 0] < 0.1 * weight[1, 1]


def test_the_bank_keeps_its_features_to_a_step_of_eight_bits() -> None:
    bank = read_replay(open_bundle(DEFAULT_BUNDLE).file(REPLAY))
    again = read_replay(write_replay(bank))
    step = bank.features.max(axis=0) / 255
    assert (np.abs(again.features - bank.features) <= 0.51 * step + 1e-6).all()
    assert write_replay(bank) == write_replay(bank)
    assert np.array_equal(again.label, bank.label) and np.array_equal(again.learned, bank.learned)
    assert 0 < bank.learned.sum() < len(bank)
    assert np.allclose(bank.head.weight, read_head(open_bundle(DEFAULT_BUNDLE).file(CPU_MODEL)).weight)


def test_a_damaged_bank_is_refused() -> None:
    raw = open_bundle(DEFAULT_BUNDLE).file(REPLAY)
    for content in (b"", raw[: len(raw) // 2], b"PK\x03\x04nothing"):
        with pytest.raises(BundleError, match=REPLAY):
            read_replay(content)


def test_the_default_bundle_has_a_bank_and_keeps_its_size() -> None:
    bundle = open_bundle(DEFAULT_BUNDLE)
    require_bank(bundle)
    assert sum(len(content) for content in bundle.files.values()) <= 2_000_000


@pytest.mark.parametrize(
    ("row", "said"),
    [
        (["blast0.mseed", "e", "quarry", ""], "'quarry' cannot be taught"),
        (["blast0.mseed", "e", "collapse", ""], "'collapse' cannot be taught"),
        (["nothing.mseed", "e", "blast", ""], "nothing.mseed does not exist"),
        (["blast0.mseed", "", "blast", ""], "source_id is blank"),
        (["blast0.mseed", "e", "blast", "noon"], "noon"),
        (["blast0.mseed", "a", "blast", ""], "line 2 again"),
    ],
)
def test_a_bad_line_of_the_labels_is_named(site: Path, tmp_path: Path, row: list[str], said: str) -> None:
    shutil.copy(site / "blast0.mseed", tmp_path)
    write_labels(tmp_path, [["blast0.mseed", "a", "blast", ""], row])
    with pytest.raises(DataError, match=said) as error:
        read_site(tmp_path)
    assert ":3:" in error.value.message and error.value.hint


def test_a_review_counts_more_than_the_table(site: Path) -> None:
    rows = read_site(site)
    review = [replace(rows[0], label="noise")]
    merged = together(rows, review)
    assert len(merged) == len(rows)
    assert [row.label for row in merged if row.event == rows[0].event] == ["noise"]


def test_windows_are_those_that_the_station_would_cut(site: Path) -> None:
    from agent.dsp.window import Preparation, prepare

    row = read_site(site)[0]
    how = Preparation(highpass_hz=1.0)
    made = site_windows([row], how)
    assert np.isfinite(made.data).all() and made.judged.sum() == 1
    assert row.onset_ns is not None
    expected = prepare(read_segments(row), row.onset_ns, 81.92, how).data
    assert np.array_equal(made.data[made.judged][0], expected)


def test_a_lesson_helps_by_more_than_others_labels_do(lesson: tuple[Path, str]) -> None:
    target, report = lesson
    assert "Gain over the control" in report and "Learning curve" in report and "How many more?" in report
    manifest = open_bundle(target).manifest
    before, control, after = manifest.metrics["taught"]["balanced"]  # type: ignore[index,call-overload]
    assert after > max(before, control) + 0.1
    assert manifest.version.startswith("0.1.0+peculiar-slo.")


def test_a_taught_bundle_is_whole(lesson: tuple[Path, str]) -> None:
    """The agent opens it, its three files are one network, its golden answers are its own, TensorRT would take it."""
    target, _ = lesson
    lines = verify(target, [])
    assert [line.name for line in lines if not line.holds] == []
    bundle, parent = open_bundle(target), open_bundle(DEFAULT_BUNDLE)
    assert lint(onnx.load_from_string(bundle.file(TRT_MODEL))) == []
    for name in NETWORKS:
        assert bundle.file(name) != parent.file(name)
        assert replace_head(bundle.file(name), read_head(parent.file(name))) == parent.file(name)
    assert bundle.file(GOLDEN) != parent.file(GOLDEN) and bundle.file(REPLAY) == parent.file(REPLAY)
    taught = taught_of(bundle)
    assert taught is not None and taught.base == taught.parent == parent.sha256
    card = bundle.file("MODEL_CARD.md").decode()
    assert "## Taught at Peculiar Slope" in card
    for name in (*NETWORKS, GOLDEN, REPLAY):
        assert bundle.manifest.files[name].sha256 in card


def test_a_second_lesson_starts_from_all_labels_and_from_the_network_as_shipped(
    lesson: tuple[Path, str], site: Path, tmp_path: Path
) -> None:
    """Taught again with the same labels, the parent changes and the network does not."""
    target, _ = lesson
    report, refused = teach(target, site, None, tmp_path / "again", None)
    assert refused == (), report
    first, again = open_bundle(target), open_bundle(tmp_path / "again")
    assert again.file(CPU_MODEL) == first.file(CPU_MODEL)
    taught = taught_of(again)
    assert taught is not None and taught.parent == first.sha256 and taught.base == open_bundle(DEFAULT_BUNDLE).sha256
    assert again.file("MODEL_CARD.md").decode().count("## Taught at") == 1
    few = tmp_path / "few"
    shutil.copytree(site, few)
    rows = (few / "metadata.csv").read_text(encoding="utf-8").splitlines()
    (few / "metadata.csv").write_text("\n".join(rows[:-1]) + "\n", encoding="utf-8")
    with pytest.raises(BundleError, match="1 of them") as error:
        teach(target, few, None, tmp_path / "other", None)
    assert "all labels" in (error.value.hint or "")


def test_shuffled_labels_are_refused_with_reasons(tmp_path: Path) -> None:
    labels = write_site(tmp_path / "labels", shuffled=True)
    status, out, err = talus("teach", labels, "--out", tmp_path / "bundle")
    assert status == 1 and not (tmp_path / "bundle").exists()
    assert "No bundle is written" in out
    assert re.search(r"refused: the site's labels gain nothing sure over as many labels of other regions", err)


def test_too_few_labels_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    labels = write_site(tmp_path / "few", 3)
    status, out, err = talus("teach", labels, "--out", tmp_path / "bundle")
    assert (status, out) == (1, "")
    assert "too few events" in err and "at least 5 events of each class" in err
    one = write_site(tmp_path / "one", 5, labels=("blast",))
    status, _, err = talus("teach", one, "--out", tmp_path / "bundle")
    assert status == 1 and "all labels say blast" in err


def test_a_bundle_without_a_bank_cannot_be_taught(site: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="forget all other regions"):
        teach(small_bundle(tmp_path), site, None, tmp_path / "out", None)


def test_a_folder_of_something_else_is_not_replaced(site: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="holds no taught bundle"):
        teach(DEFAULT_BUNDLE, site, None, tmp_path, None)
    shutil.copytree(DEFAULT_BUNDLE, tmp_path / "bundle")
    with pytest.raises(UsageError, match="holds no taught bundle"):
        teach(DEFAULT_BUNDLE, site, None, tmp_path / "bundle", None)


def test_an_event_with_two_labels_is_named(site: Path, tmp_path: Path) -> None:
    folder = tmp_path / "labels"
    shutil.copytree(site, folder)
    with (folder / "metadata.csv").open("a", encoding="utf-8") as handle:
        handle.write("noise0.mseed,blast-0,noise,\n")
    with pytest.raises(DataError, match="'blast-0' is labelled"):
        teach(DEFAULT_BUNDLE, folder, None, tmp_path / "out", None)


def test_random_windows_are_offered_for_labelling(tmp_path: Path) -> None:
    """What never sets off a trigger is never labelled otherwise."""
    rng = np.random.default_rng(0)
    header = {"network": "XX", "station": "AAA", "channel": "HHZ", "sampling_rate": 50.0}
    header["starttime"] = UTCDateTime("2026-05-01T00:00:00Z")
    Stream([Trace(rng.integers(-90, 90, 50 * 1800).astype(np.int32), header)]).write(str(tmp_path / "day"), "MSEED")
    status, out, err = talus("teach", "--offer", tmp_path / "day", "--out", tmp_path / "offered")
    assert status == 0, err
    assert "20 random windows" in out
    rows = read_site(tmp_path / "offered")
    assert len(rows) == len({row.event for row in rows}) == 20
    assert {row.label for row in rows} == {"noise"}
    assert site_windows(rows[:1], open_bundle(DEFAULT_BUNDLE).preparation).data.any()


@pytest.mark.parametrize("held", ["folder", "file"])
def test_windows_are_offered_in_no_folder_that_holds_something(tmp_path: Path, held: str) -> None:
    """Protects labels that somebody has given."""
    out = tmp_path / "out"
    labels = out / "metadata.csv" if held == "folder" else out
    labels.parent.mkdir(exist_ok=True)
    labels.write_text("trace_name,source_id,source_type\n")
    status, _, err = talus("teach", "--offer", tmp_path / "day", "--out", out)
    assert status == 2
    assert ("is not empty" if held == "folder" else "name a folder") in err
    assert labels.read_text() == "trace_name,source_id,source_type\n"


def test_teaching_needs_neither_torch_nor_scipy_nor_onnx() -> None:
    script = (
        "import sys, quantize.teach.lesson; "
        "print([m for m in ('torch', 'scipy', 'onnx', 'sklearn') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_real_blasts_of_a_region_never_seen_are_learned(data_dir: Path, tmp_path: Path) -> None:
    """Mine blasts of northern Europe: none was learned from by the shipped network, which finds every fifth of them."""
    folder = tmp_path / "labels"
    folder.mkdir()
    with (data_dir / "metadata.csv").open(encoding="utf-8") as handle:
        every = [row for row in csv.DictReader(handle) if row["source_dataset"].startswith("nordic")]
    rows, count = [], dict.fromkeys(("blast", "earthquake", "noise"), 0)
    for row in every:
        if row["source_type"] in count and count[row["source_type"]] < 20:
            count[row["source_type"]] += 1
            path = data_dir / row["trace_name"]
            shutil.copy(path, folder / path.name)
            rows.append([path.name, row["source_id"], row["source_type"], row["trace_onset_time"]])
    write_labels(folder, rows)
    report, refused = teach(DEFAULT_BUNDLE, folder, None, tmp_path / "bundle", None)
    assert refused == (), report
    metrics = json.loads((tmp_path / "bundle" / "manifest.json").read_text())["metrics"]["taught"]
    assert metrics["balanced"][2] > metrics["balanced"][0] + 0.1
    assert metrics["others"][0] - metrics["others"][1] < 0.02
