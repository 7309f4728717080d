"""From candidate to champion: measure both, let the gate decide, write the decision down, move the aliases."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.entities import LoggedModelInput, Metric, Param, RunTag
from mlflow.entities.model_registry import ModelVersion
from PIL import Image
from safetensors import SafetensorError, safe_open

from ito_ray import strict_json
from ito_ray.config.gate import Gate
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, ExportError, TrackingError
from ito_ray.evaluation.compare import gain, group_changes, read_groups
from ito_ray.evaluation.encoder import FolderEncoder
from ito_ray.evaluation.evaluate import evaluate, shares
from ito_ray.evaluation.latency import side_by_side
from ito_ray.evaluation.report import Report
from ito_ray.evaluation.sources import open_labelled, open_pairs, read
from ito_ray.evaluation.subject import require_samples
from ito_ray.export.checks import TensorPrint, check_folder, manifest_digest, tensor_print
from ito_ray.export.parity import PROBE_TEXTS, TOLERANCE, FreshProcess, Reference, probe_images, require_parity
from ito_ray.tracking.aliases import (
    CANDIDATE,
    CHAMPION,
    GATE,
    ROLLED_BACK,
    ChampionMovedError,
    Registry,
    crown,
    logged_model,
    utc_now,
)
from ito_ray.tracking.gate import Decision, Evidence, Size, judge
from ito_ray.tracking.provenance import DatasetIdentity, evaluation_sets, git_commit, installed_versions
from ito_ray.tracking.registry import PARITY, SHA256, download
from ito_ray.tracking.run import dataset_input, refusals

DECISION = "decision.json"
TAG_LENGTH = 4000
Say = Callable[[str], None]


@dataclass(frozen=True)
class Outcome:
    """What came of it."""

    version: str
    champion: str | None
    """The version that the candidate was compared with."""
    decision: Decision
    promoted: bool
    refusals: tuple[str, ...]
    """A sentence for each reason why not."""
    run_id: str
    """MLflow run that holds decision.json, the metrics and the data."""


@dataclass(frozen=True)
class _Measured:
    evidence: Evidence
    data: Mapping[str, DatasetIdentity] = field(default_factory=dict)
    metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Of candidate and champion, all that `evaluate` found."""


def promote(
    registry: Registry, cfg: Config, gate: Gate, *, version: str = "", limit: int | None = None, say: Say = print
) -> Outcome:
    """Let the gate decide whether a version becomes champion, and make it so.

    Args:
        registry: the model.
        cfg: its `data.heldout` and `eval` say on what both are measured, as for `evaluate`.
        gate: what is asked for.
        version: the candidate; empty = the alias `candidate`.
        limit: read so many samples only of each set.
        say: told what is going on.

    Raises:
        TrackingError: no such model, version or candidate; it is champion already, or was rolled back.
        ConfigError: no data although there is a champion; a metric that is not measured; bad groups or classes.
        DataError: shards that cannot be read.
    """
    candidate, champion = _opponents(registry, version)
    if champion and not shares(cfg):
        raise ConfigError(
            f"data.heldout and eval.zero_shot are both empty: give data to compare version {candidate.version} with "
            f"the champion, version {champion.version}, e.g. --heldout SHARDS or --recipe NAME."
        )
    with refusals(f"record a decision about version {candidate.version} of {registry.name!r}", registry.store):
        registry.client.get_logged_model(logged_model(candidate))
    trial = _trial(cfg, gate, limit) if champion else None  # before anything is fetched or measured
    start = time.perf_counter()
    with _folder(registry, str(candidate.version)) as ours, FreshProcess() as fresh:
        problems, encoder = _check(ours, candidate, cfg.eval.batch, fresh)
        say(f"version {candidate.version}: {'sound' if not problems else 'not sound'}")
        measured = _Measured(Evidence(problems=problems, has_champion=champion is not None))
        if champion and trial and encoder:
            with _folder(registry, str(champion.version)) as theirs:
                other = FolderEncoder(theirs, batch=cfg.eval.batch, name=f"version {champion.version}")
                say(f"measuring it and version {champion.version}, the champion")
                measured = _compare(encoder, other, (ours, theirs), trial)
    decision = judge(gate, measured.evidence)
    say(f"decided after {time.perf_counter() - start:.0f} s")
    run_id = _record(registry, candidate, champion, gate, measured, decision)
    return _carry_out(registry, candidate, champion, decision, run_id)


def _opponents(registry: Registry, version: str) -> tuple[ModelVersion, ModelVersion | None]:
    newest = str(registry.versions()[0].version)
    aliases = registry.aliases()
    chosen = version or aliases.get(CANDIDATE, "")
    if not chosen:
        raise TrackingError(
            f"{registry.name} has no candidate: register a version, or name one with --version (newest: {newest})."
        )
    candidate, champion = registry.version(chosen), aliases.get(CHAMPION)
    if chosen == champion:
        raise TrackingError(
            f"Version {chosen} of {registry.name} is champion already: register a new version, or name another one "
            "with --version."
        )
    if not version and ROLLED_BACK in candidate.tags:
        raise TrackingError(
            f"Version {chosen} of {registry.name} was rolled back ({candidate.tags[ROLLED_BACK]}): register a new "
            f"version, or insist with --version {chosen}."
        )
    if not logged_model(candidate):
        raise TrackingError(
            f"Version {chosen} of {registry.name} has no logged model: ito_ray did not register it, so the gate has "
            "nothing to check. Register its folder with python -m pipelines.register register."
        )
    return candidate, registry.version(champion) if champion else None


