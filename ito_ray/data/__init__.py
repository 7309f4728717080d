"""Data: shards, decoding, views, captions and demo pictures; nothing here imports ray."""
