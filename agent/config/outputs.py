"""Ways out beside the broker. Each is a section of its own; its sink is named in ``agent.deliver.delivery.SINKS``."""

from __future__ import annotations

from pydantic import Field

from agent.config.section import ConfigPath, Section


class FileOutputConfig(Section):
    """Every message as a line of JSON in a file, which is rotated by size."""

    path: ConfigPath = Field(
        examples=["/var/log/talus/messages.jsonl"], description="the file; older ones are PATH.1, PATH.2 and so on"
    )
    max_mb: float = Field(
        default=10, ge=0.001, le=10_000, description="size at which the next file is begun, megabytes"
    )
    older_files: int = Field(default=10, ge=0, le=1_000, description="older files that are kept")


class OutputsConfig(Section):
    """Ways out beside the broker: each gets every message."""

    file: FileOutputConfig | None = Field(default=None, description="a file of JSON lines; without this section, none")
