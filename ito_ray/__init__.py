"""ito_ray: train CLIP-like image-text encoders with ITO, at any scale, on Ray."""
