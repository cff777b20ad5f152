"""``make test-tensorrt-api``: the API that Talus uses of TensorRT and of the CUDA driver, against the real bindings.

Without a GPU none of it can be called, but the modules can be imported and looked at. TensorRT 8.6 is one package with
its libraries (819 MB, Python 3.10 at most). Of 10 and 11 there are the bindings alone (1 MB); the libraries that they
load are replaced by empty ones, made here with the C compiler. TensorRT for RTX is whole (95 MB) and compiles for GPUs
that are not there: its parser and its builder take the bundle's own files. Everything is fetched with pip into the
folder given.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMES = Path(__file__).with_name("names.py")
WHOLE = "8.6.0"
BINDINGS = (
    "tensorrt-cu12-bindings==10.3.0",
    "tensorrt-cu12-bindings==10.16.1.11",
    "tensorrt-cu13-bindings==11.4.0.106",
)
RTX = "1.7.1.116"
REFUSED = ": refused: "
CUDA = ("cuda-bindings==12.9.8", "cuda-bindings==13.5.0")


def fetch(requirement: str, folder: Path) -> Path:
    """The wheel's contents."""
    target = folder / requirement.replace("==", "-")
    if not target.exists():
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "-q",
            "--no-deps",
            "--only-binary=:all:",
            "-d",
            folder / "new",
        ]
        subprocess.run([*command, requirement], check=True)
        (wheel,) = (folder / "new").glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(target)
        wheel.unlink()
    return target


def check(python: str, path: Path, libraries: Path) -> tuple[int, str]:
    """``names.py`` under ``python``, with ``path`` on its module path."""
    environment = {**os.environ, "PYTHONPATH": f"{path}:{ROOT}", "LD_LIBRARY_PATH": str(libraries)}
    done = subprocess.run([python, NAMES], env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


def check_bindings(folder: Path) -> int:
    """Import against empty libraries: what the loader misses, file or function, is added until nothing is missed."""
    worst = 0
    for requirement in BINDINGS:
        unpacked = fetch(requirement, folder)
        link = unpacked / "tensorrt"
        if not link.exists():
            link.symlink_to(unpacked / "tensorrt_bindings")
        libraries = unpacked / "libraries"
        libraries.mkdir(exist_ok=True)
        functions: set[str] = set()
        names: set[str] = set()
        for _ in range(60):
            for name in names:
                source = "".join(f"void *{function}(void) {{ return 0; }}\n" for function in sorted(functions))
                command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(libraries / name), f"-Wl,-soname,{name}"]
                subprocess.run(command, input=source, text=True, check=True)
            status, said = check(sys.executable, unpacked, libraries)
            missing = re.search(r"ImportError: (lib\S+): cannot open|undefined symbol: (\w+)", said)
            if missing is None:
                break
            names |= {missing[1]} - {None}
            functions |= {missing[2]} - {None}
        print(said.rstrip(), flush=True)
        worst |= status
    return worst


def check_whole(folder: Path) -> int:
    """TensorRT 8.6 with its own libraries, in an environment of its own."""
    python = os.environ.get("PYTHON310") or shutil.which("python3.10")
    # A shim of a version manager stands in the path, and runs only where that version was chosen.
    if python is None or subprocess.run([python, "--version"], capture_output=True, check=False).returncode != 0:
        print(f"TensorRT {WHOLE}: skipped, it needs Python 3.10 (set PYTHON310=/path/to/python3.10)")
        return 0
    venv = folder / "venv-8.6"
    if not (venv / "complete").exists():
        subprocess.run([python, "-m", "venv", venv], check=True)
        pip = [venv / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "numpy<2", f"tensorrt=={WHOLE}", "nvidia-cudnn-cu12<9"], check=True)
        (venv / "complete").touch()
    libraries = ":".join(str(path) for path in venv.glob("lib/python3*/site-packages/nvidia/*/lib"))
    python = str(venv / "bin" / "python")
    status, said = check(python, Path("/nonexistent"), Path(libraries))
    print(said.rstrip(), flush=True)
    return status | check_probe(folder, python, libraries)


