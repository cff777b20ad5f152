"""The command ``talus``: each subcommand is one module of ``agent.commands``, imported only when it is called."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Protocol

from agent import __version__
from agent.commands.options import discard_output
from agent.errors import INTERRUPTED, TalusError, in_words
from agent.host.journal import ERROR, prioritised, to_journal

COMMANDS = {
    "classify": "label the events in files",
    "replay": "send recorded data through the whole line",
    "simulate": "play a drill: a synthetic site through the whole line",
    "check": "say what is wrong with a configuration",
    "doctor": "say what is wrong with this machine",
    "run": "watch a station: the service",
    "status": "show the state of the agent on this machine",
    "outbox": "list messages that wait or were refused; send or drop refused ones",
    "watch": "print events and alerts as they arrive at a broker",
    "desk": "receive, store, show and call: the observatory's side",
    "plot": "draw an event, a day, a contact sheet or rates",
    "scan": "scan an archive as the station would, with the hours it could not hear",
    "config": "change a station's settings remotely, signed",
    "model": "change a station's model remotely, signed",
    "fleet": "list all stations of a broker, and change many in waves, signed",
    "docs": "print a page of the manual",
    "teach": "let the network learn a site's own labels",
    "ask": "give a station a signed command: evidence, test alarm, self-test",
}

HOMES = dict.fromkeys(("simulate", "watch", "desk", "plot", "scan", "config", "model", "fleet", "ask"), "desk")
HOMES |= {"teach": "quantize"}
"""Package of a command, where it is not ``agent``."""

BLAS_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS")
"""Read when numpy is imported. On several threads the small matrix products of a filter wait for one another, spinning:
ten times as slow on a machine that has other work, and memory for each core."""


class Command(Protocol):
    """What a module of ``agent.commands`` offers."""

    EXAMPLE: str

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...
    def main(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status (0 well, 1 a problem that was reported, 2 wrong usage)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _open_standard_streams()
    for name in BLAS_THREADS:
        os.environ.setdefault(name, "1")
    chosen = next((argument for argument in arguments if not argument.startswith("-")), "")
    try:
        parser, known = _parser(chosen)
        if not arguments:
            parser.print_help(sys.stderr)
            return 2
        args, unknown = parser.parse_known_args(arguments)
        command, own = known[args.command]
        if unknown:
            own.error(f"unrecognized arguments: {' '.join(unknown)}")  # its usage, not that of all commands
        status = command.main(args)
        sys.stdout.flush()
        return status
    except TalusError as error:
        text = f"talus {chosen}: {error}"
        print(prioritised(text, ERROR) if to_journal() else text, file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        print(f"talus {chosen}: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has seen enough.
        discard_output()
        return 0
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EIO, errno.EBADF) or error.filename is not None:
            raise
        discard_output()
        print(f"talus {chosen}: standard output cannot be written: {in_words(error)}", file=sys.stderr)
        return 1


def _open_standard_streams() -> None:
    """Python leaves out what was closed by whoever started the command (``>&-``)."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 - for the whole life


def _parser(chosen: str) -> tuple[argparse.ArgumentParser, dict[str, tuple[Command, argparse.ArgumentParser]]]:
    """The parser, and of the commands the one named ``chosen`` with its own parser: no other is imported."""
    parser = argparse.ArgumentParser(
        prog="talus",
        description="Watch a slope: trigger, classify on the device, and send labelled events and alerts over MQTT.",
        epilog="example:\n  talus replay record.mseed\n\neach command: talus COMMAND --help\n"
        "exit status: 0 well, 1 a problem was reported, 2 wrong usage, 130 stopped with Ctrl-C",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"talus {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    known: dict[str, tuple[Command, argparse.ArgumentParser]] = {}
    for name, summary in COMMANDS.items():
        sub = subparsers.add_parser(name, help=summary, formatter_class=argparse.RawDescriptionHelpFormatter)
        if name == chosen:
            command: Command = importlib.import_module(f"{HOMES.get(name, 'agent')}.commands.{name}")
            sub.description = f"{summary[0].upper()}{summary[1:]}."
            sub.epilog = f"example:\n  {command.EXAMPLE}"
            command.add_arguments(sub)
            known[name] = command, sub
    return parser, known


if __name__ == "__main__":
    sys.exit(main())
