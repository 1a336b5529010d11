"""No secret is written: not in a run's folder, a message, a log or a page (docs/security.md)."""

from __future__ import annotations

import json
import string
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from secret_scan import leaks
from test_data_prepare import GOOD, account_of
from test_report import make_run
from torch.utils.tensorboard import SummaryWriter

from orpo_ray.config import EvaluationConfig, TrainConfig, load_config, parse_as, parse_config
from orpo_ray.data import toyworld
from orpo_ray.data.prepare import prepare
from orpo_ray.errors import UserError
from orpo_ray.masking import MASK, holds_mask, is_secret, masked, masked_tree
from orpo_ray.modeling.loading import load_policy
from orpo_ray.report import write_report
from orpo_ray.storage.run_folder import RunFolder
from orpo_ray.training.export import export_model


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("https://me:s3cret@host/x.jsonl", "https://me:***@host/x.jsonl"),
        ("https://s3cret@host/x.jsonl", "https://***@host/x.jsonl"),
        ("s3://AKIA:s3/c+ret@bucket/pairs.jsonl", "s3://AKIA:***@bucket/pairs.jsonl"),
        ("https://me:p@s3cret@host/x", "https://me:***@host/x"),
        ("https://host/x?token=s3cret&part=2", "https://host/x?token=***&part=2"),
        ("https://b.s3.amazonaws.com/x?X-Amz-Date=1&X-Amz-Signature=s3cret", None),
        ("https://account.blob.core.windows.net/c/x?sv=2024&se=9&sig=s3cret%3D", None),
        ("filecache::https://me:s3cret@host/x", "filecache::https://me:***@host/x"),
        ("zip://a.jsonl::s3://k:s3cret@b/x.zip", "zip://a.jsonl::s3://k:***@b/x.zip"),
        ("404, message='Not Found', url='https://host/x?api_key=s3cret'", None),
        ("https://host/callback#access_token=s3cret&state=1", "https://host/callback#access_token=***&state=1"),
        ("GET /c/x?sas=s3cret 403", "GET /c/x?sas=*** 403"),
        ("https://host/x?token=s3;cret&part=2", "https://host/x?token=***&part=2"),
        ("AccountName=me;AccountKey=s3cret==;EndpointSuffix=x", "AccountName=me;AccountKey=***;EndpointSuffix=x"),
        ("git+https://s3cret@github.com/a/b", "git+https://***@github.com/a/b"),
        ("401 for Bearer s3cret-7f.3e: no", "401 for Bearer ***: no"),
        ("{'Authorization': 'Basic s3cretdGE='}", "{'Authorization': 'Basic ***'}"),
        ("authorization: Bearer s3cret", "authorization: Bearer ***"),
        ("-H 'Proxy-Authorization: s3cret7f'", "-H 'Proxy-Authorization: ***'"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.s3cret", "eyJ***"),
        ("token hf_oauth_eyJhbGciOi.s3cret.x-y_z", "token hf_oauth_***"),
        ("ghp_s3cret0123456789abcdefghijklmnopqr", "ghp_***"),
        ("Incorrect API key provided: sk-proj-s3cret_0-abcDEFghi. See", "Incorrect API key provided: sk-proj-***. See"),
        ("key=sk-ant-api03-s3cret_0-abcDEF", "key=sk-ant-***"),
        ("'sk-or-v1-0123s3cret4567890abc'", "'sk-or-***'"),
        ("(sk-svcacct-s3cret0123456789)", "(sk-svcacct-***)"),
        ("%20sk-admin-s3cret-0123456789 sk-0123s3cret4567890abcdef", "%20sk-admin-*** sk-***"),
        (f"no such revision: hf_{'s3cret' * 6}, org/name", "no such revision: hf_***, org/name"),
    ],
)
def test_credentials_are_masked(text: str, written: str | None) -> None:
    assert written is None or masked(text) == written
    assert "s3cret" not in masked(text)
    assert holds_mask(masked(text))
    assert masked(masked(text)) == masked(text)


