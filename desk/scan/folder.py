"""The folder of a scan: what is asked for, what is done, what is to do.

    scan.json              settings, bundle, command
    plan.json              every unit, by sensor
    units/SENSOR/DAY-KEY.json   a result each (``result.py``); the key is the hash of what it was made from
    stamps/SENSOR.jsonl    what a unit's files looked like from outside when it was judged
    files.jsonl            what files hold that are not named as in SDS

The results are all that counts. The stamps only save reading: without them every file is hashed again, and no result is
made anew whose key is there.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent import __version__
from agent.atomic import replace_file
from agent.errors import DataError, UsageError, in_words
from agent.inference import open_bundle
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.types import StationId
from desk.scan.judge import Judged, Settings, Task, result_name
from desk.scan.reading import stamp
from desk.scan.result import Result
from desk.scan.units import Unit, day_of

_NAME = re.compile(r"^(\d{4}-\d{2}-\d{2})-([0-9a-f]{20})\.json$")
_TRIES = 5
_OWN = {"scan.json", "plan.json", "units", "stamps", "files.jsonl"}
"""What may be there before ``scan.json`` is, where another shard has just begun."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A unit of the plan: ``state`` is ``done``, ``missing``, or ``other`` for one judged with other settings."""

    station: StationId
    from_ns: int
    to_ns: int

    @property
    def day(self) -> str:
        return day_of(self.from_ns)


@dataclass(frozen=True, slots=True)
class About:
    """What ``scan.json`` says."""

    command: Sequence[str]
    settings: dict[str, Any]
    digest: str
    bundle: dict[str, str]
    talus: str
    slow: Sequence[str] = field(default=())
    problems: Sequence[Sequence[str]] = field(default=())


