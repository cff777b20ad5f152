"""The tables of the desk.

Times are integer nanoseconds UTC, as everywhere in Talus. A *station* is what a broker's topic names (NET.STA); a
*sensor* belongs to one (NET.STA.LOC.BS) and has events. A class is a number: 0 to 4 for the labels in their fixed
order, then ``UNDECIDED`` (the network abstained), ``UNCLASSIFIED`` (it gave no answer) and ``SLOW`` (it is not asked).
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Float,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    text,
)

from agent.types import LABELS
from desk.store.body import Body

UNDECIDED = len(LABELS)
UNCLASSIFIED = UNDECIDED + 1
SLOW = UNCLASSIFIED + 1
CLASSES = (*LABELS, "undecided", "unclassified", "slow")
"""Names of the classes; the place is the number."""
ALERTED = tuple(name for name in CLASSES if name != "undecided")
"""Labels that an alert may have, and so what a silence may name."""

IMPORTED = 10.0
"""Taken from the doubt of an imported event, so that in the order of doubt it stands behind those of stations."""
ALL_SENSORS = 0
"""Stands in ``tally`` for all sensors together."""

Key = BigInteger().with_variant(Integer, "sqlite")
"""A primary key that counts up: SQLite does that for ``INTEGER`` alone."""

metadata = MetaData()

version = Table("version", metadata, Column("number", Integer, nullable=False))

station = Table(
    "station",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("code", String(20), nullable=False, unique=True),
    Column("availability", String(8)),
    Column("availability_ns", BigInteger),
    Column("health_ns", BigInteger),
    Column("health", Body),
    Column("state", Body),
    Column("latitude", Float),
    Column("longitude", Float),
    Column("elevation_m", Float),
    Column("heard_ns", BigInteger, nullable=False),
)
"""``heard_ns``: when the desk last received anything of it; 0 where all that is known of it was imported. ``health``
and ``state`` are the newest messages."""

sensor = Table(
    "sensor",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("code", String(48), nullable=False, unique=True),
    Column("station_id", Integer, ForeignKey("station.id"), nullable=False),
)

event = Table(
    "event",
    metadata,
    # PostgreSQL pads: what takes eight bytes stands first, and what has no fixed length last.
    Column("id", Key, primary_key=True),
    Column("onset_ns", BigInteger, nullable=False),
    Column("received_ns", BigInteger, nullable=False),
    Column("probability", Float),
    Column("doubt", Float, nullable=False),
    Column("ratio", Float),
    Column("duration_s", Float),
    Column("peak_counts", Float),
    Column("sensor_id", Integer, ForeignKey("sensor.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("class", SmallInteger, nullable=False),
    Column("label", SmallInteger),
    Column("review", SmallInteger),
    Column("ended", Boolean, nullable=False),
    Column("exercise", Boolean, nullable=False),
    Column("uid", String(64), nullable=False, unique=True),
    Column("body", Body, nullable=False),
    Index("event_by_onset", "onset_ns"),
    Index("event_by_sensor", "sensor_id", "onset_ns"),
    Index("event_by_class", "class", "onset_ns"),
    Index(
        "event_by_doubt", "doubt", "onset_ns",
        sqlite_where=text("review IS NULL AND ended"), postgresql_where=text("review IS NULL AND ended"),
    ),
    Index(
        "event_reviewed", "onset_ns",
        sqlite_where=text("review IS NOT NULL"), postgresql_where=text("review IS NOT NULL"),
    ),
    Index("event_exercise", "onset_ns", sqlite_where=text("exercise"), postgresql_where=text("exercise")),
)  # fmt: skip
"""The newest revision of each event. ``class`` is what a reviewer says, or else the network; ``doubt`` is 0 where the
network is certain and 1 where it could not tell; less by ``IMPORTED`` of what was imported and no station sent."""

revision = Table(
    "revision",
    metadata,
    Column("event_id", Key, ForeignKey("event.id"), primary_key=True),
    Column("received_ns", BigInteger, nullable=False),
    Column("window_s", Float),
    Column("number", Integer, primary_key=True),
    Column("phase", SmallInteger, nullable=False),
    Column("label", SmallInteger),
    Column("abstained", Boolean),
    Column("probabilities", LargeBinary),
    sqlite_with_rowid=False,
)
"""How a verdict grew. ``probabilities``: one byte a label, in 255ths."""

alert = Table(
    "alert",
    metadata,
    Column("id", Key, primary_key=True),
    Column("uid", String(96), nullable=False, unique=True),
    Column("event_uid", String(64), nullable=False),
    Column("sensor_id", Integer, ForeignKey("sensor.id"), nullable=False),
    Column("onset_ns", BigInteger, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("action", String(16), nullable=False),
    Column("severity", String(32), nullable=False),
    Column("label", String(32), nullable=False),
    Column("exercise", Boolean, nullable=False),
    Column("raised_ns", BigInteger, nullable=False),
    Column("acked_ns", BigInteger),
    Column("body", Body, nullable=False),
    Index("alert_by_time", "raised_ns"),
    Index("alert_by_event", "event_uid"),
    Index(
        "alert_open", "raised_ns",
        sqlite_where=text("acked_ns IS NULL"), postgresql_where=text("acked_ns IS NULL"),
    ),
)  # fmt: skip
"""The newest revision of each alert. ``raised_ns``: when the desk received the first one."""

alert_revision = Table(
    "alert_revision",
    metadata,
    Column("alert_id", Key, ForeignKey("alert.id"), primary_key=True),
    Column("number", Integer, primary_key=True),
    Column("received_ns", BigInteger, nullable=False),
    Column("action", String(16), nullable=False),
    Column("body", Body, nullable=False),
)

ack = Table(
    "ack",
    metadata,
    Column("id", Key, primary_key=True),
    Column("alert_id", Key, ForeignKey("alert.id"), nullable=False, index=True),
    Column("who", String(80), nullable=False),
    Column("when_ns", BigInteger, nullable=False),
    Column("how", String(16), nullable=False),
    Column("note", Text, nullable=False, server_default=""),
)
"""Who has seen an alert; append-only. ``how``: ``page`` or ``link``."""

review = Table(
    "review",
    metadata,
    Column("id", Key, primary_key=True),
    Column("event_id", Key, ForeignKey("event.id"), nullable=False, index=True),
    Column("who", String(80), nullable=False),
    Column("when_ns", BigInteger, nullable=False),
    Column("label", SmallInteger),
    Column("sure", Boolean, nullable=False),
    Column("note", Text, nullable=False, server_default=""),
)
"""What people say of events; append-only. Without a label it takes that person's earlier answer back, or is a note."""

