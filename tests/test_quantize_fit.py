"""A run that was broken off goes on as if nothing had happened, and what it writes can be trusted to load."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
import time
from dataclasses import fields, replace
from functools import partial
from pathlib import Path

import learning_support
import numpy as np
import pytest
import torch
from quantize_support import write_folder

from agent.dsp.window import Preparation
from agent.errors import BundleError, ConfigError, DataError, UsageError
from agent.inference.bundle import open_bundle
from agent.types import LABELS, WINDOW_SAMPLES
from quantize.cli import CONFIGS, main
from quantize.config import BuildConfig, read_config
from quantize.data.augment import Augmentation
from quantize.data.bank import UNLABELLED, Bank, Plan, labelled_plan, open_bank
from quantize.data.records import Record, load_records, read_table
from quantize.study import tables
from quantize.study.evaluate import FIGURES
from quantize.study.studies import evaluate_regions, repeat_seeds
from quantize.train.baselines import train_boosting
from quantize.train.fit import FitConfig, Source, _draw, fit
from quantize.train.hardware import ahead
from quantize.train.lab import Lab, learned_from
from quantize.train.methods import folder as folder_of
from quantize.train.methods import open_lab, pretrained
from quantize.train.prime_dp import PrimeDP
from quantize.train.student import (
    Student,
    StudentConfig,
    build_student,
    parameter_count,
)
from quantize.train.transfer import EventTeacher, load_teacher, prepare_transfer, save_teacher

pytestmark = learning_support.TRAIN

REDUCED = read_config(CONFIGS / "reduced.yaml")
TINY = FitConfig(windows=64, batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return load_records(read_table(folder))


@pytest.fixture(scope="module")
def lab(folder: Path, records: list[Record], tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(records, [], [], REDUCED, tmp_path_factory.mktemp("lab"), folder)


@pytest.fixture(scope="module")
def bank(lab: Lab) -> Bank:
    return lab.bank()


def plan(records: list[Record], count: int = 12, seed: int = 1) -> Plan:
    parts = np.arange(len(records)) % 2
    return labelled_plan(records, parts, count, preparation=Preparation(), augmentation=Augmentation(), seed=seed)


def student() -> Student:
    torch.manual_seed(5)
    return build_student(REDUCED.student)


def everything(bank: Bank) -> list[Source]:
    return [Source(bank, np.arange(len(bank)))]


KILLED = """
    import sys
    from pathlib import Path
    from quantize.data.records import load_records, read_table
    from quantize.train.lab import Lab
    from test_quantize_fit import REDUCED, TINY, everything, student
    from quantize.train.fit import fit
    data, lab, work = map(Path, sys.argv[1:])
    bank = Lab(load_records(read_table(data)), [], [], REDUCED, lab, data).bank()
    fit(student(), everything(bank), TINY, work, save_every=2)
