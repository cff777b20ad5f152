"""A remote model, step by step: fetched, tried in a process of its own, run in the shadow of the live one, taken on
probation, kept; or refused, or taken back, with the reason. The live model answers every window meanwhile.

    order -> fetching -> trying -> shadow -> (ready -> command) -> probation -> kept
                 |          |         |                               |
                 +----------+---------+-> refused                     +-> rolled_back

It all happens in one thread of its own; what arrives is queued for it, and what does not fit is dropped, because every
piece can be asked for again.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from agent.config.remote import ControlConfig
from agent.errors import ControlError, ModelError
from agent.inference import Agreement, Classifier, LiveClassifier, Shadow
from agent.remote.model_order import Download, ModelOrder, fetch
from agent.remote.slots import ModelSlots
from agent.remote.trial import try_bundle

_log = logging.getLogger(__name__)

Phase: TypeAlias = Literal[
    "installed", "fetching", "trying", "shadow", "ready", "probation", "kept", "refused", "rolled_back"
]

ASKED_AT_ONCE = 16
"""Pieces (512 kB) that are asked for together."""
ASK_AGAIN_S = 20.0
FETCH_AGAIN_S = 60.0
"""Between two attempts at the order's address; after one that brought something, ``FETCH_ON_S``."""
FETCH_ON_S = 2.0
MOST_BEGUN = 3
"""Attempts for a candidate during which the agent died or the power failed."""
TICK_S = 0.5
_QUEUE = 64
_RESERVED = 16


@dataclass(frozen=True, slots=True)
class Progress:
    """How an order stands. ``missing``: pieces that are asked for."""

    phase: Phase
    revision: int
    order: ModelOrder | None
    got: int = 0
    missing: tuple[int, ...] = ()
    agreement: Agreement | None = None
    reason: str | None = None


