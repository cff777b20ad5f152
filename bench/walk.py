"""The files of the agent that a sample passes on its way to the broker: a replay, from the first block to the last
acknowledgement, under a profiler.

    python bench/walk.py RECORDS...
"""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from types import FrameType
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
AGENT = f"{ROOT / 'agent'}{os.sep}"


def main(records: list[str]) -> int:
    """Print the files with the number of calls in each."""
    calls: Counter[str] = Counter()
    counting = threading.Event()

    def see(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event == "call" and counting.is_set() and code.co_filename.startswith(AGENT) and code.co_name != "<module>":
            calls[code.co_filename.removeprefix(AGENT)] += 1

    threading.setprofile(see)
    sys.setprofile(see)
    from agent.cli import main as talus
    from agent.commands import replay
    from demo.broker import local_broker

    run = replay._run

    def counted(*arguments: Any, **options: Any) -> None:
        counting.set()
        run(*arguments, **options)

    replay._run = counted
    with tempfile.TemporaryDirectory() as state, local_broker() as broker:
        os.environ["XDG_STATE_HOME"] = state
        status = talus(["replay", "--broker", broker.url, *records])
    for name, number in sorted(calls.items()):
        print(f"{number:>9} {name}")
    print(f"{len(calls)} files")
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
