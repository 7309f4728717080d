"""Typed configuration: schema, recipes, and how a YAML file and the command line are laid over a recipe."""
