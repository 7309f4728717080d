"""Files and folders that systems and programs leave among a user's data: one rule for every reader.

The rule concerns names below what the user gave: a hidden folder that is named outright is read.
"""

from __future__ import annotations

FOREIGN = frozenset(
    {
        "__macosx",  # macOS zip files
        "icon\r",
        "thumbs.db",  # Windows
        "ehthumbs.db",
        "desktop.ini",
        "$recycle.bin",
        "recycler",
        "system volume information",
        "@eadir",  # Synology and QNAP
        "@tmp",
        "#recycle",
        "#snapshot",
        "@recycle",
        "@recently-snapshot",
        "lost+found",  # file systems
        "__pycache__",
        "_success",  # Hadoop, Spark, Delta
        "_temporary",
        "_metadata",
        "_common_metadata",
        "_spark_metadata",
        "_delta_log",
        "_change_data",
    }
)
"""In lower case: Windows and macOS do not tell the case of names apart."""
_UNFINISHED = (".partial", ".crdownload")
_BEGINNINGS = (".", "~$", "_started_", "_committed_")
"""Hidden files, AppleDouble's `._name` among them; locks of office programs; marks of Databricks."""


def foreign_part(path: str) -> str:
    """The first part of a relative path that is hidden or foreign; empty when there is none."""
    return next((part for part in path.split("/") if _is_foreign(part)), "")


def _is_foreign(name: str) -> bool:
    if name in (".", ".."):
        return False
    return name.startswith(_BEGINNINGS) or name.endswith(_UNFINISHED) or name.lower() in FOREIGN
