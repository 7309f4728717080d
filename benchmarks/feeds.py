"""One feed in a process of its own: `python -m benchmarks.feeds '{"feed": "tar", …}'` prints JSON.

Every feed makes V views of 224 px and CLIP's tokens of one caption from the same shards and hands batches to a training
process. What is counted begins after a warm-up: nothing of Ray's start, imports and first blocks is in it. Counted are
user and system time of the feed's main process and of everything below it, so for the streams Ray's own processes too.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import open_clip
import ray
import ray.data
import ray.experimental
import ray.train
import torch
import webdataset as wds
from open_clip.transform import AugmentationCfg, image_transform
from PIL import Image
from ray.train import DataConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from torch import Tensor

from benchmarks.processes import cpu_seconds
from ito_ray.config import schema
from ito_ray.config.schema import Config, TrainConfig
from ito_ray.data.position import Position
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.models.pixels import normalisation
from ito_ray.runtime.cluster import connect
from ito_ray.runtime.feed import execution_options
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.preflight import plan_data
from ito_ray.runtime.stream import EntryReader, StreamFactory, open_stream, rank_batches, rank_blocks
from ito_ray.runtime.trainer import start_monitor
from ito_ray.training.loop import to_batch

BATCH = 128
ENTRIES = 2000
"""More than any measurement takes."""


@dataclass(frozen=True)
class Order:
    """What to measure."""

    feed: str
    """peer, limit_tar, limit_parquet, tar, parquet, or bytes."""
    shards: str
    """Folder with tar/ and parquet/."""
    warmup: int
    """Samples before the first reading."""
    samples: int
    """Samples between the first reading and the last; 0 = until `seconds` are over."""
    seconds: float = 0.0
    out: str = ""
    """File for the reading, set by `main`."""
    root: int = 0
    """The process whose tree is counted, set by `main`."""


def read_clock(batches: Iterator[int], order: Order) -> dict[str, float]:
    """Consume batches, given by their numbers of samples; what those after the warm-up took."""
    done = 0
    while done < order.warmup:
        done += next(batches)
    cpu, wall, counted = cpu_seconds(order.root), time.perf_counter(), 0
    while counted < order.samples or time.perf_counter() - wall < order.seconds:
        counted += next(batches)
    return {
        "samples": counted,
        "cpu_seconds": cpu_seconds(order.root) - cpu,
        "wall_seconds": time.perf_counter() - wall,
    }


def config(order: Order, format: str, output: str = "") -> Config:
    """The defaults, on these shards; whatever is written goes below `output`."""
    data = schema.DataConfig(train=(str(Path(order.shards) / format),))
    return Config(output=output, data=data, train=TrainConfig(global_batch=BATCH))


def peer(order: Order) -> dict[str, float]:
    """OpenCLIP's pipeline: webdataset in torch's DataLoader, decoded once, its transform and tokenizer applied."""
    views = config(order, "tar").data.views
    transform = image_transform(
        224,
        is_train=True,
        aug_cfg=AugmentationCfg(
            scale=views.crop_scale,
            color_jitter=views.jitter,
            color_jitter_prob=views.jitter_p,
            gray_scale_prob=views.gray_p,
        ),
    )
    tokenizer = open_clip.get_tokenizer("ViT-B-16")

    def image_views(image: Image.Image) -> Tensor:
        return torch.stack([transform(image) for _ in range(views.count)])

    def text_ids(text: str) -> Tensor:
        ids_T: Tensor = tokenizer(text)[0]
        return ids_T

    urls = sorted(str(path) for path in (Path(order.shards) / "tar").glob("*.tar"))
    pipeline = wds.DataPipeline(
        wds.ResampledShards(urls, deterministic=True),
        wds.tarfile_to_samples(),
        # OpenCLIP's buffer starts with 1,000 and grows to 5,000: what it is when it no longer grows, at ours' size.
        wds.shuffle(bufsize=1024, initial=1024),
        wds.decode("pilrgb"),
        wds.rename(image="jpg;png;jpeg;webp", text="txt"),
        wds.map_dict(image=image_views, text=text_ids),
        wds.to_tuple("image", "text"),
        wds.batched(BATCH, partial=False),
    )
    workers = max(1, (os.cpu_count() or 1) - 1)
    loader = wds.WebLoader(pipeline, batch_size=None, shuffle=False, num_workers=workers, persistent_workers=True)
    torch.set_num_threads(1)
    return read_clock((len(images) for images, _ in loader), order)


def limit(order: Order, format: str) -> dict[str, float]:
    """The work of the stream's tasks, one after the other in this process, without Ray."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        reader = _reader(config(order, format, folder), monitor=False)
        found = read_clock((len(reader.make(entry)[0]["uid"]) for entry in range(ENTRIES)), order)
        block, _ = reader.make(0)
    mean, std = normalisation(reader.cfg.model.image)
    started = time.process_time()
    for first in range(0, len(block["uid"]), 32):
        to_batch({name: rows[first : first + 32] for name, rows in block.items()}, torch.device("cpu"), mean, std)
    found["normalize_cpu_ms"] = 1000 * (time.process_time() - started) / len(block["uid"])
    return found


