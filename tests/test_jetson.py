"""Bringing up a device: the doctor's line for the GPU, and the one file that is sent back."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from agent_support import ROOT
from inference_support import small_bundle, small_network
from tensorrt_support import FakeJetson, compile_driver, fake_environment, make_jetson

from agent.inference import Bundle, open_bundle
from agent.inference.tensorrt.bring_up import bring_up, machine, sensors, write_report

DOCTOR = (
    "import sys; from agent.inference.tensorrt import child; child.DEVICES = ('dev/null',)\n"
    "from agent.cli import main; sys.exit(main(['doctor', *sys.argv[1:]]))"
)


@pytest.fixture
def jetson(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeJetson:
    made = make_jetson(tmp_path)
    for name, value in fake_environment(compile_driver(tmp_path), made.script).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return made


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(small_bundle(tmp_path_factory.mktemp("bundle")))


def board(root: Path) -> None:
    """Files as the kernel of an Orin shows them."""
    files = {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Developer Kit\0",
        "proc/meminfo": "MemTotal:  7801856 kB\nMemAvailable:    6144000 kB\n",
        "sys/class/thermal/thermal_zone0/type": "cpu-thermal\n",
        "sys/class/thermal/thermal_zone0/temp": "48531\n",
        "sys/class/thermal/thermal_zone1/type": "off\n",
        "sys/class/hwmon/hwmon1/name": "ina3221\n",
        "sys/class/hwmon/hwmon1/in1_label": "VDD_IN\n",
        "sys/class/hwmon/hwmon1/in1_input": "5000\n",
        "sys/class/hwmon/hwmon1/curr1_input": "1400\n",
        "sys/class/hwmon/hwmon1/in2_label": "UNUSED\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


def doctor(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DOCTOR, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=400, check=False)


def test_sensors_and_board_are_read_from_the_kernel(jetson: FakeJetson) -> None:
    board(jetson.root)
    assert sensors(jetson.root) == {
        "temperatures_c": {"cpu-thermal": 48.5},
        "power_w": {"VDD_IN": 7.0},
        "memory_available_mb": 6291.5,
    }
    assert machine(jetson.root)["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert machine(jetson.root)["l4t"] == "36.4.3"


def test_report_compares_every_rung_with_the_cpu(jetson: FakeJetson, bundle: Bundle, tmp_path: Path) -> None:
    board(jetson.root)
    said: list[str] = []
    fp32 = small_network().SerializeToString()
    made = bring_up(bundle, jetson.engine_settings(again=True), said.append, fp32=fp32, rounds=5)
    write_report(tmp_path / "report.json", made)
    report: dict[str, Any] = json.loads((tmp_path / "report.json").read_text())
    runs = {(run["backend"], run["precision"]): run for run in report["runs"]}
    assert list(runs) == [
        ("onnxruntime", "int8"),
        ("onnxruntime", "fp32"),
        ("tensorrt", "int8"),
        ("tensorrt", "fp16"),
        ("tensorrt", "fp32"),
    ]
    for run in runs.values():
        assert "error" not in run
        assert 0 < run["median_ms"] <= run["p99_ms"] <= run["max_ms"]
    assert runs["tensorrt", "int8"]["golden_drift"] < runs["tensorrt", "int8"]["tolerance"]
    assert runs["tensorrt", "int8"]["labels_agree"] > 0.8
    assert runs["tensorrt", "fp16"]["sensors"]["power_w"] == {"VDD_IN": 7.0}
    assert report["tensorrt"]["gpu"] == "Orin (fake)"
    assert any(line.startswith("building the fp16 engine") for line in said)


def test_what_fails_is_in_the_report(jetson: FakeJetson, bundle: Bundle) -> None:
    jetson.tell(build="segv")
    report = bring_up(bundle, jetson.engine_settings(again=True), lambda text: None, rounds=2)
    assert [run.get("error", "")[:22] for run in report["runs"]] == ["", *["build ended by SIGSEGV"] * 2]
    jetson.tell(runtime="segv")
    report = bring_up(bundle, jetson.engine_settings(again=True), lambda text: None, rounds=2)
    assert "probe ended by SIGSEGV" in report["tensorrt"]["error"]


def test_doctor_builds_on_request_and_checks_what_is_there(jetson: FakeJetson, tmp_path: Path) -> None:
    """Without an engine it says how to get one; afterwards the golden windows run again at each call."""
    done = doctor()
    assert "BAD  tensorrt     int8: there is no engine yet" in done.stdout
    done = doctor("--jetson", "--report", tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["schema"] == "talus/jetson-report/1"
    assert "send this file back" in done.stderr
    assert "ok   tensorrt     TensorRT 10.3.0 on Orin (fake)" in doctor().stdout
    jetson.tell(wrong=["int8"])
    assert "int8: golden windows are off by" in doctor().stdout


def test_report_needs_the_run(jetson: FakeJetson, tmp_path: Path) -> None:
    done = doctor("--report", tmp_path / "report.json")
    assert done.returncode == 2
    assert "go with --jetson" in done.stderr


def test_without_a_gpu_the_doctor_passes_it_over(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DOCTOR.replace("dev/null", "dev/none-such")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=400,
        check=False,
    )
    assert "--   tensorrt     no NVIDIA GPU" in done.stdout
