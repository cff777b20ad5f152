"""Butterworth filters as second-order sections, and a streaming form of them that needs numpy only.

A recursive filter is a sample-by-sample loop, which Python is slow at and numpy has no call for. Over a chunk of ``K``
samples, however, a linear filter is one matrix: outputs and final state are linear in the samples and the state at the
start. So each chunk costs one small matrix-vector product, at the speed of BLAS.

Chunks are aligned to the first sample after a reset. In an incomplete one the places of later samples hold old ones,
which the zeros in a causal filter's matrix keep out. Every output thus comes from the same product of the same shape,
and does not depend, to the bit, on how a digitiser cuts its packets. Packets that only files have, of 4000 samples and
more, are worked on as matrices, several times faster; BLAS then adds in another order, and the outputs differ by
rounding, some 1e-13 of the signal (tested).

Design: Butterworth (1930), band transformations and bilinear transform with pre-warping as in Oppenheim & Schafer,
*Discrete-Time Signal Processing*, ch. 7; equal to ``scipy.signal.butter`` (tested).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agent.errors import DataError

Array = NDArray[np.float64]

CHUNK = 100
"""Samples a matrix spans: a one-second packet at 100 Hz is then one product; larger matrices leave the L2 cache."""
LONG_CHUNK = 50
"""Samples of a chunk for long packets, where calls cost less and arithmetic more."""
GROUP = 16
"""Chunks of a long packet whose states are found with one product, and groups of chunks likewise."""
LONG = 4000
"""Samples from which on a packet is a long one ..."""
LONG_AT_ONCE = 1500
"""... and a record that is filtered at once, however it came: from here on that is quicker."""
_SPAN = GROUP * GROUP * LONG_CHUNK
"""Samples worked on at once: two products find all states, and the work fits the second-level cache."""


@lru_cache(maxsize=64)
def butterworth(low_hz: float | None, high_hz: float | None, rate_hz: float, order: int) -> Array:
    """Second-order sections ``[n, 6]`` (b0 b1 b2 a0 a1 a2): band-pass with both corners, else high-pass or low-pass.

    As usual in seismology a band-pass of ``order`` has ``2 * order`` poles.

    Raises:
        DataError: corners missing, out of order, or not below the Nyquist frequency.
    """
    nyquist = rate_hz / 2
    corners = [f for f in (low_hz, high_hz) if f is not None]
    if not corners or any(not 0 < f < nyquist for f in corners) or corners != sorted(set(corners)):
        raise DataError(
            f"no Butterworth filter has corners {low_hz} and {high_hz} Hz at {rate_hz:g} samples a second",
            f"corners must rise and lie between 0 and the Nyquist frequency, {nyquist:g} Hz",
        )
    # Analogue prototype: `order` poles on the left half of the unit circle, no zeros.
    k = np.arange(1, order + 1)
    prototype = np.exp(1j * np.pi * (2 * k + order - 1) / (2 * order))
    warped = [4 * np.tan(np.pi * f / rate_hz) for f in corners]
    if low_hz is not None and high_hz is not None:
        width, centre = warped[1] - warped[0], np.sqrt(warped[0] * warped[1])
        half = prototype * width / 2
        root = np.sqrt(half**2 - centre**2)
        analogue = np.concatenate([half + root, half - root])
        zeros = np.concatenate([np.ones(order), -np.ones(order)])
        reference = (4 + 1j * centre) / (4 - 1j * centre)
    elif low_hz is not None:
        analogue, zeros, reference = warped[0] / prototype, np.ones(order), -1.0 + 0j
    else:
        analogue, zeros, reference = warped[0] * prototype, -np.ones(order), 1.0 + 0j
    sos = _sections((4 + analogue) / (4 - analogue), zeros, complex(reference))
    sos.setflags(write=False)  # one array serves every caller
    return sos


def _sections(poles: NDArray[np.complex128], zeros: Array, reference: complex) -> Array:
    """Pair conjugate (or real) poles, share out the zeros, and give each section unit gain where the whole has it."""
    upper = sorted(poles[poles.imag > 1e-12], key=abs)
    real = sorted(poles[np.abs(poles.imag) <= 1e-12].real)
    pairs = [(p, p.conjugate()) for p in upper]
    pairs += [(complex(a), complex(b)) for a, b in zip(real[0::2], real[1::2], strict=False)]
    singles = [complex(real[-1])] if len(real) % 2 else []
    # A band-pass has as many zeros at 0 Hz as at Nyquist: one of each a section keeps every section a band-pass.
    at_dc, at_nyquist = [z for z in zeros if z > 0], [z for z in zeros if z < 0]
    rows = []
    for p, q in pairs:
        z1 = (at_dc or at_nyquist).pop()
        z2 = (at_nyquist or at_dc).pop()
        rows.append([1.0, -(z1 + z2), z1 * z2, 1.0, -(p + q).real, (p * q).real])
    for p in singles:
        rows.append([1.0, -(at_dc or at_nyquist).pop(), 0.0, 1.0, -p.real, 0.0])
    sos = np.array(rows, dtype=np.float64)
    powers = reference ** -np.arange(3)
    gains = np.abs(sos[:, :3] @ powers) / np.abs(sos[:, 3:] @ powers)
    sos[:, :3] /= gains[:, None]
    return sos


class _Blocks:
    """The matrices of one filter over one chunk: see the module's text."""

    def __init__(self, sos: Array, chunk: int) -> None:
        states = 2 * len(sos)
        # Column j of these is the response to sample j alone, or to state j alone.
        impulse, _ = _cascade(sos, np.eye(1, chunk)[0], np.zeros(states))
        lag = np.arange(chunk)[:, None] - np.arange(chunk)[None, :]
        toeplitz = np.where(lag >= 0, impulse[np.abs(lag)], 0.0)
        free = [_cascade(sos, np.zeros(chunk), unit) for unit in np.eye(states)]
        one_step = np.stack([_cascade(sos, np.zeros(1), unit)[1] for unit in np.eye(states)], axis=1)
        entry = _cascade(sos, np.ones(1), np.zeros(states))[1]
        self.output = np.ascontiguousarray(np.hstack([toeplitz, np.stack([y for y, _ in free], axis=1)]))
        forced = np.empty((states, chunk))
        column = entry
        for j in range(chunk - 1, -1, -1):
            forced[:, j] = column
            column = one_step @ column
        self.forced = forced
        wide = np.linalg.matrix_power(one_step.astype(np.longdouble), chunk)
        # Outputs and the state after them, in one product.
        self.step = np.vstack([self.output, np.hstack([forced, wide.astype(np.float64)])])
        self.over_chunks = _Propagation(wide)
        self.over_groups = _Propagation(np.linalg.matrix_power(wide, GROUP))
        self.step_state = _steady_state(sos)
        self.chunk, self.states = chunk, states