class ModelUpdates:
    """``order``, ``chunk``, ``promote``, ``roll_back`` may be called from any thread and never wait."""

    def __init__(
        self,
        slots: ModelSlots,
        live: LiveClassifier,
        opener: Callable[[Path | None, bool], Classifier],
        settings: ControlConfig,
        report: Callable[[Progress], None],
        *,
        taken_back: str | None = None,
    ) -> None:
        """A candidate is taken after ``settings.models.shadow_windows`` windows of which it answers ``agreement_share``
        as the live model does and fails on none, and kept after ``settings.probation_s``. After ``shadow_s`` with fewer
        windows it waits for a command. ``taken_back``: why the model that was kept does not serve any more, if it does
        not.

        ``opener`` gives the classifier of a bundle, of the installed one for None; the second argument says
        whether it is to serve (else it is only tried, on the CPU)."""
        self._slots, self._live, self._opener = slots, live, opener
        live.remember()
        self.settings = settings
        """May be replaced at any time."""
        self._report = report
        self._queue: queue.Queue[Callable[[], None]] = queue.Queue(_QUEUE)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="model", daemon=True)
        self._download: Download | None = None
        self._shadow: Shadow | None = None
        self._since = self._asked_at = self._fetch_at = 0.0
        found: Phase = "installed" if slots.chosen.kept is None else "kept"
        self._progress = Progress("rolled_back" if taken_back else found, 0, None, reason=taken_back)

    def start(self) -> None:
        self._thread.start()

    def close(self, timeout_s: float = 2.0) -> None:
        """What was fetched stays for the next start; a model on probation does not."""
        self._stop.set()
        self._thread.join(timeout_s)

    @property
    def progress(self) -> Progress:
        """At this moment."""
        return self._progress

    def order(self, revision: int, order: ModelOrder) -> None:
        """A new order; the one before it is given up."""
        self._post(lambda: self._begin(revision, order))

    def chunk(self, index: int, data: bytes) -> None:
        """A piece, from wherever; a flood of them leaves room for orders."""
        if self._queue.qsize() < _QUEUE - _RESERVED:
            self._post(lambda: self._add_piece(index, data))

    def promote(self) -> None:
        """Take the candidate now.

        Raises:
            ControlError: there is none.
        """
        if self._progress.phase not in ("shadow", "ready"):
            raise ControlError("nothing", f"no model is in the shadow (it is {self._progress.phase})")
        self._post(self._promote_ready)

    def roll_back(self) -> None:
        """Back to the model before.

        Raises:
            ControlError: there is none, and nothing is on its way.
        """
        chosen = self._slots.chosen
        if chosen.trial is None and chosen.kept is None and chosen.order is None:
            raise ControlError("nothing", "the installed model serves: there is none before it")
        self._post(self._return_to_previous)

    def _post(self, work: Callable[[], None]) -> None:
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(work)

    def _work(self) -> None:
        self._guard(self._resume)
        while not self._stop.is_set():
            try:
                work = self._queue.get(timeout=TICK_S)
            except queue.Empty:
                work = self._tick
            self._guard(work)
        self._end_shadow()
        if self._slots.chosen.begun:
            # A stop in order says nothing against the model.
            with contextlib.suppress(OSError):
                self._slots.change(begun=0)

    def _guard(self, work: Callable[[], None]) -> None:
        """Whatever goes wrong with an update is the update's end, and not the station's."""
        try:
            work()
        except ControlError as error:
            if error.kind != "stopped":
                self._refuse(error.message)
        except (ModelError, OSError) as error:
            self._refuse(str(error).splitlines()[0])
        except Exception as error:  # noqa: BLE001 - what ends this thread would leave a shadow without a keeper
            _log.exception("the model update failed")
            self._refuse(f"{type(error).__name__}: {error}")

    def _enter(self, phase: Phase, *, reason: str | None = None, missing: tuple[int, ...] = ()) -> None:
        before = self._progress
        chosen = self._slots.chosen
        self._progress = Progress(
            phase,
            chosen.revision,
            chosen.order or before.order,
            self._download.got if self._download else 0,
            missing,
            self._shadow.agreement() if self._shadow else before.agreement if phase != "fetching" else None,
            reason,
        )
        if phase != before.phase:
            order = self._progress.order
            _log.info("model %s: %s%s", order.title if order else "", phase, f": {reason}" if reason else "")
        self._report(self._progress)

    def _resume(self) -> None:
        """At the start: a model that was on probation is given up, a download goes on."""
        chosen = self._slots.chosen
        if chosen.trial is not None:
            self._slots.change(trial=None, order=None)
            self._enter("rolled_back", reason="the agent stopped before the new model had proved itself")
        elif chosen.order is not None:
            self._begin(chosen.revision, chosen.order)
        else:
            self._report(self._progress)

    def _begin(self, revision: int, order: ModelOrder) -> None:
        if self._slots.chosen.trial is not None:
            self._end_probation("another model was ordered")
        self._end_shadow()
        begun = self._slots.chosen.begun if revision == self._slots.chosen.revision else 0
        self._slots.change(order=order, revision=revision, begun=begun)
        self._progress = Progress("fetching", revision, order)
        if order.sha256 == self._slots.chosen.kept:
            self._slots.change(order=None)
            self._enter("kept", reason="this model serves already")
            return
        if self._slots.path(order.sha256).is_file():
            self._try()
            return
        self._download = Download(self._slots.folder, order)
        self._fetch_at = 0.0
        self._ask(self._download)

    def _ask(self, download: Download) -> None:
        missing = tuple(download.missing(ASKED_AT_ONCE))
        if not missing:
            download.finish(self._slots.path(download.order.sha256))
            self._download = None
            self._try()
            return
        self._asked_at = time.monotonic()
        self._enter("fetching", missing=missing)

    def _add_piece(self, index: int, data: bytes) -> None:
        if self._download is None or not self._download.put(index, data):
            return
        self._asked_at = time.monotonic()
        if not set(self._progress.missing) & set(self._download.missing(ASKED_AT_ONCE)):
            self._ask(self._download)

    def _fetch(self, download: Download) -> None:
        self._fetch_at = time.monotonic() + FETCH_AGAIN_S
        before = download.got
        try:
            fetch(download, lambda: self._stop.is_set() or not self._queue.empty())
        except ControlError as error:
            if download.got > before:
                self._fetch_at = time.monotonic() + FETCH_ON_S
            _log.warning("%s", error)
            self._enter("fetching", reason=error.message)
            return
        self._ask(download)

    def _try(self) -> None:
        order = self._ordered()
        begun = self._slots.chosen.begun
        if begun >= MOST_BEGUN:
            raise ControlError("bundle", f"the agent did not survive it {begun} times")
        # On disk first: a model that ends the agent must not do so at every start.
        self._slots.change(begun=begun + 1)
        self._enter("trying")
        path = self._slots.path(order.sha256)
        found = try_bundle(path, stopped=self._stop.is_set)
        if found.model != order.title:
            raise ControlError("bundle", f"the bundle is {found.model}, the order says {order.title}")
        candidate = self._opener(path, False)
        if candidate.preparation != self._live.preparation:
            raise ControlError(
                "bundle", "it needs windows prepared in another way: install it with `classifier.bundle`"
            )
        self._shadow = Shadow(candidate, self._live.recent())
        self._live.set_shadow(self._shadow)
        self._since = time.monotonic()
        self._enter("shadow")

    def _tick(self) -> None:
        now = time.monotonic()
        if self._download is not None:
            if self._download.order.url is not None and now >= self._fetch_at:
                self._fetch(self._download)
            elif now - self._asked_at > ASK_AGAIN_S:
                self._ask(self._download)
        elif self._shadow is not None and self._progress.phase == "shadow":
            self._check_shadow(self._shadow.agreement(), now)
        elif self._progress.phase == "probation":
            self._check_probation(now)

    def _check_shadow(self, seen: Agreement, now: float) -> None:
        order, rules = self._ordered(), self.settings.models
        if seen.failures:
            raise ControlError("bundle", f"it failed on {seen.failures} of {seen.windows + seen.failures} windows")
        if seen.windows >= rules.shadow_windows:
            if seen.share < rules.agreement_share:
                raise ControlError(
                    "bundle", f"it agrees with the live model on {seen.same} of {seen.windows} windows only"
                )
            if order.promote == "auto":
                self._promote()
            else:
                self._wait("waits for `talus model promote`")
        elif now - self._since > rules.shadow_s:
            self._wait(f"{seen.windows} windows in {rules.shadow_s:.0f} s are too few to judge by a rule")

    def _wait(self, reason: str) -> None:
        self._slots.change(begun=0)  # it has run long enough: a power cut in the days to come is not its fault
        self._enter("ready", reason=reason)

    def _promote_ready(self) -> None:
        if self._shadow is not None and self._progress.phase in ("shadow", "ready"):
            self._promote()

    def _promote(self) -> None:
        order = self._ordered()
        # On disk first: if the agent dies of this model, the next start must know.
        self._slots.change(trial=order.sha256, begun=0)
        candidate = self._opener(self._slots.path(order.sha256), True)
        self._live.promote(candidate)
        self._since = time.monotonic()
        self._enter("probation")
        self._end_shadow()

    def _check_probation(self, now: float) -> None:
        if self._live.failed is not None:
            self._slots.change(trial=None, order=None)
            self._enter("rolled_back", reason=self._live.failed)
        elif now - self._since > self.settings.probation_s:
            chosen = self._slots.chosen
            self._slots.change(kept=chosen.trial, before=chosen.kept, trial=None, order=None)
            self._live.confirm()
            self._enter("kept")

    def _end_probation(self, reason: str) -> None:
        self._live.revert(reason)
        self._slots.change(trial=None, order=None)
        self._enter("rolled_back", reason=reason)

    def _return_to_previous(self) -> None:
        """Ordered back: from a trial to the kept model, from that to the one before. A candidate is given up."""
        chosen = self._slots.chosen
        self._end_shadow()
        self._end_download()
        if chosen.trial is not None:
            self._end_probation("ordered")
        elif chosen.kept is not None:
            before = chosen.before
            classifier = self._opener(None if before is None else self._slots.path(before), True)
            self._live.promote(classifier)
            self._live.confirm()
            self._slots.change(kept=before, before=None, order=None)
            self._enter("rolled_back", reason="ordered")
        elif chosen.order is not None:
            self._slots.change(order=None, begun=0)
            self._enter("rolled_back", reason="ordered")

    def _refuse(self, reason: str) -> None:
        self._end_shadow()
        self._end_download()
        if self._slots.chosen.trial is not None:
            self._live.revert(reason)
        try:
            self._slots.change(order=None, trial=None, begun=0)
        except OSError as error:
            _log.error("%s: %s", self._slots.folder, error)
        self._enter("refused", reason=reason[:300])

    def _end_download(self) -> None:
        if self._download is not None:
            self._download.drop()
            self._download = None

    def _end_shadow(self) -> None:
        self._live.set_shadow(None)
        if self._shadow is not None:
            self._shadow.close()
            self._shadow = None

    def _ordered(self) -> ModelOrder:
        order = self._slots.chosen.order
        if order is None:
            raise ControlError("bundle", "there is no order")
        return order
