"""What rank 0's machine is doing, under the names of MLflow's own monitor, whose page "System metrics" shows them.

That monitor would need MLflow in the worker, and gives up for good at the first call that a server does not answer.
"""

from __future__ import annotations

import psutil
import torch

MEGABYTE = 1e6


def system_metrics(device: torch.device) -> dict[str, float]:
    """CPU and memory of this node, and memory of this rank's GPU, if it has one.

    The share of the CPUs in use is the mean since the last call; 0 at the first.
    """
    memory = psutil.virtual_memory()
    found = {
        "cpu_utilization_percentage": psutil.cpu_percent(),
        "system_memory_usage_megabytes": memory.used / MEGABYTE,
        "system_memory_usage_percentage": memory.percent,
    }
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        found["gpu_0_memory_usage_megabytes"] = (total - free) / MEGABYTE
        found["gpu_0_memory_usage_percentage"] = 100 * (total - free) / total
    return found
