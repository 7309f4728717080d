"""The main job from top to bottom: check, train, export, evaluate, register."""

from __future__ import annotations

import dataclasses
import json
import platform
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers.utils.logging import disable_progress_bar

from ito_ray import strict_json
from ito_ray.config.schema import Config
from ito_ray.data import job_folder, quarantine
from ito_ray.errors import TrackingError, UnreadableError
from ito_ray.evaluation.encoder import FolderEncoder, TowerEncoder
from ito_ray.evaluation.evaluate import evaluate
from ito_ray.evaluation.report import Report
from ito_ray.evaluation.show import write_files
from ito_ray.evaluation.subject import require_samples
from ito_ray.export.card import Origin, public_name, training_facts, with_origin
from ito_ray.export.parity import FreshProcess, Verified, reference_path, take_reference, verify
from ito_ray.export.sentence_transformer import export_sentence_transformer
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.pixels import said, with_pixels
from ito_ray.runtime import best, cluster, nodes, preflight, trainer
from ito_ray.runtime.console import Stages, TrainingLine
from ito_ray.runtime.feed import bytes_ahead
from ito_ray.runtime.launch import TokenizerFiles
from ito_ray.runtime.restore import restore
from ito_ray.runtime.upload import Uploads
from ito_ray.tracking.address import with_store
from ito_ray.tracking.outbox import JOURNAL, Outbox
from ito_ray.tracking.provenance import (
    DatasetIdentity,
    dataset_identity,
    evaluation_sets,
    git_commit,
    installed_versions,
)
from ito_ray.tracking.registry import Registered, find, register, require_registrable
from ito_ray.tracking.run import TrackedRun, failing, open_run, resolve_store
from ito_ray.training import checkpoint
from ito_ray.training.selection import stopped_early
from ito_ray.training.state import image_of, read_state

STAGES = 5
LOCK = "driver.lock"
"""File in the run's folder that its driver holds locked as long as it lives."""
FAREWELL_SECONDS = 20.0
"""How long a run that fails or is stopped waits until MLflow knows."""
THUMBNAIL = 160
"""Pixels of the pictures in the gallery."""


@dataclass(frozen=True)
class Training:
    """What training measured; kept in the run's folder, since a finished run is not trained again."""

    seconds: float
    samples_per_second: float
    data_wait_share: float
    """Of the time of the steps, without start, evaluations and checkpoints."""
    rows_read: int
    """Of the whole run, like the next three, however often it was resumed."""
    rows_delivered: int
    rows_dropped: dict[str, int]
    """By reason."""
    sources: dict[str, dict[str, float]]
    """The numbers of each source: read = delivered + dropped/… + pending."""
    recipe: str = ""
    git: str = ""
    """Recipe and code that trained, whatever exports the model again."""
    mismatch: str = ""
    """A sentence if the accounts of the sources do not add up."""


@dataclass(frozen=True)
class Outcome:
    """What the job leaves."""

    encoder: Path
    """The exported SentenceTransformer folder."""
    registered: Registered
    report: Report
    verified: Verified
    training: Training
    page: Path
    run: TrackedRun
    chosen: best.Chosen


def run(
    cfg: Config, *, recipe: str, stages: Stages, verbose: bool = False, tags: Mapping[str, str] | None = None
) -> Outcome:
    """Do everything that the configuration says; safe to be run again after any interruption.

    Args:
        cfg: the resolved configuration.
        recipe: its name, for the record.
        stages: where to print headings.
        verbose: let Ray's log lines through.
        tags: of the MLflow run from its start, so that what is registered from it has them too.

    Raises:
        ItoError: anything that a user can mend; also another driver of the same run, which would spoil its checkpoints.
    """
    folder = Path(cfg.output).absolute() / cfg.name
    with job_folder.alone(folder, lock=LOCK, works="trains in"):
        cfg = with_store(cfg, folder)
        return _run(cfg, folder, recipe=recipe, stages=stages, verbose=verbose, tags=tags or {})


