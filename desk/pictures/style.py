"""What all pictures share: one colour a class, safe for the colour-blind, the same as on the pages; sizes; files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = {
    "earthquake": "#0072b2",
    "blast": "#e69f00",
    "collapse": "#aa5588",
    "landslide": "#d55e00",
    "noise": "#777f87",
    "undecided": "#4a9fc9",
    "unclassified": "#3c434a",
    "slow": "#009e73",
}
FORMATS = {".png": "png", ".svg": "svg", ".webp": "webp", ".pdf": "pdf"}


def figure(width: float, height: float, *, fitted: bool = True) -> Figure:
    """An empty figure, inches; it needs no display. ``fitted``: margins are fitted to the labels, which takes as long
    as the drawing itself.

    Raises:
        ConfigError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("pictures need matplotlib", "pip install 'talus-agent[plot]'") from None
    return Figure(figsize=(width, height), dpi=100, layout="constrained" if fitted else None)


def counts_text(value: float) -> str:
    """A number of counts, without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def check_name(path: Path) -> str:
    """The format that a file's name says.

    Raises:
        UsageError: it says none.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise UsageError(f"{path}: no format is known by that name", f"one of {', '.join(FORMATS)}")
    return form


def save(picture: Figure, path: Path) -> None:
    """Write a figure in the format that the file's name says.

    Raises:
        UsageError: the name says none, or the file cannot be written.
    """
    form = check_name(path)
    options: dict[str, Any] = {"pil_kwargs": {"quality": 72, "method": 4}} if form == "webp" else {}
    try:
        picture.savefig(path, format=form, **options)
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}", "name a file in a folder that you may write") from None
