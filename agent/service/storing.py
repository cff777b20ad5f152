"""Messages on their way to the disk, by a thread of their own: a disk that refuses or hangs holds up nothing else."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence

from agent.backoff import ThrottledLog
from agent.errors import DeliveryError
from agent.messages.payloads import Message, Priority
from agent.reasons import Reason
from agent.types import waiting

PUT_RETRY_S = 1.0
HELD_MESSAGES = 10_000
"""Messages kept in memory while the disk refuses them."""
PUT_MESSAGES = 100
"""Put in one transaction: many times what one packet gives rise to, and far less than the smallest outbox."""
SLOW_S = 5.0
"""A disk that takes longer is not waited for: memory cards stop for many seconds before they fail."""
TOLD_S = 600.0
"""How long a slow disk is told of."""

_log = logging.getLogger(__name__)


class Storing:
    """``add`` and ``drain`` are for one thread; any other may ask for ``held`` and ``reasons``."""

    def __init__(self, put: Callable[[list[Message]], None]) -> None:
        """``put`` returns when the disk has the messages, and raises DeliveryError where it refuses them."""
        self._put = put
        self._messages: deque[Message] = deque()
        self._begun = 0
        """So many of the first messages are being put."""
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._refused = self._last_try = False
        self._since: float | None = None
        """When the present transaction began (monotonic clock, s)."""
        self._slow: tuple[float, float] | None = None
        """When a transaction last took longer than ``SLOW_S``, and how long."""
        self._is_slow = False
        """Whether the newest one did."""
        self._failed: BaseException | None = None
        self._lost = 0
        """Events and alerts that found no room in memory either."""
        self._throttled = ThrottledLog(_log.error)

    def start(self) -> None:
        """Begin; the first ``add`` does so too."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="storing", daemon=True)
            self._thread.start()

    def add(self, messages: Sequence[Message]) -> int:
        """Have them stored; returns how many of them (the last ones) are in memory only, as the disk refuses them or is
        slow."""
        self.start()
        with self._changed:
            self._messages += messages
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._messages or self._is_in_trouble(), SLOW_S)
            unstored = min(len(messages), len(self._messages))
            self._make_room()
        if self._failed is not None:
            raise self._failed
        return unstored

    def drain(self, stopping: threading.Event) -> None:
        """Wait until all is stored; once the agent is ``stopping``, try once more and leave it at that."""
        with self._changed:
            while not self._changed.wait_for(lambda: not self._messages, PUT_RETRY_S) and not stopping.is_set():
                pass
            self._last_try = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._messages or not self._last_try, SLOW_S)
            if self._messages:
                _log.error("%d messages are lost: the disk refused them to the last", len(self._messages))

    @property
    def is_done(self) -> bool:
        """Whether the disk has everything."""
        return not self._messages

    @property
    def held(self) -> int:
        """Messages in memory because the disk refuses them or is slow; not those that are being handed over."""
        return len(self._messages) if self._is_in_trouble() else 0

    def reasons(self) -> list[Reason]:
        """What is wrong with the disk."""
        found, slow, since = [], self._slow, self._since
        if self._refused and self._messages:
            found.append(Reason("disk_refuses", f"{waiting(len(self._messages))} in memory: the disk refuses them"))
        now = time.monotonic()
        if since is not None and now - since > SLOW_S:
            text = f"the disk has not stored in {now - since:.0f} s what it was given: {waiting(self.held)} in memory"
            found.append(Reason("disk_slow", text))
        elif slow is not None and now - slow[0] < TOLD_S:
            found.append(Reason("disk_slow", f"the disk took {slow[1]:.0f} s to store a message"))
        if self._lost:
            text = f"events or alerts lost, as the disk refused them and memory was full: {self._lost}"
            found.append(Reason("messages_lost", text))
        return found

    def _is_in_trouble(self) -> bool:
        since = self._since
        hangs = since is not None and time.monotonic() - since > SLOW_S
        return hangs or self._is_slow or self._refused or self._failed is not None

    def _run(self) -> None:
        try:
            while True:
                self._store()
        except BaseException as error:  # noqa: BLE001 - whatever it is ends the pipeline, which raises it
            with self._changed:
                self._failed = error
                self._changed.notify_all()

    def _store(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._messages)
            part, is_last = list(itertools.islice(self._messages, PUT_MESSAGES)), self._last_try
            self._begun, self._since = len(part), (began := time.monotonic())
        error = None
        try:
            self._put(part)
        except DeliveryError as refusal:
            error = refusal
        with self._changed:
            if error is None:
                for _ in part:
                    self._messages.popleft()
            now = time.monotonic()
            self._is_slow = now - began > SLOW_S
            if self._is_slow:
                self._slow = now, now - began
            self._begun, self._since, before, self._refused = 0, None, self._refused, error is not None
            self._last_try = self._last_try and not is_last
            self._changed.notify_all()
            if error is not None:
                self._throttled.warn(f"{waiting(len(self._messages))} in memory: {error}", key="disk")
                self._changed.wait_for(lambda: self._last_try, PUT_RETRY_S)
            elif before:
                self._throttled.reset()
                _log.info("the disk takes messages again")

    def _make_room(self) -> None:
        """What matters least goes first: retained summaries, then revisions that a later one repeats, alerts last."""
        while len(self._messages) > HELD_MESSAGES + self._begun:
            others = itertools.islice(self._messages, self._begun, None)
            lost = max(others, key=lambda message: (message.priority, message.expendable))
            self._messages.remove(lost)
            self._lost += lost.priority is not Priority.OTHER and not lost.expendable
            self._throttled.warn(f"memory is full too: a message for {lost.topic} is lost", key=lost.topic)
