"""What the last layer of a bundle's network reads."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from quantize.quantise import infer
from quantize.quantise.graph import INPUT
from quantize.teach.head import read_head, with_features


class Features:
    """The input of a network's last layer, computed as the station computes it."""

    def __init__(self, model: bytes) -> None:
        exposed, self._name = with_features(model)
        self._session = infer.session(exposed)
        self.head = read_head(model)

    def of(self, windows: NDArray[np.float32]) -> NDArray[np.float32]:
        """``[n, features]`` of windows ``[n, 3, 10240]``."""
        rows = [
            self._session.run([self._name], {INPUT: np.ascontiguousarray(window, np.float32)[None, :, None, :]})[0][0]
            for window in windows
        ]
        return np.asarray(rows, dtype=np.float32)
