"""``make test-aarch64``: Talus on the processor of a Jetson, emulated.

Needs root on a Debian or Ubuntu machine with ``mmdebstrap``, ``qemu-user-static`` and ``mosquitto``. It makes an arm64
Debian in a folder, installs the project's wheel there as a station does, and runs the network, ``doctor``,
``classify``, ``replay`` and the service; what they answer is compared with what this machine answers. Emulation proves
results, not speed.

    python tests/aarch64/run.py FOLDER [--onnxruntime VERSION] [--suite bookworm]
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import obspy
import yaml

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from demo.broker import local_broker  # noqa: E402
from demo.demo import RECORDS  # noqa: E402

HERE = Path("srv") / "talus"
"""Where the project's files lie inside the arm64 system."""

NETWORKS = '''
"""The golden windows on every file of the bundle that a CPU takes: prints the largest difference of a probability."""
import json
import platform
from pathlib import Path

import agent
from agent.inference import NetworkClassifier
from agent.inference.bundle import open_bundle
from agent.inference.onnxruntime import OnnxRuntimeBackend
from agent.inference.selftest import check_golden

bundle = open_bundle(Path(agent.__file__).parent / "models" / "default")
drift = {}
for name in ("model.cpu.onnx", "model.fp16.onnx"):
    backend = OnnxRuntimeBackend(bundle.file(name), name)
    drift[name] = check_golden(NetworkClassifier(backend, bundle), bundle, name)
print(json.dumps({"machine": platform.machine(), "drift": drift}))
'''


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--onnxruntime", default="1.23.2", help="its version there (see docs/jetson.md)")
    parser.add_argument("--suite", default="bookworm")
    args = parser.parse_args()
    root = args.folder.resolve() / f"arm64-{args.suite}"
    _debian(root, args.suite)
    with _mounts(root):
        _install(root, args.onnxruntime)
        failures = [*_networks(root), *_doctor(root), *_records(root), *_service(root)]
    for failure in failures:
        print(f"FAILED {failure}")
    print(f"test-aarch64: {len(failures)} failures")
    return 1 if failures else 0


def _debian(root: Path, suite: str) -> None:
    """An arm64 Debian with Python and nothing else; kept for the next run."""
    if (root / "made").exists():
        return
    for program, package in (("mmdebstrap", "mmdebstrap"), ("qemu-aarch64-static", "qemu-user-static")):
        if shutil.which(program) is None:
            sys.exit(f"test-aarch64: {program} is missing (try: apt-get install {package} binfmt-support)")
    if not Path("/proc/sys/fs/binfmt_misc/status").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", "/proc/sys/fs/binfmt_misc"], check=True)
    subprocess.run(["update-binfmts", "--enable", "qemu-aarch64"], check=True)
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    print(f"test-aarch64: making an arm64 Debian {suite} in {root} (some minutes)", flush=True)
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--variant=minbase", "--architectures=arm64"),
            *("--include=ca-certificates,python3-venv", suite, str(root), *_mirror()),
        ],
        check=True,
    )
    for name in ("/etc/ssl/certs/ca-certificates.crt", "/etc/resolv.conf"):
        shutil.copy(name, root / name[1:])
    (root / "made").touch()


def _mirror() -> list[str]:
    """This machine's own Debian mirror, if it has one."""
    for path in [*Path("/etc/apt/sources.list.d").glob("*.sources"), Path("/etc/apt/sources.list")]:
        for line in path.read_text("utf-8").splitlines() if path.exists() else ():
            words = line.split()
            if words[:1] in (["URIs:"], ["deb"]) and "security" not in line:
                return [next(word for word in words if "://" in word)]
    return []


@contextmanager
def _mounts(root: Path) -> Iterator[None]:
    mounted = []
    try:
        for name in ("proc", "sys", "dev"):
            subprocess.run(["mount", "--bind", f"/{name}", str(root / name)], check=True)
            mounted.append(root / name)
        yield
    finally:
        for place in reversed(mounted):
            subprocess.run(["umount", "-l", str(place)], check=False)


def _chroot() -> str:
    """Looked up here: the search path of the arm64 system leaves out the folders of the super-user."""
    return shutil.which("chroot") or "/usr/sbin/chroot"


def _inside(root: Path, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a command of the arm64 system, in the project's folder there."""
    env = {
        "PATH": f"/{HERE}/venv/bin:/usr/bin:/bin",
        "HOME": "/root",
        "LC_ALL": "C.UTF-8",
        "PIP_CERT": "/etc/ssl/certs/ca-certificates.crt",
        **{name: value for name, value in os.environ.items() if name.startswith("PIP_INDEX")},
    }
    # Looked up here: the search path of the arm64 system leaves out the folders of the super-user.
    line = [
        shutil.which("chroot") or "/usr/sbin/chroot",
        str(root),
        "/bin/sh",
        "-c",
        f'cd /{HERE} && exec "$@"',
        "sh",
        *command,
    ]
    done = subprocess.run(line, env=env, capture_output=True, text=True, check=False)
    if check and done.returncode:
        print(done.stdout, done.stderr, file=sys.stderr)
        sys.exit(f"test-aarch64: {command[0]} ended with {done.returncode} in the arm64 system")
    return done


def _install(root: Path, onnxruntime: str) -> None:
    home = root / HERE
    home.mkdir(parents=True, exist_ok=True)
    for old in home.glob("*.whl"):
        old.unlink()
    code = f"from hatchling.build import build_wheel; print(build_wheel({str(home)!r}))"
    name = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True)
    if not (home / "venv").exists():
        _inside(root, "python3", "-m", "venv", "venv")
    print("test-aarch64: installing the wheel there", flush=True)
    wheel = name.stdout.split()[-1]
    pip = ("venv/bin/pip", "install", "-q", "--only-binary=:all:", "--disable-pip-version-check")
    _inside(root, *pip, f"./{wheel}", f"onnxruntime=={onnxruntime}")
    _inside(root, *pip, "--no-deps", "--force-reinstall", f"./{wheel}")


