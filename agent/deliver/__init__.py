"""On disk, then to the broker, then deleted: the outbox and the life of a connection."""
