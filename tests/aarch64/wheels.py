"""Part of ``make test-aarch64``: is there a wheel of every dependency for the Python of each JetPack?"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PYTHONS = {"3.10": (35, "JetPack 6"), "3.12": (39, "JetPack 7")}
"""Python version to the glibc of its Ubuntu (2.xx), and where it is found."""
OLDEST_GLIBC = 17


def dependencies() -> list[str]:
    """Of ``pyproject.toml``; Python 3.10 has no parser for it."""
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    block = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert block is not None
    return re.findall(r'"([^"]+)"', block[1])


def resolve(folder: Path, python: str, glibc: int, wanted: list[str]) -> tuple[bool, str]:
    """Let pip fetch wheels for linux aarch64 alone; what it got, or its complaint."""
    target = folder / python
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in range(glibc, OLDEST_GLIBC - 1, -1)]
    command = [
        *(sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--only-binary=:all:"),
        *(f"--python-version={python}", *platforms, "--platform=manylinux2014_aarch64", "-d", str(target), *wanted),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        return False, " ".join(errors)[:300]
    names = (path.name.split("-") for path in target.glob("*.whl"))
    return True, ", ".join(sorted(f"{name[0]} {name[1]}" for name in names))


def main() -> int:
    folder, wanted = Path(sys.argv[1]), dependencies()
    worst = 0
    for python, (glibc, where) in PYTHONS.items():
        complete, said = resolve(folder, python, glibc, wanted)
        if complete:
            print(f"Python {python} ({where}): every dependency has a wheel for aarch64: {said}", flush=True)
            continue
        worst = 1
        print(f"Python {python} ({where}): not every dependency has a wheel for aarch64", flush=True)
        for requirement in wanted:
            complete, said = resolve(folder, python, glibc, [requirement])
            print(f"  {requirement}: {'yes' if complete else said}", flush=True)
    return worst


if __name__ == "__main__":
    sys.exit(main())
