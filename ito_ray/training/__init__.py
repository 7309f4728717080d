"""The step loop, optimiser, schedule and checkpoints: torch only, so it can be read and tested without Ray."""
