"""A folder as SeisBench's ``WaveformDataset`` reads it: ``waveforms.hdf5`` beside ``metadata.csv``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import ConfigError
from desk.record import Trace

COMPONENT_ORDER = "ZNE"
FORMAT = {
    "dimension_order": "CW",
    "component_order": COMPONENT_ORDER,
    "measurement": "as recorded",
    "unit": "counts",
    "instrument_response": "not restituted",
}
"""The group ``data_format``, the same for all traces. Sampling rates are in the table."""


class WaveformFile:
    """``waveforms.hdf5``, open for writing; a context manager."""

    def __init__(self, folder: Path) -> None:
        """
        Raises:
            ConfigError: h5py is not installed.
        """
        try:
            import h5py
        except ImportError:
            raise ConfigError("SeisBench's format needs h5py", "pip install 'talus-agent[seisbench]'") from None
        self._file: Any = h5py.File(folder / "waveforms.hdf5", "w")
        for name, value in FORMAT.items():
            self._file[f"data_format/{name}"] = value

    def __enter__(self) -> WaveformFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, name: str, samples: NDArray[np.float32]) -> None:
        """One event's samples, ``[component, sample]`` in the order of ``COMPONENT_ORDER``."""
        self._file.create_dataset(f"data/{name}", data=samples, compression="gzip", shuffle=True)


def aligned(traces: Sequence[Trace]) -> tuple[float, NDArray[np.float32]]:
    """Components on one time axis: seconds from the onset to the first sample, and counts without their mean,
    ``[3, sample]`` in the order of ``COMPONENT_ORDER``; zero where nothing was recorded."""
    rate = traces[0].rate_hz
    start_s = min(trace.start_s for trace in traces)
    count = max(round((trace.start_s - start_s) * rate) + len(trace.samples) for trace in traces)
    samples = np.zeros((len(COMPONENT_ORDER), count), np.float32)
    for trace in traces:
        at = round((trace.start_s - start_s) * rate)
        samples[COMPONENT_ORDER.index(trace.name), at : at + len(trace.samples)] = np.nan_to_num(trace.samples)
    return start_s, samples
