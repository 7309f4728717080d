"""Sweeps over settings (`python -m tune.search`) and studies of fixed arms (`python -m tune.ablation`)."""
