"""What the driver hands to the processes of a run; light to import, since all of them unpickle it."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
import ray.train

from ito_ray.config.schema import Config
from ito_ray.runtime.monitor import MonitorHandle

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer folder's files, so that a node without a shared disk has them too."""

    files: tuple[tuple[str, bytes], ...]

    @classmethod
    def read(cls, folder: Path) -> TokenizerFiles:
        """All files of `folder`."""
        return cls(tuple((path.name, path.read_bytes()) for path in sorted(folder.iterdir()) if path.is_file()))

    def load(self) -> PreTrainedTokenizerBase:
        """The tokenizer, made once a process: reading one takes longer than using it on a block."""
        return _loaded(self)


@lru_cache(maxsize=4)
def _loaded(tokenizer: TokenizerFiles) -> PreTrainedTokenizerBase:
    from ito_ray.data.tokens import load_tokenizer

    with tempfile.TemporaryDirectory(prefix="ito-tokenizer-") as folder:
        for name, content in tokenizer.files:
            Path(folder, name).write_bytes(content)
        return load_tokenizer(folder)


@dataclass(frozen=True)
class Launch:
    """What the driver gives every worker."""

    cfg: Config
    plan: str
    """Digest of the shard plan."""
    sources: tuple[str, ...]
    """Names of its sources."""
    tokenizer: TokenizerFiles
    monitor: MonitorHandle
    folder: str
    """The driver's working folder, which relative paths of the configuration start from."""
    judged: bool = False
    """Whether the driver decides after each evaluation if training goes on."""
    evaluator: bool = False
    """Whether evaluations are made on resources of their own (`eval.cpus`)."""

    def go_to_folder(self) -> None:
        """Ray starts its processes in a folder of their own."""
        if Path(self.folder).is_dir():
            os.chdir(self.folder)


def train_worker(given: dict[str, Any]) -> None:
    """Ray Train's entry point in its workers; `given["launch"]` is a Launch.

    Who only passes it on (a trial's driver) does not import torch and timm.
    """
    launch: Launch = given["launch"]
    if ray.get(launch.monitor.fatal.remote()):
        return  # Ray Train restarted us, but what went wrong does not mend itself; the driver tells the user
    from ito_ray.runtime.stream import rank_blocks

    blocks = rank_blocks(ray.train.get_dataset_shard("train"))  # before the imports below, which take seconds
    from ito_ray.runtime import worker

    worker.train_worker(launch, blocks)
