"""A run that was broken off goes on as if nothing had happened, and what it writes can be trusted to load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from quantize_support import write_folder

torch = pytest.importorskip("torch", reason="needs the extra `train`")

from agent.errors import BundleError, ConfigError  # noqa: E402
from agent.types import LABELS  # noqa: E402
from quantize.cli import CONFIGS, main  # noqa: E402
from quantize.data import Record, load_records, read_table  # noqa: E402
from quantize.student import (  # noqa: E402
    StudentConfig,
    build_student,
    example_input,
    load_student,
    parameter_count,
)
from quantize.train import TrainConfig, read_config, smoothed_cross_entropy, train  # noqa: E402

pytestmark = pytest.mark.train

TINY = replace(read_config(CONFIGS / "reduced.yaml"), epochs=2, windows_per_epoch=16, batch=8)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def records(folder: Path) -> list[Record]:
    return load_records([row for row in read_table(folder) if row.split == "train"])


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_student(path).state_dict()


def test_a_broken_off_run_ends_with_the_same_weights(records: list[Record], tmp_path: Path) -> None:
    straight = weights(train(records, TINY, tmp_path / "a"))
    assert not train(records, TINY, tmp_path / "b", stop_after=1).exists()
    resumed = weights(train(records, TINY, tmp_path / "b", ahead=True))
    assert straight.keys() == resumed.keys()
    for name, value in straight.items():
        assert torch.equal(value, resumed[name]), name
    other = weights(train(records, replace(TINY, seed=1), tmp_path / "c"))
    assert not torch.equal(straight["head.weight"], other["head.weight"])


def test_a_folder_of_another_run_is_refused(records: list[Record], tmp_path: Path) -> None:
    train(records, TINY, tmp_path, stop_after=1)
    with pytest.raises(ConfigError, match="another configuration"):
        train(records, replace(TINY, learning_rate=1e-3), tmp_path)
    with pytest.raises(ConfigError, match="other records"):
        train(records[1:], TINY, tmp_path)


def test_it_learns(records: list[Record], tmp_path: Path) -> None:
    longer = replace(TINY, epochs=6, windows_per_epoch=160, batch=16)
    train(records, longer, tmp_path)
    losses = [float(line.split('"loss": ')[1].split(",")[0]) for line in (tmp_path / "log.jsonl").open()]
    assert losses[-1] < 0.9 * losses[0]


def test_smoothing_gives_collapse_nothing() -> None:
    logits = torch.zeros(1, 5, requires_grad=True)
    smoothed_cross_entropy(logits, torch.tensor([0]), 0.2).backward()
    share = 0.2 - logits.grad[0]  # softmax minus target
    assert share[LABELS.index("collapse")] == pytest.approx(0.0, abs=1e-6)
    assert share[0] == pytest.approx(0.8 + 0.05)
    assert share.sum() == pytest.approx(1.0)


def test_default_student_suits_int8_and_its_budget() -> None:
    model = build_student(read_config(CONFIGS / "student.yaml").student).eval()
    assert parameter_count(model) <= 500_000
    convolutions = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d)]
    assert all(m.groups == 1 and m.kernel_size[0] == 1 and m.out_channels % 8 == 0 for m in convolutions)
    assert model(example_input()).shape == (1, len(LABELS))


@pytest.mark.parametrize(
    "shape",
    [{"channels": (12, 16)}, {"kernels": (4, 5)}, {"strides": (0, 2)}, {"kernels": (5,)}, {"taps": (0,)}],
)
def test_shapes_that_quantise_badly_are_refused(shape: dict[str, tuple[int, ...]]) -> None:
    plain = {"channels": (16, 16), "kernels": (5, 5), "strides": (2, 2), "taps": (1,)}
    StudentConfig(**plain)
    with pytest.raises(ConfigError):
        StudentConfig(**(plain | shape))


def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="does not exist"):
        load_student(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("weights")
    torch.save({"weights": 1}, tmp_path / "other.pt")
    torch.save(TINY, tmp_path / "code.pt")
    for name in ("text.pt", "other.pt", "code.pt"):
        with pytest.raises(BundleError, match=name):
            load_student(tmp_path / name)


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("epochs: 3\nstudent:\n  widths: [16]\n")
    with pytest.raises(ConfigError, match="student: unknown key 'widths'"):
        read_config(path)
    path.write_text("epochs: 3\nstudent:\n  dropout: 0.1\n")
    assert read_config(path) == TrainConfig(epochs=3, student=StudentConfig(dropout=0.1))


@pytest.mark.slow
def test_one_command_goes_from_records_to_a_bundle_that_reports(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "tiny.yaml"
    config.write_text((CONFIGS / "reduced.yaml").read_text().replace("epochs: 2", "epochs: 1"))
    bundle = tmp_path / "bundle"
    common = ["--data", str(folder), "--work", str(tmp_path / "work"), "--config", str(config), "--one-process"]
    assert main(["model", *common, "--calibration", "32", "--out", str(bundle)]) == 0
    built = capsys.readouterr().out
    assert "Cross-validation by event" in built
    assert main(["report", "--data", str(folder), "--bundle", str(bundle)]) == 0
    shown = capsys.readouterr().out

    def table(said: str) -> str:
        start = said.index("Neutral view")
        return said[start : said.index("As recorded", start)]

    assert table(shown) == table(built), "the agent's inference gives the figures that the bundle was written with"


def test_missing_data_is_a_usage_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--data", str(tmp_path), "--work", str(tmp_path)]) == 1
    assert "metadata.csv does not exist" in capsys.readouterr().err
