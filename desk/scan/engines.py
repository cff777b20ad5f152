"""Where units are judged: in processes of this machine, or on a Dask cluster that others keep.

An engine takes tasks and gives what came of them in any order; it writes nothing. Which process judged a unit, when,
and how often it was begun changes nothing about its result.
"""

from __future__ import annotations

import importlib
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeAlias

from agent.errors import ConfigError, DeliveryError, ModelError
from desk.scan.judge import Judged, Task, judge
from desk.scan.reading import ChangedError
from desk.scan.workers import serve

TRIES = 3
"""A unit whose process died, or whose file changed, is begun so often."""
AHEAD = 4
"""Units that wait in an engine, a worker: no worker is idle, and little is lost at Ctrl-C."""


@dataclass(frozen=True, slots=True)
class Failed:
    """A unit of which nothing came, and why."""

    task: Task
    reason: str


Outcome: TypeAlias = "Judged | Failed"
Engine: TypeAlias = Callable[[Iterable[Task]], Iterator[Outcome]]


def attempt(task: Task) -> Outcome:
    """Judge a unit; whatever is wrong with it is an outcome, except a network that cannot be used by any unit."""
    reason = ""
    for _ in range(TRIES):
        try:
            return judge(task)
        except ModelError:
            raise
        except ChangedError as error:
            reason = str(error)
        except Exception as error:  # noqa: BLE001 - one unit must not end the others
            return Failed(task, f"{type(error).__name__}: {error}")
    return Failed(task, reason)


def here(tasks: Iterable[Task]) -> Iterator[Outcome]:
    """One after the other, in this process."""
    return map(attempt, tasks)


def processes(jobs: int) -> Engine:
    """That many processes of this machine, each with one thread."""

    def run(tasks: Iterable[Task]) -> Iterator[Outcome]:
        waiting = iter(tasks)
        pool = _pool(jobs)
        running: dict[Future[Outcome], Task] = {}
        try:
            while True:
                for task in islice(waiting, jobs * AHEAD - len(running)):
                    running[pool.submit(attempt, task)] = task
                if not running:
                    return
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                if any(isinstance(future.exception(), BrokenProcessPool) for future in done):
                    # A process was killed, by hand or for want of memory; which unit it had is not known.
                    lost = list(running.values())
                    running.clear()
                    pool.shutdown(wait=True, cancel_futures=True)
                    yield from map(_alone, lost)
                    pool = _pool(jobs)
                    continue
                for future in done:
                    del running[future]
                    yield future.result()
        finally:
            _end(pool, at_once=bool(running))

    return run


def _alone(task: Task) -> Outcome:
    """One unit in a process of its own."""
    for _ in range(TRIES - 1):
        pool = _pool(1)
        try:
            return pool.submit(attempt, task).result()
        except BrokenProcessPool:
            continue
        finally:
            _end(pool, at_once=True)
    return Failed(task, "its process was killed each time; is there too little memory?")


def _end(pool: ProcessPoolExecutor, *, at_once: bool) -> None:
    for process in list(pool._processes.values()) if at_once and pool._processes else ():
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _pool(jobs: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(jobs, mp_context=serve(), initializer=_ignore_ctrl_c)


def _ignore_ctrl_c() -> None:
    """Ctrl-C goes to all processes of a terminal; the one that gives out work ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def dask(address: str) -> Engine:
    """The workers of a Dask scheduler. They need Talus, the same files under the same paths, and the same bundle."""

    def run(tasks: Iterable[Task]) -> Iterator[Outcome]:
        client = _client(address)
        try:
            yield from _on_dask(client, tasks)
        finally:
            client.close()

    return run


def _client(address: str) -> Any:
    try:
        distributed: Any = importlib.import_module("distributed")
    except ImportError as error:
        raise ConfigError(f"--dask needs {error.name}", "pip install 'talus-agent[scan]'") from None
    try:
        return distributed.Client(address, timeout="20s")
    except (OSError, ValueError) as error:
        raise DeliveryError(
            f"no Dask scheduler answers at {address} ({error})", "dask scheduler; dask worker URL"
        ) from None


def _on_dask(client: Any, tasks: Iterable[Task]) -> Iterator[Outcome]:
    """Results are let go as they come: what a scan holds at a time does not grow with the archive. A unit whose worker
    dies is begun anew elsewhere by the scheduler."""
    distributed: Any = importlib.import_module("distributed")
    waiting = iter(tasks)
    known: dict[Any, Task] = {}
    running: Any = distributed.as_completed(with_results=True, raise_errors=False)

    def fill() -> None:
        room = AHEAD * max(1, sum(client.nthreads().values())) - len(known)
        for task in islice(waiting, max(0, room)):
            future = client.submit(attempt, task, pure=False)
            known[future] = task
            running.add(future)

    fill()
    while known:
        future, outcome = next(running)
        task = known.pop(future)
        if future.status == "finished":
            yield outcome
        else:
            error = future.exception()
            if isinstance(error, ModelError):
                raise error
            yield Failed(task, f"{type(error).__name__}: {error}")
        future.release()
        del future, outcome
        fill()
