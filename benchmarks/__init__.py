"""Measurements against the public code: run as python -m benchmarks.step_cost."""
