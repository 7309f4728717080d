"""What dead actors had reserved is given back; what living ones have is left to them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHILD = """
import os, signal, time
import ray
from ray.util.placement_group import placement_group
from ito_ray.runtime.cluster import connect, release_of_the_dead

@ray.remote(num_cpus=0)
class Creator:
    def reserve(self):
        group = placement_group([{"CPU": 1}])
        ray.get(group.ready())
        return os.getpid()

connect(verbose=False)
whole = int(ray.cluster_resources()["CPU"])
dead, living = Creator.remote(), Creator.remote()
pid, _ = ray.get([one.reserve.remote() for one in (dead, living)])
assert release_of_the_dead() == 0
os.kill(pid, signal.SIGKILL)
released, deadline = 0, time.monotonic() + 30
while not released and time.monotonic() < deadline:
    time.sleep(0.2)
    released = release_of_the_dead()
time.sleep(1.0)
print(released, release_of_the_dead(), whole - int(ray.available_resources()["CPU"]))
"""


@pytest.mark.slow
def test_what_a_killed_actor_had_reserved_is_given_back_and_nothing_else() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-c", CHILD]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.stdout.split()[-3:] == ["1", "0", "1"], done.stdout + done.stderr[-3000:]
