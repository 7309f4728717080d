"""Passwords and signatures leave no text; everything else stays as it was."""

from __future__ import annotations

import json
import time

import pytest

from ito_ray.config.load import overlay, to_yaml
from ito_ray.config.schema import Config
from ito_ray.errors import ConfigError, ItoError, TrackingError
from ito_ray.redact import HIDDEN, MOST_REMEMBERED, redact, remember, without_secrets
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
        (f"S3://KEY:{TOKEN}@b/a@b.tar", "S3://***@b.tar"),
        (f"s3://KEY:a/{TOKEN}?b#c@d@bucket/x.tar?region=r", "s3://***@bucket/x.tar?region=r"),
        (f"zip://x.zip::s3://KEY:{TOKEN}@b/x.zip", "zip://x.zip::s3://***@b/x.zip"),
        (f"s3%3A%2F%2FKEY%3A{TOKEN}%40b%2Fx", "s3%3A%2F%2F***%40b%2Fx"),
        (f"http://h/x?u=https%3A%2F%2Fh%2Fa%3Fsig%3D{TOKEN}%26p%3D1", "http://h/x?u=https%3A%2F%2Fh%2Fa%3Fsig%3D***%26p%3D1"),
        (f"s3://b/x cannot be read: 's3://KEY:{TOKEN}", "s3://b/x cannot be read: 's3://***"),
        (f"tracking.uri=user:{TOKEN}@db.example.org/x is", "tracking.uri=***@db.example.org/x is"),
        (f"user:{TOKEN}@host:5000", "***@host:5000"),
        (f"AccountName=x;AccountKey={TOKEN}==;EndpointSuffix=core", "AccountName=x;AccountKey=***;EndpointSuffix=core"),
        (f"{{'secret_key': '{TOKEN}', 'anon': False}}", "{'secret_key': '***', 'anon': False}"),
        (f'{{"client_secret":"{TOKEN}"}}', '{"client_secret":"***"}'),
        (f"Authorization: Bearer {TOKEN}", "Authorization: ***"),
        (f"sent Bearer {TOKEN} to it", "sent Bearer *** to it"),
        (f"open(refresh_token={TOKEN}, x=1)", "open(refresh_token=*** x=1)"),
        (f"ghp_{'a1B2' * 9} and hf_{'a1B2' * 8}", "*** and ***"),
        (f"-----BEGIN PRIVATE KEY-----\n{TOKEN}\n-----END PRIVATE KEY-----\nx", "***\nx"),  # pragma: allowlist secret
    ],
)  # fmt: skip
def test_what_is_hidden(text: str, expected: str) -> None:
    assert redact(text) == expected
    assert redact(expected) == expected


@pytest.mark.parametrize(
    "name",
    [
        "client_secret",
        "key",
        "account_key",
        "secret_key",
        "access_key",
        "api_key",
        "sas",
        "sig",
        "token",
        "refresh_token",
        "passwd",
        "pwd",
        "password",
        "X-Amz-Signature",
        "X-Amz-Credential",
        "X-Goog-Signature",
        "AWSAccessKeyId",
        "Signature",
        "sharedAccessKey",
    ],
)
def test_secrets_in_a_query(name: str) -> None:
    assert redact(f"http://h/x?a=1&{name}={TOKEN}&b=2") == f"http://h/x?a=1&{name}=***&b=2"
    assert redact(f"s3://b/x?{name.upper()}={TOKEN}") == f"s3://b/x?{name.upper()}=***"


@pytest.mark.parametrize(
    "text",
    [
        "http://host:8080/a@b, http://[::1]:80/a@b and http://127.0.0.1:8265",
        "data/key=3/token=x.parquet: 3 tokens, key: 7, seed=1, PWD=/root",
        '{"pad_token": "[PAD]", "unk_token": "[UNK]", "keys": "own"}',
        "--key-column id, Email:someone@example.org, basic training",
        "image name:tag@sha256:abcdef",
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


def test_what_was_met_in_an_address_is_hidden_outside_of_it_too() -> None:
    assert redact(f"no file /KEYNAME:{TOKEN}%2F@bucket") != "no file /***@bucket"
    remember(f"memory://KEYNAME:{TOKEN}%2F@bucket/x?region=r")  # pragma: allowlist secret
    assert redact(f"no file /KEYNAME:{TOKEN}%2F@bucket; {TOKEN}/ was refused") == "no file /***@bucket; *** was refused"


def test_keys_do_not_tell_jobs_apart() -> None:
    keys = ["", "K:S@", f"K:{TOKEN}@"]
    jobs = [f"s3://{user}b/x.tar?{query}region=r" for user in keys for query in ("", f"sig={TOKEN}&", "secret_key=1&")]
    assert {without_secrets(job) for job in jobs} == {"s3://b/x.tar?region=r"}
    assert without_secrets({"s3://K:S@b/x?sig=1": [f"http://h/x?a=1&key={TOKEN}"]}) == {"s3://b/x": ["http://h/x?a=1"]}


def test_a_large_text_takes_no_time() -> None:
    text = "aGVsbG8+/9" * 100_000 + "a caption: of things, " * 50_000
    started = time.process_time()
    assert redact(text) == text
    assert time.process_time() - started < 5


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


def test_only_the_newest_addresses_are_remembered() -> None:
    for number in range(3 * MOST_REMEMBERED):
        remember(f"http://user:signature{number:07d}@host/a")  # pragma: allowlist secret
    assert redact(f"got signature{3 * MOST_REMEMBERED - 1:07d}") == f"got {HIDDEN}"
    assert redact("got signature0000001") == "got signature0000001"
