"""The only place that imports ray: the stream, the workers' wiring, the trainer, preflight, the main job."""

import os

# Ray reads it when it is imported. The line warns of many small actors, as sweeps start them: nobody can act on it.
os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", "worker processes have been started on node")
