"""Remote models and commands: what is done with an order that the gate has admitted, and what is answered.

Pieces of a model are not signed one by one: their hashes stand in the order. The main thread takes orders from the
gate; a model's update goes on in a thread of its own.

``Tunables``: which tunables are active, those of the file, or the remote configuration on top of them.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from agent.alert.evidence import EvidenceStore
from agent.backoff import RateLimit, ThrottledLog
from agent.config.file import Config, ConfigFileError, ControlConfig, TunablesConfig, digest
from agent.config.station import TriggerConfig
from agent.deliver.connection import Received
from agent.deliver.delivery import Delivery
from agent.errors import ConfigError, ControlError, DeliveryError, TalusError
from agent.inference import Classifier, load
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.messages.payloads import Message, Stamp, report_message, topic
from agent.messages.schema import TEXT_LIMIT, AgreementPart, ModelPart, ModelReport, Outcome
from agent.reasons import Reason, of
from agent.remote import model_order
from agent.remote.commands import CommandContext, Commands
from agent.remote.configuration import RemoteConfig, TrialInputs
from agent.remote.doubts import raises_nothing
from agent.remote.gate import Admitted, Gate, Refused
from agent.remote.models import ModelUpdates, Progress
from agent.remote.slots import ModelSlots
from agent.remote.trigger_watch import RECORDS, Known, compare
from agent.service.assemble import Line, open_classifier
from agent.service.threads import Runner
from agent.types import StationId, format_ns

_log = logging.getLogger(__name__)

_A_TICK = 8
"""Envelopes of a kind judged at once: signatures cost time."""


class RemoteOrders:
    """``handlers`` are for the link's thread, the rest for the main thread."""

    def __init__(self, config: Config, station: StationId) -> None:
        """
        Raises:
            ControlError: the state folder cannot be used.
        """
        self._config, self._station = config, station
        self._prefix = config.mqtt.prefix if config.mqtt else ""
        self._control = config.control
        folder, trusted = config.state_dir / "control", config.control.keys
        self._models = Gate("model", station, folder, trusted, model_order.parse)
        self._orders = Gate("command", station, folder, trusted, lambda content: content)
        self._refused: Outcome | None = None
        self._progress: Progress | None = None
        self._updates: ModelUpdates | None = None
        self._commands: Commands | None = None
        self._serving: Callable[[], ModelPart] | None = None
        self._stamp: Callable[[], Stamp] | None = None
        self._delivery: Delivery | None = None
        self._refusals = RateLimit(config.control.commands_per_min)
        self._throttled = ThrottledLog(_log.warning)

    @property
    def handlers(self) -> Mapping[str, Callable[[Received], bool]]:
        """What takes the messages of which topic."""
        handlers = {"model/set": self._models.offer, "model/chunk": self._piece, "command": self._orders.offer}
        return {topic(self._prefix, self._station, name): handler for name, handler in handlers.items()}

    def _piece(self, message: Received) -> bool:
        """Take a piece of a model. Before ``start`` it is not acknowledged: the broker keeps it for the next
        connection."""
        if self._updates is None:
            return False
        if model_order.INDEX_BYTES < len(message.payload) <= model_order.MAX_PIECE:
            self._updates.chunk(*model_order.unwrap(message.payload))
        return True

    def start(
        self,
        line: Line,
        delivery: Delivery,
        evidence: EvidenceStore | None,
        health: Callable[[], Mapping[str, Any]],
        taken_back: str | None,
    ) -> None:
        """The station is at work: orders are carried out from now on. ``taken_back`` as for ``ModelUpdates``."""
        control, classifier = self._config.control, self._config.classifier
        self._delivery = delivery
        self._serving = lambda: ModelPart(name=line.classifier.model, sha256=line.classifier.sha256)
        self._stamp = line.reporter.stamp

        def opener(path: Path | None, final: bool) -> Classifier:
            settings = classifier if path is None else classifier.model_copy(update={"bundle": path})
            return open_classifier(settings, self._config.state_dir if final else None)[0]

        slots = ModelSlots(self._config.state_dir / "models")
        if self._models.store.stored.highest > slots.chosen.revision:
            # The agent was killed after the order was noted as accepted, and before it was noted as begun. A command
            # is not carried out twice, this may be; the broker has it still.
            try:
                self._models.admit_again()
            except ControlError as error:
                self._throttled.warn(str(error), key="store")
        self._updates = ModelUpdates(slots, line.classifier, opener, control, self._report, taken_back=taken_back)
        self._commands = Commands(
            CommandContext(
                station=self._station,
                prefix=self._prefix,
                updates=self._updates,
                evidence=evidence,
                stamp=line.reporter.stamp,
                health=health,
                self_test=lambda: load(self._in_use(slots), ["onnxruntime"])[0].model,
            ),
            control.commands,
            control.commands_per_min,
        )
        self._updates.start()

    def _in_use(self, slots: ModelSlots) -> Path:
        return next(iter(slots.serving()), self._config.classifier.bundle or DEFAULT_BUNDLE)

    def close(self) -> None:
        """End the thread of the model's way."""
        if self._updates is not None:
            self._updates.close()

    def tick(self, now: float, control: ControlConfig) -> None:
        """Judge what came; ``now`` is the monotonic clock, ``control`` what the file says at this moment."""
        if control is not self._control:
            self._reload(control)
        for _ in range(_A_TICK):
            ordered = self._models.next()
            if ordered is None:
                break
            if isinstance(ordered, Refused):
                self._refused = ordered.outcome
                if self._progress is not None:
                    self._report(self._progress)
            elif self._updates is not None:
                self._refused = None
                self._updates.order(ordered.order.revision, ordered.content)
        for _ in range(_A_TICK):
            asked = self._orders.next()
            if asked is None:
                break
            if self._commands is None:
                continue
            if isinstance(asked, Admitted):
                for message in self._commands.obey(asked.request, asked.order.key, asked.content, now):
                    self._put(message)
            elif asked.outcome.key is not None and self._refusals.allow(now):
                # Only who holds a key gets an answer, and replays get few: a stranger must not make the station talk.
                self._put(self._commands.refusal(asked.request, asked.error))

    def _reload(self, control: ControlConfig) -> None:
        """The file was read anew."""
        self._control = control
        self._models.trusted = self._orders.trusted = control.keys
        self._refusals = RateLimit(control.commands_per_min)
        if self._commands is not None:
            self._commands.allow(control.commands, control.commands_per_min)
        if self._updates is not None:
            self._updates.settings = control

    def _put(self, message: Message) -> None:
        if self._delivery is None:
            return
        try:
            self._delivery.put([message])
        except DeliveryError as error:
            # An answer is worth less than the station; whoever waits for it asks again.
            self._throttled.warn(f"an answer is lost: {error}", key="put")

    def _report(self, progress: Progress) -> None:
        """From whichever thread has something to tell."""
        self._progress = progress
        if self._delivery is None or self._stamp is None or self._serving is None:
            return
        who, order, seen = self._stamp(), progress.order, progress.agreement
        report = ModelReport(
            station=self._station.short,
            boot_id=who.boot_id,
            seq=who.seq,
            time=format_ns(time.time_ns()),
            phase=progress.phase,
            revision=progress.revision,
            serving=self._serving(),
            ordered=None if order is None else ModelPart(name=order.title, sha256=order.sha256),
            pieces=0 if order is None else len(order.chunks),
            got=progress.got,
            missing=list(progress.missing),
            agreement=None if seen is None else AgreementPart(**asdict(seen)),
            reason=None if progress.reason is None else progress.reason[:TEXT_LIMIT],
            refused=self._refused,
        )
        self._delivery.publish_retained(report_message(report, self._station, self._prefix))


