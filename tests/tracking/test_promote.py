"""From candidate to champion on real exports and a real SQLite registry."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from mlflow.artifacts import download_artifacts
from PIL import Image

from ito_ray.config.evaluation import EvalConfig
from ito_ray.config.gate import Gate
from ito_ray.config.schema import Config, DataConfig
from ito_ray.errors import ConfigError, DataError, TrackingError
from ito_ray.evaluation.encoder import Embeddings, FolderEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.export.checks import folder_manifest, manifest_digest, write_manifest
from ito_ray.export.parity import Verified
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.tracking import promote as module
from ito_ray.tracking.aliases import Registry, crown, logged_model, rollback
from ito_ray.tracking.gate import judge
from ito_ray.tracking.promote import Outcome, promote, size_of
from ito_ray.tracking.provenance import evaluation_sets
from ito_ray.tracking.registry import Registered, download, register
from ito_ray.tracking.run import Store, open_client, resolve_store
from ito_ray.tracking.versions import overview
from pipelines.register import main
from tests.evaluation.shapes import COLOURS, SHAPES, ShapeEncoder, draw, write_shape_shards
from tests.export.tiny import Exported, export

LENIENT = {"min_gain": -1.0, "max_latency_ratio": 99.0, "max_group_fall": 1.0, "latency_rounds": 1, "min_items": 10}
"""Anything sound passes."""


class World(NamedTuple):
    """Two exported encoders, data, and a store for all tests."""

    first: Path
    second: Path
    data: Path
    store: Store

    def registry(self, name: str, *folders: Path) -> Registry:
        """A model with these folders as versions 1, 2, …"""
        for folder in folders:
            put(self.store, name, folder)
        return Registry(open_client(self.store), self.store, name)

    def config(self) -> Config:
        """Held-out pairs and a zero-shot set."""
        return Config(
            data=DataConfig(heldout=(str(self.data / "heldout"),)),
            eval=EvalConfig(zero_shot=(str(self.data / "labelled"),), classes=str(self.data / "classes.txt"), batch=32),
        )


def put(store: Store, name: str, folder: Path, parity: float = 1e-7) -> Registered:
    verified = Verified(folder, manifest_digest(folder_manifest(folder)), parity)
    return register(verified, store=store, experiment="ito", model_name=name)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("gate")
    made: Exported = export(root)
    with torch.no_grad():
        made.model.image.proj.weight.neg_()
    second = export_sentence_transformer(made.model, root / "tokenizer", root / "second" / "sentence_transformer")
    write_shape_shards(root / "data" / "heldout", 40)
    write_shape_shards(root / "data" / "labelled", 30, seed=1000)
    (root / "data" / "classes.txt").write_text("\n".join(SHAPES), encoding="utf-8")
    return World(made.folder, second, root / "data", resolve_store("", str(root / "runs")))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the fresh process, which is tested with the export and in the slow test below."""
    monkeypatch.setattr(module, "FreshProcess", nullcontext)
    monkeypatch.setattr(module, "require_parity", lambda *_: 0.0)


def decide(world: World, registry: Registry, *, version: str = "", **changes: Any) -> Outcome:
    return promote(registry, world.config(), Gate(**(LENIENT | changes)), version=version, say=lambda _: None)


def document(world: World, outcome: Outcome) -> dict[str, Any]:
    path = download_artifacts(run_id=outcome.run_id, artifact_path="decision.json", tracking_uri=world.store.uri)
    content: dict[str, Any] = json.loads(Path(path).read_text("utf-8"))
    return content


