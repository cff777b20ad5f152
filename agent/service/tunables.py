"""Which tunables are active: those of the file, or the remote configuration on top of them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from functools import partial

from agent.alert.evidence import EvidenceStore
from agent.config.file import Config, ConfigFileError, ControlConfig, TunablesConfig, digest
from agent.config.station import TriggerConfig
from agent.deliver.connection import Received
from agent.errors import ConfigError, ControlError, TalusError
from agent.messages.payloads import Message, Stamp, config_message, topic
from agent.reasons import Reason, of
from agent.remote.configuration import RemoteConfig, TrialInputs
from agent.remote.trigger_watch import RECORDS, Known, compare
from agent.service.threads import Runner
from agent.types import StationId

_LIVE = {"tunables", "control", "log"}

_log = logging.getLogger(__name__)


def known_events(evidence: EvidenceStore, before: TriggerConfig, after: TriggerConfig) -> Iterator[Known]:
    """Try both settings on the newest records of events."""
    return compare(evidence.newest(RECORDS), before, after)


class Tunables:
    """Owned by the main thread."""

    def __init__(self, config: Config, station: StationId) -> None:
        """A store that cannot be used is reported; the slope is watched all the same, by the file's tunables."""
        self._config, self._station = config, station
        self._prefix = config.mqtt.prefix if config.mqtt else ""
        self._remote: RemoteConfig | None = None
        self._complaints: list[str] = []
        self._file_fault: str | None = None
        """Why the file, as it was read anew, is not used."""
        self._retuning: tuple[Future[None], Config] | None = None
        """Settings of the file on their way to the pipeline, and the configuration before them."""
        self._runner: Runner | None = None
        if config.mqtt is not None and config.control.keys:
            try:
                self._remote = RemoteConfig(config.control, station, config.tunables, config.state_dir / "control")
            except ControlError as error:
                _log.error("nothing can be changed remotely: %s", error)
                self._complaints.append(f"nothing can be changed remotely: {error.message}")

    @property
    def handlers(self) -> Mapping[str, Callable[[Received], bool]]:
        """What takes the messages of which topic; empty where nobody is trusted."""
        if self._remote is None:
            return {}
        return {topic(self._prefix, self._station, "config/set"): self._remote.gate.offer}

    @property
    def effective(self) -> TunablesConfig:
        """What is active."""
        return self._remote.effective if self._remote else self._config.tunables

    @property
    def control(self) -> ControlConfig:
        """The settings of remote changes, as the file has them now."""
        return self._config.control

    @property
    def revision(self) -> int | None:
        """Revision of the active order, None where the file is active."""
        return self._remote.revision if self._remote else None

    @property
    def sha256(self) -> str:
        """SHA-256 of the whole active configuration."""
        return digest(self._config.model_copy(update={"tunables": self.effective}))

    def reasons(self) -> list[Reason]:
        """What is wrong, for the health message."""
        control = self._complaints + (self._remote.problems() if self._remote else [])
        return [*of("config_file", filter(None, [self._file_fault])), *of("control", control)]

    def start(self, runner: Runner, evidence: EvidenceStore | None = None) -> None:
        """The pipeline runs: changes may come. ``evidence`` has the records of events on which they are tried."""
        self._runner = runner
        if self._remote:
            runner.watch = self._remote.watch
            self._remote.start(runner.retune, None if evidence is None else partial(known_events, evidence))

    def reload(self, read: Callable[[], Config]) -> None:
        """Go on with what the file says now. A file with errors changes nothing, and is a reason until it is read anew
        without any."""
        try:
            new = read()
        except ConfigError as error:
            _log.error("the configuration file is not used: %s", error)
            self._file_fault = _in_a_line(error)
            return
        self._file_fault = None
        for name in sorted(set(Config.model_fields) - _LIVE):
            if getattr(new, name) != getattr(self._config, name):
                _log.warning("%s has changed in the file: it takes effect at the next start", name)
        if self._remote is None and new.control.keys:
            _log.warning("control.keys has changed in the file: it takes effect at the next start")
        logging.getLogger().setLevel(new.log.level.upper())
        before = self._config
        self._config = before.model_copy(update={name: getattr(new, name) for name in _LIVE})
        if self._remote:
            self._remote.reload(new.control, new.tunables)
        elif self._runner:
            self._retuning = self._runner.retune(new.tunables), before
        _log.info("the configuration file was read anew")

    def _retuned(self) -> None:
        """Whether the pipeline could use the file's settings; if not, the previous ones stay in use."""
        if self._retuning is None or not self._retuning[0].done():
            return
        (done, before), self._retuning = self._retuning, None
        error = done.exception()
        if error is not None:
            _log.error("the tunables of the configuration file are not used: %s", error)
            self._file_fault = _in_a_line(error)
            self._config = self._config.model_copy(update={"tunables": before.tunables})

    def tick(self, now: float, stamp: Callable[[], Stamp], *, link_up: bool, silent: Collection[str]) -> Message | None:
        """Go on; what is to be published about it, if anything."""
        self._retuned()
        if self._remote is None:
            return None
        self._remote.tick(now, TrialInputs(link_up, silent))
        report = self._remote.report(now, stamp)
        return None if report is None else config_message(report, self._station, self._prefix)


def _in_a_line(error: BaseException) -> str:
    """The first thing that is wrong with the file, and how many more."""
    if isinstance(error, ConfigFileError):
        more = f" (and {len(error.problems) - 1} more)" if len(error.problems) > 1 else ""
        reason = f"{error.problems[0]}{more}"
    else:
        reason = error.message if isinstance(error, TalusError) else str(error)
    return (
        f"the configuration file is not used: {reason}; correct it and reload: until then the previous settings apply"
    )
