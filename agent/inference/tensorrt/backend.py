"""A child process that serves: windows out, logits back, over a socket with a time-out."""

from __future__ import annotations

import json

import numpy as np
from numpy.typing import NDArray

from agent.errors import BackendError
from agent.inference.tensorrt.cache import Stored
from agent.inference.tensorrt.child import HINT, Child, Platform
from agent.types import LABELS, WINDOW_SAMPLES

READY_S = 120.0
ANSWER_S = 2.0
"""A network that takes a millisecond and has not answered after so long will not."""
_ANSWER_BYTES = 1 + 4 * len(LABELS)


class TensorRtBackend:
    """An engine at work in a process of its own. After a failure it is closed for good."""

    name = "tensorrt"

    def __init__(
        self, platform: Platform, engine: Stored, precision: str, model_file: str | None, answer_s: float = ANSWER_S
    ) -> None:
        """
        Raises:
            BackendError: the engine cannot be loaded, or the child died of it.
        """
        self.precision = precision
        self.model_file = model_file
        self._answer_s = answer_s
        self._child = Child(platform.python, "serve", str(engine.path), str(engine.offset))
        try:
            self.timing = dict(self._child.result(READY_S))
        except BaseException:
            self._child.close()
            raise
        self._open = True

    def logits(self, data: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``Backend.logits``."""
        if not self._open:
            raise BackendError("TensorRT's process has ended", HINT)
        try:
            self._child.socket.settimeout(self._answer_s)
            self._child.socket.sendall(np.ascontiguousarray(data, np.float32).reshape(3, WINDOW_SAMPLES).data)
            answer = self._receive()
        except TimeoutError:
            self.close()
            raise BackendError(f"TensorRT did not answer within {self._answer_s:g} s", HINT) from None
        except ConnectionError:
            error = self._child.died()
            self.close()
            raise error from None
        if answer[0] != 0:
            self.close()
            raise BackendError(f"TensorRT failed: {_reason(answer)}", HINT)
        return np.frombuffer(answer, np.float32, len(LABELS), 1)

    def rss_mb(self) -> float:
        """Resident memory of the child."""
        return self._child.rss_mb()

    def __del__(self) -> None:
        if getattr(self, "_open", False):
            self.close()

    def close(self) -> None:
        """End the child."""
        if self._open:
            self._open = False
            self._child.close()

    def _receive(self) -> bytes:
        answer = bytearray()
        while len(answer) < _ANSWER_BYTES and not (answer[:1] == b"\1" and answer[-1:] == b"\n"):
            raw = self._child.socket.recv(4096)
            if not raw:
                raise ConnectionError
            answer += raw
        return bytes(answer)


def _reason(answer: bytes) -> str:
    try:
        return str(json.loads(answer[1:])["error"])[:200]
    except (ValueError, KeyError, TypeError):
        return "it did not say why"
