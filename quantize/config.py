"""What a build depends on besides the records: one YAML file, strictly read."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from agent.dsp.window import Preparation
from agent.errors import ConfigError
from quantize.data.augment import Augmentation
from quantize.train.fit import Count, FitConfig
from quantize.train.pretrain import PretrainConfig
from quantize.train.student import StudentConfig
from quantize.train.transfer import Pool, Recipe

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class BankConfig:
    """How many windows are made: of labelled records, of records without a class, of the generator's. ``without``: data
    sets whose labelled records are judged but not learned from. ``doubt``: doubtful labels are drawn less often, see
    ``quantize.data.trust``."""

    labelled: Count = 32_768
    unlabelled: int = 2_048
    synthetic: int = 8_192
    seed: int = 3
    without: tuple[str, ...] = ()
    doubt: bool = True


@dataclass(frozen=True, slots=True)
class TeacherConfig:
    """How PRIME-DP is transferred, see ``quantize.train.transfer``."""

    recipe: Recipe = "all"
    pool: Pool = "mean"
    dropout: float = 0.2
    fit: FitConfig = field(
        default_factory=lambda: FitConfig(windows=19_200, batch=32, learning_rate=5e-4, weight_decay=5e-2)
    )


@dataclass(frozen=True, slots=True)
class MixConfig:
    """Labels and weak labels, without teachers. Shares of a batch: ``synthetic`` windows of the generator, ``weak``
    windows whose label is the time of day; the rest are labelled."""

    synthetic: float = 0.3
    weak: float = 0.05
    fit: FitConfig = field(default_factory=lambda: FitConfig(windows=64_000, soft=1.0, temperature=1.0))


@dataclass(frozen=True, slots=True)
class DistilConfig:
    """``teachers``: methods whose mean answer is taught, on the first ``taught`` labelled windows and on those without
    a class. Shares of a batch by kind of window: ``unlabelled``, ``synthetic``; the rest are labelled, half of them
    taught as well."""

    teachers: tuple[str, ...] = ("prime", "stft", "boosting", "alone")
    taught: int = 6_144
    unlabelled: float = 0.15
    synthetic: float = 0.15
    fit: FitConfig = field(default_factory=lambda: FitConfig(windows=64_000, soft=0.6, temperature=2.0))


@dataclass(frozen=True, slots=True)
class BuildConfig:
    """Everything a build depends on besides the records."""

    seed: int = 0
    preparation: Preparation = field(default_factory=lambda: Preparation(highpass_hz=1.0))
    augmentation: Augmentation = field(default_factory=Augmentation)
    bank: BankConfig = field(default_factory=BankConfig)
    pretrain: PretrainConfig = field(default_factory=PretrainConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    boosting_windows: int = 16_384
    stft: FitConfig = field(default_factory=lambda: FitConfig(windows=48_000))
    student: StudentConfig = field(default_factory=StudentConfig)
    alone: FitConfig = field(default_factory=lambda: FitConfig(windows=64_000))
    mixed: MixConfig = field(default_factory=MixConfig)
    distil: DistilConfig = field(default_factory=DistilConfig)
    built: Literal["mixed", "distilled"] = "mixed"
    """Method whose network becomes the bundle."""
    confidence: tuple[str, ...] = ()
    """Regions whose networks set its temperatures and thresholds; without a name, all that are left out."""


def read_config(path: Path) -> BuildConfig:
    """A YAML file with keys of ``BuildConfig``; what it leaves out keeps its default.

    Raises:
        ConfigError: the file is no mapping, or has a key that is not known or a value that is none of its kind.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read: {error}", "give a YAML file, see configs/quantize/") from error
    return _build(BuildConfig(), content or {}, str(path))


def _build(default: T, content: Any, where: str) -> T:
    """``default`` with what ``content`` names changed, sections within sections alike."""
    if not isinstance(content, dict):
        raise ConfigError(f"{where} is no mapping", "write `key: value` lines")
    known: dict[str, Any] = {f.name: getattr(default, f.name) for f in fields(default)}  # type: ignore[arg-type]
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise ConfigError(f"{where}: unknown key {unknown[0]!r}", f"known keys: {', '.join(known)}")
    for name, value in content.items():
        section = is_dataclass(known[name])
        known[name] = _build(known[name], value, f"{where}: {name}") if section else value
    try:
        return TypeAdapter(type(default)).validate_python(known)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(f"{where}: {key}: {first['msg']}, not {first['input']!r}", "see configs/quantize/") from None
