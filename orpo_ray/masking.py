"""Secrets are masked in whatever is written: configurations, model cards, pages, messages.

What counts as one: the password of a URL (and the bare user of a web address, often a token), query parameters whose
name says so, the signature of a pre-signed URL, and a text under a key such as `api_key`. The mask is the same for
any secret, so a run is still known as the same one after its credentials have changed.
"""

from __future__ import annotations

import re
from typing import Any, TypeVar

MASK = "***"

Tree = TypeVar("Tree")

_NAME = re.compile(
    r"(?:^|[_.\-])(?:token|secret|passw(?:or)?d|pwd|credentials?|signature|sig|auth|authorization|jwt)$"
    r"|(?:^|[_.\-])(?:api|access|private|secret|account|shared)[_\-]?key$|^key$"
)
# What changes with every signing of the same address.
_SIGNING = re.compile(r"^(?:x[_\-](?:amz|goog)[_\-].*|awsaccesskeyid|googleaccessid|expires|se|st)$")

_PASSWORD = re.compile(
    r"(://[^/?#@:\s]*:)"  # the user
    r"(?!:|\d{1,5}(?:[/?#]|$))"  # neither the `::` of chained URLs nor a port: host:8080/name@version
    r"(?:[^\s?#/]+|[^@\s?#]+)(?=@)"  # it may hold an @, or a slash, though neither should be
)
_WEB_USER = re.compile(r"(?<![\w+])(https?://)[^/?#:@\s]+(?=@)", re.IGNORECASE)
_PARAMETER = re.compile(r"(?<=[?&;])([^=&;#\s?]+)=([^&;#\s'\"]+)")


def masked(text: str) -> str:
    """`text` with the secrets of every URL in it replaced by `MASK`."""
    if "://" not in text:
        return text
    text = _PASSWORD.sub(rf"\g<1>{MASK}", text)
    text = _WEB_USER.sub(rf"\g<1>{MASK}", text)
    return _PARAMETER.sub(_masked_parameter, text)


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
    return text == MASK or ("://" in text and (f"{MASK}@" in text or f"={MASK}" in text))


def _masked_parameter(match: re.Match[str]) -> str:
    name = match[1]
    return f"{name}={MASK}" if is_secret(name) or _SIGNING.match(name.lower()) else match[0]