def _run(cfg: Config, folder: Path, *, recipe: str, stages: Stages, verbose: bool, tags: Mapping[str, str]) -> Outcome:
    if not verbose:
        disable_progress_bar()  # one for each weight file that is opened
    with stages.stage("Check data, model and cluster"):
        preflight.require_evaluation(cfg)
        data = preflight.plan_data(cfg)
        measured_on = require_later_stages(cfg)
        restore(cfg, stages.say)
        tokenizer = preflight.prepare_tokenizer(cfg, data.plan, folder / "tokenizer")
        before = image_of(folder)
        cfg = with_pixels(cfg, before)
        # A wrong name or argument shows here and not on every worker.
        encoder = DualEncoder(cfg.model, tokenizer, began=before is not None)
        preflight.require_room(cfg, sum(4 * p.numel() for p in encoder.parameters()))
        cluster.connect(verbose=verbose)
        preflight.require_resources(cfg)
        stages.findings(nodes.inspect(cfg, ahead_bytes=bytes_ahead(cfg, cfg.train.workers.most)))
        identity = dataset_identity(cfg.name, cfg.data.train, [(shard.url, shard.size) for shard in data.shards])
        tracked = open_run(cfg, recipe=recipe, dataset=identity, versions=installed_versions(), git=git_commit())
        with failing(tracked):
            if tags:
                tracked.set_tags(dict(tags))
            outbox, uploads = Outbox(tracked, folder / JOURNAL), Uploads(cfg, stages.say)
            _describe(stages, cfg, data, encoder)

    try:
        with stages.stage(f"Train {cfg.method.name}: {cfg.train.steps} steps of {cfg.train.global_batch} pairs"):
            newest, training = _train(cfg, recipe, data, folder, outbox, uploads, stages)
            uploads.offer(newest)
            chosen = best.choose(cfg, newest)
            stages.say(f"{chosen.stopped}{'; ' if chosen.stopped else ''}the checkpoint that ships: {chosen.why}")
        with stages.stage("Export the encoder without fusion and check it in a fresh process"):
            verified = _export(encoder, tokenizer, chosen.folder, folder)
            stages.say(f"largest difference to the trained model {verified.max_abs_difference:.1e} (allowed 1e-5)")
        with stages.stage("Evaluate what was exported"):
            report = evaluate(
                FolderEncoder(verified.folder, batch=cfg.eval.batch, name=cfg.tracking.model_name),
                cfg,
                thumbnail=THUMBNAIL,
            )
            outbox.log(chosen.ended, {f"final/{name}": value for name, value in report.metrics().items()})
            page = _show(cfg, report, verified.folder, folder / "evaluation", outbox)
            verified = with_origin(verified, _origin(cfg, training, report, identity.digest, chosen))
        with stages.stage("Register the encoder"):
            if outbox.trouble:
                stages.say(f"waiting for {tracked.store.address}: {outbox.trouble}")
            outbox.require_delivered()
            accounts = {"ito.accounts": training.mismatch} if training.mismatch else {}
            tracked.set_tags({"ito.stopped": chosen.stopped or "finished", "ito.shipped": chosen.why, **accounts})
            facts = _Facts(identity.digest, measured_on, chosen)
            registered = _register(cfg, verified, report, tracked, facts)
            stages.say(f"{registered.uri} is version {registered.version}")
    except BaseException as error:
        deadline = time.monotonic() + FAREWELL_SECONDS
        outbox.finish("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", patience=FAREWELL_SECONDS)
        uploads.finish(deadline - time.monotonic())
        if missing := uploads.complaint():
            stages.say(missing)
        raise
    uploads.finish()
    if not outbox.finish():
        raise TrackingError(outbox.complaint())
    if missing := uploads.complaint():  # asked now: meanwhile it may have arrived
        raise UnreadableError(missing)
    return Outcome(verified.folder, registered, report, verified, training, page, tracked, chosen)