class _Propagation:
    """Over ``GROUP`` steps of a transition: what the state at the start (``kept``) and the additions of each step
    (``added``) leave after each of the steps. Powers are taken in extended precision: errors would grow with them."""

    def __init__(self, transition: NDArray[np.longdouble]) -> None:
        states = len(transition)
        powers = [np.eye(states, dtype=np.longdouble)]
        for _ in range(GROUP):
            powers.append(transition @ powers[-1])
        columns = [power.T.astype(np.float64) for power in powers]
        self.kept = np.hstack(columns[1:])
        self.added = np.zeros((GROUP * states, GROUP * states))
        for i in range(GROUP):
            for j in range(i + 1):
                self.added[j * states : (j + 1) * states, i * states : (i + 1) * states] = columns[i - j]


def _cascade(sos: Array, x: Array, state: Array) -> tuple[Array, Array]:
    """Plain sample-by-sample filter (transposed direct form II): the definition that the matrices are built from."""
    y, out = x.tolist(), state.tolist()
    for i, (b0, b1, b2, _, a1, a2) in enumerate(sos.tolist()):
        z1, z2 = out[2 * i], out[2 * i + 1]
        for n, value in enumerate(y):
            result = b0 * value + z1
            z1 = b1 * value - a1 * result + z2
            z2 = b2 * value - a2 * result
            y[n] = result
        out[2 * i], out[2 * i + 1] = z1, z2
    return np.array(y), np.array(out)


