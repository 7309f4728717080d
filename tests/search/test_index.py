"""The index: what NumPy finds, whatever the type, the file boundaries and the way of searching."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ito_ray.errors import ConfigError, DataError
from ito_ray.search import index as index_module
from ito_ray.search.index import Index, build
from tests.data.makers import write_tar
from tests.embeddings.makers import HashEncoder, model, run, table, vectors
from tests.search.makers import make_index, write_embeddings


@pytest.mark.parametrize("at_once", [7, 4096])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exact_search_is_numpys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, dtype: Any) -> None:
    monkeypatch.setattr(index_module, "_ROWS_AT_ONCE", at_once)
    index = make_index(tmp_path, dtype=dtype)
    rows = table(tmp_path / "embeddings")
    matrix_ND = vectors(tmp_path / "embeddings")
    assert len(index) == 30
    for query_D in HashEncoder().encode_texts(["a", "b", "c"]):
        score_N = matrix_ND @ query_D
        hits = index.search(query_D, 5)
        order = np.argsort(-score_N)[:5]
        np.testing.assert_allclose([hit.similarity for hit in hits], score_N[order], atol=2e-3)
        assert [hit.entry.row for hit in hits] == order.tolist()
        for hit in hits:
            entry = rows.slice(hit.entry.row, 1).to_pylist()[0]
            found = {name: getattr(hit.entry, name) for name in ("key", "shard", "caption", "thumbnail")}
            assert found == {name: entry[name] for name in found}
    assert len(index.search(query_D, 99)) == 30
    np.testing.assert_array_equal(index.vector(29), matrix_ND[29])


def test_a_graph_says_its_recall(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path, 300, thumbnail=0)
    index = build(folder, tmp_path / "index", exact_up_to=100)
    assert index.facts["search"] == "graph"
    assert 0.95 <= index.facts["recall_at_10"] <= 1
    matrix_ND = vectors(folder)
    for row in (0, 150, 299):
        assert index.search(matrix_ND[row], 1)[0].entry.row == row
        np.testing.assert_allclose(index.vector(row), matrix_ND[row], atol=1e-6)
    assert not (tmp_path / "index" / "vectors.npy").exists(), "the graph holds the vectors"


def test_a_poor_graph_is_searched_wider(tmp_path: Path) -> None:
    captions = [f"text number {n}" for n in range(3000)]
    write_tar(tmp_path / "a.tar", [("a", {"json": json.dumps({"captions": captions}).encode()})])
    run(tmp_path / "embeddings", tmp_path / "a.tar", what="text", encoder=HashEncoder(48))
    index = build(tmp_path / "embeddings", tmp_path / "index", exact_up_to=0)
    index._graph.expansion_search = 1
    poor, _ = index.measure()
    better, _ = index.widen()
    assert poor < 0.95 <= better
    assert index.expansion is not None and index.expansion > 1
    assert Index(tmp_path / "index").facts["recall_at_10"] >= 0.95


def test_texts_are_searched_when_asked_for(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path, what="both")
    index = build(folder, tmp_path / "index", kind="text")
    (hit,) = index.search(HashEncoder().encode_texts(["picture number 4"])[0], 1)
    assert (hit.entry.key, hit.entry.caption, hit.entry.thumbnail) == ("k004", "picture number 4", b"")
    assert hit.similarity == pytest.approx(1, abs=1e-6)
    assert build(folder, tmp_path / "index").facts["kind"] == "image", "replaced, and pictures come first"


def test_another_model_is_refused(tmp_path: Path) -> None:
    index = make_index(tmp_path)
    index.check(model(tmp_path))
    with pytest.raises(ConfigError, match=r"made with models:/m@champion version 3, sha256 aaa.*but --model is .*ccc"):
        index.check(model(tmp_path, "c" * 64))


def test_folders_that_are_not_what_they_should_be(tmp_path: Path) -> None:
    folder = write_embeddings(tmp_path)
    with pytest.raises(DataError, match="holds no index"):
        Index(folder)
    with pytest.raises(DataError, match=r"has no manifest\.json"):
        build(tmp_path, tmp_path / "index")
    with pytest.raises(DataError, match="is not empty and is not an index"):
        build(folder, folder)
    with pytest.raises(DataError, match="no vectors of kind text, only 30 image"):
        build(folder, tmp_path / "index", kind="text")
    manifest = json.loads((folder / "manifest.json").read_text())
    other = {**manifest, "model": {**manifest["model"], "sha256": "d" * 64}}
    (folder / "manifest.json").write_text(json.dumps(other))
    with pytest.raises(DataError, match="comes from another model than its manifest says"):
        build(folder, tmp_path / "index")
    (folder / "manifest.json").write_text(json.dumps(manifest))
    name = next(iter(manifest["files"]))
    (folder / name).write_bytes(b"damaged")
    with pytest.raises(DataError, match="cannot be read"):
        build(folder, tmp_path / "index")
    (tmp_path / "prepared").mkdir()
    (tmp_path / "prepared" / "manifest.json").write_text('{"version": 1, "shards": {}}')
    with pytest.raises(DataError, match=r"was not made by pipelines\.embed"):
        build(tmp_path / "prepared", tmp_path / "index")
    assert not (tmp_path / "index").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".index")]