def _describe(stages: Stages, cfg: Config, data: preflight.TrainingData, encoder: DualEncoder) -> None:
    size = sum(shard.size for shard in data.shards) / 1e6
    towers = [sum(p.numel() for p in tower.parameters()) / 1e6 for tower in (encoder.image, encoder.text)]
    stages.say(f"data: {len(data.shards)} shards, {size:,.1f} MB")
    for source, fraction in zip(data.plan.sources, data.plan.fractions, strict=True):
        if len(data.plan.sources) > 1:
            stages.say(f"  {source.name}: {len(source.shards)} shards, {fraction:.1%} of the samples")
    gzipped = {shard.url for shard in data.shards if shard.is_gzipped}
    pieces = [parts for source in data.plan.sources for url, parts in source.shards if url in gzipped]
    if pieces:
        stages.say(
            f"{len(pieces)} shards are compressed: each is fetched and unpacked whole {sum(pieces) / len(pieces):.0f} "
            "times a pass; unpack them once to plain .tar to save that"
        )
    stages.say(
        f"model: {cfg.model.image.name} at {cfg.model.image.size} px ({towers[0]:.1f} M), {cfg.model.text.kind} text "
        f"({towers[1]:.1f} M), shared width {cfg.model.embed_dim}"
    )
    stages.say(f"pixels: {said(cfg.model.image)}")
    if cfg.train.workers.elastic:
        sizes = " or ".join(map(str, cfg.train.sizes))
        stages.say(f"trained by {sizes} workers, as the cluster has room; now for {preflight.starting_with(cfg)}")
    if cfg.eval.cpus and cfg.eval.every:
        lacking = preflight.no_room_for_evaluator(cfg)
        apart = f"by an evaluator with {cfg.eval.cpus:g} CPUs while training goes on"
        here = f"by rank 0 while the other workers wait, since {lacking}"
        stages.say(f"evaluated every {cfg.eval.every:,} steps {here if lacking else apart}")


def _train(
    cfg: Config,
    recipe: str,
    data: preflight.TrainingData,
    folder: Path,
    outbox: Outbox,
    uploads: Uploads,
    stages: Stages,
) -> tuple[Path, Training]:
    """The last checkpoint and what training measured; at once if the run has taken all its steps before."""
    record = folder / "training.json"
    newest = trainer.latest_checkpoint(cfg, stages.say)
    known = trainer.resumable_state(cfg, data.plan, newest) if newest and record.is_file() else None
    if newest and known and (known.step >= cfg.train.steps or stopped_early(cfg, known)):
        stages.say(f"already trained ({newest.name}): choose another --name to train afresh")
        return newest, Training(**json.loads(record.read_text("utf-8")))
    meter = _Meter()
    started = time.perf_counter()
    with TrainingLine(stages.console, cfg.train.steps) as line:

        def on_metrics(step: int, metrics: dict[str, float]) -> None:
            outbox.log(step, metrics)
            line.update(step, metrics)
            meter.add(metrics)

        try:
            listener = trainer.Listener(on_metrics, tell=stages.say, on_checkpoint=uploads.offer)
            trained = trainer.fit(cfg, data, TokenizerFiles.read(folder / "tokenizer"), listener)
        finally:
            _keep_quarantine(folder, outbox, stages)
    stages.table(trained.accounts)
    if trained.mismatch:
        stages.warn(trained.mismatch)
    step = read_state(trained.checkpoint).step
    for name, account in trained.accounts.items():
        numbers = {**account.metrics(), "fraction": account.fraction}
        outbox.log(step, {f"data/{name}/{key}": value for key, value in numbers.items()})
    accounts = trained.accounts.values()
    training = Training(
        time.perf_counter() - started,
        *meter.rates(),
        sum(one.read for one in accounts),
        sum(one.delivered for one in accounts),
        dict(sum((Counter(one.dropped) for one in accounts), Counter())),
        {name: account.metrics() for name, account in trained.accounts.items()},
        recipe,
        git_commit(),
        trained.mismatch,
    )
    job_folder.write_json(record, dataclasses.asdict(training))  # whole, or the run would not start again
    return trained.checkpoint, training


def _keep_quarantine(folder: Path, outbox: Outbox, stages: Stages) -> None:
    """All dropped rows as one file, in the run's folder and in MLflow."""
    target = folder / quarantine.MERGED
    if reasons := quarantine.merge(folder / quarantine.FOLDER, target):
        outbox.log_file(target)
        listed = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        stages.say(f"dropped samples are listed in {target}: {listed}")


class _Meter:
    """Mean rates over the logged steps; the first, which waits for the stream to fill, is left out."""

    def __init__(self) -> None:
        self._seen: list[dict[str, float]] = []

    def add(self, metrics: dict[str, float]) -> None:
        if "train/samples_per_second" in metrics:
            self._seen.append(metrics)

    def rates(self) -> tuple[float, float]:
        """(samples per second, share of time waiting for data)."""
        steady = self._seen[1:] or self._seen
        if not steady:  # the driver before us was killed between the last step and training.json
            return 0.0, 0.0
        seconds = [1 / one["train/samples_per_second"] for one in steady]
        waited = [one["train/data_wait_share"] * duration for one, duration in zip(steady, seconds, strict=True)]
        return len(steady) / sum(seconds), sum(waited) / sum(seconds)


