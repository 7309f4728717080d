"""Room for trials: so many run as the nodes that are up can hold; a cluster that grows is asked for the rest.

What is asked for is a placement group that nobody uses: an autoscaler sees it, and it is gone with the driver, however
that ends. Trials do not ask by starting: with workers on every CPU that is there, Ray Data would have none until nodes
come, and for ever where none come.
"""

from __future__ import annotations

import math
import time

from ray.util.placement_group import PlacementGroup, placement_group, placement_group_table, remove_placement_group

from tune.capacity import Need, fitting, nodes_now

LOOK_SECONDS = 1.0
ASK_SECONDS = 30.0


class Room:
    """How many trials may run now, up to `most`."""

    def __init__(self, need: Need, most: int) -> None:
        """
        Args:
            most: trials side by side when the cluster has grown.
        """
        self.need, self.most = need, most
        self._asked: list[PlacementGroup] = []
        self._fit = 0
        self._looked = self._asked_at = -math.inf

    def for_one_more(self, running: int) -> bool:
        """Whether the nodes that are up hold one more trial; asks for nodes if not. Ray itself waits for the first."""
        now = time.monotonic()
        if now - self._looked >= LOOK_SECONDS:
            self._looked, self._fit = now, fitting(nodes_now(), self.need)
            self._keep([group for group in self._asked if not _is_granted(group)])
        if running < max(1, min(self._fit, self.most)):
            self._keep(self._asked[: self.most - running - 1])
            return True
        if running < self.most and now - self._asked_at >= ASK_SECONDS:
            self._asked_at = now
            self._asked += [self._ask() for _ in range(self.most - max(self._fit, running) - len(self._asked))]
        return False

    def let_go(self) -> None:
        """Ask for nothing any more."""
        self._keep([])
        self._asked_at = -math.inf

    def _ask(self) -> PlacementGroup:
        need = self.need
        worker = {"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {})
        decoding = [{"CPU": 1.0}] * max(1, math.ceil(need.data_cpus))
        labels = [dict(need.train_labels)] * need.workers + [dict(need.data_labels)] * len(decoding)
        group: PlacementGroup = placement_group([worker] * need.workers + decoding, bundle_label_selector=labels)
        return group

    def _keep(self, kept: list[PlacementGroup]) -> None:
        for group in self._asked:
            if group not in kept:
                remove_placement_group(group)
        self._asked = kept


def _is_granted(group: PlacementGroup) -> bool:
    """Whether it holds room that trials are to take."""
    return bool(placement_group_table(group)["state"] == "CREATED")
