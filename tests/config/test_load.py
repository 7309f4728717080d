"""Recipe, YAML and command line: what is said last counts, what nobody knows is refused with the nearest named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ito_ray.config.load import overlay, parse, to_yaml
from ito_ray.config.recipes import RECIPES, recipe
from ito_ray.config.schema import Config, TrainConfig
from ito_ray.config.workers import Workers
from ito_ray.errors import ConfigError


def _parse(*args: str) -> Config:
    return parse(args, prog="test", description="Test.")[0]


def test_command_line_over_yaml_over_recipe(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {steps: 770, seed: 5}\nmethod: {fusion_weight: 4}\n")
    cfg = _parse("--recipe", "icons_cpu", "--config", str(path), "--train.steps", "990")
    base = recipe("icons_cpu")
    assert (cfg.train.steps, cfg.train.seed, cfg.method.fusion_weight) == (990, 5, 4.0)
    assert cfg.model == base.model
    assert cfg.train.global_batch == base.train.global_batch


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_survives_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(recipe(name)))
    assert _parse("--config", str(path)) == recipe(name)


def test_the_papers_recipes_differ_where_the_paper_says() -> None:
    cc12m, yfcc = recipe("cc12m_vitb16"), recipe("yfcc15m_vitb16")
    assert (cc12m.train.global_batch, cc12m.optim.lr) == (2048, 1e-3)
    assert (yfcc.train.global_batch, yfcc.optim.lr) == (4096, 3e-3)
    assert (cc12m.optim.weight_decay, cc12m.optim.betas, cc12m.optim.eps) == (0.1, (0.9, 0.98), 1e-6)
    assert cc12m.optim.warmup_steps == 10_000
    assert yfcc.model == cc12m.model


@pytest.mark.parametrize(
    ("name", "pairs", "batch", "passes"),
    [
        ("cc3m_vitb16", 2_905_954, 2048, 30),
        ("cc12m_vitb16", 10_968_539, 2048, 30),
        ("yfcc15m_vitb16", 14_082_031, 4096, 30),
        ("datacomp1b_vitb16", 1_387_173_656, 4096, 1),
        ("datacomp1b_vitl16", 1_387_173_656, 4096, 1),
    ],
)
def test_the_papers_recipes_take_the_steps_of_their_passes(name: str, pairs: int, batch: int, passes: int) -> None:
    train = recipe(name).train
    assert train.global_batch == batch
    assert train.steps * batch <= passes * pairs < (train.steps + 1) * batch


def test_what_is_not_published_of_a_recipe_is_said_in_its_docstring() -> None:
    for name in ("cc3m_vitb16", "datacomp1b_vitb16", "datacomp1b_vitl16"):
        assert "Not published" in str(RECIPES[name].__doc__), name
    cc3m, cc12m = recipe("cc3m_vitb16"), recipe("cc12m_vitb16")
    assert (cc3m.optim, cc3m.model, cc3m.method) == (cc12m.optim, cc12m.model, cc12m.method)
    base, large = recipe("datacomp1b_vitb16"), recipe("datacomp1b_vitl16")
    assert base.optim == recipe("yfcc15m_vitb16").optim.model_copy(update={"lr": 5e-4})
    assert (large.optim, large.train, large.data) == (base.optim, base.train, base.data)


def test_tuples_and_json_from_the_command_line() -> None:
    cfg = _parse("--data.train", "a.tar", "b.tar", "--model.image.kwargs", '{"depth": 3}')
    assert cfg.data.train == ("a.tar", "b.tar")
    assert cfg.data.sources == {"train": ("a.tar", "b.tar")}
    assert cfg.model.image.kwargs == {"depth": 3}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: {stepz: 3}", "train.stepz is not a field. Did you mean train.steps?"),
        ("modell: {}", "modell is not a field. Did you mean model?"),
        ("method: {fusion_wieght: 3}", "Did you mean method.fusion_weight?"),
        ("train: {steps: many}", "train.steps='many'"),
        ("train: {steps: -1}", "train.steps=-1"),
        ("- a\n- b", "must hold sections"),
        ("train: [", "is not YAML"),
    ],
)
def test_bad_yaml_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as error:
        _parse("--config", str(path))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_recipe_and_missing_file() -> None:
    with pytest.raises(ConfigError, match="Did you mean icons_cpu"):
        _parse("--recipe", "icon_cpu")
    with pytest.raises(ConfigError, match="cannot be read"):
        _parse("--config", "no/such.yaml")


def test_unknown_option_exits_and_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        _parse("--train.stepz", "3")
    assert exit_.value.code == 2
    printed = capsys.readouterr()
    assert "--train.steps" in printed.out + printed.err


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"train": {"global_batch": 10, "workers": 4}}, "not divisible by train.workers=4"),
        ({"train": {"global_batch": 12, "workers": 2, "micro_batch": 4}}, "does not divide the 6 pairs of one worker"),
        ({"train": {"workers": "1..6"}}, "both ends of train.workers=1..6: those that divide it are 1, 2, 4; in"),
        ({"train": {"workers": "3..4"}}, "both ends of train.workers=3..4"),
        *(
            ({"train": {"workers": said}}, f"train.workers={said!r}: give a number")
            for said in ("4..1", 0, True, "1…4")
        ),
        ({"method": {"name": "clip"}}, "data.views.count=2"),
        ({"data": {"views": {"count": 1}}}, "needs a second fused vector"),
        ({"method": {"alignment_weights": [1.0]}}, "has 1 values"),
        ({"method": {"alignment_weights": [0.0, 0.0]}}, "are all 0"),
        ({"method": {"fusion": {"heads": 7}}}, "not divisible by method.fusion.heads=7"),
        ({"model": {"text": {"heads": 7}}}, "not divisible by model.text.heads=7"),
        ({"model": {"text": {"kind": "pretrained"}}}, "model.text.source is empty"),
        ({"data": {"views": {"crop_scale": [0.9, 0.5]}}}, "crop_scale"),
        ({"optim": {"warmup_steps": 10**9}}, "leaves nothing of train.steps"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as error:
        overlay(Config(), changes, source="test")
    assert says in str(error.value)


def test_printed_config_is_yaml_and_whole(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.train import main

    assert main(["--recipe", "icons_cpu", "--print-config", "--name", "x"]) == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert Config.model_validate(printed) == recipe("icons_cpu").model_copy(update={"name": "x"})


def test_a_users_mistake_shows_no_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    from pipelines.train import main

    assert main(["--train.global-batch", "33", "--train.workers", "2"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ")
    assert "Traceback" not in printed.err


def test_sources_are_named_and_weighted_on_the_command_line_and_in_yaml(tmp_path: Path) -> None:
    said = ("--data.train", "web=s3://b/{0..9}.tar?region=x", "icons=data/a", "icons=data/b")
    cfg = _parse(*said, "--data.weights", "web", "3", "icons", "1")
    assert cfg.data.sources == {"web": ("s3://b/{0..9}.tar?region=x",), "icons": ("data/a", "data/b")}
    assert cfg.data.weights == {"web": 3, "icons": 1}
    path = tmp_path / "mine.yaml"
    path.write_text("data:\n  train: [web=s3://b/x.tar, icons=data/a]\n  weights: {web: 3, icons: 1}\n")
    assert _parse("--config", str(path)).data.sources == {"web": ("s3://b/x.tar",), "icons": ("data/a",)}
    for path_with_equals in ("./year=2024/a.tar", "s3://b/year=2024/a.tar?region=x", "/d/a=b.tar"):
        assert _parse("--data.train", path_with_equals).data.sources == {"train": (path_with_equals,)}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ({"train": ["a=x.tar", "b=y.tar"]}, "data.weights says nothing"),
        ({"train": ["a=x.tar", "b=y.tar"], "weights": {"a": 1}}, r"names \['a'\], but data.train has .*'a', 'b'"),
        ({"train": ["a=x.tar"], "weights": {"a": 0}}, "data.weights.a=0"),
        ({"train": ["x.tar"], "weights": {"a": 1}}, "name sources as in"),
    ],
)
def test_sources_and_weights_must_name_each_other(data: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        overlay(Config(), {"data": data}, source="test")


def test_captions_and_templates_from_the_command_line() -> None:
    said = ("--data.columns.captions-from", "alt", "0.3", "caption", "0.7", "--data.templates", "a photo of {}", "0.2")
    cfg = _parse(*said)
    assert cfg.data.columns.captions_from == {"alt": 0.3, "caption": 0.7}
    assert cfg.data.templates == {"a photo of {}": 0.2}


@pytest.mark.parametrize(
    ("templates", "says"), [({"a photo": 0.1}, "must have one {}"), ({"a {}": 0.6, "b {}": 0.6}, "1.2 together")]
)
def test_templates_that_do_not_fit(templates: dict[str, float], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        overlay(Config(), {"data": {"templates": templates}}, source="test")


def test_a_range_of_workers_is_read_and_printed_back(tmp_path: Path) -> None:
    cfg = _parse("--train.workers", "1..4", "--train.global-batch", "12")
    assert cfg.train.workers == Workers(1, 4) and cfg.train.sizes == (1, 2, 3, 4)
    assert "workers: 1..4\n" in to_yaml(cfg)
    path = tmp_path / "printed.yaml"
    path.write_text(to_yaml(cfg))
    assert _parse("--config", str(path)) == cfg
    fixed = _parse("--config", str(path), "--train.workers", "4")
    assert fixed.train.sizes == (4,) and "workers: 4\n" in to_yaml(fixed)


def test_sizes_that_do_not_divide_the_batch_are_passed_over() -> None:
    train = overlay(Config(), {"train": {"global_batch": 96, "workers": "1..8"}}, source="test").train
    assert train.sizes == (1, 2, 3, 4, 6, 8)


@given(st.integers(1, 200), st.integers(0, 250))
def test_micro_batches_are_equal_and_as_large_as_allowed(share: int, limit: int) -> None:
    divisors = [number for number in range(1, share + 1) if share % number == 0]
    expected = max(number for number in divisors if not limit or number <= limit)
    assert TrainConfig(micro_batch=limit).micro_batch_of(share) == expected
