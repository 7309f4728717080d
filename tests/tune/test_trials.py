"""What a trial is given of the recipe."""

from __future__ import annotations

from pathlib import Path

from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.tracking.run import Store
from tests.tiny import tiny_config
from tune.book import Job
from tune.trials import TrialMaker


def test_a_recipe_that_chooses_and_stops_by_itself_leaves_that_to_the_sweep(tmp_path: Path) -> None:
    best = {"best": "heldout/r1_image_to_text", "keep_best": 3, "patience": 2, "min_improvement": 0.1}
    recipe = tiny_config(data={"heldout": ["heldout.tar"]}, eval={"every": 5, "cpus": 1, **best})
    store, files = Store("sqlite:///mlflow.db", None), TokenizerFiles(())
    maker = TrialMaker("tiny", recipe, recipe, tmp_path, store, 10, files, {})
    of_trial = maker.config(Job(1, 7, "search", {"method.fusion_weight": 0.5}))
    assert of_trial.eval == recipe.eval.model_copy(
        update={"every": 10, "cpus": 0, "best": "", "keep_best": 1, "patience": 0, "min_improvement": 0}
    )
    assert (of_trial.method.fusion_weight, of_trial.train.seed) == (0.5, 7)
