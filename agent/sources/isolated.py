"""Formats whose readers in ObsPy may take the process down with them, decoded in a child process.

Damaged GSE files make ObsPy's decoder (as of 1.5.1) write beyond its buffer; damaged DMX files make its reader
loop until memory is full. What the child makes of them comes back as plain arrays.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from agent.errors import SourceError

if TYPE_CHECKING:
    from obspy import Trace

FORMATS = frozenset({"DMX", "GSE1", "GSE2"})

SAFE_HEADERS = frozenset({"GSE1", "GSE2"})
"""Formats of which only the samples are dangerous; their headers may be read without a child."""

_MEMORY_BYTES = 2 << 30
_CPU_S = 10
_CODES = ("network", "station", "location", "channel")


def read_isolated(file: Path, name: str) -> list[Trace]:
    """The traces of a file in ObsPy's format ``name``, without what only that format knows.

    Raises:
        SourceError: the file cannot be read, or reading it crashed or took too much time or memory.
    """
    from obspy import Trace, UTCDateTime

    with tempfile.TemporaryDirectory(prefix="talus-") as folder:
        out = Path(folder, "traces.npz")
        child = subprocess.run(
            [sys.executable, "-m", __name__, str(file.absolute()), name, str(out)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if child.returncode or not out.exists():
            text = child.stdout.decode(errors="replace").strip().splitlines() if child.returncode == 1 else []
            reason = text[-1][:160] if text else "its reader crashed"
            raise SourceError(f"cannot be read ({reason})", "fetch it again from the recorder; it may be damaged")
        with np.load(out, allow_pickle=False) as arrays:
            headers: list[dict[str, Any]] = json.loads(str(arrays["headers"]))
            return [
                Trace(arrays[f"samples_{i}"], header | {"starttime": UTCDateTime(ns=header["starttime"])})
                for i, header in enumerate(headers)
            ]


def _main(file: str, name: str, out: str) -> int:
    """The child: limits itself, reads, and leaves arrays in ``out``; 1 with the reason on stdout where it cannot."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    from obspy import read

    try:
        with Path(file).open("rb") as handle:
            traces = list(read(handle, format=name, check_compression=False))
    except Exception as error:  # noqa: BLE001 - handed to the parent, which reports it
        print(str(error) or type(error).__name__)
        return 1
    headers = [
        {code: trace.stats[code] for code in _CODES}
        | {"sampling_rate": float(trace.stats.sampling_rate), "starttime": trace.stats.starttime.ns}
        for trace in traces
    ]
    arrays: dict[str, Any] = {f"samples_{i}": np.asarray(trace.data) for i, trace in enumerate(traces)}
    np.savez(out, **arrays | {"headers": np.array(json.dumps(headers))})
    return 0


if __name__ == "__main__":
    sys.exit(_main(*sys.argv[1:]))
