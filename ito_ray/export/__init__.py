"""Dual encoder -> a folder that works without ito_ray, and the proof that it does."""