def _export(encoder: DualEncoder, tokenizer: Any, source: Path, folder: Path) -> Verified:
    """Load the checkpoint, leave the fusion behind, export, and compare with the trained model."""
    with FreshProcess() as process:  # it imports while we export
        left_behind = checkpoint.load_encoder(source, encoder)
        encoder.eval()
        exported = export_sentence_transformer(encoder, folder / "tokenizer", folder / "sentence_transformer")
        trained = TowerEncoder(encoder, tokenizer, torch.device("cpu"))
        reference = take_reference(encoder, trained, forbidden=left_behind)
        reference.save(reference_path(exported))  # pipelines.register compares with it
        return verify(exported, reference, process)


def _show(cfg: Config, report: Report, encoder: Path, out: Path, outbox: Outbox) -> Path:
    """Pictures and page into the run's folder and to MLflow."""
    usage = f'from sentence_transformers import SentenceTransformer\nmodel = SentenceTransformer("{encoder}")'
    dataset = ", ".join((*cfg.data.heldout, *cfg.eval.zero_shot))
    title = f"{cfg.tracking.model_name}: {cfg.name}"
    page = write_files(report, out, title=title, usage=usage, dataset=dataset)
    for path in sorted(out.iterdir()):
        outbox.log_file(path, "evaluation")
    return page


def _origin(cfg: Config, training: Training, report: Report, digest: str, chosen: best.Chosen) -> Origin:
    """What the model card says of this run."""
    device = "GPU" if cfg.train.gpu else "CPU"
    return Origin(
        data=", ".join(public_name(one) for patterns in cfg.data.sources.values() for one in patterns),
        data_digest=digest,
        data_licence=cfg.data.licence or None,
        data_pairs_read=training.rows_delivered,
        recipe=training.recipe or None,
        training={**training_facts(cfg, chosen.step), "checkpoint": chosen.why},
        git=training.git or None,
        evaluated_on=", ".join(map(public_name, (*cfg.data.heldout, *cfg.eval.zero_shot))) or None,
        metrics=report.metrics(),
        intervals=report.intervals,
        hardware=f"{cfg.train.workers.said} workers on {device}, {platform.machine()}",
        seconds=training.seconds,
        samples_per_second=training.samples_per_second,
    )


@dataclass(frozen=True)
class _Facts:
    """What a version says of itself."""

    data_digest: str
    measured_on: Mapping[str, DatasetIdentity]
    chosen: best.Chosen


def require_later_stages(cfg: Config) -> dict[str, DatasetIdentity]:
    """Ask at start for what evaluation and registry will need, in the same way; what the model is measured on.

    Raises:
        ConfigError, DataError, TrackingError: what they would raise.
    """
    preflight.require_evaluation(cfg)
    require_samples(cfg)
    measured_on = evaluation_sets(cfg)
    require_registrable(
        resolve_store(cfg.tracking.uri, cfg.output),
        experiment=cfg.tracking.experiment,
        model_name=cfg.tracking.model_name,
        alias=cfg.tracking.alias,
        run=cfg.name,
    )
    return measured_on


def _register(cfg: Config, verified: Verified, report: Report, tracked: TrackedRun, facts: _Facts) -> Registered:
    """A new version, unless this very encoder is one already: running the job again is safe."""
    name = cfg.tracking.model_name
    if known := find(verified.digest, store=tracked.store, model_name=name):
        return known
    tags = {
        "ito.data_digest": facts.data_digest,
        "ito.method": cfg.method.name,
        "ito.fusion_weight": f"{cfg.method.fusion_weight:g}",
        "ito.steps": str(facts.chosen.step),
        "ito.shipped": facts.chosen.why,
        "ito.intervals": strict_json.dumps(report.intervals),
    }
    return register(
        verified,
        store=tracked.store,
        experiment=cfg.tracking.experiment,
        model_name=name,
        alias=cfg.tracking.alias,
        run=tracked,
        step=facts.chosen.ended,  # where the run's own points of these metrics are
        metrics={f"final/{name}": value for name, value in report.metrics().items()},
        measured_on={f"final/{kind}/": data for kind, data in facts.measured_on.items()},
        tags=tags,
    )
