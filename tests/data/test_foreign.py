"""The rule for hidden and foreign names."""

from __future__ import annotations

import pytest

from ito_ray.data.foreign import foreign_part


@pytest.mark.parametrize(
    ("path", "part"),
    [
        ("cat/.ipynb_checkpoints/a.jpg", ".ipynb_checkpoints"),
        ("__MACOSX/cat/._a.jpg", "__MACOSX"),
        ("cat/._a.jpg", "._a.jpg"),
        (".DS_Store", ".DS_Store"),
        (".git/objects/aa", ".git"),
        ("@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "@eaDir"),
        ("#recycle/a.jpg", "#recycle"),
        ("@Recycle/a.jpg", "@Recycle"),
        ("$RECYCLE.BIN/S-1-5-21/$R1.jpg", "$RECYCLE.BIN"),
        ("System Volume Information/x", "System Volume Information"),
        ("lost+found/#123", "lost+found"),
        ("cat/THUMBS.DB", "THUMBS.DB"),
        ("cat/desktop.ini", "desktop.ini"),
        ("cat/Icon\r", "Icon\r"),
        ("__pycache__/a.pyc", "__pycache__"),
        ("a/000.tar.partial", "000.tar.partial"),
        ("~$pairs.xlsx", "~$pairs.xlsx"),
        ("set/_temporary/0/part.parquet", "_temporary"),
        ("set/_delta_log/1.checkpoint.parquet", "_delta_log"),
    ],
)
def test_names_that_systems_leave_are_foreign(path: str, part: str) -> None:
    assert foreign_part(path) == part


@pytest.mark.parametrize(
    "path",
    [
        "./a.jpg",
        "../a/b.jpg",
        "/a.jpg",
        "_DSC0001.jpg",
        "__init__/a.jpg",
        "@home/a.jpg",
        "#1/a.jpg",
        "a.b.jpg",
        "$/a",
        "lost/found/a.jpg",
        "~user/a.jpg",
        "a~/b.jpg",
        "partial/a.jpg",
        "MACOSX/a.jpg",
        "thumbs/db.jpg",
    ],
)
def test_other_names_are_not(path: str) -> None:
    assert foreign_part(path) == ""
