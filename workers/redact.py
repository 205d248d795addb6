"""Keeps secrets out of what a person or a log may read: URLs, errors, log lines, tracebacks."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

#: Storage options that a person must see in an error and that hold no secret.
_OPEN_OPTIONS = frozenset({"endpoint_url", "profile", "region_name"})
#: What the usual credential chain, or Ray, takes from the environment.
_VARIABLES = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN")
#: Shorter texts are no secrets and would be found in innocent words; under a name that says so, they may be short.
_SHORTEST, _SHORTEST_NAMED = 8, 4
_NAMED = re.compile("key|secret|token|pass|credential|connection", re.IGNORECASE)
_HIDDEN = "***"
#: Up to the last @ before the path: a password may hold one.
_USERINFO = re.compile(r"(?<=//)[^/\s'\"]*@")
_QUERY = re.compile(r"(\b[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"?]*)\?[^\s'\"]+")
#: Names whose value is a secret wherever it stands.
_NAMES = r"[\w-]*(?:secret|password|passwd|session_token|auth_token|access_key|account_key|sas_token|credential)[\w-]*"
_PATTERNS = (
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), _HIDDEN),
    (re.compile(r"(?i)([?&](?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|sig|signature)=)[^&\s'\"]+"),
     rf"\1{_HIDDEN}"),
    (re.compile(rf"(?i)(\b{_NAMES}['\"]?\s*[:=]\s*)(?:'[^']*'|\"[^\"]*\"|[^\s,'\"}}]+)"), rf"\1{_HIDDEN}"),
)  # fmt: skip
_hidden: set[str] = set()


def hide(options: Any) -> None:
    """Remembers every text in nested storage options as a secret of this process."""
    _hidden.update(_texts(options))


def _texts(options: Any, name: str = "") -> list[str]:
    if isinstance(options, dict):
        return [text for key, value in options.items() if key not in _OPEN_OPTIONS for text in _texts(value, str(key))]
    if isinstance(options, (list, tuple)):
        return [text for value in options for text in _texts(value, name)]
    shortest = _SHORTEST_NAMED if _NAMED.search(name) else _SHORTEST
    return [options] if isinstance(options, str) and len(options) >= shortest else []


def without_secrets(text: str) -> str:
    """A text with URLs in it, without the user names, passwords and queries of those: a query may be a signature."""
    return _QUERY.sub(rf"\1?{_HIDDEN}", _USERINFO.sub("", text))


def public_url(url: str) -> str:
    """One URL, or path, as it may be stored and shown: without user name, password and query."""
    place, asked, _ = url.partition("?")
    return without_secrets(f"{place}?{_HIDDEN}" if asked and "://" in place else url)


def redact(text: str) -> str:
    """The text with ``***`` for every secret that is known, or that looks like one."""
    variables = {value for name in _VARIABLES if len(value := os.environ.get(name, "")) >= _SHORTEST_NAMED}
    # The longest first: one secret may be the beginning of another.
    for secret in sorted(_hidden | variables, key=len, reverse=True):
        text = text.replace(secret, _HIDDEN)
    text = without_secrets(text)
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines and tracebacks hold no secret."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))