def stream(order: Order, format: str) -> dict[str, float]:
    """Ray Data into a Ray Train worker, wired as in training; the worker only takes the batches."""
    connect(verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(order, format, folder)
        reader = _reader(cfg, monitor=True)
        order = Order(**{**asdict(order), "out": str(Path(folder) / "reading.json")})
        TorchTrainer(
            take_batches,
            train_loop_config={"order": order, "cfg": cfg},
            datasets={"train": StreamFactory(reader.plan, cfg, reader.tokenizer, reader.monitor, ENTRIES, ENTRIES)},
            dataset_config=DataConfig(execution_options=execution_options(cfg, 1)),
            scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": cfg.train.cpus_per_worker}),
            run_config=RunConfig(name="ingest", storage_path=folder),
        ).fit()
        found: dict[str, float] = json.loads(Path(order.out).read_text())
    ray.shutdown()
    return found


def take_batches(given: dict[str, Any]) -> None:
    """The training worker."""
    order, cfg = given["order"], given["cfg"]
    torch.set_num_threads(cfg.train.threads)
    batches = rank_batches(rank_blocks(ray.train.get_dataset_shard("train")), cfg, Position(), rank=0, workers=1)
    Path(order.out).write_text(json.dumps(read_clock((len(batch["uid"]) for batch in batches), order)))


def stored_bytes(order: Order) -> dict[str, float]:
    """Bytes a sample that Ray's object store holds of the stream's blocks."""
    connect(verbose=False)
    with tempfile.TemporaryDirectory() as folder:
        dataset = open_stream(_reader(config(order, "tar", folder), monitor=True), range(4))
        size, rows = 0, 0
        for bundle in cast(Any, dataset).iter_internal_ref_bundles():
            locations = ray.experimental.get_object_locations(list(bundle.block_refs))
            size += sum(location["object_size"] for location in locations.values())
            rows += bundle.num_rows()
    ray.shutdown()
    return {"bytes_per_sample": size / rows, "samples": rows}


def _reader(cfg: Config, *, monitor: bool) -> EntryReader:
    data = plan_data(cfg)
    tokenizer = Path(cfg.output) / "tokenizer"
    clip_tokenizer(cfg.model.text.context).save_pretrained(tokenizer)
    handle = start_monitor(cfg, data.plan, None) if monitor else None
    return EntryReader(data.plan, cfg, TokenizerFiles.read(tokenizer), handle, {})


FEEDS: dict[str, Callable[[Order], dict[str, float]]] = {
    "peer": peer,
    "limit_tar": partial(limit, format="tar"),
    "limit_parquet": partial(limit, format="parquet"),
    "tar": partial(stream, format="tar"),
    "parquet": partial(stream, format="parquet"),
    "bytes": stored_bytes,
}


def main(described: str) -> None:
    """Measure and print."""
    order = Order(**{**json.loads(described), "root": os.getpid()})
    print(json.dumps(FEEDS[order.feed](order)), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