evidence = Table(
    "evidence",
    metadata,
    Column("event_id", Key, ForeignKey("event.id"), primary_key=True),
    Column("state", String(8), nullable=False),
    Column("sha256", String(64)),
    Column("bytes", BigInteger),
    Column("path", Text),
    Column("asked_ns", BigInteger),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("error", Text),
    Index("evidence_by_state", "state", "asked_ns"),
)
"""``state``: ``offered`` by the station, ``asked`` for, ``here`` (``path`` below the desk's folder) or ``lost``."""

envelope = Table(
    "envelope",
    metadata,
    Column("sensor_id", Integer, ForeignKey("sensor.id"), primary_key=True),
    Column("component", String(1), primary_key=True),
    Column("start_ns", BigInteger, primary_key=True),
    Column("seconds", Integer, nullable=False),
    Column("scale", Float, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # Partitions go as a whole; what lies in the default one is little.
    Index("envelope_by_time", "start_ns").ddl_if(dialect="sqlite"),
    postgresql_partition_by="RANGE (start_ns)",
)
"""Smallest and largest sample of each of ``seconds``, packed as ``agent.messages.envelope`` has it (not base64)."""

health_hour = Table(
    "health_hour",
    metadata,
    Column("station_id", Integer, ForeignKey("station.id"), primary_key=True),
    Column("hour", Integer, primary_key=True),
    Column("messages", Integer, nullable=False),
    Column("degraded", Integer, nullable=False),
    Column("armed", Float),
    Column("reasons", Text, nullable=False, server_default="[]"),
    postgresql_partition_by="RANGE (hour)",
)
"""``hour``: hours since 1970. ``armed``: mean share of the time in which the sensor that hears least could
trigger, where told."""

health_day = Table(
    "health_day",
    metadata,
    Column("station_id", Integer, ForeignKey("station.id"), primary_key=True),
    Column("day", Integer, primary_key=True),
    Column("messages", Integer, nullable=False),
    Column("degraded", Integer, nullable=False),
    Column("heard", Float, nullable=False),
)
"""What ``thinning`` makes of old hours. ``day``: days since 1970. ``heard``: share of the day."""

silence = Table(
    "silence",
    metadata,
    Column("id", Key, primary_key=True),
    Column("station", String(40), nullable=False, server_default=""),
    Column("label", String(32), nullable=False, server_default=""),
    Column("from_ns", BigInteger, nullable=False),
    Column("until_ns", BigInteger, nullable=False),
    Column("who", String(80), nullable=False),
    Column("reason", Text, nullable=False),
    Column("ended_ns", BigInteger),
)
"""An empty ``station`` or ``label`` stands for all. There is none without an end."""

notification = Table(
    "notification",
    metadata,
    Column("id", Key, primary_key=True),
    Column("subject", String(128), nullable=False),
    Column("target", String(80), nullable=False),
    Column("alert_id", Key, ForeignKey("alert.id")),
    Column("title", Text, nullable=False),
    Column("text", Text, nullable=False),
    Column("state", String(8), nullable=False),
    Column("due_ns", BigInteger, nullable=False),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("made_ns", BigInteger, nullable=False),
    Column("sent_ns", BigInteger),
    Column("error", Text),
    Index("notification_once", "subject", "target", unique=True),
    Index("notification_due", "state", "due_ns"),
    Index("notification_by_alert", "alert_id"),
)
"""The desk's own outbox. ``subject`` names what it is about (an alert's revision, a station that fell silent), so that
no target is told the same thing twice. ``state``: ``waiting``, ``sent``, ``dropped``."""

trouble = Table(
    "trouble",
    metadata,
    Column("id", Key, primary_key=True),
    Column("station", String(40), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("since_ns", BigInteger, nullable=False),
    Column("text", Text, nullable=False),
    Column("told", Boolean, nullable=False),
    Column("ended_ns", BigInteger),
    Index("trouble_open", "ended_ns", "station"),
)
"""Times in which a station was offline, silent or degraded. ``told``: somebody was called about it."""

account = Table(
    "account",
    metadata,
    Column("name", String(80), primary_key=True),
    Column("role", String(8), nullable=False),
    Column("password", Text, nullable=False),
    Column("made_ns", BigInteger, nullable=False),
    Column("disabled", Boolean, nullable=False),
)

session = Table(
    "session",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    Column("name", String(80), ForeignKey("account.name"), nullable=False),
    Column("csrf", String(64), nullable=False),
    Column("expires_ns", BigInteger, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Key, primary_key=True),
    Column("when_ns", BigInteger, nullable=False, index=True),
    Column("who", String(80), nullable=False),
    Column("act", String(32), nullable=False),
    Column("subject", String(128), nullable=False),
    Column("detail", Text, nullable=False, server_default=""),
    Column("address", String(64), nullable=False, server_default=""),
)
"""Every act of a person; append-only."""

feed = Table(
    "feed",
    metadata,
    Column("id", Key, primary_key=True),
    Column("when_ns", BigInteger, nullable=False),
    Column("kind", String(16), nullable=False),
    Column("subject", String(128), nullable=False),
    sqlite_autoincrement=True,
)
"""What changed, in order: pages that were away read on from the last ``id`` they saw."""

tally = Table(
    "tally",
    metadata,
    Column("sensor_id", Integer, primary_key=True, autoincrement=False),
    Column("step", SmallInteger, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("class", SmallInteger, primary_key=True, autoincrement=False),
    Column("events", Integer, nullable=False),
    sqlite_with_rowid=False,
)
"""Events by class, without exercises, in bins of ``step`` hours (1 and 24) that begin at ``hour`` (since 1970); of each
sensor and of ``ALL_SENSORS``. Kept by triggers of the database, whoever writes."""
