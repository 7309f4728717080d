"""A dual encoder goes in, numbers and pictures come out. Imports neither ray nor mlflow."""
