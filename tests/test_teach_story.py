"""A new site's labels become what its station says: taught, gated, signed, heard in the shadow, promoted, kept."""

from __future__ import annotations

import json
import re
from pathlib import Path

from agent_support import running_agent, talus, write_config
from broker_support import needs_mosquitto, running, wait_for
from control_support import key
from teach_support import write_site

from agent.inference.bundle import DEFAULT_BUNDLE

pytestmark = needs_mosquitto
LIVELY = "{kind: simulator, speed: 20, seed: 5, rates: {slopequakes_per_hour: 120, rockfalls_per_hour: 60}}"


def test_labels_of_a_new_site_are_taught_pushed_held_and_kept(tmp_path: Path) -> None:
    status, out, err = talus("teach", write_site(tmp_path / "labels"), "--out", tmp_path / "taught", "--site", "new")
    assert status == 0, (out, err)
    version = re.search(r"talus-student (\S+), parent", out)
    assert version is not None and version[1].startswith("0.1.0+new.")
    with running(tmp_path) as broker:
        section = {
            "keys": [{"name": "ops", "public": key(tmp_path).trusted("own").public}],
            "probation_s": 1,
            "models": {"shadow_windows": 3, "agreement_share": 0.0},
        }
        config = write_config(
            tmp_path,
            "",
            broker.port,
            source=LIVELY,
            control=json.dumps(section),
            classifier=f"{{bundle: {DEFAULT_BUNDLE}, backends: [onnxruntime]}}",
        )
        where = ("--broker", f"mqtt://127.0.0.1:{broker.port}", "--station", "XX.SLP")
        signed = (*where, "--key", tmp_path / "key.pem")
        with running_agent("run", "--config", config) as agent:
            agent.wait_for("watches XX.SLP with talus-student 0.1.0")
            agent.wait_for("connected to")
            status, out, err = talus("model", "push", tmp_path / "taught", *signed, "--hold", "--wait", 100)
            assert status == 0, (out, err)
            agent.wait_for(f"{version[1]}: shadow")
            wait_for(lambda: talus("model", "promote", *signed)[0] == 0, 120)
            wait_for(lambda: f"{version[1]} serves" in talus("model", "show", *where)[1])
