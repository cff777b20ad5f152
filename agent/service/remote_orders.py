"""Remote models and commands: which message is for whom, who may give it, and what is said back.

Every order is a signed envelope (``agent.remote.envelope``) whose revision rises. Pieces of a model are not signed one
by one: their hashes stand in the order. The main thread judges orders; a model's way goes on in a thread of its own.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from agent.alert.evidence import EvidenceStore
from agent.backoff import RateLimit, ThrottledLog
from agent.config.file import Config, ControlConfig
from agent.deliver.connection import Received
from agent.deliver.delivery import Delivery
from agent.errors import ControlError, DeliveryError
from agent.inference import Classifier, load
from agent.inference.bundle import DEFAULT_BUNDLE
from agent.messages.payloads import Message, Stamp, model_message, topic
from agent.messages.schema import TEXT_LIMIT, AgreementPart, ModelPart, ModelReport, Outcome
from agent.remote import model_order
from agent.remote.commands import Asked, CommandContext, Commands
from agent.remote.configuration import PASSING
from agent.remote.envelope import admit, unseal
from agent.remote.inbox import Arrived, Inbox
from agent.remote.models import ModelRules, ModelUpdates, Progress
from agent.remote.slots import ModelSlots
from agent.remote.store import Order, Store, refused
from agent.service.assemble import Line, open_classifier
from agent.types import StationId, format_ns

_log = logging.getLogger(__name__)

MODEL, COMMAND = "model/set", "command"
CHUNK = "model/chunk"
_A_TICK = 8
"""Envelopes judged at once: signatures cost time."""


class RemoteOrders:
    """``offer`` is for the link's thread, the rest for the main thread."""

    def __init__(self, config: Config, station: StationId) -> None:
        """
        Raises:
            ControlError: the state folder cannot be used.
        """
        self._config, self._station = config, station
        self._prefix = config.mqtt.prefix if config.mqtt else ""
        self._control = config.control
        self._trusted = config.control.trusted()
        self._chunks = topic(self._prefix, station, CHUNK)
        self._inbox = Inbox({topic(self._prefix, station, name): name for name in (MODEL, COMMAND)})
        folder = config.state_dir / "control"
        self._stores = {name: Store(folder, name.partition("/")[0]) for name in (MODEL, COMMAND)}
        self._heard: dict[str, str] = {}
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
    def topics(self) -> tuple[str, ...]:
        """What to subscribe to."""
        return (*self._inbox.topics, self._chunks)

    def offer(self, message: Received) -> bool:
        """Take a message if it is of interest. It is acknowledged in any case, but for a piece of a model that comes
        before ``serve``: the broker keeps that for the next connection."""
        if message.topic != self._chunks:
            return self._inbox.offer(message)
        if self._updates is None:
            return False
        if len(message.payload) <= model_order.MAX_PIECE:
            self._updates.chunk(*model_order.unwrap(message.payload))
        return True

    def serve(
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
        self._hear_again(slots.chosen.revision)
        self._updates = ModelUpdates(
            slots,
            line.classifier,
            opener,
            _rules(control),
            self._report,
            taken_back=taken_back,
        )
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

    def _hear_again(self, begun: int) -> None:
        """An agent killed after it noted a model's order as heard, and before it noted it as begun, would let it lie
        for ever; the broker has it still. A command is not carried out twice, this may be."""
        store = self._stores[MODEL]
        if store.stored.newest is None or store.stored.highest <= begun:
            return
        try:
            store.write(store.stored.model_copy(update={"highest": store.stored.highest - 1, "newest": None}))
        except ControlError as error:
            self._throttled.warn(str(error), key="store")

    def _in_use(self, slots: ModelSlots) -> Path:
        return next(iter(slots.serving()), self._config.classifier.bundle or DEFAULT_BUNDLE)

    def close(self) -> None:
        """End the thread of the model's way."""
        if self._updates is not None:
            self._updates.close()

    def tick(self, now: float, control: ControlConfig) -> None:
        """Judge what came; ``now`` is the monotonic clock, ``control`` what the file says at this moment."""
        if control is not self._control:
            self._obey_by(control)
        for _ in range(_A_TICK):
            arrived = self._inbox.take()
            if arrived is None:
                return
            self._hear(arrived, now)

    def _obey_by(self, control: ControlConfig) -> None:
        """The file was read anew."""
        self._control, self._trusted = control, control.trusted()
        self._refusals = RateLimit(control.commands_per_min)
        if self._commands is not None:
            self._commands.allow(control.commands, control.commands_per_min)
        if self._updates is not None:
            self._updates.rules = _rules(control)

    def _hear(self, arrived: Arrived, now: float) -> None:
        name, payload = arrived.name, arrived.payload
        asked = Asked(hashlib.sha256(payload).hexdigest(), arrived.correlation)
        envelope = asked.envelope
        store = self._stores[name]
        # A retained message comes with every connection; it is heard once.
        if envelope in (store.stored.newest, self._heard.get(name)):
            return
        order = None
        kind = model_order.KIND if name == MODEL else COMMAND
        try:
            opened = unseal(payload, self._trusted)
            body = opened.body
            order = Order(revision=body.revision, envelope=envelope, key=opened.key.name, content=dict(body.content))
            admit(opened, self._station, kind, store.stored.highest, time.time_ns())
            wanted = model_order.parse(body.content) if name == MODEL else None
            # On disk before it is carried out: what is repeated is refused, whatever happens in between.
            store.write(store.stored.model_copy(update={"highest": body.revision, "newest": envelope}))
        except ControlError as error:
            if error.kind not in PASSING:
                self._heard[name] = envelope
            self._refuse(name, asked, refused(envelope, order, error), error, now)
            return
        if self._updates is not None and wanted is not None:
            self._refused = None
            self._updates.order(body.revision, wanted)
        elif self._commands is not None:
            for message in self._commands.obey(asked, opened.key.name, body.content, now):
                self._put(message)

    def _refuse(self, name: str, asked: Asked, outcome: Outcome, error: ControlError, now: float) -> None:
        self._throttled.warn(f"a remote order is refused: {error}", key=error.kind)
        if name == MODEL:
            self._refused = outcome
            if self._progress is not None:
                self._report(self._progress)
        elif self._commands is not None and outcome.key is not None and self._refusals.take(now):
            # Only who holds a key gets an answer, and replays get few: a stranger must not make the station talk.
            self._put(self._commands.refusal(asked, error))

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
        self._delivery.link.publish_retained(model_message(report, self._station, self._prefix))


def _rules(control: ControlConfig) -> ModelRules:
    models = control.models
    return ModelRules(models.shadow_windows, models.shadow_s, models.agreement_share, control.probation_s)
