"""What using the exported encoder costs beside OpenCLIP's model: `python -m benchmarks.inference [--quick] [--json F]`.

Programs on the same weights, in one process, taking turns: OpenCLIP's CLIP; the SentenceTransformer folder, as
`SentenceTransformer(folder)` loads it; the ONNX folder under onnxruntime, in float32 like the others and with 8-bit
weights. Same threads, same batches. Before anything is timed, all must give the same embeddings (8-bit: nearly).

Headline: *the same work*, that is prepared pixels and ids, captions padded to the context as OpenCLIP pads them, to
unit embeddings; both towers added up, so one image and one caption a pair. `torch_latency_ratio` and
`onnx_latency_ratio` are wall time over OpenCLIP's of the same repeat, their median over repeats. Beside it, *as used*:
images and strings in, each program with its own preprocessing and padding (OpenCLIP: the context; ours: the longest of
the batch).
`parameter_ratio` counts the parameters that were loaded, without the logit scale, which the folder keeps in ito.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import tyro
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.captions import captions, padded_ids
from benchmarks.summary import ratios
from benchmarks.variants import BACKBONES
from ito_ray.data.tokens import clip_tokenizer
from ito_ray.export.onnx_encoder import OnnxEncoder
from ito_ray.export.onnx_folder import write_onnx
from ito_ray.export.onnx_int8 import add_int8
from ito_ray.export.sentence_transformer import export_sentence_transformer, quiet
from ito_ray.models.dual_encoder import DualEncoder
from ito_ray.models.open_clip import open_clip_config, to_open_clip
from ito_ray.models.pixels import normalisation

Run = Callable[[], Any]
"""Encodes one batch; returns (B,D)."""
PROGRAMS = {
    "open_clip": "OpenCLIP",
    "torch": "SentenceTransformer folder",
    "onnx": "ONNX folder, onnxruntime",
    "onnx_int8": "… with int8 towers",
}
"""By the prefix of their JSON fields; the first is what the others are divided by."""
TOLERANCE = {"open_clip": 1e-4, "torch": 1e-4, "onnx": 1e-4, "onnx_int8": 0.1}
"""Largest difference of a coordinate; random weights are harder on 8 bits than trained ones."""
SETTLE = 0.05
"""Seconds before each measurement, in which the threads of the program before fall asleep."""


@dataclass(frozen=True)
class Inference:
    """Latency and parameters of the exported encoder beside a plain OpenCLIP model."""

    quick: bool = False
    """Only the small ViT, and few repeats: a minute."""
    json: Path | None = None
    """Also write the ratios of ViT-B/16 (with --quick: of the small ViT) here."""
    batch: int = 8
    """Images, and captions, at once."""
    repeats: int = 0
    """Interleaved repeats; 0 = 25 (9 with --quick)."""
    threads: int = 2
    """Of torch and of onnxruntime."""


@dataclass(frozen=True)
class Programs:
    """The programs over one batch: {kind of work: {program: run}}, and what each has loaded."""

    work: Mapping[str, Mapping[str, Run]]
    parameters: Mapping[str, int]


def build(backbone: str, batch: int, threads: int, scratch: Path) -> Programs:
    """Export random towers of `backbone` into `scratch` and load them in every program."""
    torch.manual_seed(0)
    cfg = BACKBONES[backbone]
    tokenizer = clip_tokenizer(cfg.text.context)
    tokenizer.save_pretrained(scratch / "tokenizer")
    encoder = DualEncoder(cfg, tokenizer).eval()
    theirs = open_clip.CLIP(**open_clip_config(encoder)).eval()
    theirs.load_state_dict(to_open_clip(encoder.state_dict()))
    export_sentence_transformer(encoder, scratch / "tokenizer", scratch / "sentence_transformer")
    (scratch / "onnx").mkdir()
    write_onnx(encoder, scratch / "tokenizer", scratch / "onnx")
    del encoder

    from sentence_transformers import SentenceTransformer

    with quiet():
        stock = SentenceTransformer(str(scratch / "sentence_transformer"), device="cpu", local_files_only=True).eval()
    texts = captions(batch, seed=0)
    pictures = _pictures(batch)
    add_int8(scratch / "onnx", ("text", "image"), list(zip(pictures, texts, strict=True)), "the benchmark")
    onnx = {
        "onnx": OnnxEncoder(scratch / "onnx", threads=threads),
        "onnx_int8": OnnxEncoder(scratch / "onnx", threads=threads, int8_text=True, int8_image=True),
    }
    work = _same_work(theirs, stock, onnx, texts, cfg.text.context, cfg.image.size)
    mean, std = normalisation(cfg.image)
    preprocess = open_clip.image_transform(cfg.image.size, is_train=False, mean=mean, std=std, interpolation="bicubic")
    tokenize = open_clip.tokenizer.SimpleTokenizer(context_length=cfg.text.context)
    wrapped = [{"text": text} for text in texts]
    work["images as used"] = {
        "open_clip": lambda: theirs.encode_image(torch.stack([preprocess(one) for one in pictures]), normalize=True),
        "torch": lambda: stock.encode(pictures, batch_size=batch, show_progress_bar=False),
        **{name: partial(one.encode_images, pictures) for name, one in onnx.items()},
    }
    work["texts as used"] = {
        "open_clip": lambda: theirs.encode_text(tokenize(texts), normalize=True),
        "torch": lambda: stock.encode(wrapped, batch_size=batch, show_progress_bar=False),
        **{name: partial(one.encode_texts, texts) for name, one in onnx.items()},
    }
    count = {name: sum(p.numel() for p in net.parameters()) for name, net in (("open_clip", theirs), ("torch", stock))}
    count["open_clip"] -= theirs.logit_scale.numel()
    return Programs(work, count)


def _same_work(
    theirs: Any, stock: Any, onnx: Mapping[str, OnnxEncoder], texts: list[str], context: int, size: int
) -> dict[str, dict[str, Run]]:
    """Prepared tensors in, unit embeddings out; every caption padded to the context."""
    image_BCHW = torch.randn(len(texts), 3, size, size)
    ids_BT, length_B = padded_ids(texts, context)
    mask_BT = (torch.arange(context)[None] < length_B[:, None]).long()
    feeds = {"input_ids": ids_BT.numpy(), "attention_mask": mask_BT.numpy()}
    ids = {"input_ids": ids_BT, "attention_mask": mask_BT, "modality": "text"}
    pixels = {"pixel_values": image_BCHW, "modality": "image"}
    return {
        "image": {
            "open_clip": lambda: theirs.encode_image(image_BCHW, normalize=True),
            "torch": lambda: stock(dict(pixels))["sentence_embedding"],
            **{name: partial(_run, one.image_net, {"pixels": image_BCHW.numpy()}) for name, one in onnx.items()},
        },
        "text": {
            "open_clip": lambda: theirs.encode_text(ids_BT, normalize=True),
            "torch": lambda: stock(dict(ids))["sentence_embedding"],
            **{name: partial(_run, one.text_net, feeds) for name, one in onnx.items()},
        },
    }


def _run(session: Any, feeds: Mapping[str, Any]) -> Any:
    return session.run(None, feeds)[0]


def _pictures(count: int) -> list[Image.Image]:
    """As large as common photographs of data sets, 500×375, and as smooth."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (count, 24, 32, 3), dtype=np.uint8)
    return [Image.fromarray(one).resize((500, 375), Image.Resampling.BICUBIC) for one in small]


