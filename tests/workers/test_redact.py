from __future__ import annotations

import logging

import pytest

from workers.redact import RedactingFormatter, hide, redact, without_secrets


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/out", "s3://bucket/out"),
        ("s3://bucket/a@b/c", "s3://bucket/a@b/c"),
        ("ftp://user:hunter2@host/out", "ftp://host/out"),
        ("ftp://user:p@ss:w@rd@host/out", "ftp://host/out"),
        ("simplecache::s3://user:hunter2@host/x", "simplecache::s3://host/x"),
        ("cannot open ftp://u:hunter2@host/a and ftp://u:hunter3@host/b", "cannot open ftp://host/a and ftp://host/b"),
        ("/local/folder@home", "/local/folder@home"),
        ("https://host/r.csv?sv=1&sig=hunter2", "https://host/r.csv?***"),
        ("https://user:hunter2@host/r.csv?token=hunter2", "https://host/r.csv?***"),
        (
            "cannot read https://host/r.csv?code=hunter2 (403), or s3://b/x",
            "cannot read https://host/r.csv?*** (403), or s3://b/x",
        ),
        ("/local/what?.csv", "/local/what?.csv"),
    ],
)
def test_urls_are_shown_without_user_password_and_query(url, shown):
    assert without_secrets(url) == redact(url) == shown


@pytest.mark.parametrize(
    "text",
    [
        "InvalidAccessKeyId: AKIAIOSFODNN7EXAMPLE is not known",
        "GET https://b.s3.amazonaws.com/k?X-Amz-Signature=hunter2abcdef&X-Amz-Date=1",
        "credentials: {'aws_secret_access_key': 'hunter2', 'region': 'x'}",
        'secret="hunter2"',
        "AWS_SECRET_ACCESS_KEY=hunter2",
        "SECRET: hunter2",
        "password = hunter2, user = me",
    ],
)
def test_what_looks_like_a_secret_is_hidden(text):
    shown = redact(text)
    assert "***" in shown and "hunter2" not in shown and "AKIA" not in shown


@pytest.mark.parametrize(
    "text",
    [
        "shard 3, attempt 0: its worker is lost; trying again",
        "acceptance by token: 0.71, tokens per round 3.2, key 5",
        "requests.count: got 500, stored 400; allowed: the stored value, or another output",
        "output: cannot write s3://bucket/out/_run/plan.json: [Errno 28] No space left on device",
    ],
)
def test_everything_else_is_left_alone(text):
    assert redact(text) == text


def test_known_secrets_are_hidden_wherever_they_stand(monkeypatch):
    hide({"key": "user-key", "client_kwargs": {"endpoint_url": "http://localhost:9", "tokens": ["user-key-longer"]}})
    monkeypatch.setenv("AWS_SESSION_TOKEN", "of-the-environment")
    shown = redact("user-key user-key-longer of-the-environment http://localhost:9")
    assert shown == "*** *** *** http://localhost:9"


def test_short_options_that_name_no_secret_stay_readable():
    hide({"config_kwargs": {"signature_version": "s3v4", "s3": {"addressing_style": "path"}}, "secret": "abcd"})
    assert redact("a path over s3v4, abcd") == "a path over s3v4, ***"


def test_log_lines_and_tracebacks_are_redacted():
    try:
        raise ValueError("ftp://me:hunter2@host is down")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "x.py", 1, "secret=%s", ("hunter2",), None)
        record.exc_info = (type(error), error, error.__traceback__)
    shown = RedactingFormatter("%(message)s").format(record)
    assert "hunter2" not in shown and "ValueError: ftp://host is down" in shown
