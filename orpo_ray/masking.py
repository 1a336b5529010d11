"""Secrets are masked in whatever is written: configurations, model cards, pages, messages.

What counts as one: the password of a URL (and the bare user of a web address, often a token), parameters of a query,
a fragment or a connection string whose name says so, the signature of a pre-signed URL, what follows `Bearer` or
stands in an `Authorization` header, tokens that are known by how they begin (`hf_…`, `sk-proj-…`), and a text under a
key such as `api_key`. The mask is the same for any secret, so a run is still known as the same one after its
credentials have changed.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

MASK = "***"

Tree = TypeVar("Tree")

_NAME = re.compile(
    r"(?:^|[_.\-])(?:token|secret|passw(?:or)?d|pwd|credentials?|signature|sig|sas|auth|authorization|jwt)$"
    r"|(?:^|[_.\-])(?:api|access|private|secret|account|shared|subscription)[_\-]?key$|^key$"
)
# What changes with every signing of the same address.
_SIGNING = re.compile(r"^(?:x[_\-](?:amz|goog)[_\-].*|awsaccesskeyid|googleaccessid|expires|se|st)$")

_PASSWORD = re.compile(
    r"(://[^/?#@:\s]*:)"  # the user
    r"(?!:|\d{1,5}(?:[/?#]|$))"  # neither the `::` of chained URLs nor a port: host:8080/name@version
    r"(?:[^\s?#/]{1,999}|[^@\s?#]{1,999})(?=@)"  # it may hold an @, or a slash, though neither should be
)
_WEB_USER = re.compile(r"(?<!\w)(https?://)[^/?#:@\s]+(?=@)", re.IGNORECASE)
_PARAMETER = re.compile(
    r"(?<=[?&;#])([^=&;#\s?]+)="  # of a query, of a fragment, of Azure's connection strings
    r"((?:[^&;#\s'\"]|;(?![^=&;#\s?]+=))+)"  # a `;` ends it only before another one
)
_SERVER_KEY = r"sk-(?:proj|svcacct|admin|ant|or)"
# Tokens of the Hub, of GitHub, of model servers, and JWTs. `hf_MistralForCausalLM` is none: cases alternate, or there
# are digits, or it is long; nor is a commit's hash, or `sk-learn-2024`. What stands before may be percent-encoded.
_TOKEN = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))(?:"
    r"(hf_|api_org_)(?![0-9a-f]{40}(?![A-Za-z0-9]))"
    r"(?:[A-Za-z0-9]{34,}|(?=[A-Za-z]*\d)[A-Za-z0-9]{16,}|(?=[A-Za-z]*[a-z][A-Z][a-z][A-Z])[A-Za-z]{12,})"
    r"|(gh[opsur]_|github_pat_)\w{20,}"
    r"|(hf_oauth_|hf_jwt_)[\w\-.]{16,}"
    rf"|({_SERVER_KEY}-)[\w\-]{{16,}}|(sk-)(?=[A-Za-z]*\d)[A-Za-z0-9]{{20,}}"
    r"|(?<![\w\-])(eyJ)[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*)"
)
_HEADER = r"(?<![A-Za-z])(?i:authorization)['\"]?\s*[:=]\s*['\"]?"
_SCHEME = re.compile(rf"({_HEADER}(?i:bearer|basic|token|negotiate|apikey)\s+)[^\s'\",]+")
# Without header and scheme only what is no word: "a Bearer token", "Authorization: none" stay.
_CREDENTIAL = re.compile(
    rf"({_HEADER}|\b(?i:bearer)\s+)"
    r"(?!(?:[A-Za-z]?[a-z]*|(?i:token|auth)[a-z\-]*)[.=\-]*(?![\w.~+/=\-]))"
    r"[\w.~+/=\-]{6,}"
)
_MASKED = re.compile(
    rf"(?:hf_|hf_oauth_|hf_jwt_|api_org_|gh[opsur]_|github_pat_|eyJ|{_SERVER_KEY}-|\bsk-|\b(?i:bearer)\s+|"
    rf"{_HEADER}(?:[A-Za-z]+\s+)?"
    r"|[?&;#][^=&;#\s?]+=)\*\*\*"
)


def masked(text: str) -> str:
    """`text` with every secret in it replaced by `MASK`."""
    if "://" in text and "@" in text:
        text = _PASSWORD.sub(rf"\g<1>{MASK}", text)
        text = _WEB_USER.sub(rf"\g<1>{MASK}", text)
    text = _PARAMETER.sub(_masked_parameter, text)
    text = _SCHEME.sub(rf"\g<1>{MASK}", text)
    text = _CREDENTIAL.sub(rf"\g<1>{MASK}", text)
    return _TOKEN.sub(lambda match: f"{next(filter(None, match.groups()))}{MASK}", text)


def masked_tree(tree: Tree, *, by_name: bool = False) -> Tree:
    """`tree`, mappings and lists of values, with every secret in it masked; `by_name`: texts whose key says so, too."""
    found: Any = tree
    if isinstance(tree, str):
        found = masked(tree)
    elif isinstance(tree, dict):
        found = {
            key: MASK
            if by_name and isinstance(value, str) and is_secret(str(key))
            else masked_tree(value, by_name=by_name)
            for key, value in tree.items()
        }
    elif isinstance(tree, list | tuple):
        found = type(tree)(masked_tree(value, by_name=by_name) for value in tree)
    return found  # type: ignore[no-any-return]


def is_secret(name: str) -> bool:
    """Whether what is called so is a secret: `api_key`, `hf-token`, `secretAccessKey`, `X-Amz-Signature`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return _NAME.search(words) is not None


def holds_mask(text: str) -> bool:
    """Whether a secret was masked in `text`, so that it is no longer what it was."""
    return text == MASK or ("://" in text and f"{MASK}@" in text) or _MASKED.search(text) is not None


def _masked_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"{name}={MASK}" if is_secret(name) or _SIGNING.match(name.lower()) else match[0]
