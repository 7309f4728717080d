"""ITO's losses as pure functions over embeddings, each with its equation and its gather."""