@pytest.mark.usefixtures("quick")
def test_the_winner_becomes_champion_and_the_decision_is_written_down(world: World) -> None:
    registry = world.registry("wins", world.first, world.second)
    outcome = decide(world, registry)
    assert (outcome.promoted, outcome.version, outcome.champion, outcome.refusals) == (True, "2", "1", ())
    assert registry.aliases() == {"champion": "2", "previous": "1", "candidate": "2"}
    written = document(world, outcome)
    assert written["passed"] is True
    assert (written["candidate"]["version"], written["champion"]["version"]) == ("2", "1")
    assert written["candidate"]["sha256"] == registry.version("2").tags["ito.sha256"]
    assert {one["metric"]: one["items"] for one in written["gains"]} == {
        "heldout/r1_text_to_image": 40,
        "heldout/r1_image_to_text": 40,
        "zero_shot/top1": 30,
    }
    assert sum(one["images"] for one in written["groups"]) == 30
    assert written["latency"]["image"]["candidate_ms"] > 0
    assert written["size"]["candidate"] == written["size"]["champion"]
    assert written["gate"]["min_gain"] == -1.0

    run: Any = registry.client.get_run(outcome.run_id)
    assert (run.info.status, run.data.tags["ito.gate"]) == ("FINISHED", "promoted")
    assert run.inputs is not None
    assert {one.dataset.name for one in run.inputs.dataset_inputs} == {"heldout", "zero_shot"}
    assert [one.model_id for one in run.inputs.model_inputs] == [logged_model(registry.version("2"))]
    assert run.data.params["gate.min_gain"] == "-1.0"
    metrics = registry.client.get_logged_model(logged_model(registry.version("2"))).metrics or []
    found = {one.key: (one.value, one.dataset_name) for one in metrics}
    assert found["gate/zero_shot/top1"] == (written["metrics"]["candidate"]["zero_shot/top1"], "zero_shot")
    tags = registry.version("2").tags
    assert (tags["ito.gate"], tags["ito.gate_run"]) == ("promoted", outcome.run_id)


