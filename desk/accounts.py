"""Who may use the desk: accounts with scrypt passwords, three roles, and sessions of a limited life.

Roles: a *viewer* reads; an *operator* also acknowledges, reviews and silences; an *admin* also manages accounts and
targets. A session is a random token in a cookie; the database holds its SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sqlalchemy import Connection, delete, insert, select, update

from agent.errors import DataError
from agent.types import NS
from desk.store import tables as t
from desk.store.store import Act, Store, audit

Role: TypeAlias = Literal["viewer", "operator", "admin"]
ROLES: tuple[Role, ...] = ("viewer", "operator", "admin")

SESSION_NS = 14 * 86_400 * NS
LEAST_PASSWORD = 12
"""Characters. A desk may face the internet."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_N, _R, _P = 2**15, 8, 1
"""Cost of scrypt (RFC 7914): 32 MB and about 0.1 s for each guess."""
_MEMORY = 64 * 1024 * 1024

TRIES = 5
"""Wrong passwords of one account or address, after which it waits ..."""
WAIT_NS = 60 * NS
"""... this long, and twice as long after each further one, up to an hour."""
LONGEST_WAIT_NS = 3600 * NS
_REMEMBERED = 10_000


@dataclass(frozen=True, slots=True)
class User:
    """Who is logged in. ``csrf`` is what a form of this session must carry."""

    name: str
    role: Role
    csrf: str

    def may(self, role: Role) -> bool:
        """Whether the user has at least this role."""
        return ROLES.index(self.role) >= ROLES.index(role)


class Attempts:
    """Wrong passwords, by account and by address. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def wait_ns(self, keys: tuple[str, ...], now_ns: int) -> int:
        """How long until another attempt is looked at; 0 for now."""
        with self._lock:
            return max((self._until(key) - now_ns for key in keys if key in self._failed), default=0)

    def failed(self, keys: tuple[str, ...], now_ns: int) -> None:
        """One more wrong password."""
        with self._lock:
            for key in keys:
                count, _ = self._failed.pop(key, (0, 0))
                self._failed[key] = count + 1, now_ns
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)

    def succeeded(self, keys: tuple[str, ...]) -> None:
        """The right password: the count begins anew."""
        with self._lock:
            for key in keys:
                self._failed.pop(key, None)

    def _until(self, key: str) -> int:
        count, at_ns = self._failed[key]
        if count < TRIES:
            return 0
        return at_ns + min(LONGEST_WAIT_NS, WAIT_NS << min(count - TRIES, 10))


def hashed(password: str) -> str:
    """``scrypt$N$r$p$salt$hash``, hexadecimal."""
    salt = secrets.token_bytes(16)
    digest = hashlib.scrypt(password.encode(), salt=salt, n=_N, r=_R, p=_P, maxmem=_MEMORY)
    return f"scrypt${_N}${_R}${_P}${salt.hex()}${digest.hex()}"


def matches(password: str, stored: str) -> bool:
    """Whether the password is the one that was hashed."""
    try:
        scheme, n, r, p, salt, digest = stored.split("$")
        if scheme != "scrypt":
            return False
        found = hashlib.scrypt(
            password.encode(), salt=bytes.fromhex(salt), n=int(n), r=int(r), p=int(p), maxmem=_MEMORY
        )
    except ValueError:
        return False
    return hmac.compare_digest(found.hex(), digest)


_NOBODY = hashed(secrets.token_hex(16))
"""Checked for a name that does not exist, so that the answer takes as long as for one that does."""


def add_account(store: Store, by: str, name: str, role: Role, password: str, *, now_ns: int) -> None:
    """Make an account, or give an existing one another role and password; its sessions end.

    Raises:
        DataError: the name or the password cannot be used.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} cannot be an account's name", "letters, digits, and . _ @ - inside")
    if role not in ROLES:
        raise DataError(f"{role!r} is no role", f"one of {', '.join(ROLES)}")
    if len(password) < LEAST_PASSWORD:
        raise DataError("the password is too short", f"at least {LEAST_PASSWORD} characters")
    with store.writing() as connection:
        connection.execute(delete(t.session).where(t.session.c.name == name))
        values = {"role": role, "password": hashed(password), "disabled": False}
        done = connection.execute(update(t.account).where(t.account.c.name == name).values(values))
        if not done.rowcount:
            connection.execute(insert(t.account).values({**values, "name": name, "made_ns": now_ns}))
        audit(connection, Act(by, "account", name, role), now_ns)


