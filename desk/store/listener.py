"""What other desks over the same PostgreSQL database commit: told at once by its NOTIFY."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import exc, text

from agent.errors import DeliveryError
from desk.store.store import FEED_CHANNEL, Store
from desk.worker import Worker

WAIT_S = 1.0
"""Between two looks at whether the thread is to end."""


class FeedListener(Worker):
    """Calls ``grown`` whenever any desk has added to the feed. One connection of its own."""

    def __init__(self, store: Store, grown: Callable[[], None]) -> None:
        super().__init__("listener of the database")
        self._store, self._grown = store, grown

    def step(self) -> float:
        """See ``Worker``: listen until the connection is lost."""
        driver = self._store.engine.dialect.loaded_dbapi
        try:
            with self._store.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
                connection.execute(text(f"LISTEN {FEED_CHANNEL}"))
                listening = connection.connection.driver_connection
                self._grown()  # what was committed before the LISTEN
                while not self.stopping and listening is not None:
                    for _ in listening.notifies(timeout=WAIT_S, stop_after=1):
                        self._grown()
        except (exc.DBAPIError, driver.Error) as error:
            raise DeliveryError(f"the desk's database is not heard: {error}", "is it running?") from None
        return 0.0