def check_embeddings(programs: Programs) -> None:
    """A benchmark of different things would be worthless.

    Raises:
        RuntimeError: two programs encode the same batch differently.
    """
    for work, runs in programs.work.items():
        expected = _array(runs["open_clip"]())
        for name, run in runs.items():
            difference = float(np.abs(_array(run()) - expected).max())
            if difference > TOLERANCE[name]:
                raise RuntimeError(f"{work}: {PROGRAMS[name]} is off OpenCLIP's embeddings by {difference:.2g}.")


def _array(embedding_BD: Any) -> NDArray[np.float32]:
    return np.asarray(embedding_BD.detach() if isinstance(embedding_BD, torch.Tensor) else embedding_BD, np.float32)


@dataclass(frozen=True)
class Seconds:
    """Of every repeat."""

    wall: tuple[float, ...]
    cpu: tuple[float, ...]


def time_programs(programs: Programs, repeats: int) -> dict[str, dict[str, Seconds]]:
    """The programs take turns at each kind of work, each repeat starting with another; the first round warms up."""
    found: dict[str, dict[str, Seconds]] = {}
    for work, runs in programs.work.items():
        names = list(runs)
        taken: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
        for repeat in range(-1, repeats):
            for position in range(len(names)):
                name = names[(position + repeat) % len(names)]
                time.sleep(SETTLE)
                wall, cpu = time.perf_counter(), time.process_time()
                runs[name]()
                if repeat >= 0:
                    taken[name].append((time.perf_counter() - wall, time.process_time() - cpu))
        found[work] = {name: Seconds(*map(tuple, zip(*pairs, strict=True))) for name, pairs in taken.items()}
    return found