def disable_account(store: Store, by: str, name: str, *, now_ns: int) -> None:
    """Let nobody log in under a name any more; its sessions end.

    Raises:
        DataError: there is no such account, or it is the last admin.
    """
    with store.writing() as connection:
        admins = select(t.account.c.name).where(t.account.c.role == "admin", t.account.c.disabled.is_(False))
        if [row.name for row in connection.execute(admins)] == [name]:
            raise DataError(f"{name} is the last admin", "make another one first")
        done = connection.execute(update(t.account).where(t.account.c.name == name).values(disabled=True))
        if not done.rowcount:
            raise DataError(f"there is no account {name}", "see the list of accounts")
        connection.execute(delete(t.session).where(t.session.c.name == name))
        audit(connection, Act(by, "account", name, "disabled"), now_ns)


def let_in(attempts: Attempts, name: str, address: str, *, now_ns: int) -> None:
    """Look at no password of an account or address that has to wait.

    Raises:
        DataError: too many were wrong.
    """
    wait_ns = attempts.wait_ns(_keys(name, address), now_ns)
    if wait_ns > 0:
        raise DataError(f"too many wrong passwords; wait {-(-wait_ns // NS)} s", "ask an admin for a new password")


def _keys(name: str, address: str) -> tuple[str, str]:
    return f"name {name}", f"address {address}"


def log_in(store: Store, attempts: Attempts, name: str, password: str, address: str, *, now_ns: int) -> str:
    """Check a password; returns the token of a new session.

    Raises:
        DataError: the name or password is wrong (it is not said which), or too many were.
    """
    keys = _keys(name, address)
    let_in(attempts, name, address, now_ns=now_ns)
    with store.engine.connect() as connection:
        row = connection.execute(select(t.account).where(t.account.c.name == name)).first()
    if not matches(password, _NOBODY if row is None else row.password) or row is None or row.disabled:
        attempts.failed(keys, now_ns)
        with store.writing() as connection:
            audit(connection, Act(name[:80], "login refused", "", "", address), now_ns)
        raise DataError("the name or the password is wrong", "ask an admin for a new password")
    attempts.succeeded(keys)
    token = secrets.token_urlsafe(32)
    with store.writing() as connection:
        connection.execute(delete(t.session).where(t.session.c.expires_ns <= now_ns))
        values = {"token_sha256": _digest(token), "name": name, "csrf": secrets.token_urlsafe(24)}
        connection.execute(insert(t.session).values({**values, "expires_ns": now_ns + SESSION_NS}))
        audit(connection, Act(name, "login", "", "", address), now_ns)
    return token


def log_out(store: Store, token: str) -> None:
    """End a session."""
    with store.writing() as connection:
        connection.execute(delete(t.session).where(t.session.c.token_sha256 == _digest(token)))


def user_of(connection: Connection, token: str, now_ns: int) -> User | None:
    """Whose session a token names; None where it has ended."""
    statement = (
        select(t.account.c.name, t.account.c.role, t.session.c.csrf)
        .join(t.session, t.session.c.name == t.account.c.name)
        .where(
            t.session.c.token_sha256 == _digest(token),
            t.session.c.expires_ns > now_ns,
            t.account.c.disabled.is_(False),
        )
    )
    row = connection.execute(statement).first()
    return None if row is None else User(row.name, row.role, row.csrf)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
