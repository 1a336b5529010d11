"""Where preference pairs come from: the embedded world, files, folders, URLs, Hugging Face Hub data sets."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import fsspec

from orpo_ray.config.data import BUILT_IN, MAX_RECORD_CHARACTERS
from orpo_ray.config.paths import expanded
from orpo_ray.data.delimited import DELIMITERS
from orpo_ray.data.folders import Folder, files_of_split, listed, not_read
from orpo_ray.data.names import base_extension, hub_name, place_and_subset
from orpo_ray.data.readers import read_file
from orpo_ray.data.records import BadRecord, Record, bytes_of, one_line
from orpo_ray.data.tables import table_rows
from orpo_ray.errors import UserError
from orpo_ray.hub import unreachable
from orpo_ray.masking import masked

VALIDATORS = (
    "ETag", "etag", "Content-MD5", "md5Hash", "content_md5",
    "Last-Modified", "LastModified", "last_modified", "mtime", "updated",
)  # fmt: skip
"""Keys under which fsspec's drivers say which version of a remote file is there."""
_NOTE_BYTES = 1 << 24
"""Of a file beside data that is read to know which files are data; README.md is far shorter."""


class Source(Protocol):
    """An opened source: its records, and what changes when its content does."""

    def records(self) -> Iterator[Record]:
        """All records, numbered from 0; those that cannot be read carry an error. Raises `UserError`."""

    def fingerprint(self) -> str:
        """A digest of the content. Raises `UserError`."""

    def remarks(self) -> list[str]:
        """What there is that is not read, in a line."""


def read_records(source: str, split: str, limit: int | None = None) -> Iterator[Record]:
    """The first `limit` records, or all, of a file, a folder, an fsspec URL, a Hub id or a `toy` source.

    Of a folder, and of a Hub data set, the files of `split` are read. Raises `UserError` where the source
    does not exist or cannot be reached.
    """
    return itertools.islice(open_source(source, split).records(), limit)


def open_source(source: str, split: str, max_record_characters: int = MAX_RECORD_CHARACTERS) -> Source:
    """Decide what `source` names: see `names`.

    `max_record_characters`: a record that needs more has an error; one that is far longer is not held at all.
    """
    most = bytes_of(max_record_characters)
    if source in BUILT_IN:
        return ToySource(source)
    if (found := place_and_subset(source)) is not None:
        place, subset = found
        return _file_source(place, split, most, subset)
    return HubSource(*hub_name(source), split, most)


@dataclass(frozen=True)
class ToySource:
    """One of the pair sets that `toyworld` makes."""

    name: str

    def records(self) -> Iterator[Record]:
        from orpo_ray.data import toyworld

        for i, pair in enumerate(toyworld.records(self.name)):
            # A response goes on with the line that the prompt is.
            value: dict[str, Any] = {**pair, "chosen": f" {pair['chosen']}", "rejected": f" {pair['rejected']}"}
            yield Record(i, f"{self.name}[record {i}]", value)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=16)
        for record in self.records():
            digest.update(json.dumps(record.value).encode())
        return digest.hexdigest()

    def remarks(self) -> list[str]:
        return []


@dataclass(frozen=True)
class FileSource:
    """Data files of one file system, read one after another."""

    filesystem: fsspec.AbstractFileSystem
    files: tuple[tuple[str, str], ...]
    """(path in the file system, name that messages give it)"""
    most: int
    """Bytes of a record."""
    passed_over: tuple[str, ...] = ()
    """Names of other files of the folder."""

    def records(self) -> Iterator[Record]:
        numbers = itertools.count()
        for path, name in self.files:
            with _reading(self.filesystem, path, name) as handle:
                yield from read_file(handle, name, numbers, self.most)

    def fingerprint(self) -> str:
        """Of the files' bytes; of a remote file that has one, the version (ETag, time) and size.

        CSV and TSV are told by their names, so these are part of it.
        """
        digest = hashlib.blake2b(digest_size=16)
        for path, name in self.files:
            if (extension := base_extension(name)) in DELIMITERS:
                digest.update(extension.encode())
            with _reading(self.filesystem, path, name) as handle:
                info = {} if _is_local(self.filesystem) else self.filesystem.info(path)
                version = {key: str(info[key]) for key in VALIDATORS if info.get(key)}
                if version:
                    digest.update(json.dumps([info.get("size"), version]).encode())
                else:
                    digest.update(hashlib.file_digest(handle, "blake2b").digest())
        return digest.hexdigest()

    def remarks(self) -> list[str]:
        return [f"files of the folder that are not read: {listed(self.passed_over)}"] if self.passed_over else []


