"""The only place that imports ray: the stream, the workers' wiring, the trainer, preflight, the main job."""
