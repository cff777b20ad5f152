"""Any history of remote orders, trials, restarts, reloads and refusing disks leaves a station where it should be."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from control_support import envelope, key
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from test_remote_config import Site

from agent.config.file import ControlConfig, TunablesConfig
from agent.remote.configuration import TrialInputs, laid_over
from agent.remote.gate import Store
from agent.types import NS

GOOD = [{}, {"trigger": {"on": 5.0}}, {"trigger": {"on": 6.0, "off": 2.0}}, {"reporting": {"alert_expiry_s": 99}}]
BAD = [{"trigger": {"on": 0.1}}, {"mqtt": {"host": "x"}}, {"trigger": None}]
FILES = [TunablesConfig(), TunablesConfig.model_validate({"verdict": {"at_s": [4.0, 8.0]}})]


class RemoteOrdersMachine(RuleBasedStateMachine):
    """What should be so is kept beside the station: the highest revision, what is kept, and what is on trial."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.folder = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))

    @initialize()
    def begin(self) -> None:
        self.signing, self.stranger = key(self.folder), key(self.folder, "stranger")
        self.site = Site(self.folder / "control", self.signing)
        self.obstacle = self.site.folder / ".config.json.new"
        self.highest, self.fed_s = 0, 0
        self.kept: dict[str, Any] = {}
        self.trial: dict[str, Any] | None = None
        self.newest = b""

    def teardown(self) -> None:
        self.stack.close()

    @contextlib.contextmanager
    def disk(self, *, refuses: bool) -> Iterator[None]:
        if refuses:
            self.obstacle.mkdir()
        yield
        if refuses:
            self.obstacle.rmdir()

    @rule(
        step=st.sampled_from([-1, 0, 1, 1, 1, 5]),
        content=st.sampled_from(GOOD + BAD),
        flaw=st.sampled_from([None, None, None, None, "stranger", "elsewhere", "expired", "kind"]),
        refuses=st.booleans(),
    )
    def an_order_comes(self, step: int, content: dict[str, Any], flaw: str | None, refuses: bool) -> None:
        """What the disk refuses is taken when it comes again."""
        changes = {
            "elsewhere": {"stations": ("XX.ELSE",)},
            "expired": {"issued_ns": NS, "expires_ns": 2 * NS},
            "kind": {"kind": "command"},
        }.get(flaw or "", {})
        revision = max(1, self.highest + step)
        payload = envelope(self.stranger if flaw == "stranger" else self.signing, revision, content, **changes)
        applied = len(self.site.applied)
        is_good = flaw is None and revision > self.highest and content in GOOD
        with self.disk(refuses=refuses):
            said = self.site.hears(payload)
        if refuses or not is_good:
            assert len(self.site.applied) == applied
        if is_good:
            if refuses:
                assert said.refused[-1].kind == "store"
                self.site.hears(payload)
            self.highest, self.trial, self.newest = revision, content, payload

    @precondition(lambda self: self.newest)
    @rule()
    def the_broker_repeats_the_newest_order(self) -> None:
        applied = len(self.site.applied)
        self.site.hears(self.newest)
        assert len(self.site.applied) == applied

    @precondition(lambda self: self.trial is not None)
    @rule(refuses=st.booleans())
    def the_probation_passes(self, refuses: bool) -> None:
        """What the disk refuses to keep stays on trial until it takes it."""
        self.site.feed(61, at_s=self.fed_s)
        self.fed_s += 61
        with self.disk(refuses=refuses):
            self.site.tick(101)
            self.site.tick()
        assert self.site.report is not None
        assert self.site.report.status == ("trial" if refuses else "kept")
        self.site.tick(10)
        self.site.tick()
        assert self.trial is not None
        self.kept, self.trial = self.trial, None

    @rule(refuses=st.booleans())
    def the_link_is_down_for_long(self, refuses: bool) -> None:
        with self.disk(refuses=refuses):
            for _ in range(3):
                self.site.tick(40, TrialInputs(link_up=False))
            self.site.tick()
        self.trial = None

    @rule(refuses=st.booleans())
    def the_agent_is_restarted(self, refuses: bool) -> None:
        base = self.site.base
        with self.disk(refuses=refuses):
            self.site = self.site.again()
        self.site.base, self.trial, self.fed_s = base, None, 0

    @rule(base=st.sampled_from(FILES))
    def the_file_is_read_anew(self, base: TunablesConfig) -> None:
        self.site.base = base
        self.site.remote.reload(ControlConfig.model_validate_json(self.site.control), base)
        self.site.tick()
        self.site.tick()

    @invariant()
    def what_is_active_is_the_order_over_the_file(self) -> None:
        if not hasattr(self, "site"):
            return
        order = self.kept if self.trial is None else self.trial
        assert self.site.remote.effective == laid_over(self.site.base, order)

    @invariant()
    def no_revision_is_forgotten(self) -> None:
        if not hasattr(self, "site"):
            return
        stored = self.site.remote.gate.store.stored
        assert stored.highest == self.highest
        assert (stored.trial and stored.trial.content) == self.trial
        on_disk = Store(self.site.folder, "config").stored
        assert on_disk.highest == self.highest
        assert on_disk == stored or on_disk.trial is not None, "a roll back that the disk refused is made at the start"


TestRemoteOrders = RemoteOrdersMachine.TestCase
TestRemoteOrders.settings = settings(max_examples=25, stateful_step_count=20)