"""


def test_a_run_killed_in_the_middle_ends_with_the_same_weights(
    folder: Path, lab: Lab, bank: Bank, tmp_path: Path
) -> None:
    straight = fit(student(), everything(bank), TINY, tmp_path / "a").state_dict()
    script = textwrap.dedent(KILLED)
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), str(CONFIGS.parents[1])))}
    arguments = [sys.executable, "-c", script, str(folder), str(lab.work), str(tmp_path / "b")]
    with subprocess.Popen(arguments, env=env) as child:
        state = tmp_path / "b" / "state.pt"
        deadline = time.monotonic() + 200
        while not state.is_file() and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        child.kill()
    assert state.is_file(), "the run was to be killed after its first saved state"
    resumed = fit(student(), everything(bank), TINY, tmp_path / "b").state_dict()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    other = fit(student(), everything(bank), replace(TINY, seed=1), tmp_path / "c").state_dict()
    assert not torch.equal(straight["head.weight"], other["head.weight"])


def test_batches_made_ahead_by_other_processes_are_the_same(bank: Bank) -> None:
    """A GPU learns from the windows, in the order, that a processor learns from."""
    make = partial(_draw, [Source(bank, np.arange(len(bank)))], FitConfig(batch=4))
    for mine, theirs in zip(map(make, range(6)), ahead(make, range(6), workers=2), strict=True):
        for field in fields(mine):
            assert torch.equal(getattr(mine, field.name), getattr(theirs, field.name))


def test_a_folder_of_another_run_is_refused(bank: Bank, tmp_path: Path) -> None:
    fit(student(), everything(bank), TINY, tmp_path)
    with pytest.raises(ConfigError, match="another configuration"):
        fit(student(), everything(bank), replace(TINY, learning_rate=1e-3), tmp_path)
    with pytest.raises(ConfigError, match="other records"):
        fit(student(), [Source(bank, np.arange(5))], TINY, tmp_path)
    with pytest.raises(ConfigError, match="no window"):
        fit(student(), [Source(bank, np.arange(0))], TINY, tmp_path)


def test_it_learns(bank: Bank, tmp_path: Path) -> None:
    fit(student(), everything(bank), replace(TINY, windows=1280, batch=16), tmp_path, save_every=20)
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").open()]
    assert losses[-1] < 0.9 * losses[0]


def test_soft_targets_pull_towards_the_teacher(bank: Bank, tmp_path: Path) -> None:
    """A teacher that calls everything a blast must be heard over the labels, and alone where there are none."""
    soft = np.zeros((len(bank), len(LABELS)), dtype=np.float32)
    soft[:, 1] = 1.0
    unlabelled = replace_labels(bank)
    config = replace(TINY, windows=640, batch=16, soft=0.9)
    taught = fit(student(), [Source(unlabelled, np.arange(len(bank)), 1.0, soft)], config, tmp_path / "a")
    windows = torch.from_numpy(np.asarray(bank.windows[:32], dtype=np.float32))[:, :, None]
    with torch.no_grad():
        assert (taught(windows).argmax(1) == 1).float().mean() > 0.9


def replace_labels(bank: Bank) -> Bank:
    return Bank(bank.windows, bank.record, np.full(len(bank), UNLABELLED), bank.part)


def test_a_bank_cut_short_is_completed_alike(records: list[Record], tmp_path: Path) -> None:
    straight = np.array(open_bank(tmp_path / "a", plan(records), 1).windows)
    open_bank(tmp_path / "b", plan(records), 1)
    spoiled = np.load(tmp_path / "b" / "windows.npy", mmap_mode="r+")
    spoiled[4:] = 0
    spoiled.flush()
    (tmp_path / "b" / "progress.json").write_text("4")
    np.testing.assert_array_equal(open_bank(tmp_path / "b", plan(records), 1).windows, straight)
    with pytest.raises(DataError, match="bank of other records"):
        open_bank(tmp_path / "b", plan(records, seed=2), 1)


def test_no_fold_learns_from_an_event_that_it_is_tried_on(lab: Lab, bank: Bank) -> None:
    for fold in (None, 0, 1, 2, 3, 4):
        tried = {lab.records[int(i)].row.event for i in lab.held_out(fold)}
        learned = {lab.records[int(bank.record[i])].row.event for i in learned_from(bank, fold)}
        assert tried and not tried & learned
    assert {lab.records[int(i)].row.split for i in lab.held_out(None)} == {"val"}


def test_what_shares_time_with_what_was_learned_from_is_not_judged(lab: Lab) -> None:
    """Noise cut from the hours of a stream, or while an event of another fold is going on, would flatter."""
    held = lab.held_out(0)
    first = lab.records[int(held[0])]
    width_ns = first.data.shape[1] * 10_000_000

    def judged(shift_ns: int, fold: int | None = 0, **others: list[Record]) -> set[int]:
        records = list(lab.records)
        learned = next(i for i in range(len(records)) if i not in held)
        records[learned] = replace(records[learned], start_ns=first.start_ns + shift_ns)
        return set(replace(lab, records=records, **others).judged(fold).tolist())

    assert judged(10**15) == set(held.tolist()), "none but the one that is moved shares time with another"
    for shift_ns in (0, width_ns - 1, 1 - width_ns):
        assert judged(shift_ns) == set(held[1:].tolist())
    assert judged(width_ns) == set(held.tolist()), "one that follows at once does not share time"
    last = lab.records[int(lab.held_out(None)[0])]
    assert judged(10**15, None, streams=[last]) == set(lab.held_out(None)[1:].tolist())


def test_few_landslides_are_part_of_more_and_seen_as_often(lab: Lab, bank: Bank) -> None:
    """Else the learning curve would compare other choices of events, or other shares of the classes."""
    slides = LABELS.index("landslide")
    before: set[str] = set()
    for count in (1, 2):
        others, few = replace(lab, landslides=count).labelled(bank, 0)
        events = {lab.records[int(bank.record[i])].row.event for i in few.index}
        assert len(events) == count and before < events
        assert set(bank.label[few.index]) == {slides} and slides not in bank.label[others.index]
        assert few.share == pytest.approx((bank.label[learned_from(bank, 0)] == slides).mean())
        before = events
    assert folder_of(replace(lab, landslides=1), "alone", 0) != folder_of(lab, "alone", 0)


def test_another_seed_is_another_student_of_the_same_teachers(lab: Lab, tmp_path: Path) -> None:
    """Else a difference between two runs would be partly one of their teachers."""
    config = replace(REDUCED, distil=replace(REDUCED.distil, teachers=("alone",)))
    place = replace(lab, config=config, work=tmp_path)
    found = repeat_seeds(place, 2, [0, 1])
    assert len({(path / "average.pt").read_bytes() for path in tmp_path.glob("distilled*/fold0")}) == 2
    trained = {path.parts[-3] for path in tmp_path.glob("*/fold1/average.pt")}
    assert trained == {"alone", "alone_seed1", "distilled", "distilled_seed1"}
    assert {path.parts[-3] for path in tmp_path.glob("*/*/taught_bank.npy")} == {"alone"}
    methods, difference = found["methods"], found["difference"]
    assert isinstance(methods, dict) and isinstance(difference, dict)
    for place_of, name in enumerate(FIGURES):
        runs = zip(methods["distilled"], methods["alone"], strict=True)
        mean = np.mean([first[place_of] - second[place_of] for first, second in runs])
        assert difference[name][0] == pytest.approx(mean, abs=2e-4)
    assert "mean of the seeds" in tables.seeds(found)


@pytest.mark.parametrize(("recipe", "moving"), [("head", 1), ("embeddings", 4), ("all", 5)])
def test_a_recipe_moves_only_what_it_names(bank: Bank, tmp_path: Path, recipe: str, moving: int) -> None:
    torch.manual_seed(0)
    teacher = EventTeacher(PrimeDP("picker"), "mean")
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    groups = prepare_transfer(teacher, recipe, 0.01)  # type: ignore[arg-type]
    assert len(groups) == moving
    after = fit(teacher, everything(bank), FitConfig(windows=16, batch=8), tmp_path, groups=groups).state_dict()
    changed = {
        name.removeprefix("prime.").split(".")[0] for name, v in after.items() if not torch.equal(v, before[name])
    }
    parts = {"head": set(), "embeddings": {"embedding_wave", "emb_pos", "embedding_info"}}
    everywhere = {"embedding_wave", "emb_pos", "embedding_info", "transformer"}
    assert changed == {"head"} | parts.get(recipe, everywhere), "running statistics of frozen parts must stand too"


def test_a_teacher_comes_back_from_its_file(tmp_path: Path) -> None:
    teacher = EventTeacher(PrimeDP("picker"), "mean").eval()
    save_teacher(tmp_path / "t.pt", teacher, {"start": "fresh"})
    x = torch.randn(2, 3, 1, 1024)
    with torch.no_grad():
        assert torch.equal(load_teacher(tmp_path / "t.pt")(x), teacher(x))
    (tmp_path / "t.pt").write_bytes((tmp_path / "t.pt").read_bytes()[:1000])
    with pytest.raises(BundleError, match=r"t\.pt"):
        load_teacher(tmp_path / "t.pt")


def test_smoothing_gives_collapse_nothing(bank: Bank) -> None:
    from quantize.train.fit import smoothed

    target = smoothed(torch.tensor([0]), 0.2)[0]
    assert target[LABELS.index("collapse")] == 0
    assert target[0] == pytest.approx(0.8 + 0.05)
    assert target.sum() == pytest.approx(1.0)


def test_default_student_suits_int8_and_its_budget() -> None:
    model = build_student(read_config(CONFIGS / "student.yaml").student).eval()
    assert parameter_count(model) <= 500_000
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.groups == 1 and m.kernel_size[0] == 1 and m.out_channels % 8 == 0 for m in convolutions)
    assert model(torch.zeros(1, 3, 1, WINDOW_SAMPLES)).shape == (1, len(LABELS))


@pytest.mark.parametrize(
    "shape",
    [{"channels": (12, 16)}, {"kernels": (4, 5)}, {"strides": (0, 2)}, {"kernels": (5,)}, {"taps": (0,)}],
)
def test_shapes_that_quantise_badly_are_refused(shape: dict[str, tuple[int, ...]]) -> None:
    plain = {"channels": (16, 16), "kernels": (5, 5), "strides": (2, 2), "taps": (1,)}
    StudentConfig(**plain)
    with pytest.raises(ConfigError):
        StudentConfig(**(plain | shape))


def test_published_weights_take_the_place_of_pretraining(lab: Lab, tmp_path: Path) -> None:
    """As they are; and a folder that was begun without them is not gone on with."""
    torch.manual_seed(9)
    network = PrimeDP(REDUCED.pretrain.variant)
    torch.save(network.state_dict(), tmp_path / "published.pt")
    with_weights = replace(lab, checkpoint=tmp_path / "published.pt", work=tmp_path / "work")
    loaded = pretrained(with_weights).state_dict()
    assert all(torch.equal(value, loaded[name]) for name, value in network.state_dict().items())
    with pytest.raises(ConfigError, match="another configuration"):
        pretrained(replace(with_weights, checkpoint=None))


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("seed: 3\nstudent:\n  widths: [16]\n")
    with pytest.raises(ConfigError, match="student: unknown key 'widths'"):
        read_config(path)
    path.write_text("seed: 3\ndistil:\n  fit:\n    windows: 7\n")
    read = read_config(path)
    assert (read.seed, read.distil.fit.windows) == (3, 7)
    assert read.distil.fit.soft == BuildConfig().distil.fit.soft, "what is left out keeps its default"


@pytest.mark.slow
def test_one_command_goes_from_records_to_a_bundle_that_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = tmp_path / "bundle"
    common = ["--data", str(folder), "--work", str(tmp_path / "work"), "--config", str(CONFIGS / "reduced.yaml")]
    assert main(["crossval", *common, "--fold", "1", "--methods", "stft"]) == 0
    assert [path.name for path in (tmp_path / "work" / "full" / "stft").iterdir()] == ["fold1"]
    capsys.readouterr()
    build = ["model", *common, "--folds", "2", "--calibration", "32", "--out", str(bundle)]
    assert main(build) == 0
    built = capsys.readouterr().out
    assert "Cross-validation by event" in built
    assert main(["report", "--data", str(folder), "--bundle", str(bundle)]) == 0
    shown = capsys.readouterr().out

    def table(said: str) -> str:
        start = said.index("Neutral view", said.index("INT8, validation") if said is built else 0)
        return said[start : said.index("As recorded", start)]

    assert table(shown) == table(built), "the agent's inference gives the figures that the bundle was written with"
    assert "these are the figures of the model card" in shown
    card = (bundle / "MODEL_CARD.md").read_text(encoding="utf-8")
    compared = shown[shown.index("## All methods, trained and tried alike") :].strip()
    assert "student, distilled, INT8 - student, distilled, FP32" in compared
    assert compared in card, "the report prints the card's comparison"


@pytest.mark.slow
def test_a_transfer_says_its_time_and_ends_in_a_bundle_without_picks(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, work, bundle = shutil.copytree(folder, tmp_path / "data"), tmp_path / "work", tmp_path / "bundle"
    shutil.rmtree(data / "soft_labels")
    options = ["--data", str(data), "--work", str(work), "--config", str(CONFIGS / "reduced.yaml")]
    assert main(["transfer", *options, "--calibration", "32", "--out", str(bundle)]) == 0
    assert capsys.readouterr().out.startswith("about 0.0 h on this machine, 2 times teacher and student")
    assert dict(open_bundle(bundle).manifest.training)["teachers"] == ["prime"]
    verified = ["verify", str(bundle), "--golden", "--teacher", str(work / "full" / "teacher.pt")]
    main(verified)
    assert "teacher -> student" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("bank: {labelled: many}", "bank: labelled: .*integer.*'many'"),
        ("student: {channels: 5}", "student: channels"),
        ("pretrain: {batch: 0}", "pretrain: batch: .*greater than or equal to 1"),
        ("teacher: {recipe: none}", "teacher: recipe: .*'head', 'embeddings' or 'all'"),
        ("teacher: {pool: max}", "teacher: pool"),
        (b"\xff\xfe", "cannot be read"),
    ],
)
def test_a_value_of_another_kind_is_named_before_anything_is_trained(
    tmp_path: Path, content: str | bytes, said: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ConfigError, match=said):
        read_config(path)


def test_a_work_folder_belongs_to_one_configuration_and_one_set_of_records(folder: Path, tmp_path: Path) -> None:
    """Its windows and answers are taken as they are; under a changed preparation or split they would be others'."""
    work, data = tmp_path / "work", shutil.copytree(folder, tmp_path / "data")
    open_lab(data, work, REDUCED)
    open_lab(folder, work, REDUCED)
    with pytest.raises(ConfigError, match="another configuration"):
        open_lab(data, work, replace(REDUCED, preparation=Preparation(highpass_hz=2.0)))
    table = data / "metadata.csv"
    lines = table.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[1] = lines[1].replace(",train,", ",val,")
    table.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(ConfigError, match="other records"):
        open_lab(data, work, REDUCED)


