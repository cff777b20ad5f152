"""Who may use the desk: accounts with scrypt passwords, three roles, and sessions of a limited life.

Roles: a *viewer* reads; an *operator* also acknowledges, reviews and silences; an *admin* also manages accounts and
targets. A session is a random token in a cookie; the database holds its SHA-256 alone.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from sqlalchemy import Connection, delete, insert, select, update

from agent.errors import DataError
from agent.types import NS
from desk.store import tables as t
from desk.store.answers import Person
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

MOST_PASSWORD = 1000
"""Characters."""

TRIES = 5
"""Wrong passwords of one account from one address, after which the two wait ..."""
WAIT_NS = 60 * NS
"""... this long, and twice as long after each further one, up to an hour."""
LONGEST_WAIT_NS = 3600 * NS
ADDRESS_TRIES = 20
"""From one address, whatever the accounts, ..."""
NAME_TRIES = 100
"""... and of one account, whatever the addresses: guesses from a hundred machines. These two hold up nobody who has
logged in from his address within ``KNOWN_NS``, so that no stranger can lock out the night's operator."""
KNOWN_NS = 90 * 86_400 * NS
FORGET_NS = 24 * 3600 * NS
"""Without a wrong password for so long the count begins anew."""
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


@dataclass(frozen=True, slots=True)
class Limit:
    """Whose wrong passwords are counted together, and how many are free."""

    key: str
    tries: int = TRIES


class Attempts:
    """Wrong passwords, counted by several limits at once. Any thread may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failed: OrderedDict[str, tuple[int, int]] = OrderedDict()

    def wait_ns(self, limits: Sequence[Limit], now_ns: int) -> int:
        """How long until another attempt is looked at; 0 for now."""
        with self._lock:
            return max(0, *(self._until(limit, now_ns) - now_ns for limit in limits))

    def failed(self, limits: Sequence[Limit], now_ns: int) -> None:
        """One more wrong password."""
        with self._lock:
            for limit in limits:
                count = self._count(limit, now_ns)
                self._failed.pop(limit.key, None)
                self._failed[limit.key] = count + 1, now_ns
            while len(self._failed) > _REMEMBERED:
                self._failed.popitem(last=False)

    def succeeded(self, limit: Limit) -> None:
        """The right password: the count of this limit begins anew."""
        with self._lock:
            self._failed.pop(limit.key, None)

    def _count(self, limit: Limit, now_ns: int) -> int:
        count, at_ns = self._failed.get(limit.key, (0, now_ns))
        return 0 if now_ns - at_ns > FORGET_NS else count

    def _until(self, limit: Limit, now_ns: int) -> int:
        count = self._count(limit, now_ns)
        if count < limit.tries:
            return now_ns
        return self._failed[limit.key][1] + min(LONGEST_WAIT_NS, WAIT_NS << min(count - limit.tries, 10))


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
        DataError: the name or the password cannot be used, or the last admin would be none any more.
    """
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} cannot be an account's name", "letters, digits, and . _ @ - inside")
    if role not in ROLES:
        raise DataError(f"{role!r} is no role", f"one of {', '.join(ROLES)}")
    values = {"role": role, "password": _new_password(password), "disabled": False}
    with store.writing() as connection:
        if role != "admin":
            _keep_an_admin(connection, name)
        connection.execute(delete(t.session).where(t.session.c.name == name))
        done = connection.execute(update(t.account).where(t.account.c.name == name).values(values))
        if not done.rowcount:
            connection.execute(insert(t.account).values({**values, "name": name, "made_ns": now_ns}))
        audit(connection, Act(by, "account", name, role), now_ns)


def _new_password(password: str) -> str:
    """The hash of a password that somebody has chosen.

    Raises:
        DataError: it is too short or too long.
    """
    if len(password) < LEAST_PASSWORD:
        raise DataError("the password is too short", f"at least {LEAST_PASSWORD} characters")
    if len(password) > MOST_PASSWORD:
        raise DataError("the password is too long", f"at most {MOST_PASSWORD} characters")
    return hashed(password)


def _keep_an_admin(connection: Connection, name: str) -> None:
    """
    Raises:
        DataError: an account is that of the last admin.
    """
    admins = select(t.account.c.name).where(t.account.c.role == "admin", t.account.c.disabled.is_(False))
    if [row.name for row in connection.execute(admins)] == [name]:
        raise DataError(f"{name} is the last admin", "make another one first")