def _steady_state(sos: Array) -> Array:
    """State that a constant input of 1 leads to: starting from it, a DC offset makes no transient."""
    state, level = [], 1.0
    for b0, b1, b2, _, a1, a2 in sos:
        out = level * (b0 + b1 + b2) / (1 + a1 + a2)
        z2 = b2 * level - a2 * out
        state += [out - b0 * level, z2]
        level = out
    return np.array(state)


@lru_cache(maxsize=32)
def _blocks(key: bytes, sections: int, chunk: int) -> _Blocks:
    return _Blocks(np.frombuffer(key, dtype=np.float64).reshape(sections, 6), chunk)


class SosFilter:
    """A filter whose state is carried over calls. One instance per channel; not thread-safe."""

    def __init__(self, sos: Array, *, prime: bool = True, long: int = LONG) -> None:
        """``prime``: begin as if the first sample had always been there, so that an offset of the recorder does not
        ring; without it the filter begins at rest, as ``scipy.signal.sosfilt`` does. ``long``: samples from which on a
        packet is a long one."""
        sos = np.ascontiguousarray(sos, dtype=np.float64)
        self._m = _blocks(sos.tobytes(), len(sos), CHUNK)
        self._long = _blocks(sos.tobytes(), len(sos), LONG_CHUNK)
        self._prime, self._long_from = prime, long
        self._vector = np.empty(CHUNK + self._m.states)
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next sample is a new beginning."""
        self._vector[:] = 0.0
        self._filled = 0
        self._fresh = True

    def process(self, x: NDArray[Any]) -> Array:
        """Filter the next samples ``[n]`` (any real dtype); returns float64 ``[n]``."""
        n = len(x)
        m, v = self._m, self._vector
        if self._fresh and n:
            self._fresh = False
            if self._prime:
                v[CHUNK:] = m.step_state * float(x[0])
        result: Array
        if n == CHUNK and self._filled == 0:
            v[:CHUNK] = x
            result = m.step.dot(v)  # the product of @, at a quarter less
            v[CHUNK:] = result[CHUNK:]
            return result[:CHUNK]
        out = np.empty(n)
        done = 0
        while done < n:
            start = self._filled
            if n >= self._long_from and start == 0 and n - done >= CHUNK:
                stop = done + min(_SPAN, n - done) // CHUNK * CHUNK
                self._whole(x[done:stop], out[done:stop])
            else:
                stop = min(n, done + CHUNK - start)
                filled = start + stop - done
                v[start:filled] = x[done:stop]
                result = m.step.dot(v)
                out[done:stop] = result[start:filled]
                if filled == CHUNK:
                    v[CHUNK:] = result[CHUNK:]
                    filled = 0
                self._filled = filled
            done = stop
        return out

    def _whole(self, x: NDArray[Any], out: Array) -> None:
        """Many whole chunks at once."""
        m, chunk = self._long, LONG_CHUNK
        count = len(x) // chunk
        vectors = np.empty((count, chunk + m.states))
        vectors[:, :chunk] = x.reshape(count, chunk)
        state = self._vector[CHUNK:]
        after = _states_after(m, vectors[:, :chunk] @ m.forced.T, state)
        vectors[0, chunk:] = state
        vectors[1:, chunk:] = after[:-1]
        np.matmul(vectors, m.output.T, out=out.reshape(count, chunk))
        state[:] = after[-1]


def _states_after(m: _Blocks, added: Array, state: Array) -> Array:
    """States ``[n, states]`` after each of ``n`` chunks that begin with ``state`` and add these, n <= GROUP**2."""
    count, states = added.shape
    groups = -(-count // GROUP)
    padded = np.zeros((groups * GROUP, states))
    padded[:count] = added
    after = padded.reshape(groups, -1) @ m.over_chunks.added
    begins = np.empty((groups, states))
    begins[0] = state
    if groups > 1:
        ends = np.zeros((GROUP, states))
        ends[: groups - 1] = after[:-1, -states:]
        upper = ends.ravel() @ m.over_groups.added + state @ m.over_groups.kept
        begins[1:] = upper.reshape(GROUP, states)[: groups - 1]
    after += begins @ m.over_chunks.kept
    return after.reshape(-1, states)[:count]