_LIVE = {"tunables", "control", "log"}


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
        self._waiting: tuple[str, ...] = ()
        """Sections of that file that take effect at the next start."""
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
        mute = [Reason("cannot_alert", "with these rules no event raises an alert (tunables.policy)")]
        return [
            *(mute if raises_nothing(self.effective) else []),
            *of("config_file", filter(None, [self._file_fault, self._not_yet()])),
            *of("control", control),
        ]

    def _not_yet(self) -> str:
        names = ", ".join(self._waiting)
        return f"changed in the file and not in use before a restart: {names}" if names else ""

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
        others = sorted(set(Config.model_fields) - _LIVE)
        changed = [name for name in others if getattr(new, name) != getattr(self._config, name)]
        if self._remote is None and new.control.keys and self._config.mqtt is not None:
            changed.append("control.keys")
        self._waiting = tuple(changed)
        if self._waiting:
            _log.warning("%s", self._not_yet())
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

    def tick(
        self, now: float, stamp: Callable[[], Stamp], *, link_up: bool, silent: Callable[[], Collection[str]]
    ) -> Message | None:
        """Go on; what is to be published about it, if anything."""
        self._retuned()
        if self._remote is None:
            return None
        self._remote.tick(now, TrialInputs(link_up, silent()))
        report = self._remote.report(now, stamp)
        return None if report is None else report_message(report, self._station, self._prefix)


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
