"""What the minima and maxima of a vertical take on the link, a day, beside the same samples as miniSEED (Steim 2).

    python bench/envelope.py FILE...

Topic and packet headers are counted; ``processor`` is what the station spends on them for each hour of data.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from agent.alert.evidence import encode
from agent.detect.envelope import Envelopes
from agent.messages.payloads import PACKET_OVERHEAD, Message, Stamp
from agent.sources.archive import ArchiveSource
from agent.types import Segment

VERTICAL = 2
DAY_S = 86_400


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="continuous records")
    for path in parser.parse_args().files:
        print(line_of(path))


def line_of(path: Path) -> str:
    """One line of the table."""
    envelopes = Envelopes("Z", "talus/v1", lambda: Stamp("0" * 16, 1_000_000, 0, 0), exercise=False)
    messages: list[Message] = []
    seconds = raw = spent = 0.0
    for block in ArchiveSource([path], on_problem=lambda problem: None).blocks():
        if block.stream.row != VERTICAL:
            continue
        seconds += len(block.samples) / block.rate_hz
        raw += len(encode({block.stream: [Segment(block.start_ns, block.rate_hz, block.samples)]}))
        began = time.process_time()
        messages += envelopes.feed(block)
        spent += time.process_time() - began
    messages += envelopes.flush()
    size = sum(len(one.payload) + len(one.topic) + PACKET_OVERHEAD for one in messages)
    day = DAY_S / max(seconds, 1.0) / 1000
    return (
        f"{path.name:<24} {seconds / 3600:5.1f} h  {size * day:6.0f} kB a day, miniSEED {raw * day:6.0f} kB;"
        f" processor {1000 * spent / max(seconds / 3600, 1e-9):.0f} ms an hour"
    )


if __name__ == "__main__":
    main()