def summary(found: Mapping[str, Mapping[str, Seconds]], parameters: Mapping[str, int]) -> dict[str, Any]:
    """The JSON fields: of each program but the first the ratios of both towers together, of each, and as used."""
    fields: dict[str, Any] = {"parameter_ratio": parameters["torch"] / parameters["open_clip"]}
    parts = {
        "latency": ("image", "text"),
        "image_latency": ("image",),
        "text_latency": ("text",),
        "as_used_latency": ("images as used", "texts as used"),
    }
    for name in (name for name in PROGRAMS if name != "open_clip"):
        for field, works in parts.items():
            sums = [
                {clock: _add(getattr(found[work][one], clock) for work in works) for clock in ("wall", "cpu")}
                for one in (name, "open_clip")
            ]
            for clock, prefix in (("wall", ""), ("cpu", "cpu_")):
                median, low, high = ratios(sums[0][clock], sums[1][clock])
                fields[f"{name}_{prefix}{field}_ratio"] = median
                fields[f"{name}_{prefix}{field}_spread"] = [low, high]
    return fields


def _add(columns: Any) -> list[float]:
    return [sum(repeat) for repeat in zip(*columns, strict=True)]


def table(title: str, found: Mapping[str, Mapping[str, Seconds]], fields: Mapping[str, Any]) -> Table:
    """Milliseconds of each program's batch, then the ratios of both towers together."""
    shown = Table(title=title)
    for heading in ("work", *PROGRAMS.values()):
        shown.add_column(heading, justify="left" if heading == "work" else "right")
    for work, programs in found.items():
        base = programs["open_clip"]
        cells = [f"{1000 * statistics.median(base.wall):.1f} ms"]
        for own in (programs[name] for name in PROGRAMS if name != "open_clip"):
            spread = "{:.2f} ({:.2f}–{:.2f})".format(*ratios(own.wall, base.wall))
            cells.append(f"{1000 * statistics.median(own.wall):.1f} ms  {spread}")
        shown.add_row(work, *cells)
    for label, field in (("both towers", "latency"), ("both as used", "as_used_latency")):
        cells = []
        for name in (name for name in PROGRAMS if name != "open_clip"):
            wall, cpu = fields[f"{name}_{field}_ratio"], fields[f"{name}_cpu_{field}_ratio"]
            cells.append(f"{wall:.3f}, CPU time {cpu:.3f}")
        shown.add_row(label, "1", *cells)
    return shown


def measure(backbone: str, options: Inference, repeats: int, console: Console) -> dict[str, Any]:
    """Build, compare, time, print; the JSON fields."""
    with (
        tempfile.TemporaryDirectory(prefix="ito-inference-") as scratch,
        console.status(f"{backbone}: exporting, then {repeats} repeats"),
        torch.inference_mode(),
    ):
        with torch.inference_mode(mode=False):
            programs = build(backbone, options.batch, options.threads, Path(scratch))
        check_embeddings(programs)
        found = time_programs(programs, repeats)
    fields = summary(found, programs.parameters)
    title = f"{backbone}, batch {options.batch}, fp32, {options.threads} threads: milliseconds, multiples of OpenCLIP"
    console.print(table(title, found, fields))
    console.print(f"parameters: {programs.parameters['torch']:,}, {fields['parameter_ratio']:.6f} × OpenCLIP's")
    return {
        **fields,
        "setting": {"backbone": backbone, "batch": options.batch, "threads": options.threads, "repeats": repeats},
        "parameters": dict(programs.parameters),
        "measured": {work: {name: asdict(one) for name, one in runs.items()} for work, runs in found.items()},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print a table of each backbone, write the JSON; the exit code."""
    options = tyro.cli(Inference, args=arguments, prog="python -m benchmarks.inference", description=__doc__)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    torch.set_num_threads(options.threads)
    repeats = options.repeats or (9 if options.quick else 25)
    fields: dict[str, Any] = {}
    for backbone in ("vit_small",) if options.quick else ("vit_small", "vit_b16"):
        fields = measure(backbone, options, repeats, console)
    if options.json:
        machine = f"{platform.machine()}, torch {torch.__version__}"
        options.json.write_text(json.dumps({**fields, "machine": machine}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