@pytest.fixture
def here(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: ``data`` without a record in the split `val`, and files that fit nothing."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "FILE").touch()
    (tmp_path / "TEACHER").write_text("distil: {teachers: [nobody]}")
    (tmp_path / "VARIANT").write_text("pretrain: {variant: huge}")
    table = shutil.copytree(folder, tmp_path / "data") / "metadata.csv"
    table.write_text(table.read_text(encoding="utf-8").replace(",val,", ",train,"), encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("crossval", "--methods", "stft", "nothing"), "no method 'nothing'"),
        (("crossval", "--checkpoint", "NONE"), "NONE cannot be read"),
        (("crossval", "--config", "TEACHER"), "no method 'nobody'"),
        (("crossval", "--config", "VARIANT"), "no PRIME-DP variant 'huge'"),
        (("transfer", "--out", "/proc/none/teacher.pt"), "/proc/none"),
        (("crossval", "--work", "FILE/work"), "FILE/work"),
        (("curve", "--methods", "distilled"), "distilled does not learn from labels alone"),
        (("bundle", "--out", "bundle"), "no record of the split `val` can be judged"),
        (("report",), "no record of the split `val` can be judged"),
        (("float", "none.onnx", "out.onnx"), "none.onnx"),
        (("float", "TEACHER", "out.onnx"), "give an ONNX file"),
        (("verify", "--golden", "--teacher", "TEACHER"), "TEACHER is no transferred teacher"),
    ],
)
def test_what_cannot_end_well_is_told_at_once_and_in_words(
    here: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], said: str
) -> None:
    if options[0] not in ("float", "verify"):
        options = (*options, "--data", "data")
    if options[0] in ("crossval", "transfer", "curve", "bundle"):
        options = (options[0], "--work", "work", "--config", str(CONFIGS / "reduced.yaml"), *options[1:])
    assert main(options) in (1, 2)
    error = capsys.readouterr().err
    assert said in error
    assert "hint:" in error
    assert "weights_only" not in error, "PyTorch's text recommends to run whatever code a file holds"
    assert not list(here.glob("work/full/*/*")), "nothing was begun"


