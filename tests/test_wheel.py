"""The wheel holds what a station needs: the pages that hints name, the unit, the examples; and works from there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
SHARED = re.compile(r"/opt/talus(?:-[\d.]+)?/share/talus/([\w./-]+)")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built by its own backend from this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    code = f"from hatchling.build import build_wheel; build_wheel({str(folder)!r})"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def built(folder: Path, kind: str, source: Path = ROOT) -> Path:
    """A wheel or a source archive (``kind``: ``wheel``, ``sdist``) as the project's own backend makes it."""
    folder.mkdir()
    code = f"from hatchling.build import build_{kind}; build_{kind}({str(folder)!r})"
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1790000000"}
    subprocess.run([sys.executable, "-c", code], cwd=source, env=env, check=True, capture_output=True)
    (found,) = folder.iterdir()
    return found


@pytest.fixture(scope="module")
def station(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment that holds the wheel and not one of its dependencies."""
    folder = tmp_path_factory.mktemp("station") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", folder], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", folder / "bin" / "python", "install", "-q", "--no-deps", wheel],
        check=True,
        capture_output=True,
    )
    return folder


def talus(station: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    return subprocess.run(
        [station / "bin" / "talus", *arguments], cwd=station, env=env, capture_output=True, text=True, check=False
    )


def named_pages() -> set[str]:
    """Pages that a message, a comment of an example or of the unit sends the operator to."""
    patterns = ("agent/**/*.py", "desk/**/*.py", "configs/**/*", "systemd/*")
    places = [path for pattern in patterns for path in ROOT.glob(pattern)]
    texts = [path.read_text("utf-8") for path in places if path.is_file()]
    return {name for text in texts for name in re.findall(r"talus docs ([a-z]+)", text)}


def test_every_page_that_a_hint_names_is_at_the_station(station: Path) -> None:
    listed = talus(station, "docs")
    assert listed.returncode == 0, listed.stderr
    assert named_pages() >= {"configuration", "mqtt", "systemd"}
    for name in named_pages() | {"operations", "upgrading"}:
        page = talus(station, "docs", name)
        assert (page.returncode, page.stderr) == (0, "")
        assert page.stdout.startswith("# ")
        path = re.search(rf"^{name} .*\n +(\S+)$", listed.stdout, re.MULTILINE)
        assert path and Path(path[1]).is_relative_to(station), "not the page of this checkout"
        assert Path(path[1]).read_text("utf-8") == page.stdout


def test_no_hint_names_a_page_by_a_path_that_a_station_has_not() -> None:
    """Such a path is in docstrings and comments for developers alone."""
    for path in [*ROOT.glob("agent/**/*.py"), *ROOT.glob("desk/**/*.py")]:
        text = re.sub(r'"""(.*?)"""|#.*', "", path.read_text("utf-8"), flags=re.DOTALL)
        found = re.findall(r"""(?:see|in|hint:) docs/\w+\.md""", text)
        assert not found, f"{path.relative_to(ROOT)}: {found}"


def test_files_that_the_pages_install_are_in_the_wheel(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name.partition("/share/talus/")[2] for name in archive.namelist()}
    for page in (ROOT / "systemd" / "README.md", ROOT / "docs" / "upgrading.md", ROOT / "docs" / "jetson.md"):
        named = set(SHARED.findall(page.read_text("utf-8")))
        assert named, page
        assert named <= held


def test_links_between_the_pages_hold_at_the_station(station: Path) -> None:
    """But for those to the code and to the pages of the project itself."""
    root = (station / "share" / "talus").resolve()
    for page in root.glob("**/*.md"):
        for target in re.findall(r"\]\((?![a-z]+:)([\w./-]+)", page.read_text("utf-8")):
            path = (page.parent / target).resolve()
            if path.relative_to(root).parts[0] in ("docs", "systemd", "configs"):
                assert path.exists(), f"{page.name}: {target}"


def test_what_is_no_page_is_answered_with_the_list() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "agent", "docs", "nonsense"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "there is no page 'nonsense'" in done.stderr
    assert "configuration" in done.stderr


def test_a_release_has_the_same_bytes_each_time_and_its_source_builds_the_same_wheel(tmp_path: Path) -> None:
    """Whoever doubts a wheel can build it again; a source archive that lacks a file makes another wheel."""
    wheel, again = built(tmp_path / "1", "wheel"), built(tmp_path / "2", "wheel")
    assert wheel.read_bytes() == again.read_bytes()
    archive = built(tmp_path / "3", "sdist")
    assert archive.read_bytes() == built(tmp_path / "4", "sdist").read_bytes()
    with tarfile.open(archive) as file:
        file.extractall(tmp_path / "5")  # noqa: S202 - it was made here
    (source,) = (tmp_path / "5").iterdir()
    assert built(tmp_path / "6", "wheel", source).read_bytes() == wheel.read_bytes()


def test_the_pinned_list_of_a_station_meets_every_dependency_with_hashes() -> None:
    """``systemd/requirements.txt`` is made by a tool from pyproject.toml: it must be made again when that changes."""
    pinned: dict[str, list[Requirement]] = {}
    for line in (ROOT / "systemd" / "requirements.txt").read_text("utf-8").replace("\\\n", " ").splitlines():
        if line and not line.startswith("#"):
            assert "--hash=sha256:" in line, line
            found = Requirement(line.partition(" --hash")[0])
            pinned.setdefault(canonicalize_name(found.name), []).append(found)
    for wanted in map(Requirement, requires("talus-agent") or ()):
        if wanted.marker is None or "extra" not in str(wanted.marker):
            versions = [pin.version for one in pinned[canonicalize_name(wanted.name)] for pin in one.specifier]
            assert versions and all(version in wanted.specifier for version in versions), wanted