@pytest.mark.parametrize(
    "text",
    ["s3://bucket/pairs@v1/x.jsonl", "http://127.0.0.1:8080/a@b/x", "hf://datasets/org/name@main/x.jsonl", "~/runs/x",
     "abfs://container@account.dfs.core.windows.net/x", "https://host/x?max_tokens=3&versionId=7", "org/name:subset",
     "https://host/page#section=2", "hf_MistralForSequenceClassification", "org/hf_ultrafeedback_binarized_2024",
     f"models/hf_{'7a94ddb27c' * 4}/model",
     "a Bearer token-based scheme", "who is the bearer of this?", 'WWW-Authenticate: Bearer realm="hub"',
     "Authorization: none", "is it a token? sig; sas # key", "ghp_short and eyJ.a.b",
     "sk-learn-pipeline-of-2024", "task-proj-of-many-words-and-more", "runs/sk-proj-mine", "disk-0123456789abcdef0123"],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text
    assert not holds_mask(text)


AROUND = st.text("abz 019_-.,:;/?&#=@%'\"\n<>()", max_size=20)
LETTERS = "".join(sorted(set(string.ascii_letters + string.digits) - set("abz019")))  # that stand in secrets alone
PLACES = [
    "https://me:{}@host/x", "https://{}@host/x", "https://host/x?sig={}&part=1", "https://host/#access_token={}",
    "/x?sas={}", "Authorization: Bearer {}", "authorization='Basic {}'", "SharedAccessKey=a;AccountKey={};b=c",
]  # fmt: skip


@given(st.text(LETTERS, min_size=8, max_size=40), st.sampled_from(PLACES), AROUND, AROUND)
def test_a_secret_is_masked_whatever_stands_around_it(secret: str, place: str, before: str, after: str) -> None:
    text = f"{before} {place.format(secret)} {after}"
    written = masked(text)
    assert secret not in written
    assert holds_mask(written)
    assert masked(written) == written


@given(st.text(LETTERS, min_size=34, max_size=34), AROUND, AROUND)
def test_a_token_of_the_hub_is_masked_wherever_it_stands(secret: str, before: str, after: str) -> None:
    written = masked(f"{before}%20hf_{secret}{after}")
    assert secret not in written
    assert holds_mask(written)


WORDS = [
    "a Bearer token", "bearer of", "Authorization: none", "token", "tokens", "hf_datasets", "hf_Model", "key", "sig",
    "sas", "basic", "lr=1e-5", "pad_token=x", "https://host/x?split=train#top", "s3://bucket/a@b", "eyJ", "a",
]  # fmt: skip


@given(st.text(LETTERS, min_size=20, max_size=60), st.sampled_from(["proj", "ant", "svcacct", "admin", "or"]), AROUND)
def test_a_server_s_key_is_masked_whatever_stands_around_it(secret: str, kind: str, around: str) -> None:
    written = masked(f"{around} sk-{kind}-{secret} {around}")
    assert secret not in written
    assert holds_mask(written)
    assert masked(written) == written


@given(st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([" ", ", ", ". ", ": ", "; ", "\n"]))))
def test_ordinary_text_stays(words: list[tuple[str, str]]) -> None:
    text = "".join(word + after for word, after in words)
    assert masked(text) == text
    assert not holds_mask(text)


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "piece",
    [
        "sk-proj-",
        "sk-ant-a ",
        "sk-0 ",
        "-sk-a",
        "https://a",
        "://a:",
        "-eyJ",
        "_hf_",
        "Bearer a",
        "?token=;",
        "authorization: basic ",
    ],
)
def test_a_long_text_is_masked_in_a_time_that_grows_with_its_length(piece: str) -> None:
    """The first took minutes: each address looked for its @ to the text's end."""
    for text in (piece * 50_000, f"{piece * 50_000} @"):
        masked(text)
        holds_mask(text)