@dataclass(frozen=True)
class HubSource:
    """A data set of the Hugging Face Hub, downloaded once and memory-mapped by `datasets`."""

    name: str
    subset: str | None
    split: str
    most: int = bytes_of(MAX_RECORD_CHARACTERS)

    def records(self) -> Iterator[Record]:
        numbers = itertools.count()
        for table in self._dataset.with_format("arrow").iter(batch_size=1000):
            for value, raw in table_rows(table, self.most):
                number = next(numbers)
                location = f"{self.name}[record {number}]"
                if isinstance(value, BadRecord):
                    yield Record(number, location, None, value, raw)
                else:
                    yield Record(number, location, value)

    def fingerprint(self) -> str:
        # `datasets` derives it from the hashes of the data files and what was done to them.
        return str(self._dataset._fingerprint)

    def remarks(self) -> list[str]:
        return []

    @cached_property
    def _dataset(self) -> Any:
        import datasets

        lost = unreachable()
        name = self.name if self.subset is None else f"{self.name}:{self.subset}"
        try:
            try:
                return datasets.load_dataset(self.name, self.subset, split=self.split)
            except ValueError:
                if self.subset is None:
                    raise
                # Some, as Anthropic/hh-rlhf, keep their subsets as folders rather than as configurations.
                return datasets.load_dataset(self.name, data_dir=self.subset, split=self.split)
        except datasets.exceptions.DatasetNotFoundError as error:
            hint = "check the id; a gated or private data set needs `hf auth login` first"
            raise UserError(f"{name}: no such data set on the Hub ({one_line(error)}); {hint}") from error
        except ConnectionError as error:
            hint = "check the network, or download the files and give their folder"
            raise UserError(f"{name}: {lost or f'{one_line(error)}; {hint}'}") from error
        # Builders raise errors of many kinds: an unknown split, files of no known format, damaged ones.
        except Exception as error:
            hint = f"is {self.split!r} one of its splits? (data.train_split, data.eval_split)"
            raise UserError(f"{name}: cannot be loaded from the Hub: {one_line(error)}; {hint}") from error


def _file_source(source: str, split: str, most: int, subset: str | None = None) -> FileSource:
    url, source = source, masked(source)  # locations and messages are written down, credentials are not
    try:
        filesystem, root = fsspec.core.url_to_fs(url if "://" in url else str(expanded(url)))
    except ImportError as error:  # its message names the package: "Install s3fs to access S3"
        raise UserError(f"{source}: a package for this kind of URL is missing: {one_line(error)}") from None
    except ValueError as error:
        raise UserError(f"{source}: {one_line(error)}") from None
    except Exception as error:  # drivers raise errors of their own where credentials are missing
        raise UserError(f"{source}: cannot be opened: {one_line(error)}") from error
    try:
        # A web server knows no folders, and listing one can download a whole page to find out.
        is_folder = "http" not in filesystem.protocol and filesystem.isdir(root)
        found = sorted(filesystem.find(root)) if is_folder else []
    except Exception as error:  # every driver has errors of its own
        raise UserError(f"{source}: cannot be listed: {one_line(error)}") from error
    if not is_folder:
        return FileSource(filesystem, ((root, source),), most)
    label = source.rstrip("/")
    paths = {path[len(root) :].lstrip("/"): path for path in found}

    def read(name: str) -> bytes:
        with _reading(filesystem, paths[name], f"{label}/{name}") as handle:
            content: bytes = handle.read(_NOTE_BYTES)
            return content

    folder = Folder(label, tuple(sorted(paths)), read)
    chosen = files_of_split(folder, split, subset)
    files = tuple((paths[name], f"{label}/{name}") for name in chosen)
    return FileSource(filesystem, files, most, tuple(not_read(folder, chosen)))


def _is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    return "file" in filesystem.protocol


@contextmanager
def _reading(filesystem: fsspec.AbstractFileSystem, path: str, name: str) -> Iterator[Any]:
    """An open file. Errors of the disk, the network or the driver become a `UserError` that names it."""
    try:
        with filesystem.open(path, "rb") as handle:
            yield handle
    except FileNotFoundError as error:
        # The driver for http says so whatever failed, and gives what it was as the cause.
        reason = f"cannot be read: {one_line(error.__cause__)}" if error.__cause__ else "no such file"
        raise UserError(f"{name}: {reason}") from error
    except Exception as error:
        # Locally anything but an OSError is a bug of ours; a remote driver may raise its library's own.
        if isinstance(error, UserError) or (_is_local(filesystem) and not isinstance(error, OSError)):
            raise
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise UserError(f"{name}: cannot be read: {reason}") from error
