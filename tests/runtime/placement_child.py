"""A cluster of two nodes: prints where the stream's blocks were made and where a rank ran. Run by test_placement.py."""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import ray.experimental
from ray._private.state import available_resources_per_node
from ray.cluster_utils import Cluster

from ito_ray.config.schema import Config
from ito_ray.data.tokens import train_wordpiece
from ito_ray.errors import ClusterError
from ito_ray.runtime import nodes, trainer
from ito_ray.runtime.access import require_token
from ito_ray.runtime.feed import execution_options
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.preflight import plan_data, require_resources
from ito_ray.runtime.stream import EntryReader, open_stream
from ito_ray.runtime.trainer import start_monitor
from tests.runtime.shards import caption, small_config

CPUS = 2
"""Of each node. Beside what Ray Train asked for, Ray's autoscaling coordinator hands out whole CPUs to Ray Data: of one
CPU it leaves none for as long as it remembers a trainer that has ended."""


def _config(folder: Path, pool: str, **train: Any) -> Config:
    """Pictures large enough that Ray puts the blocks into an object store, which small ones never see."""
    return small_config(folder, data={"node_labels": {"pool": pool}}, model={"image": {"size": 64}}, train=train)


def blocks_by_pool(cfg: Config, tokenizer: TokenizerFiles, pools: dict[str, str]) -> dict[str, int]:
    """How many of the stream's blocks lie on the nodes of each pool."""
    data = plan_data(cfg)
    ray.data.DataContext.get_current().execution_options = execution_options(cfg, 1)
    reader = EntryReader(data.plan, cfg, tokenizer, start_monitor(cfg, data.plan, None), {})
    counts = dict.fromkeys(pools.values(), 0)
    stream: Any = open_stream(reader, range(2 * data.plan.entries_per_pass))
    for bundle in stream.iter_internal_ref_bundles():
        for location in ray.experimental.get_object_locations(list(bundle.block_refs)).values():
            for node in location["node_ids"]:
                counts[pools[node]] += 1
        for node, free in available_resources_per_node().items():
            if pools[node] == "train" and cfg.data.node_labels == {"pool": "data"}:
                assert free["CPU"] == CPUS, "a data task took a CPU of the training node"
    return counts


def node_of_rank(cfg: Config, tokenizer: TokenizerFiles) -> str:
    """The node that Ray Train puts the only rank of the main job's trainer on."""
    train: Any = trainer
    told = Path(cfg.output) / "node"

    def tell_node(given: dict[str, Any]) -> None:
        told.write_text(ray.get_runtime_context().get_node_id())

    train.train_worker = tell_node
    data = plan_data(cfg)
    train._trainer(cfg, data, tokenizer, start_monitor(cfg, data.plan, None), judged=False).fit()
    return told.read_text()


def main(folder: Path) -> None:
    """Blocks by pool, and the rank's pool, asking for one node, then for the other: neither is chosen by chance."""
    require_token()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": CPUS, "labels": {"pool": "train"}})
    ray.init(address=cluster.address, log_to_driver=False)
    late = _config(folder, "data", wait_minutes=3)
    with pytest.raises(ClusterError, match=r"on none of the cluster's 1 nodes .* --train.wait-minutes 15 waits"):
        require_resources(_config(folder, "data"))
    with ThreadPoolExecutor(1) as pool_of_one:
        waiting = pool_of_one.submit(require_resources, late)
        time.sleep(1)
        assert not waiting.done(), "it waits for the node that comes next"
        cluster.add_node(num_cpus=CPUS, labels={"pool": "data"}, object_store_memory=100 << 20)
        waiting.result(120)
    pools = {node["NodeID"]: node["Labels"]["pool"] for node in ray.nodes()}
    asked = nodes.survey(folder)
    train_wordpiece((caption(number) for number in range(96)), 80, 12).save_pretrained(folder / "tokenizer")
    tokenizer = TokenizerFiles.read(folder / "tokenizer")
    blocks, ranks = {}, {}
    for pool in ("train", "data"):
        cfg = _config(folder, pool)
        require_resources(cfg)
        blocks[pool] = blocks_by_pool(cfg, tokenizer, pools)
        cfg = small_config(folder, name=f"rank-{pool}", train={"node_labels": {"pool": pool}})
        ranks[pool] = pools[node_of_rank(cfg, tokenizer)]
    answers = {node.labels["pool"]: (node.cpus, node.facts is not None and node.facts.output) for node in asked}
    print(
        json.dumps({"blocks": blocks, "ranks": ranks, "answers": answers, "left": [p.name for p in folder.glob(".*")]})
    )
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
