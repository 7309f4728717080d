"""Keys in an address of data are planted, every pipeline is run, and whatever it has written or printed is searched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from ito_ray.config.load import to_yaml
from ito_ray.data.prepare.options import Table
from ito_ray.export.parity import reference_path
from ito_ray.runtime import prepare as ray_prepare
from pipelines import doctor, embed, evaluate, export, prepare, register, search, train
from tests.data.makers import picture, write_tar
from tests.data.prepare.makers import run as prepare_here
from tests.data.store import Store, serving
from tests.embeddings.makers import run as embed_here
from tests.export.tiny import export as export_tiny
from tests.runtime.shards import sample, small_config
from tune import search as sweep

OLD = ("PLANTEDKEYID0001", "planted%2Fsecret-5f1c")  # pragma: allowlist secret
NEW = ("PLANTEDKEYID0002", "changed%2Fsecret-77aa")  # pragma: allowlist secret
PLANTED = (*OLD, *NEW, "planted/secret-5f1c", "changed/secret-77aa")
Command = Callable[[Sequence[str]], int]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """Good shards, a bad sample, a shard that is none, pictures, and classes; nothing of it stays beside the bucket."""
    bucket = tmp_path / "bucket"
    (bucket / "photos").mkdir(parents=True)
    small_config(bucket)
    write_tar(bucket / "train" / "bad.tar", [("bad", {"png": b"not a picture", "txt": b"a caption"}), sample(200)])
    (bucket / "photos" / "one.png").write_bytes(picture(1))
    (bucket / "photos" / "bad.png").write_bytes(b"not a picture")
    shutil.copy(bucket / "classes.txt", tmp_path)
    with serving(bucket) as running:
        yield running


class Searched:
    """Runs commands, and keeps what they print."""

    def __init__(self, folder: Path, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
        self.folder, self._store, self._capfd = folder, store, capfd
        self.printed = ""

    def address(self, key: str, keys: tuple[str, str]) -> str:
        return self._store.url(key).replace("s3://", f"s3://{keys[0]}:{keys[1]}@")

    def config(self, keys: tuple[str, str]) -> str:
        """A file with the keys in it, which a person may write."""
        cfg = yaml.safe_load(to_yaml(small_config(self._store.folder)))
        train, heldout = (self.address(name, keys) for name in ("train", "heldout"))
        cfg["data"] |= {"train": [train], "heldout": [heldout], "max_bad_fraction": 0.5}
        cfg["eval"] |= {"zero_shot": [heldout], "classes": str(self.folder / "classes.txt"), "every": 2}
        cfg["train"] |= {"steps": 4, "checkpoint_every": 2, "cpus_per_worker": 0.25}
        cfg["output"] = str(self.folder / "runs")
        path = self.folder / "given.yaml"
        path.write_text(yaml.safe_dump(cfg), "utf-8")
        return str(path)

    def run(self, command: Command, *words: str, code: int = 0) -> str:
        """What it prints; nothing that is planted may be in it."""
        found = command(words)
        streams = self._capfd.readouterr()
        printed = streams.out + streams.err
        assert found == code, printed
        assert [one for one in PLANTED if one in printed] == [], printed
        return printed

    def hits(self) -> list[str]:
        """Where a planted secret is: names of files, and their content; what Parquet files hold is decoded."""
        found = []
        for path in sorted(self.folder.rglob("*")):
            name = str(path.relative_to(self.folder))
            if name.split("/")[0] in ("bucket", "given.yaml"):
                continue
            content = path.read_bytes() if path.is_file() else b""
            if path.suffix == ".parquet":
                content += repr((pq.read_table(path).to_pydict(), pq.read_schema(path).metadata)).encode()
            found += [f"{name}: {one}" for one in PLANTED if one.encode() in content or one in name]
        return found


@pytest.fixture
def searched(
    tmp_path: Path, store: Store, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Searched:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Searched(tmp_path, store, capfd)


def test_data(searched: Searched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Changed keys are the same job, which goes on with them."""
    monkeypatch.setattr(ray_prepare, "prepare", lambda options, console: (prepare_here(options), True))
    made, numbers, written = searched.folder / "made", searched.folder / "found.json", []
    for keys in (OLD, NEW):
        searched.run(prepare.main, "shards", searched.address("train", keys), "--out", str(made))
        written.append((made / "manifest.json").stat().st_mtime_ns)
    assert written[0] == written[1]
    dropped = pq.read_table(made / "dropped.parquet").to_pylist()
    assert [(row["reason"], row["url"].split("?")[0]) for row in dropped] == [
        ("image_unreadable", "s3://***@bucket/train/bad.tar")
    ]
    request = json.loads((made / "manifest.json").read_text("utf-8"))["request"]["shards"]
    assert [address.split("?")[0] for address in request] == ["s3://bucket/train"]
    words = ["--data", searched.address("train", OLD), "--json", str(numbers), "--pictures", str(searched.folder)]
    searched.run(doctor.main, *words, code=1)  # the shards are few
    assert "s3://***@bucket/train/bad.tar" in numbers.read_text("utf-8")
    assert "s3://***@bucket/train" in (searched.folder / "contact.html").read_text("utf-8")
    gone = searched.run(prepare.main, "shards", searched.address("gone.tar", NEW), "--out", f"{made}-too", code=2)
    assert gone.startswith("error: shards: nothing matches 's3://***@bucket/gone.tar?")
    searched.run(train.main, "--config", searched.config(OLD), "--print-config")
    assert searched.hits() == []


