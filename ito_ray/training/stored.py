"""Copies of a run's checkpoints in a second place: a folder, say of a mounted disk, or an object store.

    <store>/<run>/step-00001000/   a checkpoint as it lies in the run's folder; its state.json arrives last
    <store>/<run>/tokenizer/       the run's tokenizer; its manifest.json arrives last

A copy is whole when its last file is there, so one that was cut off is never taken for it; what it holds is compared
with its manifest (size and SHA-256) when it is fetched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.fs
from fsspec.implementations.arrow import ArrowFSWrapper

from ito_ray.config.schema import Config
from ito_ray.data.shards import open_fs, public_url
from ito_ray.errors import ConfigError
from ito_ray.training.manifest import NAME as MANIFEST
from ito_ray.training.manifest import damage

STATE = "state.json"
TOKENIZER = "tokenizer"
PROBE = ".writable"
CHUNK_BYTES = 32 << 20
"""Read and sent at once: what a copy under way takes of memory is this for each of FILES_AT_ONCE."""
FILES_AT_ONCE = 4


@dataclass(frozen=True)
class Copies:
    """Those of one run. Whatever fails, the store or the disk, raises OSError."""

    fs: pyarrow.fs.FileSystem
    root: str
    """Of the run, in the file system."""
    address: str
    """For people."""

    def require_writable(self) -> None:
        """Write a small file and remove it again."""
        self._make_folder(self.root)
        probe = f"{self.root}/{PROBE}"
        with self.fs.open_output_stream(probe) as file:
            file.write(b"1")
        self.fs.delete_file(probe)

    def whole(self) -> list[str]:
        """Names of the checkpoints that are there to their last file, newest first."""
        return sorted((name for name, files in self._found().items() if STATE in files), reverse=True)

    def has_tokenizer(self) -> bool:
        """Whether the tokenizer is there to its last file."""
        return f"{MANIFEST}.json" in self._found().get(TOKENIZER, {})

    def holds(self, folder: Path, name: str) -> bool:
        """Whether a copy of that name has all files of `folder`, by their sizes and the manifests' content."""
        files = self._found().get(name, {})
        there = all(path.name in files and files[path.name].size == path.stat().st_size for path in folder.iterdir())
        return there and all(
            self._read(f"{self.root}/{name}/{path.name}") == path.read_bytes()
            for path in folder.glob(f"{MANIFEST}*.json")
        )

    def put(self, folder: Path, name: str, moved: Callable[[], None] = lambda: None) -> None:
        """Copy a folder, whose files must stay, under that name; does nothing if it is there already.

        Args:
            moved: called after every piece that has gone.
        """
        if self.holds(folder, name):
            return
        self.remove(name)
        self._make_folder(f"{self.root}/{name}")
        last = folder / _last(folder)
        others = [path for path in sorted(folder.iterdir()) if path != last]
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(lambda path: self._send(path, name, moved), others))
        self._send(last, name, moved)

    def get(self, name: str, folder: Path) -> str:
        """Fetch a copy into a folder, which is made anew; what is wrong with it, "" if it is as it was written."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            list(pool.map(lambda info: self._fetch(info, folder), self._found().get(name, {}).values()))
        return damage(folder)

    def prune(self, newest: str, keep: int) -> None:
        """Leave the `keep` newest whole checkpoints up to `newest`, and nothing of others.

        Beyond `newest` lies only what the run could not go on from.
        """
        stay = [name for name in self.whole() if name <= newest][:keep]
        for name in self._found():
            if name != TOKENIZER and name not in stay:
                self.remove(name)

    def remove(self, name: str) -> None:
        """The last file first, so that what is left by a kill is no whole copy."""
        for last in (STATE, f"{MANIFEST}.json"):
            with suppress(FileNotFoundError):
                self.fs.delete_file(f"{self.root}/{name}/{last}")
        with suppress(FileNotFoundError):
            self.fs.delete_dir(f"{self.root}/{name}")

    def _found(self) -> dict[str, dict[str, pyarrow.fs.FileInfo]]:
        """The files of every copy, whole or not."""
        found: dict[str, dict[str, pyarrow.fs.FileInfo]] = {}
        for info in self._listed():
            name, _, file = info.path.removeprefix(self.root).strip("/").partition("/")
            if file and info.type == pyarrow.fs.FileType.File and (name == TOKENIZER or name.startswith("step-")):
                found.setdefault(name, {})[file] = info
        return found

    def _listed(self) -> Iterable[pyarrow.fs.FileInfo]:
        listed: list[pyarrow.fs.FileInfo] = self.fs.get_file_info(
            pyarrow.fs.FileSelector(self.root, allow_not_found=True, recursive=True)
        )
        return listed

    def _make_folder(self, path: str) -> None:
        if isinstance(self.fs, pyarrow.fs.LocalFileSystem):  # an object store has none
            self.fs.create_dir(path, recursive=True)

    def _read(self, path: str) -> bytes:
        with self.fs.open_input_stream(path) as file:
            return bytes(file.read())

    def _send(self, path: Path, name: str, moved: Callable[[], None]) -> None:
        target = f"{self.root}/{name}/{path.name}"
        with path.open("rb") as source, self.fs.open_output_stream(target) as file:
            while piece := source.read(CHUNK_BYTES):
                file.write(piece)
                file.flush()  # Arrow sends in the background, and would take the whole file into memory
                moved()

    def _fetch(self, info: pyarrow.fs.FileInfo, folder: Path) -> None:
        path = folder / info.base_name
        with self.fs.open_input_stream(info.path) as source, path.open("wb") as file:
            while piece := source.read(CHUNK_BYTES):
                file.write(piece)
        if path.stat().st_size < info.size:
            raise OSError(f"{info.base_name} was cut short on its way")


def open_copies(cfg: Config) -> Copies | None:
    """Where `train.checkpoint_store` keeps this run's; None if it is empty.

    Raises:
        ConfigError: it is no place for copies.
    """
    address = cfg.train.checkpoint_store
    if not address:
        return None
    try:
        if "://" in address:
            fs, path = open_fs(address)
            assert isinstance(fs, ArrowFSWrapper), "the configuration allows no other address"
            return Copies(fs.fs, f"{path}/{cfg.name}", public_url(address))
    except (OSError, ValueError) as error:  # Arrow asks for the bucket's region, and refuses options
        raise ConfigError(
            f"train.checkpoint_store={address} cannot be opened: {error}. Check address and credentials."
        ) from error
    root, run = (Path(address) / cfg.name).resolve(), (Path(cfg.output) / cfg.name).resolve()
    if root == run or run in root.parents or root in run.parents:
        raise ConfigError(
            f"train.checkpoint_store={address} and output={cfg.output} lie in one another, so a copy would be lost "
            "with the original: give a folder elsewhere, best on another disk, or an s3:// or gs:// address."
        )
    return Copies(pyarrow.fs.LocalFileSystem(), str(root), address)


def _last(folder: Path) -> str:
    """The file of a copy that is sent last."""
    return STATE if (folder / STATE).is_file() else f"{MANIFEST}.json"
