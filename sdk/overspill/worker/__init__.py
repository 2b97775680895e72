"""An engine or an embedder in a process of its own.

An abort in native code (a malformed model file is enough) ends the worker and not the app:
running streams end with ``EngineDied``, which carries the text so far, and the next request
starts a new worker. The parent starts ``python -m overspill.worker``, writes one line of JSON to
its stdin and reads one from its stdout; then the two exchange the `Local` service's messages over
a 0600 Unix socket in a 0700 folder, or over loopback on Windows, with a token either way. When the
parent is gone, the worker ends: its stdin closes, or its parent is another.
"""

from overspill.worker.engine import WorkerEmbedder, WorkerEngine
from overspill.worker.options import WorkerOptions

__all__ = ["WorkerEmbedder", "WorkerEngine", "WorkerOptions"]