class Folder:
    """One scan's. Results are written by one process at a time for each unit; several shards may share the folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.results = path / "units"
        self._names: dict[str, dict[str, list[str]]] = {}
        """Results by sensor and day, as far as they were looked for."""
        self._stamps: dict[str, dict[str, dict[str, Any]]] = {}

    # -- what is asked for

    def begin(
        self,
        command: Sequence[str],
        settings: Settings,
        units: Sequence[Unit],
        slow: Iterable[str],
        problems: Iterable[tuple[str, str]],
    ) -> str | None:
        """Write down what is asked for; the plan before it, if it was another, no longer counts. Returns the command
        of that other plan.

        Raises:
            UsageError: the folder cannot be written, or is one of something else.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            others = [path for path in self.path.glob("[!.]*") if path.name not in _OWN]
            if others and not (self.path / "scan.json").is_file():
                raise UsageError(f"{self.path} holds something else than a scan", "name a new folder, or one of a scan")
            self.results.mkdir(exist_ok=True)
            (self.path / "stamps").mkdir(exist_ok=True)
            bundle = open_bundle(settings.classifier.bundle or DEFAULT_BUNDLE)
            about = {
                "schema": "talus/scan/1",
                "command": list(command),
                "talus": __version__,
                "settings": settings.trigger.model_dump(mode="json"),
                "digest": settings.digest,
                "bundle": {
                    "name": bundle.manifest.name, "version": bundle.manifest.version, "sha256": bundle.sha256
                },
                "slow": sorted(slow),
                "problems": sorted(map(list, problems)),
            }  # fmt: skip
            plan: dict[str, list[list[int]]] = {}
            for unit in units:
                plan.setdefault(str(unit.station), []).append([unit.from_ns, unit.to_ns])
            codes = {str(unit.station): _codes(unit.station) for unit in units}
            before = self.about().command if (self.path / "scan.json").is_file() else command
            self._put("plan.json", {"sensors": codes, "units": plan})
            self._put("scan.json", about)
            return None if list(before) == list(command) else shlex.join(before)
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}", "name a folder that you may write") from None

    def about(self) -> About:
        """
        Raises:
            DataError: there is no scan in the folder.
        """
        found = self._get("scan.json")
        return About(
            found["command"], found["settings"], found["digest"], found["bundle"], found["talus"], found["slow"],
            found["problems"],
        )  # fmt: skip

    def plan(self) -> list[Planned]:
        """Every unit, by day and sensor.

        Raises:
            DataError: there is no scan in the folder.
        """
        found = self._get("plan.json")
        planned = [
            Planned(StationId(*found["sensors"][name]), begin, end)
            for name, spans in found["units"].items()
            for begin, end in spans
        ]
        return sorted(planned, key=lambda one: (one.from_ns, one.station))

    # -- what is to do

    def task(self, unit: Unit, settings: Settings) -> Task | None:
        """What has to be judged, or at least read, to know that the result of a unit stands; None if it does by all
        that can be seen from outside."""
        known = self._stamps_of(unit.station).get(unit.day)
        if (
            known is not None
            and known.get("settings") == settings.digest
            and known.get("span") == [unit.from_ns, unit.to_ns]
            and known.get("stamp") == stamp(unit.files)
            and self._names_of(unit.station).get(unit.day) == [_file(unit, str(known.get("key")))]
        ):
            return None
        return Task(unit, settings, str(self.results.absolute()))

    def keep(self, judged: Judged, settings: Settings) -> None:
        """Put a result to the others, in the place of one that no longer counts.

        Raises:
            OSError: the disk refuses it.
        """
        unit, names = judged.unit, self._names_of(judged.unit.station)
        path = self.results / result_name(unit, judged.key)
        if judged.content is not None:
            path.parent.mkdir(exist_ok=True)
            replace_file(path, judged.content)
        for name in names.get(unit.day, []):
            if name != path.name:
                (path.parent / name).unlink(missing_ok=True)
        names[unit.day] = [path.name]
        told = {
            "day": unit.day, "span": [unit.from_ns, unit.to_ns], "settings": settings.digest, "stamp": judged.stamp,
            "key": judged.key,
        }  # fmt: skip
        with (self.path / "stamps" / f"{unit.station}.jsonl").open("a") as file:
            file.write(json.dumps(told, separators=(",", ":")) + "\n")

    # -- what is done

    def result(self, planned: Planned, digest: str) -> Result | None:
        """The result of a unit with these settings; None where it is missing, or of other settings.

        Raises:
            DataError: the result is damaged, or there are two.
        """
        names = self._names_of(planned.station).get(planned.day, [])
        found = None
        for name in names:
            path = self.results / str(planned.station) / name
            try:
                result = Result.of(path.read_bytes())
            except (OSError, ValueError) as error:
                raise DataError(f"{path}: {error}", "delete it and run the scan again: it is made anew") from None
            if result.settings != digest or (result.from_ns, result.to_ns) != (planned.from_ns, planned.to_ns):
                continue
            if found is not None:
                raise DataError(f"{path.parent} has two results of {planned.day}", "run the scan again")
            found = result
        return found

    def has(self, planned: Planned) -> bool:
        """Whether there is a result of that unit, of whichever settings."""
        return bool(self._names_of(planned.station).get(planned.day))

    # -- files

    def _names_of(self, station: StationId) -> dict[str, list[str]]:
        known = self._names.get(str(station))
        if known is None:
            known = self._names[str(station)] = {}
            folder = self.results / str(station)
            for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                match = _NAME.match(path.name)
                if match is not None:
                    known.setdefault(match[1], []).append(path.name)
        return known

    def _stamps_of(self, station: StationId) -> dict[str, dict[str, Any]]:
        known = self._stamps.get(str(station))
        if known is None:
            known = self._stamps[str(station)] = {}
            path = self.path / "stamps" / f"{station}.jsonl"
            for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
                try:
                    told = json.loads(line)
                    known[told["day"]] = told
                except (ValueError, KeyError, TypeError):
                    continue  # cut short by a power cut: the unit is read again
        return known

    def _put(self, name: str, content: dict[str, Any]) -> None:
        text = (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
        path = self.path / name
        for left in range(_TRIES, 0, -1):
            if path.is_file() and path.read_bytes() == text:
                return
            try:
                replace_file(path, text)
            except FileNotFoundError:
                # Another shard writes the same at the same time.
                if left == 1:
                    raise

    def _get(self, name: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = json.loads((self.path / name).read_bytes())
        except FileNotFoundError:
            raise DataError(f"{self.path} holds no scan", "talus scan ARCHIVE --out DIR makes one") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} cannot be read: {in_words(error)}", "run the scan again") from None
        return found


def results(folder: Folder) -> Iterator[tuple[Planned, Result | None]]:
    """Every unit of the plan with its result, by day and sensor; None where it is missing.

    Raises:
        DataError: there is no scan in the folder, or a result is damaged.
    """
    digest = folder.about().digest
    for planned in folder.plan():
        yield planned, folder.result(planned, digest)


def _file(unit: Unit, key: str) -> str:
    return result_name(unit, key).rpartition("/")[2]


def _codes(station: StationId) -> list[str]:
    return [station.network, station.station, station.location, station.band_source]
