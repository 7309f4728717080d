"""From what people have (tables, folders, COCO, `datasets`, shards) to balanced shards, with an account of every input.

Pure parts: a source is read in numbered pieces, each input is inspected, a plan says which of them goes to which shard,
shards are written one by one. Each step leaves a file, so that a killed job goes on. `runtime/prepare.py` runs the
pieces and the shards in parallel.
"""
