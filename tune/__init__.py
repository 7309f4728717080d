"""Sweeps over the alignment and fusion weights come here; run as `python -m tune.search`."""
