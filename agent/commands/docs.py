"""``talus docs``: the pages that come with the agent, for a station without a network."""

from __future__ import annotations

import argparse
import sys
from importlib import metadata
from pathlib import Path

from agent.errors import ConfigError, UsageError

EXAMPLE = "talus docs\n  talus docs operations"

DISTRIBUTION = "talus-agent"
_INSTALLED = "share/talus/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "page", nargs="?", metavar="PAGE", help="the page to print, such as mqtt; without it, all are listed"
    )


def main(args: argparse.Namespace) -> int:
    """Print a page as it is, or the list of all pages with their titles and files."""
    found = pages()
    if args.page is None:
        for name, path in found.items():
            print(f"{name:<15}{_title(path)}\n{'':<15}{path}")
        return 0
    name = Path(args.page).name.removesuffix(".md")
    if name not in found:
        raise UsageError(f"there is no page {args.page!r}", f"the pages are {', '.join(found)}")
    sys.stdout.write(found[name].read_text("utf-8"))
    return 0


def pages() -> dict[str, Path]:
    """Return the file of each page by its name: of the checkout that this is run from, else of the installed package.

    Raises:
        ConfigError: the package was installed without its pages.
    """
    root = Path(__file__).parents[2]
    if (root / "pyproject.toml").is_file():
        files = [*root.glob("docs/*.md"), root / "systemd" / "README.md"]
    else:
        files = [
            Path(str(file.locate()))
            for file in metadata.files(DISTRIBUTION) or ()
            if _INSTALLED in file.as_posix() and file.suffix == ".md"
        ]
    found = {path.parent.name if path.stem == "README" else path.stem: path.resolve() for path in files}
    if not found:
        raise ConfigError("this installation has no pages", "install the wheel: pip install talus_agent-*.whl")
    return dict(sorted(found.items()))


def _title(path: Path) -> str:
    return path.read_text("utf-8").split("\n", 1)[0].lstrip("# ")
