#!/usr/bin/env bash
# pyarrow 26.0.1 with an S3-compatible server (moto 5.2.5): an object that is removed after it was opened and before it is
# read raises a plain OSError whose errno is None; the FileNotFoundError that opening a missing object raises does not
# come. Whoever reads a folder that another process tidies (checkpoints that a run retains) and catches
# FileNotFoundError alone fails now and then. On a local file system the same sequence reads the content.
#
# Seen: "opened when missing: FileNotFoundError errno 2", "removed while open: OSError errno None", "removed while open,
# local: b'content'". Exits with 1 where that has changed. Needs Python 3.11 and loopback; takes a minute.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'pyarrow==26.0.1' 'moto[server]==5.2.5'
export AWS_ACCESS_KEY_ID=someone AWS_SECRET_ACCESS_KEY=anything AWS_EC2_METADATA_DISABLED=true
cd "$folder" && venv/bin/python - <<'PYTHON'
import logging
import sys

import moto
import pyarrow as pa
import pyarrow.fs as pafs
from moto.server import ThreadedMotoServer

logging.getLogger("werkzeug").disabled = True

print("pyarrow", pa.__version__, "moto", moto.__version__)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
host, port = server.get_host_and_port()
s3 = pafs.S3FileSystem(
    endpoint_override=f"{host}:{port}", scheme="http", region="us-east-1", allow_bucket_creation=True
)
s3.create_dir("bucket")


def opened(filesystem, path, remove):
    with filesystem.open_output_stream(path) as file:
        file.write(b"content")
    if remove == "before":
        filesystem.delete_file(path)
    try:
        with filesystem.open_input_stream(path) as file:
            if remove == "while":
                filesystem.delete_file(path)
            return repr(file.read())
    except OSError as error:
        return f"{type(error).__name__} errno {error.errno}"


found = {
    "opened when missing": opened(s3, "bucket/object", "before"),
    "removed while open": opened(s3, "bucket/object", "while"),
    "removed while open, local": opened(pafs.LocalFileSystem(), "object", "while"),
}
server.stop()
for what, answer in found.items():
    print(f"{what}: {answer}")
sys.exit(list(found.values()) != ["FileNotFoundError errno 2", "OSError errno None", "b'content'"])
PYTHON
