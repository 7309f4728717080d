"""Search embeddings: `python -m pipelines.search index EMBEDDINGS --out INDEX`, then `… query INDEX "a red heart"`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table

from ito_ray.config.schema import DataConfig
from ito_ray.data.captions import fault_of
from ito_ray.errors import ConfigError, DataError
from pipelines.command import console, exit_code
from pipelines.models import find_model

if TYPE_CHECKING:
    from ito_ray.evaluation.encoder import Encoder
    from ito_ray.search.index import Hit, Index
    from ito_ray.search.page import Page

DESCRIPTION = """Search what pipelines.embed made, by text or by picture.

  index    build an index over the embeddings
  query    look a text or a picture up; --page FILE writes the results as a page, --serve opens a local search page

For example:

  python -m pipelines.search index embeddings --out index

  python -m pipelines.search query index "a red heart" --page hearts.html

  python -m pipelines.search query index --serve"""
MOST_RESULTS = 1000


@dataclass(frozen=True)
class BuildIndex:
    """Build an index over a folder that pipelines.embed finished; an earlier index at --out is replaced."""

    embeddings: Annotated[Path, tyro.conf.Positional]
    """The folder of pipelines.embed."""
    out: Path
    """Folder of the index."""
    kind: Literal["image", "text"] | None = None
    """Vectors to search; default: those of pictures where there are any."""
    exact_up_to: int = 1_000_000
    """Vectors up to which all are compared with the query; beyond, a graph (HNSW) is built and searched."""


@dataclass(frozen=True)
class Query:
    """Look up a text or a picture."""

    index: Annotated[Path, tyro.conf.Positional]
    """Folder that `pipelines.search index` made."""
    text: Annotated[str, tyro.conf.Positional] = ""
    """What to look for."""
    image: Path | None = None
    """A picture to look for instead."""
    top: int = 10
    """Results."""
    page: Path | None = None
    """Write the results as one HTML file, pictures inside."""
    serve: bool = False
    """Open a page where one types and sees pictures, until Ctrl-C."""
    host: str = "127.0.0.1"
    """Of --serve; another address than this lets others in, without a password."""
    port: int = 8765
    """Of --serve; 0 = any that is free."""
    model: str = ""
    """Default: the one that the index was made with; another is refused."""
    tracking_uri: str = ""
    """Registry of models:/…; default: MLFLOW_TRACKING_URI, else the SQLite file in runs/mlflow."""
    max_pixels: int = DataConfig().max_pixels
    """Of --image."""

    def check(self) -> None:
        """Raises ConfigError for values that do not fit together."""
        from ito_ray.search.page import LONGEST_QUERY

        if sum((bool(self.text.strip()), self.image is not None, self.serve)) != 1:
            raise ConfigError("Give one of these: a text, --image FILE, or --serve.")
        if len(self.text) > LONGEST_QUERY:
            raise ConfigError(f"The text has {len(self.text)} characters: give at most {LONGEST_QUERY}.")
        if fault := fault_of(self.text):
            raise ConfigError(f"The text is none that can be looked up: {fault[1]}.")
        if not 1 <= self.top <= MOST_RESULTS:
            raise ConfigError(f"--top is {self.top}: give 1 to {MOST_RESULTS}.")
        if self.serve and self.page:
            raise ConfigError("--page belongs to a text or --image, not to --serve.")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"--port is {self.port}: give 1 to 65535, or 0 for any that is free.")


def build_index(options: BuildIndex, console: Console) -> None:
    """Build, and say how exact and fast it is. Raises ItoError: see `search.index.build`."""
    from ito_ray.runtime.console import progress_line
    from ito_ray.search.index import build

    if options.exact_up_to < 0:
        raise ConfigError(f"--exact-up-to is {options.exact_up_to}: give 0 or more.")
    started = time.perf_counter()
    with progress_line(console, "Index") as update:
        index = build(
            options.embeddings, options.out, kind=options.kind, exact_up_to=options.exact_up_to, progress=update
        )
    facts = index.facts
    way = "exact" if facts["search"] == "exact" else f"graph, recall@10 against exact {facts['recall_at_10']:.3f}"
    console.print(
        f"{len(index):,} {facts['kind']} vectors of {facts['width']} {facts['dtype']} in {options.out} "
        f"({time.perf_counter() - started:.1f} s); search: {way}, {facts['milliseconds']:.2f} ms a query",
        soft_wrap=True,
    )
    out = quote(str(options.out))
    console.print(f'Next: python -m pipelines.search query {out} "a red heart"', soft_wrap=True)
    console.print(f"or: python -m pipelines.search query {out} --serve", soft_wrap=True)


def query(options: Query, console: Console) -> None:
    """Look up and print, or serve. Raises ItoError for anything that a user can mend."""
    options.check()
    from ito_ray.data.preprocess import clean_text
    from ito_ray.search.index import Index

    index = Index(options.index)
    picture = _read_picture(options) if options.image else None  # before the model takes its seconds
    encoder = _encoder(options, index)
    if options.serve:
        _serve(options, index, encoder, console)
        return
    started = time.perf_counter()
    vector_D = (
        encoder.encode_texts([clean_text(options.text)]) if picture is None else encoder.encode_images([picture])
    )[0]
    hits = index.search(vector_D, options.top)
    note = f"{len(hits)} of {len(index):,} in {1e3 * (time.perf_counter() - started):.0f} ms"
    console.print(_table(hits))
    console.print(note)
    if options.page:
        from ito_ray.search.page import write_page

        try:
            write_page(options.page, _page(options, index, picture, hits, note))
        except OSError as error:
            raise ConfigError(f"--page {options.page} cannot be written: {error}.") from error
        console.print(f"Page  {options.page}", soft_wrap=True)


def _encoder(options: Query, index: Index) -> Encoder:
    from transformers.utils import logging  # these take seconds that --help should not

    from ito_ray.evaluation.encoder import FolderEncoder

    model = find_model(options.model or index.model["address"], options.tracking_uri)
    index.check(model)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    return FolderEncoder(model.folder, name=model.address)


def _serve(options: Query, index: Index, encoder: Encoder, console: Console) -> None:
    from ito_ray.search.server import SearchServer

    with SearchServer(index, encoder, host=options.host, port=options.port, top=max(options.top, 24)) as server:
        encoder.encode_texts(["warm up"])
        console.print(f"Serving {options.index} at {server.url} (Ctrl-C stops)", soft_wrap=True)
        if not server.local_only:
            console.print("Others can reach this address: there is no password.")
        server.serve_forever()


def _read_picture(options: Query) -> Any:
    from ito_ray.data.decode import decode_rgb
    from ito_ray.data.rows import BadSample

    try:
        assert options.image is not None
        return decode_rgb(options.image.read_bytes(), max_pixels=options.max_pixels)
    except OSError as error:
        raise DataError(f"--image {options.image} cannot be read: {error.strerror or error}.") from error
    except BadSample as error:
        raise DataError(f"--image {options.image}: {error.reason} ({error.detail}): give another picture.") from error


def _page(options: Query, index: Index, picture: Any, hits: Sequence[Hit], note: str) -> Page:
    from ito_ray.embeddings.unit import make_thumbnail
    from ito_ray.search.page import Page, data_uri

    note = f"{note}, the most similar first; the number is the cosine."
    if picture is None:
        return Page(f"“{options.text}”", note, hits, index.kind)
    shown = data_uri(make_thumbnail(picture, 224))
    caption = options.image.name if options.image else ""
    return Page("Like this picture", note, hits, index.kind, picture=shown, caption=caption)


def _table(hits: Sequence[Hit]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("#", justify="right")
    table.add_column("Cosine", justify="right")
    table.add_column("Key", overflow="fold")
    table.add_column("Caption", overflow="fold")
    table.add_column("Shard", overflow="fold")
    for number, hit in enumerate(hits, 1):
        entry = hit.entry
        shard = entry.shard.rpartition("/")[2]
        table.add_row(str(number), f"{hit.similarity:.3f}", entry.key, entry.caption, shard)
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse the command line, build or search; the exit code."""
    return exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> None:
    options: BuildIndex | Query = tyro.extras.subcommand_cli_from_dict(
        {"index": BuildIndex, "query": Query},
        prog="python -m pipelines.search",
        description=DESCRIPTION,
        args=arguments,
    )
    if isinstance(options, BuildIndex):
        build_index(options, console())
    else:
        query(options, console())


if __name__ == "__main__":
    sys.exit(main())
