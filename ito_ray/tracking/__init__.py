"""MLflow: one run per training run, and the registry of what ships. The only package that imports mlflow."""

import os

# Read by mlflow when it is imported, so this must come first. A user's own setting wins.
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")  # else 30 lines about each new SQLite file
os.environ.setdefault("MLFLOW_UV_AUTO_DETECT", "false")  # else a uv.lock in the working folder ships with the model
os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
# At the end of a run MLflow prints the run's address with the password in it; ours is printed by the pipelines.
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
