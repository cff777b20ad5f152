"""``talus outbox``: what waits for the broker and what it refused for good; sends that again, or drops it."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.options import say
from agent.errors import UsageError
from agent.types import counted

if TYPE_CHECKING:
    from agent.deliver.outbox_file import Listing, SetAside, Waiting

EXAMPLE = (
    "talus outbox --config /etc/talus/station.yaml\n"
    "  talus outbox --config /etc/talus/station.yaml --json | jq '.set_aside[].reason'\n"
    "  talus outbox retry --all --config /etc/talus/station.yaml\n"
    "  talus outbox drop 12 13 --config /etc/talus/station.yaml"
)
SHOWN = 20
"""Waiting messages that are listed, unless --json is given."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "action",
        nargs="?",
        choices=("list", "retry", "drop"),
        default="list",
        help="list (default); retry: send messages that were set aside again; drop: delete them",
    )
    parser.add_argument("number", nargs="*", type=int, help="messages to retry or drop, by their number in the list")
    parser.add_argument("--all", action="store_true", help="retry or drop all that were set aside")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="configuration of the agent")
    parser.add_argument("--json", action="store_true", help="the list as JSON, with all that waits")


def main(args: argparse.Namespace) -> int:
    """0; 1 where messages are set aside or a corrupt file was moved aside, so that scripts can ask."""
    from agent.config.file import load
    from agent.deliver import outbox_file

    config = load(args.config)
    path = config.outbox_path
    if args.action == "list":
        if args.number or args.all:
            raise UsageError("numbers and --all go with retry or drop", "talus outbox retry --all --config FILE")
        return _list(path, config.state_dir, as_json=args.json)
    if bool(args.number) == args.all:
        raise UsageError(f"name the messages to {args.action}, or give --all", f"talus outbox {args.action} 12 13")
    numbers = None if args.all else args.number
    if args.action == "retry":
        print(
            f"{counted(outbox_file.retry(path, numbers), 'message')} put back; a running agent sends them within 10 s"
        )
    else:
        print(f"{counted(outbox_file.drop(path, numbers), 'message')} dropped")
    return 0


def _list(path: Path, state_dir: Path, *, as_json: bool) -> int:
    from agent.deliver.outbox_file import corrupt_files, listing
    from agent.messages.text import printable

    found, corrupt = listing(path, None if as_json else SHOWN), corrupt_files(path)
    obstacles = _Obstacles(state_dir)
    if as_json:
        body = {
            "path": str(path),
            "waiting_total": found.waiting_total,
            "waiting": [{**_plain(message), "reason": obstacles.of(message.topic)} for message in found.waiting],
            "set_aside": [_plain(message) for message in found.set_aside],
            "corrupt": [str(one) for one in corrupt],
        }
        say(json.dumps(body, ensure_ascii=False))
    else:
        say("\n".join(printable(line) for line in _lines(path, found, corrupt, obstacles)))
    return int(bool(found.set_aside or corrupt))


class _Obstacles:
    """Why messages wait, as the agent says: each topic that the broker refuses, or that there is no connection."""

    def __init__(self, state_dir: Path) -> None:
        from agent.errors import TalusError
        from agent.health.status import read

        self._topics: dict[str, str] = {}
        self._all: str | None = None
        try:
            status = read(state_dir)
        except TalusError:
            return
        link = status.said.health.link
        if status.verdict in ("gone", "stopped"):
            self._all = "the agent does not run"
        elif link is not None and not link.connected:
            self._all = f"no connection to the broker: {link.error or 'trying'}"
        elif link is not None:
            self._topics = {one.topic: one.reason for one in link.refused}

    def of(self, topic: str) -> str | None:
        """The obstacle for messages on this topic, None where none is known."""
        return self._topics.get(topic, self._all)


def _lines(path: Path, found: Listing, corrupt: tuple[Path, ...], obstacles: _Obstacles) -> list[str]:
    from agent.types import format_ns

    def row(message: Waiting) -> str:
        when = format_ns(message.put_ns)[:19].replace("T", " ")
        return f"  {message.number:>8}  {when}  {message.bytes:>6} bytes  {message.topic}  {message.event}".rstrip()

    lines = [f"{path}: {counted(found.waiting_total, 'message')} waiting, {len(found.set_aside)} set aside"]
    if found.waiting:
        lines.append("waiting, in the order of sending (number, decided at UTC, size, topic, event):")
        for message in found.waiting:
            why = obstacles.of(message.topic)
            lines.append(row(message) + (f"  [{why}]" if why else ""))
        more = found.waiting_total - len(found.waiting)
        lines += [f"  and {more} more (--json lists all)"] if more > 0 else []
    if found.set_aside:
        lines.append("set aside, refused for good by the broker (`talus outbox retry` or `drop`):")
        for refused in found.set_aside:
            lines.append(f"{row(refused)}  [{refused.reason}]")
    lines += [f"corrupt outbox moved aside: {one} (delete it when it is not needed any more)" for one in corrupt]
    return lines


def _plain(message: Waiting | SetAside) -> dict[str, object]:
    from agent.types import format_ns

    body = asdict(message)
    body["put"] = format_ns(body.pop("put_ns"))
    if "refused_ns" in body:
        body["refused"] = format_ns(body.pop("refused_ns"))
        body["payload"] = body["payload"].decode("utf-8", "replace")
    return body