def test_names_of_secrets() -> None:
    secret = [
        "api_key",
        "apiKey",
        "HF_TOKEN",
        "token",
        "aws_secret_access_key",
        "password",
        "Authorization",
        "X-Amz-Signature",
    ]
    assert [name for name in secret if not is_secret(name)] == []
    plain = ["tokens_per_microbatch", "nll_tokens", "tokenizer", "monkey", "author", "overlap_comm", "max_tokens"]
    assert [name for name in plain if is_secret(name)] == []
    assert masked_tree({"comet": {"api_key": "x", "project": "y"}}, by_name=True) == {
        "comet": {"api_key": MASK, "project": "y"}
    }


SECRETS = {
    "HF_TOKEN": "hf_AbCdEfGhIjKlMnOpQr", "WANDB_API_KEY": "0123wandb4567secret", "RAY_AUTH_TOKEN": "ray-token-7f3e",
    "AWS_SECRET_ACCESS_KEY": "aws/Sec+ret/KeyXYZ0", "HUGGING_FACE_HUB_TOKEN": "hf_ZyXwVuTsRqPoNm",
    "url password": "pa55w0rd-of-the-url", "url token": "query-token-9a8b", "deepspeed": "comet-key-5521",
}  # fmt: skip
URL = f"https://me:{SECRETS['url password']}@127.0.0.1:9/pairs.jsonl?token={SECRETS['url token']}&version=3"
CONFIGURATION: dict[str, Any] = {
    "name": "secretive",
    "model": {"name_or_path": "toy", "dtype": "float32"},
    "data": {"train": URL, "eval": URL},
    "train": {"deepspeed": {"comet": {"api_key": SECRETS["deepspeed"], "project": "mine"}}},
}