def check_probe(folder: Path, python: str, libraries: str) -> int:
    """The agent's probe of the real TensorRT over a driver that is none: SIGSEGV there is a reason here."""
    sys.path.insert(0, str(ROOT / "tests"))
    from tensorrt_support import compile_driver, make_jetson

    from agent.errors import BackendError
    from agent.inference.tensorrt.child import Places, probe

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        machine = make_jetson(Path(scratch))
        driver = compile_driver(Path(scratch))
        os.environ["LD_LIBRARY_PATH"] = f"{driver}:{libraries}"
        begin = time.monotonic()
        try:
            print(f"  WRONG the probe succeeded: {probe(Places(root=machine.root, pythons=(python,)))}")
        except BackendError as error:
            named = "probe ended by SIGSEGV while opening TensorRT's runtime" in error.message
            print(f"  {'' if named else 'WRONG '}without a GPU: {error.message.partition(': ')[2]}", end="")
            print(f" ({time.monotonic() - begin:.1f} s)", flush=True)
            return int(not named)
        finally:
            del os.environ["LD_LIBRARY_PATH"]
    return 1


def check_rtx(folder: Path) -> int:
    """The API of TensorRT for RTX, then its parser and builder on the files of the default bundle."""
    parts = [fetch(f"tensorrt-rtx-cu13-{part}=={RTX}", folder) for part in ("bindings", "libs")]
    home = folder / "rtx"
    home.mkdir(exist_ok=True)
    for source, name in (
        (parts[0] / "tensorrt_rtx_bindings", "tensorrt_rtx"),
        (parts[1] / "tensorrt_rtx_libs", "tensorrt_rtx_libs"),
    ):
        if not (home / name).exists():
            (home / name).symlink_to(source)
    libraries = parts[1] / "tensorrt_rtx_libs"
    status, said = check(sys.executable, home, libraries)
    print(said.rstrip(), flush=True)
    environment = {**os.environ, "PYTHONPATH": f"{home}:{ROOT}", "LD_LIBRARY_PATH": str(libraries)}

    def compiled(*files: Path) -> list[str]:
        command = [sys.executable, NAMES.with_name("compile.py"), *files]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    bundle = ROOT / "agent" / "models" / "default"
    for line in compiled(bundle / "model.trt.onnx", bundle / "model.fp16.onnx"):
        print(f"  {'WRONG ' if REFUSED in line else ''}{line}", flush=True)
        status |= REFUSED in line
    broken = broken_files(folder / "broken")
    refused = [line for line in compiled(*broken) if REFUSED in line]
    print(f"  of {len(broken)} files that each breach one rule of the linter it refuses {len(refused)}:")
    for line in refused:
        print(f"    {line}")
    return status


def broken_files(folder: Path) -> list[Path]:
    """One file for each breach that the linter's tests make."""
    sys.path.insert(0, str(ROOT / "tests"))
    import onnx
    from inference_support import small_files
    from test_rules import BREACHES

    folder.mkdir(exist_ok=True)
    made = []
    for rule, breach in BREACHES:
        model = onnx.ModelProto()
        model.CopyFrom(small_files().trt)
        breach(model)
        made.append(folder / f"{rule}.{breach.__name__}.onnx")
        made[-1].write_bytes(model.SerializeToString())
    return made


def check_cuda(folder: Path) -> int:
    """Each entry point of the driver that is called, among those that NVIDIA's own Python package looks up."""
    from agent.tensorrt_child.cuda import SIGNATURES

    worst = 0
    for requirement in CUDA:
        raw = b"".join(path.read_bytes() for path in fetch(requirement, folder).rglob("*driver*.so"))
        # release 12 asks the driver for some by their plain name and a version, release 13 for all by the full name
        names = {name: name.removesuffix("_v2").encode() for name in SIGNATURES}
        missing = [name for name, plain in names.items() if not re.search(rb"\b" + plain + rb"(_v2)?\b", raw)]
        print(f"{requirement}: {len(SIGNATURES) - len(missing)} of {len(SIGNATURES)} entry points of the CUDA driver")
        for name in missing:
            print(f"  WRONG no {name}")
        worst |= bool(missing)
    return worst


def main() -> int:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    sys.path.insert(0, str(ROOT))
    return check_whole(folder) | check_bindings(folder) | check_rtx(folder) | check_cuda(folder)


if __name__ == "__main__":
    sys.exit(main())
