"""Thin command-line entry points, run as `python -m pipelines.<name>`."""
