"""Documentation is executed: the commands of the README and the tour run as written, and no link leads nowhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from agent.cli import COMMANDS
from agent.config.file import check

ROOT = Path(__file__).parents[1]
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("**/*.md"))]

SET_UP = ("make ", ". .venv/", "source .venv/", "git clone ", "cd ")
"""What made the environment in which this test runs."""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```(?:sh|bash|console)?\n(.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)


def commands(page: Path) -> list[str]:
    """Every command in a fenced block of a page, continued lines put together."""
    text = "\n".join(blocks(page)).replace("\\\n", " ")
    found = [line.strip() for line in text.splitlines()]
    return [line for line in found if line and not line.startswith(("#", *SET_UP))]


SHOWN = [
    command for page in (*sorted(ROOT.glob("README*.md")), ROOT / "docs" / "tour.md") for command in commands(page)
]


def test_the_tour_shows_what_there_is() -> None:
    """Else the commands below would be none."""
    assert {command.split()[1] for command in SHOWN if command.startswith("talus ")} >= {"classify", "replay", "check"}
    text = "".join((ROOT / name).read_text("utf-8") for name in ("README.md", "docs/tour.md", "docs/operations.md"))
    assert all(f"talus {name}" in text for name in COMMANDS), "a command that nobody is told of"


@pytest.mark.parametrize("command", list(dict.fromkeys(SHOWN)))
def test_commands_of_readme_and_tour_run_as_written(command: str, tmp_path: Path) -> None:
    folder = Path(sys.executable).parent
    if not (folder / "talus").exists():
        pytest.skip("the project is not installed here: pip install -e .")
    env = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "HOME": str(tmp_path), "XDG_STATE_HOME": ""}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], capture_output=True, text=True, cwd=ROOT, env=env, check=False
    )
    assert "Traceback" not in done.stderr
    assert done.stdout
    if command.startswith("talus doctor") and done.returncode == 1:
        bad = [line for line in done.stdout.splitlines() if line.startswith("BAD")]
        assert [line.split()[1] for line in bad] == ["clock"], "only that can be wrong with a machine that runs tests"
    else:
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_whole_configurations_in_the_pages_are_good(page: Path, tmp_path: Path) -> None:
    found = re.findall(r"^```yaml\n(station:.*?\nsource:.*?)^```$", page.read_text("utf-8"), re.MULTILINE | re.DOTALL)
    for number, text in enumerate(found):
        file = tmp_path / f"{number}.yaml"
        file.write_text(text, "utf-8")
        wrong = [str(problem) for problem in check(file) if problem.level == "error"]
        assert [line for line in wrong if "cannot be read" not in line] == [], "but for files of another machine"


def headings(page: Path) -> set[str]:
    """Anchors of a page, made as GitHub makes them."""
    found = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.M | re.S), re.M)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text).lower() for text in found)
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = (page.parent / name).resolve() if name else page
        assert place.exists(), f"{target} does not exist"
        assert not anchor or anchor in headings(place), f"{target}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_are_named_exist(page: Path) -> None:
    """Paths in code marks, such as ``agent/types.py``, unless they are a pattern or something made later."""
    text = page.read_text("utf-8")
    named = re.findall(r"`((?:agent|quantize|bench|docs|configs|tests|systemd)/[\w./-]+)`", text)
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_tests_that_the_pages_name_exist() -> None:
    """The table of ways to go deaf or mute is a promise: each row has a test."""
    named = re.findall(r"`(test_\w+\.py)::(\w+)`", (ROOT / "docs" / "operations.md").read_text())
    assert len(named) > 10
    missing = [name for file, name in named if f"def {name}(" not in (ROOT / "tests" / file).read_text()]
    assert missing == []
