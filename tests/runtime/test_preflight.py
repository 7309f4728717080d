"""Room for an evaluator, evaluations that could never be made, the tokenizer; no Ray is started."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from ito_ray.config.schema import Config
from ito_ray.errors import ClusterError, ConfigError
from ito_ray.runtime import preflight
from tests.runtime.shards import small_config
from tests.tiny import tiny_config


def _config(**evaluation: object) -> Config:
    train = {"workers": 2, "cpus_per_worker": 0.5, "global_batch": 8}
    return tiny_config(train=train, data={"heldout": ["a.tar"]}, eval={"every": 5, "cpus": 1, **evaluation})


def _cluster(monkeypatch: pytest.MonkeyPatch, *nodes: dict[str, float]) -> None:
    total: Counter[str] = sum((Counter(node) for node in nodes), Counter())
    known: list[dict[str, Any]] = [{"Alive": True, "Resources": node} for node in nodes]
    known.append({"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}})
    monkeypatch.setattr(preflight, "ray", SimpleNamespace(cluster_resources=lambda: dict(total), nodes=lambda: known))


@pytest.mark.parametrize(
    ("nodes", "evaluation", "lacking"),
    [
        ([{"CPU": 3.0}], {}, ""),
        ([{"CPU": 2.0}], {}, "eval.cpus=1 on one node, but beside training and a CPU for Ray Data the cluster has 0,"),
        ([{"CPU": 2.0}, {"CPU": 1.0}], {}, ""),
        ([{"CPU": 2.0}] * 4, {"cpus": 3}, "its largest node 2 in all"),
        ([{"CPU": 8.0}], {"gpu": True}, "there is none"),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], {"gpu": True}, ""),
        ([{"CPU": 8.0}, {"CPU": 1.0, "GPU": 1.0}], {"gpu": True, "cpus": 2}, "its largest node 1 in all"),
    ],
)
def test_room_beside_training(
    nodes: list[dict[str, float]], evaluation: dict[str, object], lacking: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _cluster(monkeypatch, *nodes)
    found = preflight.no_room_for_evaluator(_config(**evaluation))
    assert lacking in found and bool(lacking) == bool(found)
    assert preflight.has_evaluator(_config(**evaluation)) is not bool(lacking)


def test_no_evaluator_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    _cluster(monkeypatch, {"CPU": 8.0})
    assert not preflight.has_evaluator(_config(cpus=0))
    assert not preflight.has_evaluator(_config(every=0))


def test_nothing_to_evaluate_on_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match=r"data\.heldout and eval\.zero_shot are both empty"):
        preflight.require_evaluation(tiny_config())
    with pytest.raises(ConfigError, match=r"Did you mean heldout/r5_text_to_image\?"):
        preflight.require_evaluation(_config(best="heldout/r5_text_image"))
    preflight.require_evaluation(_config(best="heldout/r5_text_to_image"))


def test_a_tokenizer_that_was_half_written_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = small_config(tmp_path)
    plan = preflight.plan_data(cfg).plan
    folder = tmp_path / "run" / "tokenizer"

    def killed_in_between(tokenizer: object, target: Path) -> None:
        target.mkdir(parents=True)
        (target / "tokenizer.json").write_text('{"version": "1.0", "trunc')
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(PreTrainedTokenizerFast, "save_pretrained", killed_in_between)
        preflight.prepare_tokenizer(cfg, plan, folder)
    made = preflight.prepare_tokenizer(cfg, plan, folder)
    undisturbed = preflight.prepare_tokenizer(cfg, plan, tmp_path / "other" / "tokenizer")
    assert made.get_vocab() == undisturbed.get_vocab()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tokenizer"]


def test_a_disk_that_cannot_hold_the_results_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, asked = tiny_config(output=str(tmp_path / "not" / "made")), list[Path]()

    def usage(folder: Path) -> Any:
        asked.append(folder)
        return SimpleNamespace(free=3_000_000)

    monkeypatch.setattr("ito_ray.runtime.preflight.shutil.disk_usage", usage)
    preflight.require_room(cfg, 1_000_000)
    with pytest.raises(ClusterError, match=r"has 3 MB free, but .* take 6 MB at least"):
        preflight.require_room(cfg, 2_000_000)
    assert asked == [tmp_path, tmp_path]
