"""Trials start when the nodes that are up hold one more; a cluster is asked for the rest, and for no more than that."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import time
import ray
from ray.cluster_utils import Cluster
from ray.util.placement_group import placement_group, placement_group_table, remove_placement_group
from ito_ray.runtime.access import require_token
from tune import room as module
from tune.capacity import Need
from tune.room import Room

module.LOOK_SECONDS, module.ASK_SECONDS = 0.0, 2.0
require_token()
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
small = cluster.add_node(num_cpus=2)
ray.init(cluster.address, log_to_driver=False)

def pending():
    return sum(one["state"] == "PENDING" for one in placement_group_table().values())

def until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, placement_group_table()
        time.sleep(0.2)

room = Room(Need(1, 1.0, 0.0, 1.0, {}, {}), most=3)
assert room.for_one_more(0) and pending() == 0, "the first fits"
trial = placement_group([{"CPU": 1}, {"CPU": 1}])
assert trial.wait(30)
assert not room.for_one_more(1) and not room.for_one_more(1)
until(lambda: pending() == 2)  # asked for once
cluster.add_node(num_cpus=2)
until(lambda: room.for_one_more(1))
second = placement_group([{"CPU": 1}, {"CPU": 1}])  # takes what was granted, though the third is still asked for
until(lambda: not room.for_one_more(2) and second.wait(0.1))
until(lambda: not room.for_one_more(2) and pending() == 1)
cluster.remove_node(small)
until(lambda: not room.for_one_more(1))
assert room.for_one_more(0), "the first is Ray's to wait for"
room.let_go()
remove_placement_group(trial)
remove_placement_group(second)
until(lambda: pending() == 0)
assert not room.for_one_more(3) and pending() == 0, "three are the most"
ray.shutdown()
cluster.shutdown()
print("done")
"""


@pytest.mark.slow
def test_a_cluster_is_asked_for_room_and_trials_wait_for_it() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.stdout.split()[-1:] == ["done"], done.stdout + done.stderr[-3000:]
