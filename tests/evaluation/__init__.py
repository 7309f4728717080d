"""Tests of ito_ray.evaluation."""
