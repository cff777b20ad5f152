"""The server from which a scan's processes are forked: it imports what they need once, while the command begins."""

from __future__ import annotations

import os
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext

from agent.cli import BLAS_THREADS


def serve() -> ForkServerContext:
    """Start the server, unless it is there. It has one thread, so that a fork is safe, and each process has one for
    linear algebra."""
    for name in BLAS_THREADS:
        os.environ[name] = "1"  # read when numpy is imported
    context = get_context("forkserver")
    context.set_forkserver_preload(["desk.scan.judge"])
    forkserver.ensure_running()
    return context
