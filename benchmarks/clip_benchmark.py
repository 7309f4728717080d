"""CLIP_benchmark (https://github.com/LAION-AI/CLIP_benchmark) on an exported OpenCLIP folder.

    python -m benchmarks.clip_benchmark --encoder RUN/open_clip --dataset wds/mine --dataset_root data/{dataset_cleaned}

Everything after the folder goes to `clip_benchmark eval` as it is. Without --amp images are encoded in float32, as our
own evaluation does. Needs ito_ray[bench].
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ito_ray.errors import ConfigError
from pipelines.command import exit_code


def as_float(value: object) -> float:
    """What `float` did until NumPy 2.4, which refuses arrays of one element: CLIP_benchmark 1.6.2 needs it."""
    return float(np.asarray(value).item())


def run(encoder: Path, rest: Sequence[str], *, amp: bool) -> None:
    """Hand over to CLIP_benchmark.

    Raises:
        ConfigError: no OpenCLIP folder, or CLIP_benchmark is not installed.
    """
    if not (encoder / "open_clip_config.json").is_file():
        raise ConfigError(
            f"--encoder {encoder} is no OpenCLIP folder (it has no open_clip_config.json): make one with "
            "python -m pipelines.export --to open_clip."
        )
    try:
        from clip_benchmark import cli
        from clip_benchmark.metrics import zeroshot_classification
    except ImportError as error:
        raise ConfigError(f"CLIP_benchmark cannot be imported ({error}): pip install 'ito_ray[bench]'.") from error
    zeroshot_classification.float = as_float
    words = ["eval", "--model", f"local-dir:{encoder.absolute()}", "--pretrained", "", *rest]
    sys.argv = ["clip_benchmark", *words, *([] if amp else ["--no_amp"])]
    if "--output" not in rest:
        sys.argv += ["--output", "{dataset}_{language}_{task}.json"]  # its default would hold the folder's slashes
    cli.main()


def main(arguments: Sequence[str] | None = None) -> int:
    """0 when CLIP_benchmark has written its results."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clip_benchmark", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--encoder", type=Path, required=True, help="OpenCLIP folder of pipelines.export")
    parser.add_argument("--amp", action="store_true", help="mixed precision")
    known, rest = parser.parse_known_args(arguments)
    return exit_code(lambda: run(known.encoder, rest, amp=known.amp))


if __name__ == "__main__":
    sys.exit(main())
