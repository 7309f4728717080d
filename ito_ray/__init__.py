"""ito_ray: train CLIP-like image-text encoders with ITO, at any scale, on Ray."""

from ito_ray.unnamed_user import name_user

name_user()  # before anything else is imported: torch and Ray ask for the user when they are
