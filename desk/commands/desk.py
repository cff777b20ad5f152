"""``talus desk``: the observatory's side, until it is told to stop."""

from __future__ import annotations

import argparse
import gc
import getpass
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from agent.commands.options import add_broker, settings_of
from agent.errors import ConfigError, UsageError
from agent.host.journal import log_to_stderr
from agent.types import counted

if TYPE_CHECKING:
    from agent.config.broker import MqttSettings
    from desk.settings import DeskConfig

EXAMPLE = (
    "talus desk --broker mqtt://localhost\n"
    "  talus desk --config /etc/talus/desk.yaml\n"
    "  talus desk --config /etc/talus/desk.yaml --account ann --role operator"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, metavar="FILE", help="the desk's configuration file (YAML)")
    add_broker(parser, "without --config: ", required=False)
    parser.add_argument("--db", metavar="URL", help="database (default: SQLite in the state folder)")
    parser.add_argument("--port", type=int, metavar="N", help="port of the pages (default 8088)")
    parser.add_argument("--state", type=Path, metavar="FOLDER", help="without --config: database, records, secrets")
    parser.add_argument("--account", metavar="NAME", help="make this account, or change its password, and end")
    parser.add_argument("--role", choices=("viewer", "operator", "admin"), default="operator", help="of --account")
    parser.add_argument(
        "--export",
        type=Path,
        metavar="FOLDER",
        help="write all answered events as training data (talus docs training), and end",
    )
    parser.add_argument("--seisbench", action="store_true", help="with --export: as SeisBench reads it (HDF5)")
    parser.add_argument("--check", action="store_true", help="only say what is wrong with the configuration file")


def main(args: argparse.Namespace) -> int:
    try:
        import sqlalchemy  # noqa: F401
        import starlette  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"the desk needs {error.name}", "pip install 'talus-agent[desk]'") from None
    config, settings = _config(args)
    if args.check:
        for target in config.targets:
            target.target()
        if config.targets and config.web.public_url is None:
            print("talus desk: messages carry no link that acknowledges: web.public_url is not set", file=sys.stderr)
        print(f"{args.config}: good")
        return 0
    log_to_stderr()
    os.umask(0o077)  # what it writes is for its user alone
    from desk.service import Desk, listen

    if args.account is not None:
        return _make_account(config, args.account, args.role)
    if args.export is not None:
        return _export(config, args.export, seisbench=args.seisbench)
    listener = listen(config.web.host, config.web.port)
    desk = Desk(config, settings)
    made = desk.first_account()
    host, port = listener.getsockname()[:2]
    print(f"talus desk: http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)
    if made is not None:
        print(f"talus desk: log in as {made[0]} with the password {made[1]} (shown only now)", flush=True)
    # Each message makes some ten objects that die with their batch; looking for cycles among them took half the time.
    gc.freeze()
    gc.set_threshold(50_000)
    desk.start()
    try:
        desk.serve(listener)
    finally:
        desk.stop()
    return 0


def _config(args: argparse.Namespace) -> tuple[DeskConfig, MqttSettings | None]:
    """The configuration, and the broker where the command line names it."""
    from agent.config.file import load_section
    from desk.settings import DeskConfig, default_state_dir

    given: dict[str, object] = {}
    if args.db is not None:
        given["database"] = args.db
    if args.config is not None:
        if args.broker is not None or args.state is not None:
            raise UsageError("--config names the broker and the state folder", "leave --broker and --state out")
        config = load_section(DeskConfig, args.config)
        if args.port is not None:
            given["web"] = config.web.model_copy(update={"port": args.port})
        return config.model_copy(update=given), None
    if args.broker is None and args.account is None and args.export is None:
        raise UsageError("the desk needs a broker", "give --broker mqtt://host, or --config FILE")
    settings = settings_of(args) if args.broker is not None else None
    host = settings.host if settings is not None else "localhost"
    web = {} if args.port is None else {"port": args.port}
    state = args.state if args.state is not None else default_state_dir()
    return DeskConfig.model_validate({"mqtt": {"host": host}, "state_dir": str(state), "web": web, **given}), settings


def _export(config: DeskConfig, folder: Path, *, seisbench: bool) -> int:
    from desk.evidence import Records
    from desk.export import export
    from desk.store.store import Store

    store = Store(config.database_url)
    records = Records(config.state_dir / "evidence", round(config.evidence.max_gb * 1e9))
    done = export(store, records, folder, seisbench=seisbench)
    store.close()
    print(
        f"talus desk: {folder}: {counted(done.written, 'event')}; left out: {done.without_record} without a record, "
        f"{done.disputed} disputed, {done.unsure} unsure, {counted(done.exercises, 'exercise')}"
    )
    return 0


def _make_account(config: DeskConfig, name: str, role: str) -> int:
    """Ask for a password, twice on a terminal, else one line of standard input."""
    from desk.accounts import add_account
    from desk.store.store import Store

    if sys.stdin.isatty():
        password = getpass.getpass(f"password of {name}: ")
        if getpass.getpass("again: ") != password:
            raise UsageError("the two passwords differ", "try again")
    else:
        password = sys.stdin.readline().rstrip("\n")
    config.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    store = Store(config.database_url)
    add_account(store, "setup", name, role, password, now_ns=time.time_ns())  # type: ignore[arg-type]
    store.close()
    print(f"talus desk: {name} is {role}")
    return 0