def disable_account(store: Store, by: str, name: str, *, now_ns: int) -> None:
    """Let nobody log in under a name any more; its sessions end.

    Raises:
        DataError: there is no such account, or it is the last admin.
    """
    with store.writing() as connection:
        _keep_an_admin(connection, name)
        done = connection.execute(update(t.account).where(t.account.c.name == name).values(disabled=True))
        if not done.rowcount:
            raise DataError(f"there is no account {name}", "see the list of accounts")
        connection.execute(delete(t.session).where(t.session.c.name == name))
        audit(connection, Act(by, "account", name, "disabled"), now_ns)


def let_in(store: Store, attempts: Attempts, name: str, address: str, *, now_ns: int) -> None:
    """Look at no password of an account that has to wait at this address.

    Raises:
        DataError: too many were wrong.
    """
    pair, *wider = _limits(name, address)
    wait_ns = attempts.wait_ns([pair], now_ns)
    if wait_ns <= 0 < attempts.wait_ns(wider, now_ns) and not _is_known(store, name, address, now_ns):
        wait_ns = attempts.wait_ns(wider, now_ns)
    if wait_ns > 0:
        raise DataError(f"too many wrong passwords; wait {-(-wait_ns // NS)} s", "ask an admin for a new password")


def _limits(name: str, address: str) -> tuple[Limit, Limit, Limit]:
    """Of the account at this address, of the address, and of the account."""
    block = _block(address)
    return (
        Limit(f"pair {block} {name}"),
        Limit(f"address {block}", ADDRESS_TRIES),
        Limit(f"name {name}", NAME_TRIES),
    )


def _block(address: str) -> str:
    """An address; of IPv6 the network of one site, which has more addresses than anyone can count."""
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if found.version == 6:
        found = found.ipv4_mapped or ipaddress.ip_network((int(found), 64), strict=False).network_address
    return str(found)


def _is_known(store: Store, name: str, address: str, now_ns: int) -> bool:
    """Whether somebody has logged in under this name from this address lately."""
    a = t.audit.c
    seen = select(a.address).where(a.act == "login", a.who == name, a.when_ns > now_ns - KNOWN_NS).distinct()
    with store.reading() as connection:
        return _block(address) in map(_block, connection.execute(seen).scalars())


def log_in(store: Store, attempts: Attempts, name: str, password: str, address: str, *, now_ns: int) -> str:
    """Check a password; returns the token of a new session.

    Raises:
        DataError: the name or password is wrong (it is not said which), or too many were.
    """
    limits = _limits(name, address)
    let_in(store, attempts, name, address, now_ns=now_ns)
    if not _is_right(store, name, password):
        attempts.failed(limits, now_ns)
        with store.writing() as connection:
            audit(connection, Act(name[:80], "login refused", "", "", address), now_ns)
        raise DataError("the name or the password is wrong", "ask an admin for a new password")
    attempts.succeeded(limits[0])
    token = secrets.token_urlsafe(32)
    with store.writing() as connection:
        connection.execute(delete(t.session).where(t.session.c.expires_ns <= now_ns))
        values = {"token_sha256": _digest(token), "name": name, "csrf": secrets.token_urlsafe(24)}
        connection.execute(insert(t.session).values({**values, "expires_ns": now_ns + SESSION_NS}))
        audit(connection, Act(name, "login", "", "", address), now_ns)
    return token


def _is_right(store: Store, name: str, password: str) -> bool:
    """Whether it is the password of an open account."""
    with store.reading() as connection:
        row = connection.execute(select(t.account).where(t.account.c.name == name)).first()
    return matches(password, _NOBODY if row is None else row.password) and row is not None and not row.disabled


def change_password(
    store: Store, attempts: Attempts, person: Person, token: str, *, old: str, new: str, now_ns: int
) -> None:
    """Give a person a new password of their own. Their other sessions end, that of ``token`` goes on.

    Raises:
        DataError: the old password is wrong, or too many were, or the new one cannot be used.
    """
    let_in(store, attempts, person.name, person.address, now_ns=now_ns)
    if not _is_right(store, person.name, old):
        attempts.failed(_limits(person.name, person.address), now_ns)
        with store.writing() as connection:
            audit(connection, Act(person.name, "password refused", person.name, "", person.address), now_ns)
        raise DataError("the old password is wrong", "your password is as it was")
    password = _new_password(new)
    others = (t.session.c.name == person.name, t.session.c.token_sha256 != _digest(token))
    with store.writing() as connection:
        connection.execute(update(t.account).where(t.account.c.name == person.name).values(password=password))
        connection.execute(delete(t.session).where(*others))
        audit(connection, Act(person.name, "password changed", person.name, "", person.address), now_ns)


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
