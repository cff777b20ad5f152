"""A catalogue into the desk's database: its events beside those that stations sent, and the hours that were heard."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from sqlalchemy.dialects import postgresql, sqlite

from agent.types import parse_ns
from desk.scan.catalogue import STATION_COLUMNS, about_of, message, read, read_ledger
from desk.scan.ledger import HOUR_NS
from desk.store import tables as t
from desk.store.store import Arrival, Store

_BATCH = 500


def load(path: Path, url: str) -> tuple[int, float, int]:
    """Store every event and every hour of a catalogue; what is there already stays as it is. Returns how many events
    there were, the hours that were heard, and the rows of an hour that say so.

    Raises:
        DataError: no catalogue.
        ConfigError: not a database that the desk can use.
        DeliveryError: the database refuses; the same again goes on.
    """
    about = about_of(path)
    store = Store(url)
    try:
        events, rows = 0, enumerate(read(path))
        while batch := list(islice(rows, _BATCH)):
            arrivals = []
            for number, row in batch:
                body = message(row, about, number)
                station = f"{row['station_network_code']}.{row['station_code']}"
                # When it was received is when it happened: an import is no news.
                arrivals.append(Arrival(station, body, parse_ns(body.timing.data), imported=True))
            store.ingest(arrivals)
            events += len(batch)
        heard: dict[tuple[str, int], list[float]] = {}
        for row in read_ledger(path):
            station = ".".join(row[name] for name in STATION_COLUMNS[:2])
            begin = parse_ns(f"{row['day']}T00:00:00Z") // HOUR_NS
            for number, share in enumerate(row["armed_by_hour"].split()):
                heard.setdefault((station, begin + number), []).append(float(share))
        shares = {place: min(several) for place, several in heard.items()}
        _put_heard(store, shares)
        return events, sum(shares.values()), len(shares)
    finally:
        store.close()


def _put_heard(store: Store, shares: Mapping[tuple[str, int], float]) -> None:
    """What is known of an hour from the station itself stays."""
    with store.writing() as connection:
        upsert = postgresql.insert if connection.dialect.name == "postgresql" else sqlite.insert
        rows = [
            {
                "station_id": store.station_id(connection, station, 0), "hour": hour, "messages": 0,
                "degraded": 0, "armed": share, "reasons": "[]",
            }
            for (station, hour), share in shares.items()
        ]  # fmt: skip
        for begin in range(0, len(rows), _BATCH):
            statement = upsert(t.health_hour).on_conflict_do_nothing(index_elements=["station_id", "hour"])
            connection.execute(statement, rows[begin : begin + _BATCH])
