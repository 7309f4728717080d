"""A trial goes on from a checkpoint that it takes over, with other settings.

The checkpoint is linked into a run folder of its own, in which only what the checkpoint says of itself is new: so Ray
Train, the stream and a resume find a run like any other, and the checkpoints of the time before stay what they were.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from ito_ray.errors import DataError
from ito_ray.runtime import snapshot, trainer
from ito_ray.runtime.desk import Takeover
from ito_ray.runtime.shelf import link, name_of
from ito_ray.training.manifest import damage, renew
from ito_ray.training.state import handed_over, read_state, write_state


def take_over(takeover: Takeover) -> None:
    """Make the run folder of `takeover.cfg`, whole or not at all; one with a good checkpoint is left as it is.

    Raises:
        ConfigError: the settings differ in more than may change in flight.
        DataError: the checkpoint is gone or damaged.
    """
    cfg, donor = takeover.cfg, Path(takeover.checkpoint)
    run = Path(cfg.output).absolute() / cfg.name
    if trainer.latest_checkpoint(cfg) is not None:
        return
    wrong = damage(donor) if donor.is_dir() else "it is gone"
    if wrong:
        raise DataError(f"The checkpoint {donor}, which {run} was to go on from, cannot be taken over: {wrong}.")
    state = handed_over(read_state(donor), cfg, donor)
    partial = run.with_name(f".{run.name}")
    for old in (partial, run):
        shutil.rmtree(old, ignore_errors=True)
    mine = partial / name_of(state.step)
    shutil.copytree(donor, mine, copy_function=link)
    (mine / "state.json").unlink()  # a link: to be written over it would change the donor's
    write_state(mine, state)
    renew(mine, "state.json")
    snapshot.begin(partial, mine.name)
    partial.replace(run)
