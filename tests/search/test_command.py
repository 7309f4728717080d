"""The commands with a real tiny encoder: index, look up by text and by picture, and what a person may do wrong."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from ito_ray.embeddings.model import identify
from ito_ray.evaluation.encoder import FolderEncoder
from pipelines.search import main
from tests.data.makers import picture, write_tar
from tests.embeddings.makers import run
from tests.export.tiny import export

COUNT = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model/, embeddings/ and index/ of twelve pictures."""
    tmp = tmp_path_factory.mktemp("search")
    made = export(tmp / "model").folder
    samples = [(f"k{n:02d}", {"png": picture(n, size=48), "txt": f"[red]number {n}".encode()}) for n in range(COUNT)]
    write_tar(tmp / "a.tar", samples)
    found = identify(made, address=str(made))
    encoder = FolderEncoder(made, device="cpu")
    run(tmp / "embeddings", tmp / "a.tar", encoder=encoder, made_by=found, thumbnail=32, size=found.size)
    assert main(["index", str(tmp / "embeddings"), "--out", str(tmp / "index")]) == 0
    return tmp


def test_a_picture_finds_itself(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "photo.png").write_bytes(picture(5, size=48))
    page = tmp_path / "page.html"
    options = ["--image", str(tmp_path / "photo.png"), "--top", "3", "--page", str(page)]
    assert main(["query", str(folder / "index"), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["1", "1.000", "k05", "[red]number", "5", "a.tar"]
    assert "3 of 12" in lines[4]
    html = page.read_text()
    assert html.count("<figure>") == 3 and "photo.png" in html and "k05" in html


def test_a_text_is_looked_up(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(folder / "index"), "a photo of a red bird"]) == 0
    printed = capsys.readouterr().out
    assert "10 of 12" in printed and printed.count("a.tar") == 10


def test_another_model_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = Path(shutil.copytree(folder / "model" / "sentence_transformer", tmp_path / "other"))
    (other / "ito.json").write_text((other / "ito.json").read_text() + " ")
    assert main(["query", str(folder / "index"), "x", "--model", str(other)]) == 2
    assert "vectors of different models cannot be compared" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "Give one of these: a text, --image FILE, or --serve"),
        (["x", "--serve"], "Give one of these"),
        (["x" * 301], "The text has 301 characters"),
        (["x", "--top", "0"], "--top is 0"),
        (["--serve", "--port", "70000"], "--port is 70000"),
        (["--serve", "--page", "p.html"], "--page belongs to a text or --image"),
        (["--image", "{folder}/none.png"], "none.png cannot be read: No such file"),
        (["--image", "{folder}/a.tar"], "image_unreadable"),
        (["--image", "{folder}/embeddings"], "cannot be read: Is a directory"),
        (["x", "--model", "{folder}"], "is not a SentenceTransformer folder"),
        (["x", "--model", "models:/none"], "give models:/NAME@ALIAS"),
    ],
)
def test_mistakes_are_sentences(
    folder: Path, capsys: pytest.CaptureFixture[str], options: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "store.db").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'store.db'}")
    assert main(["query", str(folder / "index"), *(option.format(folder=folder) for option in options)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


def test_what_is_no_index_or_embeddings(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["query", str(folder / "embeddings"), "x"]) == 2
    assert "holds no index" in capsys.readouterr().err
    assert main(["index", str(tmp_path), "--out", str(tmp_path / "index")]) == 2
    assert "has no manifest.json" in capsys.readouterr().err