def _networks(root: Path) -> list[str]:
    (root / HERE / "networks.py").write_text(NETWORKS, encoding="utf-8")
    done = _inside(root, "python", "networks.py", check=False)
    if done.returncode:
        return [f"the golden windows: {done.stderr.strip().splitlines()[-1:]}"]
    said = json.loads(done.stdout)
    print(f"test-aarch64: golden windows on {said['machine']}, largest difference of a probability: {said['drift']}")
    return [] if said["machine"] == "aarch64" else [f"it ran on {said['machine']}"]


def _doctor(root: Path) -> list[str]:
    done = _inside(root, "talus", "doctor", check=False)
    print(done.stdout.rstrip())
    wrong = [line for line in done.stdout.splitlines() if line.startswith("BAD") and not line.startswith("BAD  clock")]
    return [f"doctor: {line}" for line in wrong] + ([] if "onnxruntime" in done.stdout else ["doctor names no backend"])


def _miniseed(folder: Path) -> list[str]:
    """The demonstration's records as miniSEED: ObsPy is not in the arm64 system."""
    names = []
    for record in RECORDS:
        stream = obspy.read(str(Path(obspy.__file__).parent / record))
        buffer = io.BytesIO()
        stream.write(buffer, format="MSEED")
        names.append(Path(record).name.partition(".slist")[0] + ".mseed")
        (folder / names[-1]).write_bytes(buffer.getvalue())
    return names


def _records(root: Path) -> list[str]:
    """``classify`` and ``replay`` of the same files, there and here: every word must be the same, and every number but
    for what another order of summation changes."""
    home, failures = root / HERE, []
    names = _miniseed(home)
    for arguments in (("classify", "--json", *names), ("replay", "--json", *names)):
        there = _inside(root, "talus", *arguments).stdout
        command = [sys.executable, "-m", "agent", *arguments]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        here = subprocess.run(command, cwd=home, env=env, check=True, capture_output=True, text=True).stdout
        left, right = [_comparable(text) for text in (there, here)]
        same = sum(_agree(one, other) for one, other in zip(left, right, strict=False))
        print(f"test-aarch64: {arguments[0]}: {same} of {len(right)} lines as on this machine")
        if not right or not same == len(left) == len(right):
            failures.append(f"{arguments[0]} answers otherwise: {there[:300]!r}")
    return failures


def _comparable(text: str) -> list[object]:
    """Lines of JSON without what belongs to a run: its identity, versions, wall clock."""
    own = {"boot_id", "timing"}
    return [{key: value for key, value in json.loads(line).items() if key not in own} for line in text.splitlines()]


def _agree(one: object, other: object) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_agree(value, other[key]) for key, value in one.items())
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_agree, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-4, abs_tol=1e-4)  # probabilities are rounded to 1e-4
    return one == other


def _service(root: Path) -> list[str]:
    """The service against a real broker: the rockfalls of a simulated site come out as events with a verdict."""
    from paho.mqtt.client import Client, MQTTMessage
    from paho.mqtt.enums import CallbackAPIVersion

    topics: list[str] = []
    judged = threading.Event()

    def heard(client: Client, userdata: object, message: MQTTMessage) -> None:
        topics.append(message.topic.rsplit("/", 1)[1])
        if topics[-1] == "event" and json.loads(message.payload)["classification"] is not None:
            judged.set()

    with local_broker() as broker, tempfile.TemporaryDirectory(dir=root / HERE) as state:
        listener = Client(CallbackAPIVersion.VERSION2)
        listener.on_message = heard
        port = int(broker.url.rpartition(":")[2])
        listener.connect("127.0.0.1", port)
        listener.subscribe("talus/v1/#", qos=1)
        listener.loop_start()
        config = yaml.safe_load((ROOT / "configs" / "demo.yaml").read_text("utf-8"))
        config["mqtt"]["port"] = port
        config["source"]["rates"]["rockfalls_per_hour"] = 120
        config["state_dir"] = f"/{HERE}/{Path(state).name}"
        (root / HERE / "station.yaml").write_text(json.dumps(config), encoding="utf-8")
        command = [_chroot(), str(root), f"/{HERE}/venv/bin/talus", "run", "--config", f"/{HERE}/station.yaml"]
        log = (root / HERE / "run.log").open("wb")
        process = subprocess.Popen(command, stdout=log, stderr=log, env={"PATH": "/usr/bin:/bin"})
        started = time.monotonic()
        judged.wait(600.0)
        took = time.monotonic() - started
        process.terminate()
        status = process.wait(120.0)
        listener.loop_stop()
    counts = {name: topics.count(name) for name in sorted(set(topics))}
    print(f"test-aarch64: the service, {took:.0f} s until the first verdict: {counts}, exit status {status}")
    return [] if judged.is_set() and status == 0 else [f"the service: see {root / HERE / 'run.log'}"]


if __name__ == "__main__":
    sys.exit(main())
