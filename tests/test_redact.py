"""Passwords and signatures leave no text; everything else stays as it was."""

from __future__ import annotations

import json

import pytest

from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, ItoError, TrackingError
from ito_ray.redact import redact
from ito_ray.tracking.provenance import dataset_identity
from ito_ray.tracking.run import Store, flatten
from pipelines.command import exit_code

TOKEN = "planted-5f1c"  # pragma: allowlist secret
URI = f"https://user:{TOKEN}@mlflow.example:5000/x"
SIGNED = f"https://host/a.tar?X-Amz-Date=1&X-Amz-Signature={TOKEN}&part=2"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (URI, "https://***@mlflow.example:5000/x"),
        (f"http://{TOKEN}@host", "http://***@host"),
        (f"postgresql+psycopg2://u:{TOKEN}@ss@db/mlflow", "postgresql+psycopg2://***@db/mlflow"),
        (f"see '{URI}' and {SIGNED}.", "see 'https://***@mlflow.example:5000/x' and "
         "https://host/a.tar?X-Amz-Date=1&X-Amz-Signature=***&part=2."),
        (f"https://a.blob.core.windows.net/c/x.tar?sv=2&sig={TOKEN}", "https://a.blob.core.windows.net/c/x.tar?sv=2&sig=***"),
    ],
)  # fmt: skip
def test_what_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "text",
    [
        "models:/ito-dual-encoder@champion",
        "s3://bucket/a@b/{000..004}.tar",
        "sqlite:////store/mlflow.db?mode=ro",
        "mail someone@example.org, or see https://example.org/a?page=2 @ noon",
        "",
    ],
)
def test_what_stays(text: str) -> None:
    assert redact(text) == text


def test_values_of_secret_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", TOKEN)
    monkeypatch.setenv("HF_TOKEN", "short")
    assert redact(f"Credential {TOKEN} was refused, in short") == "Credential *** was refused, in short"


def test_errors_never_carry_them() -> None:
    error = TrackingError(f"tracking.uri={URI} cannot be opened.")
    assert str(error) == "tracking.uri=https://***@mlflow.example:5000/x cannot be opened."
    assert isinstance(error, ItoError)


def test_the_configuration_is_public_wherever_it_is_written() -> None:
    cfg = overlay(Config(), {"tracking": {"uri": URI}, "data": {"train": [SIGNED]}}, source="test")
    assert cfg.tracking.uri == URI  # what MLflow is given
    assert cfg.data.train == (SIGNED,)
    shown = [to_yaml(cfg), json.dumps(flatten(cfg)), cfg.model_dump_json(), str(cfg.model_dump()), repr(cfg), str(cfg)]
    assert [text for text in shown if TOKEN in text] == []
    assert flatten(cfg)["tracking.uri"] == "https://***@mlflow.example:5000/x"
    with pytest.raises(ConfigError) as caught:
        overlay(Config(), {"train": {"steps": URI}}, source="test")
    assert TOKEN not in str(caught.value)


def test_stores_and_datasets() -> None:
    store = Store(URI, None)
    assert TOKEN not in repr(store) + store.address
    signed = dataset_identity("train", [SIGNED], [(SIGNED, 3)])
    assert TOKEN not in repr(signed)
    later = SIGNED.replace(TOKEN, "another")
    assert dataset_identity("train", [later], [(later, 3)]) == signed


def test_a_bug_keeps_its_traceback_but_not_the_token(capsys: pytest.CaptureFixture[str]) -> None:
    def broken() -> None:
        raise RuntimeError(f"request to {URI} failed")

    assert exit_code(broken) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith("RuntimeError: request to https://***@mlflow.example:5000/x failed\n")
