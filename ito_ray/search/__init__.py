"""From embeddings to answers: an index on disk, a page of results, a small local server."""