@dataclass(frozen=True)
class _Trial:
    """What candidate and champion are compared on."""

    cfg: Config
    gate: Gate
    limit: int | None
    metrics: tuple[str, ...]
    data: Mapping[str, DatasetIdentity]
    groups: Mapping[str, Sequence[str]] | None
    images: list[Image.Image]
    texts: list[str]


def _trial(cfg: Config, gate: Gate, limit: int | None) -> _Trial:
    """
    Raises:
        ConfigError, DataError: whatever the comparison would fail for.
    """
    require_samples(cfg)
    metrics, data, classes = gate.chosen(shares(cfg)), evaluation_sets(cfg), tuple[str, ...]()
    if cfg.eval.zero_shot:
        classes = tuple(open_labelled(cfg, cfg.eval.zero_shot, "eval.zero_shot").table.values())
    groups = read_groups(gate.groups, classes) if gate.groups else None
    return _Trial(cfg, gate, limit, metrics, data, groups, *_items(cfg, classes, gate.latency_batch))


@contextmanager
def _folder(registry: Registry, version: str) -> Iterator[Path]:
    """The version's encoder: in place in a local store, copied for a while from a server."""
    uri = f"models:/{registry.name}/{version}"
    if registry.store.artifacts is not None:
        yield download(uri, registry.store)
        return
    with tempfile.TemporaryDirectory(prefix="ito-promote-") as scratch:
        yield download(uri, registry.store, Path(scratch))


def _check(
    folder: Path, version: ModelVersion, batch: int, fresh: FreshProcess
) -> tuple[tuple[str, ...], FolderEncoder | None]:
    """What is wrong with a registered folder; its encoder if nothing is. Nothing is loaded before it is looked at.

    Parity with the trained model was measured when the version was registered; that holds while the digest does. What
    is measured again is that a stranger's process loads it, and encodes as we do.
    """
    digest, parity = version.tags.get(SHA256, ""), version.tags.get(PARITY, "")
    try:
        found = manifest_digest(check_folder(folder, towers=_own_tensors(folder), forbidden={}))
    except ExportError as error:
        return (str(error),), None
    if found != digest:
        return (
            f"The files of version {version.version} are not those that were verified when it was registered (sha256 "
            f"{found[:12]}…, its tag {SHA256} says {digest[:12] or 'nothing'}): register the folder again.",
        ), None
    if not parity or not float(parity) <= TOLERANCE:
        return (
            f"Version {version.version} has no proof of parity with the trained model (tag {PARITY} is "
            f"{parity or 'missing'}, allowed is {TOLERANCE:g}): register it with its reference file.",
        ), None
    encoder = FolderEncoder(folder, batch=batch, name=f"version {version.version}")
    images = probe_images()
    reference = Reference(
        texts=PROBE_TEXTS,
        images=tuple(np.asarray(image) for image in images),
        text_ND=encoder.encode_texts(PROBE_TEXTS),
        image_ND=encoder.encode_images(images),
        towers=(),
        forbidden={},
    )
    try:
        require_parity(folder, reference, fresh)
    except ExportError as error:
        return (str(error),), None
    return (), encoder


