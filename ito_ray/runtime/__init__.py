"""The only place that imports ray: the stream, the workers' wiring, the trainer, preflight, the main job."""

import os

# Ray reads it when it is imported. The one line warns of many small actors, as sweeps start them, and nobody can act on
# it; the other adds twenty lines of Ray's own log to the line that says that a node is dead.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node|Raylet is terminated")
