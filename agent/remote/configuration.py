"""Remote configuration: the file's ``tunables`` with what a signed order lays over them, on trial first, then kept.

    file --(order is genuine, new, for this station, and valid as a whole)--> trial --(probation without harm)--> kept
      ^                                                                         |
      +---(or what was kept before) <--(harm, a newer order, or a restart)------+

The trial is on disk before it is applied, so a power cut during one finds it there at the next start, and it is rolled
back. What is refused never touches the disk. All of this is the main thread's, except that settings are applied by the
pipeline's thread between two packets, and that the link's thread fills the inbox.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

from agent.backoff import ThrottledLog
from agent.config.file import ControlConfig, TunablesConfig, digest
from agent.errors import ControlError, TalusError
from agent.messages.payloads import Stamp
from agent.messages.schema import TEXT_LIMIT, ConfigReport, Outcome
from agent.remote.envelope import admit, unseal
from agent.remote.inbox import Inbox
from agent.remote.known_events import Compare, Known
from agent.remote.overlay import laid_over
from agent.remote.store import Order, Store, Stored, refused
from agent.remote.trigger_watch import LEAST_DATA_S, TriggerWatch
from agent.types import StationId, format_ns

KIND = "config"
Apply: TypeAlias = "Callable[[TunablesConfig, Callable[[], None]], Future[None]]"
"""Has the pipeline go on with settings, and calls the function right after, in the pipeline's thread. The future ends
when that is done; it fails, and nothing has changed, where the pipeline cannot use them."""

REFUSALS_KEPT = 5
HISTORY_SHOWN = 20
GRACE_S = 60.0
"""How long the link may be down in a trial."""
PASSING = ("store", "ahead")
"""Reasons that may be gone when the same message comes again."""
_REPORT_S = 1.0
"""Refusals are told no more often, whoever provokes them."""
_RETRY_S = 5.0
_A_TICK = 32
"""Messages judged at once: a signature costs a fraction of a millisecond."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class TrialInputs:
    """How the agent is apart from its triggers: a connection to the broker, and the channels that fell silent."""

    link_up: bool
    silent: Collection[str] = ()


@dataclass(slots=True)
class _Trial:
    """Times by the monotonic clock."""

    began: float
    silent_before: frozenset[str]
    link_down_since: float | None = None
    comparison: Iterator[Known] | None = None
    """Of recorded events under the old and the new settings; None when it is through."""
    known: Known = field(default_factory=Known)