BARE = """
    import sys

    class WithoutTorch:
        def find_spec(self, name, path, target=None):
            if name == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name=name)

    sys.meta_path.insert(0, WithoutTorch())
    from quantize.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def test_one_label_alone_is_refused() -> None:
    with pytest.raises(DataError, match="one label alone"):
        train_boosting(np.zeros((4, 3)), np.full(4, 3), 0)


def test_missing_extras_are_told_in_words(folder: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(BARE), "pretrain", "--data", str(folder), "--work", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ, timeout=60)
    assert done.returncode == 1
    assert "pip install -e '.[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_data_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", "--data", str(tmp_path), "--work", str(tmp_path)]) == 1
    assert "metadata.csv does not exist" in capsys.readouterr().err


def test_a_region_is_left_out_whole_and_its_answers_are_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is left out reaches the network neither as a record nor through the generator's noise."""
    data = write_folder(tmp_path / "data", events=20)
    events = sorted({row.event for row in read_table(data)})
    lines = [
        f"{event},{'alps' if int(event.lstrip('abcdefghijklmnopqrstuvwxyz')) < 15 else 'west'}" for event in events
    ]
    (data / "regions.csv").write_text("\n".join(["source_id,region", *lines]) + "\n", encoding="utf-8")
    work = tmp_path / "work"
    lab = open_lab(data, work, REDUCED, by="region")
    assert lab.left_out == ["alps"] and lab.count == 1
    index = learned_from(lab.bank(), 0)
    assert {lab.regions[lab.records[int(i)].row.event] for i in lab.bank().record[index]} == {"west"}
    found = evaluate_regions(lab, ["mixed"])
    assert found["regions"] == ["alps"] and (work / "regions.json").is_file()
    assert (work / "mixed" / "without_alps" / "answers.npz").is_file()
    with pytest.raises(UsageError, match="'moon'"):
        evaluate_regions(lab, ["mixed"], ["moon"])