def _own_tensors(folder: Path) -> tuple[TensorPrint, ...]:
    """For `check_folder` where the trained model is not at hand: the digest stands for its tensors."""
    prints = []
    for path in folder.rglob("*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                prints += [tensor_print(name, file.get_tensor(name)) for name in file.keys()]  # noqa: SIM118
        except SafetensorError:
            continue  # check_folder says so
    return tuple(prints)


def size_of(folder: Path) -> Size:
    """Bytes of all files, and numbers in the weights."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    parameters = 0
    for path in folder.rglob("*.safetensors"):
        with safe_open(path, framework="numpy") as file:
            parameters += sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118
    return Size(total, parameters)


def _compare(ours: FolderEncoder, theirs: FolderEncoder, folders: tuple[Path, Path], trial: _Trial) -> _Measured:
    cfg, gate = trial.cfg, trial.gate
    limit = trial.limit
    reports: tuple[Report, Report] = evaluate(ours, cfg, limit=limit), evaluate(theirs, cfg, limit=limit)
    least = gate.min_group_images
    evidence = Evidence(
        gains=tuple(gain(*reports, metric) for metric in trial.metrics),
        groups=group_changes(*reports, trial.groups, min_images=least) if cfg.eval.zero_shot else None,
        latency=side_by_side(ours, theirs, images=trial.images, texts=trial.texts, rounds=gate.latency_rounds),
        size=size_of(folders[0]),
        champion_size=size_of(folders[1]),
    )
    names = ("candidate", "champion")
    return _Measured(evidence, trial.data, dict(zip(names, (report.metrics() for report in reports), strict=True)))


def _items(cfg: Config, classes: tuple[str, ...], count: int) -> tuple[list[Image.Image], list[str]]:
    """What latency is measured with: the first samples of the data, repeated up to `count`."""
    field = "data.heldout" if cfg.data.heldout else "eval.zero_shot"
    source = open_pairs(cfg) if cfg.data.heldout else open_labelled(cfg, cfg.eval.zero_shot, field).source
    pairs = list(read(source, limit=count, max_pixels=cfg.data.max_pixels))
    said = [pair.captions[0] for pair in pairs if pair.captions] if cfg.data.heldout else []
    images, texts = [pair.image for pair in pairs], said or list(classes[:count])
    return list(islice(cycle(images), count)), list(islice(cycle(texts), count))


def _record(
    registry: Registry,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    gate: Gate,
    measured: _Measured,
    decision: Decision,
) -> str:
    """A run of its own below the candidate's: settings, data, the candidate's metrics, decision.json."""
    client, data = registry.client, measured.data
    with refusals(f"record the decision about version {candidate.version} of {registry.name!r}", registry.store):
        model = client.get_logged_model(logged_model(candidate))
        parent = {"mlflow.parentRunId": candidate.run_id} if candidate.run_id else {}
        tags = {**parent, "ito.kind": "gate", "mlflow.source.git.commit": git_commit(), "mlflow.source.type": "LOCAL"}
        name = f"gate {registry.name} version {candidate.version}"
        run_id = str(client.create_run(model.experiment_id, tags=tags, run_name=name).info.run_id)
        params = {f"gate.{key}": strict_json.dumps(value) for key, value in gate.model_dump(mode="json").items()}
        client.log_inputs(
            run_id,
            [dataset_input(one, "evaluation") for one in data.values()],
            models=[LoggedModelInput(model_id=logged_model(candidate))],
        )
        client.log_batch(
            run_id,
            metrics=_points(candidate, run_id, measured),
            params=[Param(key, value) for key, value in params.items()],
        )
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch, DECISION)
            path.write_text(
                strict_json.dumps(_document(registry, candidate, champion, gate, measured, decision), indent=2) + "\n",
                "utf-8",
            )
            client.log_artifact(run_id, str(path))
        client.set_terminated(run_id, "FINISHED")
    return run_id


def _points(candidate: ModelVersion, run_id: str, measured: _Measured) -> list[Metric]:
    """What was measured of the candidate, linked to its model and to the data."""
    now, points = int(time.time() * 1000), []
    for name, value in measured.metrics.get("candidate", {}).items():
        data = measured.data.get(name.split("/")[0])
        points.append(
            Metric(
                f"gate/{name}",
                value,
                now,
                0,
                model_id=logged_model(candidate),
                run_id=run_id,
                dataset_name=data.name if data else None,
                dataset_digest=data.digest if data else None,
            )
        )
    return points


def _document(
    registry: Registry,
    candidate: ModelVersion,
    champion: ModelVersion | None,
    gate: Gate,
    measured: _Measured,
    decision: Decision,
) -> dict[str, Any]:
    evidence = measured.evidence

    def version(one: ModelVersion) -> dict[str, Any]:
        return {"version": str(one.version), "run_id": one.run_id, "sha256": one.tags.get(SHA256, "")}

    return {
        "model": registry.name,
        "decided_at": utc_now(),
        **decision.to_dict(),
        "candidate": version(candidate),
        "champion": version(champion) if champion else None,
        "gate": gate.model_dump(mode="json"),
        "data": {kind: asdict(one) for kind, one in measured.data.items()},
        "gains": [{**asdict(one), "gain": one.value} for one in evidence.gains],
        "groups": None if evidence.groups is None else [asdict(one) for one in evidence.groups],
        "latency": {kind: asdict(one) for kind, one in evidence.latency.items()},
        "size": {
            name: asdict(one)
            for name, one in (("candidate", evidence.size), ("champion", evidence.champion_size))
            if one
        },
        "metrics": measured.metrics,
        "versions": installed_versions(),
    }


def _carry_out(
    registry: Registry, candidate: ModelVersion, champion: ModelVersion | None, decision: Decision, run_id: str
) -> Outcome:
    version, expected = str(candidate.version), str(champion.version) if champion else None
    reasons, promoted = decision.refusals, False
    if decision.passed:
        try:
            crown(registry, version, expected=expected, tags={GATE: "promoted", "ito.gate_run": run_id})
            promoted = True
        except ChampionMovedError as error:
            reasons = (str(error),)
    if not promoted:
        text = " ".join(reasons)[:TAG_LENGTH]
        registry.tag(version, {GATE: "refused", "ito.gate_reason": text, "ito.gate_run": run_id})
    with refusals(f"tag the run {run_id}", registry.store):
        registry.client.log_batch(run_id, tags=[RunTag(GATE, "promoted" if promoted else "refused")])
    return Outcome(version, expected, decision, promoted, reasons, run_id)
