"""Remote configuration: the file's ``tunables`` with what a signed order lays over them, on trial first, then kept.

    file --(order is genuine, new, for this station, and valid as a whole)--> trial --(probation without harm)--> kept
      ^                                                                         |
      +---(or what was kept before) <--(harm, a newer order, or a restart)------+

The trial is on disk before it is applied, so a power cut during one finds it there at the next start, and it is rolled
back. What is refused never touches the disk. All of this is the main thread's, except that settings are applied by the
pipeline's thread between two packets, and that the link's thread fills the gate's queue.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from agent.backoff import ThrottledLog
from agent.config.explain import dotted, escaped, validate
from agent.config.file import ControlConfig, TunablesConfig, digest
from agent.errors import ControlError, TalusError
from agent.messages.payloads import Stamp
from agent.messages.schema import TEXT_LIMIT, ConfigReport, Outcome
from agent.remote.gate import Gate, Order, Refused, Stored
from agent.remote.trigger_watch import LEAST_DATA_S, Compare, Known, TriggerWatch
from agent.types import StationId, format_ns

KIND = "config"
Apply: TypeAlias = "Callable[[TunablesConfig, Callable[[], None]], Future[None]]"
"""Has the pipeline go on with settings, and calls the function right after, in the pipeline's thread. The future ends
when that is done; it fails, and nothing has changed, where the pipeline cannot use them."""
REFUSALS_KEPT = 5
HISTORY_SHOWN = 20
GRACE_S = 60.0
"""How long the link may be down in a trial."""
_REPORT_S = 1.0
"""Refusals are reported no more often, whoever provokes them."""
_RETRY_S = 5.0
_A_TICK = 32
"""Messages judged at once: a signature costs a fraction of a millisecond."""
_log = logging.getLogger(__name__)


def laid_over(below: TunablesConfig, content: Mapping[str, Any]) -> TunablesConfig:
    """``below`` with what ``content`` says: sections are merged, everything else is replaced.

    Raises:
        ControlError: ``invalid``, with every fault.
    """
    whole = _merged(below.model_dump(mode="json", exclude_unset=True), content)
    found, findings = validate(TunablesConfig, whole, {})
    if found is None:
        faults = "; ".join(f"{escaped(dotted(f.loc))} {f.reason}" for f in findings)
        raise ControlError("invalid", faults[:TEXT_LIMIT], "`talus docs configuration` lists what `tunables` may hold")
    return found


def _merged(below: Any, above: Any) -> Any:
    if not isinstance(below, Mapping) or not isinstance(above, Mapping):
        return above
    return {**below, **{name: _merged(below.get(name), value) for name, value in above.items()}}


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
    """The comparison of recorded events under the old and the new settings; None when it is done."""
    known: Known = field(default_factory=Known)


class RemoteConfig:
    """Which tunables are active at a station. Owned by the main thread."""

    def __init__(self, settings: ControlConfig, station: StationId, base: TunablesConfig, folder: Path) -> None:
        """``base``: what the file says. A trial that a restart cut short is rolled back here.

        Raises:
            ControlError: the folder cannot be used.
        """
        self.watch = TriggerWatch()
        self._settings = settings
        self._station = station
        self._base = base
        self.gate = Gate(KIND, station, folder, settings.keys, self._checked, accepted=_on_trial)
        self._store = self.gate.store
        self._trial: _Trial | None = None
        self._applying: Future[None] | None = None
        """Settings on their way into the pipeline."""
        self._apply: Apply | None = None
        self._compare: Compare | None = None
        self._mismatch: str | None = None
        self._reloaded = False
        self._dirty = True
        self._next_report = 0.0
        self._retry_at = 0.0
        self._refused: deque[Outcome] = deque(maxlen=REFUSALS_KEPT)
        self._refusals = 0
        self._throttled = ThrottledLog(_log.warning)
        if self._store.fault is not None:
            _log.error("%s", self._store.fault)
        if self._store.stored.trial is not None:
            self._end_trial(self._store.stored.trial, "restart", "the agent was restarted during the probation")
        self.effective = self._before = self._due()

    @property
    def revision(self) -> int | None:
        """Revision of the active order, None where only the file is active."""
        order = self._active()
        return None if order is None else order.revision

    def problems(self) -> list[str]:
        """What is wrong with the store, or with what was kept."""
        return [fault for fault in (self._store.fault, self._mismatch) if fault]

    def start(self, apply: Apply, compare: Compare | None = None) -> None:
        """From now on settings are applied with ``apply``, and other triggers tried with ``compare`` on the events that
        are on record, if any are kept."""
        self._apply, self._compare = apply, compare

    def reload(self, settings: ControlConfig, base: TunablesConfig) -> None:
        """The file has changed: its tunables are active from the next tick on, below what was laid over them."""
        self._settings, self._base, self.gate.trusted = settings, base, settings.keys
        self._reloaded = True

    def tick(self, now: float, around: TrialInputs) -> None:
        """Go on with whatever is at hand; ``now`` is the monotonic clock. Never waits for anything but the disk."""
        if self._applying is not None and not self._applied(now, around):
            return
        if self._reloaded:
            self._reloaded = False
            self._change(self._due())
            return
        if self._trial is not None and now >= self._retry_at:
            self._check_trial(self._trial, now, around)
        for _ in range(_A_TICK):
            if self._applying is not None or (admitted := self.gate.next()) is None:
                return
            if isinstance(admitted, Refused):
                self._refusals += 1
                self._refused.append(admitted.outcome)
                self._dirty = True
            else:
                self._change(admitted.content)

    def report(self, now: float, stamp: Callable[[], Stamp]) -> ConfigReport | None:
        """What is to be published, None where nothing has changed since the last time."""
        if not self._dirty or now < self._next_report:
            return None
        self._dirty, self._next_report = False, now + _REPORT_S
        stored, order, who = self._store.stored, self._active(), stamp()
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

    def _checked(self, content: Mapping[str, Any]) -> TunablesConfig:
        return laid_over(self._base, content)

    def _active(self) -> Order | None:
        return self._store.stored.trial or self._store.stored.kept

    def _due(self) -> TunablesConfig:
        """What should be active: the order over the file, or the file alone where the order no longer fits it."""
        order, self._mismatch = self._active(), None
        if order is None:
            return self._base
        try:
            return laid_over(self._base, order.content)
        except ControlError as error:
            self._mismatch = f"revision {order.revision} does not fit the configuration file: {error.message}"
            _log.error("%s", self._mismatch)
            return self._base

    def _report_at_once(self) -> None:
        """What is active has changed, which only a trusted key or the station itself brings about."""
        self._dirty, self._next_report = True, 0.0

    def _change(self, tunables: TunablesConfig) -> None:
        """Have the pipeline go on with ``tunables``; a trial begins, or begins anew, when it does."""
        self._trial = None
        self._before, self.effective = self.effective, tunables
        self._report_at_once()
        if self._apply is None:
            return
        limits = self._settings if self._store.stored.trial is not None else None
        self._applying = self._apply(tunables, lambda: self.watch.begin(limits))

    def _applied(self, now: float, around: TrialInputs) -> bool:
        """Whether the change that was under way is through, one way or the other."""
        applying, order = self._applying, self._store.stored.trial
        if applying is None or not applying.done():
            return applying is None
        self._applying = None
        self._report_at_once()
        error = applying.exception()
        if error is not None:
            words = error.message if isinstance(error, TalusError) else str(error)
            _log.error("new settings cannot be used: %s", words)
            if order is not None:
                self._roll_back(order, "unusable", f"the pipeline cannot use it: {words}")
            else:
                self.effective, self._mismatch = self._before, f"the settings of the file cannot be used: {words}"
        elif order is not None:
            _log.warning(
                "revision %d by %s is active, on trial for %g s", order.revision, order.key, self._settings.probation_s
            )
            self._trial = _Trial(now, frozenset(around.silent), comparison=self._comparison())
        else:
            _log.info("the tunables of %s are active", f"revision {self.revision}" if self.revision else "the file")
        return True

    def _check_trial(self, trial: _Trial, now: float, around: TrialInputs) -> None:
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
        """Of the recorded events under the settings before the trial, and under those on trial; a record at
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
        self._report_at_once()
        _log.warning("revision %d is kept", order.revision)

    def _roll_back(self, order: Order, kind: str, reason: str) -> None:
        self._end_trial(order, kind, reason)
        self._change(self._due())

    def _end_trial(self, order: Order, kind: str, reason: str) -> None:
        stored = _rolled_back(self._store.stored, order, kind, reason)
        try:
            self._store.write(stored)
        except ControlError as error:
            # The disk still has it on trial, which the next start ends as well.
            self._store.stored = stored
            self._throttled.warn(str(error), key="roll back")
        _log.warning("revision %d is rolled back: %s", order.revision, reason)


def _on_trial(stored: Stored, order: Order) -> Stored:
    """The state with an order that was accepted; one that was still on trial gives way."""
    if stored.trial is not None:
        reason = f"revision {order.revision} came during the probation"
        stored = _rolled_back(stored, stored.trial, "superseded", reason)
    return stored.with_outcome(_outcome(order, "trial"), trial=order)


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
