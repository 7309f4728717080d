"""Secrets out of texts. Whatever is printed, logged or stored passes here: errors, configurations, addresses."""

from __future__ import annotations

import os
import re
from typing import Any

HIDDEN = "***"
SECRET_VARIABLES = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AZURE_STORAGE_ACCESS_KEY",
    "AZURE_STORAGE_CONNECTION_STRING",
    "DATABRICKS_TOKEN",
    "HF_TOKEN",
    "MLFLOW_TRACKING_PASSWORD",
    "MLFLOW_TRACKING_TOKEN",
    "PGPASSWORD",
)
"""Environment variables whose values are hidden wherever they turn up."""
SHORTEST = 8
"""Shorter values are no secrets, and hiding them would garble texts."""
_USER = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)[^/\s?#'\"]*@")
_QUERY = re.compile(
    r"([?&](?:x-(?:amz|goog)-(?:signature|credential|security-token)|signature|awsaccesskeyid|sig|token|access_token"
    r"|api_?key|password|secret)=)[^&\s#'\"]+",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """`text` without user and password of addresses, signatures in their queries, and values of secret variables."""
    if "://" in text:
        text = _QUERY.sub(rf"\1{HIDDEN}", _USER.sub(rf"\1{HIDDEN}@", text))
    for name in SECRET_VARIABLES:
        value = os.environ.get(name, "")
        if len(value) >= SHORTEST:
            text = text.replace(value, HIDDEN)
    return text


def redact_all(value: Any) -> Any:
    """`redact` for every text in nested dictionaries, lists and tuples."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, dict):
        return {key: redact_all(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(redact_all(inner) for inner in value)
    return value