def test_a_run_folder_holds_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a run writes without Ray: configuration, tokens, quarantine, model and card, events, report."""
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.setenv(name, SECRETS[name])
    config = parse_config({**CONFIGURATION, "storage": {"path": str(tmp_path)}}, [], "test")
    folder = RunFolder(make_run(config.run_dir))
    folder.config.unlink()
    folder.open_for(config)
    with pytest.raises(UserError) as caught:
        prepare(config, toyworld.tokenizer())
    folder.note(f"{URL}: {caught.value}")
    assert f"me:{MASK}@" in str(caught.value)
    _prepare_from_memory(config)
    policy = load_policy(config.model, seed=0)
    export_model(
        folder.model,
        policy.model,
        policy.model.state_dict(),
        toyworld.tokenizer(),
        config,
        {"step": 3, "eval_loss": 1.0},
        9,
    )
    with SummaryWriter(str(folder.tensorboard)) as writer:
        writer.add_scalar("train/loss", 1.0, 1)
    write_report(folder.path)
    assert f"https://me:{MASK}@127.0.0.1:9/pairs.jsonl" in (folder.model / "README.md").read_text()
    assert len(list(tmp_path.rglob("*.*"))) > 15
    assert leaks(tmp_path, SECRETS) == []


def _prepare_from_memory(config: TrainConfig) -> None:
    """Tokens and quarantined records of a source whose address holds a secret."""
    import fsspec

    address = f"memory://me:{SECRETS['url password']}@secretive"
    fsspec.filesystem("memory").pipe(
        f"/me:{SECRETS['url password']}@secretive/pairs.jsonl",
        b"\n".join([*(json.dumps(pair).encode() for pair in GOOD), b"{"]),
    )
    data = config.data.model_copy(
        update={"train": address, "eval": None, "on_bad_record": "quarantine", "eval_fraction": 0.3}
    )
    prepared = prepare(config.model_copy(update={"data": data}), toyworld.tokenizer())
    assert account_of(prepared).quarantined == {"malformed JSON": 1}
    (quarantine,) = prepared.quarantine
    assert json.loads(quarantine.read_text())["location"] == f"memory://me:{MASK}@secretive/pairs.jsonl:4"


def test_a_run_with_credentials_is_continued(tmp_path: Path) -> None:
    """It is known as the same run, with other credentials too; another address is another run."""

    def opened(url: str) -> None:
        RunFolder(tmp_path).open_for(parse_config({**CONFIGURATION, "data": {"train": url}}, [], "test"))

    opened(URL)
    RunFolder(tmp_path).append_metrics({"step": 1, "loss": 3.0})
    opened(URL)
    opened(URL.replace(SECRETS["url password"], "changed"))
    with pytest.raises(UserError, match=r"other settings \(data\.train\)"):
        opened(URL.replace("version=3", "version=4"))
    # What was written is not a configuration that could be used by mistake.
    with pytest.raises(UserError, match=r"config\.yaml: data\.train: its secret was masked when this was written"):
        load_config(tmp_path / "config.yaml")
    restored = load_config(tmp_path / "config.yaml", [f"data.train={URL}", "train.deepspeed={}"])
    assert restored.data.train == URL


def test_what_libraries_warn_of_and_log_and_tracebacks_are_masked() -> None:
    """As when urllib3 logs a path with its query, or an error of our own quotes an address."""
    script = (
        "import logging, warnings; from orpo_ray.cli import app, main\n@app.command()\ndef probe() -> None:\n"
        f"    warnings.warn('no answer: Bearer {SECRETS['url token']}')\n"
        f"    logging.getLogger('x').error('Retrying after %s', '/pairs?token={SECRETS['url token']}')\n"
        f"    raise ZeroDivisionError({URL!r})\nmain(['probe'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert not any(secret in done.stderr for secret in SECRETS.values())
    told = done.stderr.rstrip().splitlines()[-1]
    assert told == f"ZeroDivisionError: https://me:{MASK}@127.0.0.1:9/pairs.jsonl?token={MASK}&version=3"
    for line in (f"no answer: Bearer {MASK}", f"Retrying after /pairs?token={MASK}"):
        assert line in done.stderr


def test_evaluations_mask_too() -> None:
    mapping = {"name": "e", "models": {"token": "runs/x"}, "prompts": {"source": URL}, "reward_models": {"r": "toy"}}
    config = parse_as(EvaluationConfig, mapping, [], "test")
    assert not any(secret in config.to_yaml() for secret in SECRETS.values())
    assert "token: runs/x" in config.to_yaml()  # a label is no name of a secret


def test_the_scan_finds_what_is_hidden(tmp_path: Path) -> None:
    """In every kind of file that a run writes, or the test above would prove nothing."""
    import gzip

    import zstandard
    from safetensors.torch import save_file

    secret = SECRETS["AWS_SECRET_ACCESS_KEY"]
    (tmp_path / "plain.yaml").write_text(f"a: {secret}")
    (tmp_path / "url.txt").write_text("x=aws%2FSec%2Bret%2FKeyXYZ0")
    (tmp_path / "a.gz").write_bytes(gzip.compress(secret.encode()))
    (tmp_path / "a.zst").write_bytes(zstandard.compress(secret.encode()))
    pq.write_table(pa.table({"a": ["x", secret]}), tmp_path / "a.parquet", compression="zstd")
    torch.save({"config": secret}, tmp_path / "a.pt")
    np.savez_compressed(tmp_path / "a.npz", text=np.frombuffer(secret.encode(), np.uint8))
    save_file({"w": torch.zeros(1)}, tmp_path / "a.safetensors", metadata={"note": secret})
    (tmp_path / ".hidden").mkdir()
    (tmp_path / ".hidden" / "headers").write_text("Basic bWU6YXdzL1NlYytyZXQvS2V5WFlaMA==")
    (tmp_path / "sound").write_text("aws")
    names = ["plain.yaml", "url.txt", "a.gz", "a.zst", "a.parquet", "a.pt", "a.npz", "a.safetensors", ".hidden/headers"]
    assert leaks(tmp_path, {"key": secret, "other": "not there at all"}) == sorted(f"{name}: key" for name in names)
