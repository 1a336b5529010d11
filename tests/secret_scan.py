"""Looks for secrets in every file of a folder, in what compressed and columnar files hold as well."""

from __future__ import annotations

import base64
import gzip
import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard


def leaks(folder: Path, secrets: Mapping[str, str]) -> list[str]:
    """`path: name` for each of the named `secrets` that a file under `folder` holds, hidden files too.

    Found as they stand, percent-encoded, escaped as in JSON, and in base64 (whatever stands before them).
    """
    forms = {name: set(_forms(secret)) for name, secret in secrets.items()}
    found = []
    for root, _, names in os.walk(folder):
        for path in (Path(root, name) for name in names):
            if path.is_symlink() or not path.is_file():
                continue
            try:
                contents = list(_contents(path))
            except FileNotFoundError:  # of a command at work, which has removed it, or given it another name
                continue
            found += [
                f"{path.relative_to(folder)}: {name}"
                for name, wanted in forms.items()
                if any(form in content for form in wanted for content in contents)
            ]
            found += [
                f"{path.relative_to(folder)}: {name} (in its name)" for name in secrets if secrets[name] in str(path)
            ]
    return sorted(found)


def _forms(secret: str) -> Iterator[bytes]:
    plain = secret.encode()
    yield from (plain, quote(secret, safe="").encode(), json.dumps(secret)[1:-1].encode())
    for shift in range(3):  # base64 of a text that holds it, by where it begins; its ends depend on what is around
        yield base64.b64encode(b"\0" * shift + plain)[4 if shift else 0 : -4]


def _contents(path: Path) -> Iterable[bytes]:
    raw = path.read_bytes()
    yield raw
    try:
        if raw.startswith(b"\x1f\x8b"):
            yield gzip.decompress(raw)
        elif raw.startswith(b"\x28\xb5\x2f\xfd"):
            yield zstandard.ZstdDecompressor().decompressobj().decompress(raw)
        elif raw.startswith(b"PAR1"):
            table = pq.read_table(path)
            yield str(table.schema.metadata).encode()
            yield json.dumps(table.to_pylist(), default=str, ensure_ascii=False).encode()
        elif raw.startswith(b"PK\x03\x04"):  # what torch.save and numpy.savez write
            with zipfile.ZipFile(path) as archive:
                for name in archive.namelist():
                    yield archive.read(name)
    except (OSError, ValueError, EOFError, zlib.error, zstandard.ZstdError, zipfile.BadZipFile, pa.ArrowException):
        return  # cut short: its bytes were looked at