class RemoteConfig:
    """Which tunables rule at a station. Owned by the main thread."""

    def __init__(
        self, settings: ControlConfig, station: StationId, base: TunablesConfig, store: Store, inbox: Inbox
    ) -> None:
        """``base``: what the file says. A trial that a restart cut short is rolled back here."""
        self.watch = TriggerWatch()
        self._settings = settings
        self._station = station
        self._base = base
        self._store = store
        self._inbox = inbox
        self._trusted = settings.trusted()
        self._trial: _Trial | None = None
        self._applying: Future[None] | None = None
        """Settings on their way into the pipeline."""
        self._apply: Apply | None = None
        self._compare: Compare | None = None
        self._mismatch: str | None = None
        self._wanted = False
        self._dirty = True
        self._next_report = 0.0
        self._retry_at = 0.0
        self._refused: deque[Outcome] = deque(maxlen=REFUSALS_KEPT)
        self._refusals = 0
        self._last_refused = ""
        self._lost = 0
        self._throttled = ThrottledLog(_log.warning)
        for fault in store.faults:
            _log.error("%s", fault)
        if store.stored.trial is not None:
            self._end_trial(store.stored.trial, "restart", "the agent was restarted during the probation")
        self.effective = self._before = self._in_force()

    @property
    def revision(self) -> int | None:
        """Of the envelope that rules, None where only the file does."""
        order = self._ruling()
        return None if order is None else order.revision

    def problems(self) -> list[str]:
        """What is wrong with the store, or with what was kept."""
        return [*self._store.faults, *([self._mismatch] if self._mismatch else [])]

    def serve(self, apply: Apply, compare: Compare | None = None) -> None:
        """From now on settings are applied with ``apply``, and other triggers tried with ``compare`` on the events that
        are on record, if any are kept."""
        self._apply, self._compare = apply, compare

    def reload(self, settings: ControlConfig, base: TunablesConfig) -> None:
        """The file has changed: its tunables rule from the next tick on, below what was laid over them."""
        self._settings, self._base, self._trusted = settings, base, settings.trusted()
        self._wanted = True

    def tick(self, now: float, around: TrialInputs) -> None:
        """Go on with whatever is at hand; ``now`` is the monotonic clock. Never waits for anything but the disk."""
        if self._applying is not None and not self._applied(now, around):
            return
        if self._wanted:
            self._wanted = False
            self._change(self._in_force())
            return
        if self._trial is not None and now >= self._retry_at:
            self._judge(self._trial, now, around)
        for _ in range(_A_TICK):
            if self._applying is not None:
                return
            arrived = self._inbox.take()
            if arrived is None:
                break
            self._hear(arrived.payload)
        if self._inbox.lost > self._lost:
            self._throttled.warn(
                f"{self._inbox.lost - self._lost} messages from the broker were not looked at", key="lost"
            )
            self._lost = self._inbox.lost

    def report(self, now: float, stamp: Callable[[], Stamp]) -> ConfigReport | None:
        """What is to be published, None where nothing has changed since the last time."""
        if not self._dirty or now < self._next_report:
            return None
        self._dirty, self._next_report = False, now + _REPORT_S
        stored, order, who = self._store.stored, self._ruling(), stamp()
        status: Literal["file", "trial", "kept"] = "file"
        if order is not None:
            status = "trial" if stored.trial is not None else "kept"
        left_s = None if self._trial is None else max(0.0, self._trial.began + self._settings.probation_s - now)
        return ConfigReport(
            station=self._station.short,
            boot_id=who.boot_id,
            seq=who.seq,
            time=format_ns(time.time_ns()),
            status=status,
            revision=self.revision,
            highest=stored.highest,
            tunables_sha256=digest(self.effective),
            trial_left_s=None if left_s is None else round(left_s, 1),
            refusals=self._refusals,
            refused=list(self._refused),
            history=list(stored.history[-HISTORY_SHOWN:]),
        )

    def _ruling(self) -> Order | None:
        return self._store.stored.trial or self._store.stored.kept

    def _in_force(self) -> TunablesConfig:
        """What ought to rule; what no longer fits the file does not."""
        order, self._mismatch = self._ruling(), None
        if order is None:
            return self._base
        try:
            return laid_over(self._base, order.content)
        except ControlError as error:
            self._mismatch = f"revision {order.revision} does not fit the configuration file: {error.message}"
            _log.error("%s", self._mismatch)
            return self._base

    def _hear(self, payload: bytes) -> None:
        envelope = hashlib.sha256(payload).hexdigest()
        stored = self._store.stored
        # A retained message comes with every connection; it is heard once.
        if envelope in (stored.newest, self._last_refused):
            return
        order = None
        try:
            opened = unseal(payload, self._trusted)
            body = opened.body
            order = Order(revision=body.revision, envelope=envelope, key=opened.key.name, content=dict(body.content))
            admit(opened, self._station, KIND, stored.highest, time.time_ns())
            tunables = laid_over(self._base, body.content)
            if stored.trial is not None:
                stored = _rolled_back(
                    stored, stored.trial, "superseded", f"revision {order.revision} came during the probation"
                )
            self._store.write(
                stored.with_outcome(_outcome(order, "trial"), trial=order, highest=order.revision, newest=envelope)
            )
        except ControlError as error:
            self._refuse(envelope, order, error)
            return
        self._change(tunables)

    def _refuse(self, envelope: str, order: Order | None, error: ControlError) -> None:
        if error.kind not in PASSING:
            self._last_refused = envelope
        self._refusals += 1
        self._refused.append(refused(envelope, order, error))
        self._dirty = True
        self._throttled.warn(f"a remote change is refused: {error}", key=error.kind)

    def _tell_at_once(self) -> None:
        """What rules has changed, which only a trusted key or the station itself brings about."""
        self._dirty, self._next_report = True, 0.0

    def _change(self, tunables: TunablesConfig) -> None:
        """Have the pipeline go on with ``tunables``; a trial begins, or begins anew, when it does."""
        self._trial = None
        self._before, self.effective = self.effective, tunables
        self._tell_at_once()
        if self._apply is None:
            return
        limits = self._settings.limits() if self._store.stored.trial is not None else None
        self._applying = self._apply(tunables, lambda: self.watch.begin(limits))

    def _applied(self, now: float, around: TrialInputs) -> bool:
        """Whether the change that was under way is through, one way or the other."""
        applying, ruling = self._applying, self._store.stored.trial
        if applying is None or not applying.done():
            return applying is None
        self._applying = None
        self._tell_at_once()
        error = applying.exception()
        if error is not None:
            words = error.message if isinstance(error, TalusError) else str(error)
            _log.error("new settings cannot be used: %s", words)
            if ruling is not None:
                self._roll_back(ruling, "unusable", f"the pipeline cannot use it: {words}")
            else:
                self.effective, self._mismatch = self._before, f"the settings of the file cannot be used: {words}"
        elif ruling is not None:
            _log.warning("revision %d rules on trial for %g s", ruling.revision, self._settings.probation_s)
            self._trial = _Trial(now, frozenset(around.silent), comparison=self._comparison())
        else:
            _log.info("the tunables of %s rule", f"revision {self.revision}" if self.revision else "the file")
        return True

    def _judge(self, trial: _Trial, now: float, around: TrialInputs) -> None:
        """Keep the trial, roll it back, or let it go on."""
        order = self._store.stored.trial
        if order is None:
            return
        sanity = self.watch.sanity
        if around.link_up:
            trial.link_down_since = None
        elif trial.link_down_since is None:
            trial.link_down_since = now
        grace_s = min(GRACE_S, self._settings.probation_s / 2)
        silent = sorted(set(around.silent) - trial.silent_before)
        if trial.comparison is not None:
            known = next(trial.comparison, None)
            if known is None:
                trial.comparison = None
            else:
                trial.known = known
        lost = "" if trial.comparison is not None else self._lost_events(trial.known)
        if sanity.harm is not None:
            self._roll_back(order, sanity.kind, sanity.harm)
        elif lost:
            self._roll_back(order, "known_events", lost)
        elif trial.link_down_since is not None and now - trial.link_down_since > grace_s:
            self._roll_back(order, "link", f"no connection to the broker for {grace_s:.0f} s")
        elif silent:
            self._roll_back(order, "source", f"no samples from {silent[0]} any more")
        elif (
            trial.comparison is None
            and now - trial.began >= self._settings.probation_s
            and sanity.data_s >= min(LEAST_DATA_S, self._settings.probation_s / 2)
        ):
            self._keep(order, now)

    def _comparison(self) -> Iterator[Known] | None:
        """Of the recorded events under the settings that ruled before the trial, and under those on trial; a record at
        a tick."""
        if self._compare is None:
            return None
        kept = self._store.stored.kept
        try:
            before = self._base if kept is None else laid_over(self._base, kept.content)
        except ControlError:
            before = self._base
        if before.trigger == self.effective.trigger:
            return None
        return self._compare(before.trigger, self.effective.trigger)

    def _lost_events(self, known: Known) -> str:
        """What is to be said when too many recorded events would not be found any more."""
        allowed = self._settings.max_lost_share
        if known.share <= allowed:
            return ""
        return (
            f"{len(known.lost)} of {known.events} events on record would be lost, such as {known.lost[0]}; "
            f"{allowed:.0%} are allowed"
        )

    def _keep(self, order: Order, now: float) -> None:
        stored = self._store.stored
        try:
            self._store.write(stored.with_outcome(_outcome(order, "kept"), kept=order, trial=None))
        except ControlError as error:
            self._retry_at = now + _RETRY_S
            self._throttled.warn(f"revision {order.revision} cannot be kept yet: {error}", key="keep")
            return
        self._trial = None
        self._tell_at_once()
        _log.warning("revision %d is kept", order.revision)

    def _roll_back(self, order: Order, kind: str, reason: str) -> None:
        self._end_trial(order, kind, reason)
        self._change(self._in_force())

    def _end_trial(self, order: Order, kind: str, reason: str) -> None:
        stored = _rolled_back(self._store.stored, order, kind, reason)
        try:
            self._store.write(stored)
        except ControlError as error:
            # The disk still has it on trial, which the next start ends as well.
            self._store.stored = stored
            self._throttled.warn(str(error), key="roll back")
        _log.warning("revision %d is rolled back: %s", order.revision, reason)


def _rolled_back(stored: Stored, order: Order, kind: str, reason: str) -> Stored:
    return stored.with_outcome(_outcome(order, "rolled_back", kind, reason), trial=None)


def _outcome(
    order: Order, result: Literal["trial", "kept", "rolled_back"], kind: str | None = None, reason: str | None = None
) -> Outcome:
    return Outcome(
        envelope=order.envelope,
        revision=order.revision,
        key=order.key,
        result=result,
        kind=kind,
        reason=None if reason is None else reason[:TEXT_LIMIT],
        time=format_ns(time.time_ns()),
    )