def test_a_table_of_addresses(searched: Searched) -> None:
    """A killed job leaves its listing behind, from which its tasks read."""
    table, work = searched.folder / "bucket" / "pairs.csv", searched.folder / "work"
    good, bad = (searched.address(f"photos/{name}", OLD) for name in ("one.png", "gone.png"))
    table.write_text(f"image,caption\n{good},a red thing\n{bad},a lost thing\n", "utf-8")
    work.mkdir()
    source = Table(out=searched.folder, table=table).open(work)
    assert searched.hits() == [] and OLD[0] not in repr(source)
    (_, found), (_, lost) = source.read(0)
    assert (found.image, found.captions) == (picture(1), ("a red thing",))
    assert (lost.image, lost.bad) == (None, "missing_file")
    assert [one for one in PLANTED if one in repr((found, lost))] == []


def test_an_exported_model(searched: Searched) -> None:
    """Measured, searched with, converted and registered; embedded without Ray."""
    runs = searched.folder / "runs"
    exported = export_tiny(searched.folder / "model")
    exported.reference.save(reference_path(exported.folder))
    encoder, registry = str(exported.folder), ("--tracking-uri", f"sqlite:///{runs}/mlflow/mlflow.db")
    heldout, shards = searched.address("heldout", OLD), searched.address("train", NEW)
    measured = ("--model", encoder, "--heldout", heldout, "--zero-shot", heldout, "--out", str(runs / "measured"))
    classes = ("--classes", str(searched.folder / "classes.txt"))
    searched.run(evaluate.main, *measured, *classes, "--report", "--run", "new", *registry)
    read = [
        embed_here(runs / "e", searched.address("train", keys), searched.address("photos", keys)) for keys in (OLD, NEW)
    ]
    assert read[0] == read[1] and read[0]["embedded"] == 98
    assert "s3://bucket/photos/bad.png" in pq.read_table(runs / "e" / "rejected.parquet")["shard"].to_pylist()
    searched.run(search.main, "index", str(runs / "e"), "--out", str(runs / "i"))
    onnx = ("--to", "onnx", "--int8-text", "--data", shards, "--out", str(runs / "onnx"))
    searched.run(export.main, "--encoder", encoder, *onnx)
    searched.run(register.main, "register", "--folder", encoder, *registry)
    searched.run(register.main, "list", *registry)
    assert searched.hits() == []


@pytest.mark.slow
@pytest.mark.usefixtures("local_ray")
def test_every_pipeline_on_ray(searched: Searched) -> None:
    """Prepare, train, resume with other keys, embed and search, each step in Ray's own processes."""
    runs = searched.folder / "runs"
    encoder, embeddings, index = (str(runs / "small" / "sentence_transformer"), *map(str, (runs / "e", runs / "i")))
    searched.run(train.main, "--config", searched.config(OLD))
    again = searched.run(train.main, "--config", searched.config(NEW), "--train.steps", "6")
    assert "already trained" not in again and "step 6/6" in again
    made = str(runs / "made")
    for keys, said in ((OLD, "Made"), (NEW, "already holds this data")):
        assert said in searched.run(prepare.main, "shards", searched.address("train", keys), "--out", made)
    for keys, said in ((OLD, "rows in"), (NEW, "already holds these embeddings")):
        data = (searched.address("train", keys), searched.address("photos", keys))
        assert said in searched.run(embed.main, "--model", encoder, "--data", *data, "--out", embeddings)
    assert "s3://bucket/photos/bad.png" in pq.read_table(runs / "e" / "rejected.parquet")["shard"].to_pylist()
    searched.run(search.main, "index", embeddings, "--out", index)
    searched.run(search.main, "query", index, "a red thing", "--page", str(runs / "page.html"))
    assert searched.hits() == []


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_sweep(searched: Searched) -> None:
    grid = ("--searcher", "grid", "--points", "2", "--axis", "method.fusion_weight=[0.5]", "--scheduler", "none")
    for keys in (OLD, NEW):
        words = ("--config", searched.config(keys), "--space", "ito_lambda", *grid, "--confirm", "0")
        searched.run(sweep.main, *words, "--concurrent", "1", "--data-cpus", "0.25", "--eval.zero-shot")
    assert (searched.folder / "runs" / "small-ito_lambda" / "report" / "index.html").is_file()
    assert searched.hits() == []