@pytest.mark.usefixtures("quick")
def test_a_better_encoder_wins_and_a_worse_one_does_not(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the encoder that knows shapes in place of version 2, then of version 1: the real bounds decide."""
    better = ShapeEncoder()

    class Encoder:
        """Shapes for one of the versions, noise for the other."""

        good = "version 2"

        def __init__(self, folder: Path, *, batch: int, name: str) -> None:
            self.name = name

        def encode_images(self, images: Sequence[Image.Image]) -> Embeddings:
            return better.encode_images(images) if self.name == self.good else noise(1, len(images))

        def encode_texts(self, texts: Sequence[str]) -> Embeddings:
            return better.encode_texts(texts) if self.name == self.good else noise(2, len(texts))

    def noise(seed: int, count: int) -> Embeddings:
        vectors = np.random.default_rng(seed).normal(size=(count, 16)).astype(np.float32)
        unit: Embeddings = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    monkeypatch.setattr(module, "FolderEncoder", Encoder)
    metrics = ("heldout/r1_text_to_image", "heldout/r1_image_to_text")
    strict: dict[str, Any] = {"min_gain": 0.0, "metrics": metrics, "max_latency_ratio": 1e9}
    registry = world.registry("better", world.first, world.second)
    assert decide(world, registry, **strict).promoted
    registry = world.registry("worse", world.first, world.second)
    monkeypatch.setattr(Encoder, "good", "version 1")
    outcome = decide(world, registry, **strict)
    assert not outcome.promoted
    assert [sentence.split()[0] for sentence in outcome.refusals] == list(metrics)
    assert all("train a better candidate" in sentence for sentence in outcome.refusals)
    assert registry.aliases() == {"champion": "1", "candidate": "2"}


@pytest.mark.usefixtures("quick")
def test_an_equal_candidate_is_refused_with_a_sentence(world: World) -> None:
    registry = world.registry("equal", world.first, world.first)
    outcome = decide(world, registry, min_gain=0.0, metrics=("zero_shot/top1",), min_items=31)
    assert not outcome.promoted
    assert outcome.refusals == (
        "zero_shot/top1 was measured on 30 items, and fewer than gate.min_items=31 decide nothing: give more data.",
    )
    tags = registry.version("2").tags
    assert (tags["ito.gate"], tags["ito.gate_reason"]) == ("refused", outcome.refusals[0])
    assert document(world, outcome)["passed"] is False
    rows = overview(registry)
    assert [(row[0], row[1], row[3]) for row in rows] == [
        ("2", "candidate", "refused"),
        ("1", "champion", "first version: checked, nothing to beat"),
    ]
    assert "top 1" in rows[0][-1]


@pytest.mark.usefixtures("quick")
def test_a_champion_that_moves_while_we_measure_wins(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = world.registry("moves", world.first, world.second, world.second)

    def meanwhile(*arguments: Any) -> Any:
        crown(registry, "2", expected="1", tags={})
        return judge(*arguments)

    monkeypatch.setattr(module, "judge", meanwhile)
    outcome = decide(world, registry)
    assert (outcome.decision.passed, outcome.promoted) == (True, False)
    assert "The champion of moves is version 2 by now" in outcome.refusals[0]
    assert registry.aliases() == {"champion": "2", "previous": "1", "candidate": "3"}
    assert registry.version("3").tags["ito.gate"] == "refused"


def _tampered(registry: Registry) -> str:
    """Its manifest.json, if it has one, was made to fit."""
    folder = download(f"models:/{registry.name}/2", registry.store)
    (folder / "README.md").write_text("another card")
    if (folder / "manifest.json").exists():
        write_manifest(folder, "sentence_transformer")
    return r"are not those that were verified when it was registered \(sha256 "


def _pickled(registry: Registry) -> str:
    (download(f"models:/{registry.name}/2", registry.store) / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    return "pytorch_model.bin in .* is not allowed to ship"


def _without_proof(registry: Registry) -> str:
    registry.client.delete_model_version_tag(registry.name, "2", "ito.parity")
    return "has no proof of parity with the trained model .* is missing, allowed is 1e-05"


def _far_off(registry: Registry) -> str:
    registry.tag("2", {"ito.parity": "0.001"})
    return "ito.parity is 0.001, allowed is 1e-05"


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("spoil", [_tampered, _pickled, _without_proof, _far_off])
def test_an_unsound_candidate_is_not_even_loaded(world: World, spoil: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = world.registry(spoil.__name__, world.first, world.second)
    message = spoil(registry)
    monkeypatch.setattr(module, "FolderEncoder", lambda *_, **__: pytest.fail("loaded"))
    outcome = decide(world, registry)
    assert not outcome.promoted
    assert len(outcome.decision.criteria) == 1
    with pytest.raises(TrackingError, match=message):
        raise TrackingError(outcome.refusals[0])
    assert registry.aliases()["champion"] == "1"


@pytest.mark.usefixtures("quick")
def test_without_a_champion_a_sound_version_is_promoted_without_data(world: World) -> None:
    registry = world.registry("none", world.first)
    registry.client.delete_registered_model_alias("none", "champion")
    outcome = promote(registry, Config(), Gate(), say=lambda _: None)
    assert (outcome.promoted, outcome.champion) == (True, None)
    assert registry.aliases() == {"champion": "1", "candidate": "1"}


@pytest.mark.usefixtures("quick")
def test_what_was_rolled_back_comes_again_only_by_name(world: World) -> None:
    registry = world.registry("again", world.first, world.second)
    assert decide(world, registry).promoted
    rollback(registry, "worse on phones")
    assert overview(registry)[0][3].endswith("to version 1: worse on phones")
    with pytest.raises(TrackingError, match=r"Version 2 of again was rolled back .*phones\): .* --version 2"):
        decide(world, registry)
    assert decide(world, registry, version="2").promoted


def test_mistakes_are_sentences(world: World) -> None:
    registry = world.registry("mistakes", world.first, world.second)
    cases: Sequence[tuple[Mapping[str, Any], str]] = (
        ({"version": "1"}, "Version 1 of mistakes is champion already"),
        ({"version": "7"}, "does not have version 7 of 'mistakes'"),
    )
    for arguments, message in cases:
        with pytest.raises(TrackingError, match=message):
            decide(world, registry, **arguments)
    with pytest.raises(ConfigError, match=r"gate\.metrics=top1 is not measured"):
        decide(world, registry, metrics=("top1",))
    with pytest.raises(ConfigError, match=r"data\.heldout and eval\.zero_shot are both empty: .* version 2"):
        promote(registry, Config(), Gate(), say=lambda _: None)
    registry.client.delete_registered_model_alias("mistakes", "candidate")
    with pytest.raises(TrackingError, match=r"mistakes has no candidate: .* \(newest: 2\)"):
        decide(world, registry)


def test_sizes(world: World) -> None:
    size = size_of(world.first)
    assert size.bytes == sum(path.stat().st_size for path in world.first.rglob("*") if path.is_file())
    encoder: Any = FolderEncoder(world.first)._model
    assert size.parameters == sum(parameter.numel() for parameter in encoder.parameters())


@pytest.mark.slow
def test_the_command_line_from_refusal_to_rollback(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    """With the fresh process that must load a candidate without ito_ray."""
    name = "by hand"
    world.registry(name, world.first, world.second)
    where = ["--tracking-uri", world.store.uri, "--name", name]
    data = ["--heldout", str(world.data / "heldout"), "--gate.latency-rounds", "1", "--gate.max-latency-ratio", "99"]
    assert main(["promote", *where, *data]) == 1
    shown = capsys.readouterr().out
    assert "refused: heldout/r1_text_to_image was measured on 40 items" in shown
    assert main(["promote", *where, *data, "--gate.min-items", "10", "--gate.min-gain", "-1"]) == 0
    assert f"promoted: models:/{name}@champion is version 2" in capsys.readouterr().out
    assert main(["list", *where]) == 0
    assert "champion" in capsys.readouterr().out
    assert main(["rollback", *where, "--reason", "a try"]) == 0
    assert f"models:/{name}@champion is version 1 again, not 2" in capsys.readouterr().out
    assert main(["rollback", *where, "--reason", "a try"]) == 2
    assert "has no previous champion" in capsys.readouterr().err
    assert main(["unlock", *where]) == 0
    assert "there was no lock" in capsys.readouterr().out


def test_the_command_line_explains_mistakes(world: World, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    uri = world.store.uri
    open_client(world.store).search_registered_models()  # makes the database, if no test before did
    for words, message in (
        (["promote", "--tracking-uri", uri, "--name", "nobody"], "error: --name nobody: sqlite:///"),
        (["list", "--tracking-uri", f"sqlite:///{tmp_path}/no.db"], "There is no model registry at sqlite:///"),
        (["rollback", "--tracking-uri", "runs", "--reason", "x"], "is a plain folder"),
    ):
        assert main(words) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "no.db").exists()
    with pytest.raises(SystemExit):
        main(["promote", "--tracking-uri", uri, "--gate.min-gain", "7"])
    assert "Input should be less than 1" in capsys.readouterr().err


def _own_data(folder: Path) -> dict[str, tuple[Path, Path]]:
    """The same pictures as (pairs, labelled): a table and a folder a class; files side by side and a table."""
    rows = []
    for number, (colour, shape) in enumerate((c, s) for c in list(COLOURS)[:6] for s in SHAPES):
        for place in (folder / "folders" / shape, folder / "pairs"):
            place.mkdir(parents=True, exist_ok=True)
            draw(colour, shape, seed=number).save(place / f"{number}.png")
        (folder / "pairs" / f"{number}.txt").write_text(f"a {colour} {shape}")
        rows.append(f"folders/{shape}/{number}.png,a {colour} {shape},{shape}\n")
    (folder / "table.csv").write_text("image,caption,class\n" + "".join(rows))
    return {"table": (folder / "table.csv", folder / "folders"), "files": (folder / "pairs", folder / "table.csv")}


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("form", ["table", "files"])
def test_tables_and_folders_decide_as_shards_do(world: World, tmp_path: Path, form: str) -> None:
    pairs, labelled = _own_data(tmp_path)[form]
    cfg = Config(
        data=DataConfig(heldout=(str(pairs),)),
        eval=EvalConfig(zero_shot=(str(labelled),), zero_shot_field="class", batch=32),
    )
    registry = world.registry(f"own-{form}", world.first, world.second)
    outcome = promote(registry, cfg, Gate(**LENIENT), say=lambda _: None)
    assert outcome.promoted and outcome.version == "2"
    written = document(world, outcome)
    assert {kind: one["digest"] for kind, one in written["data"].items()} == {
        kind: one.digest for kind, one in evaluation_sets(cfg).items()
    }
    found = written["metrics"]["candidate"]
    assert found["zero_shot/images"] == 36
    assert found == evaluate(FolderEncoder(world.second, batch=32), cfg).metrics()


def test_data_that_cannot_be_measured_on_are_refused_before_anything_is_fetched(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = world.registry("early", world.first, world.second)
    monkeypatch.setattr(module, "_folder", lambda *_: pytest.fail("a model was fetched"))
    pairs, _ = _own_data(tmp_path)["table"]
    for cfg, message in (
        (Config(data=DataConfig(heldout=(str(tmp_path / "gone.csv"),))), "There is no table"),
        (Config(eval=EvalConfig(zero_shot=(str(world.data / "labelled"),))), r"eval\.classes is empty"),
    ):
        with pytest.raises((ConfigError, DataError), match=message):
            promote(registry, cfg, Gate(**LENIENT), say=lambda _: None)
    for picture in tmp_path.rglob("*.png"):
        picture.write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.heldout gave no pair .* dropped: 36 "):
        promote(registry, Config(data=DataConfig(heldout=(str(pairs),))), Gate(**LENIENT), say=lambda _: None)
