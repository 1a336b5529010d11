"""Small tokenizers and chat templates of the shapes that models have, each trained and written here."""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from typing import NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPTSw3Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

_TEXTS = [
    "The cat sat on the mat. What is the largest sea? It is the Pacific, of course: I'd say so, wouldn't you?",
    "user assistant system model [INST] [/INST] <|user|> <|assistant|> Today is 26 Jul 2024.",
    "\n\nYes.\n\nNo!\n\nA.\n\nThe  No!\t(a) = 1 + 2\n\n",
    "Die Katze saß auf der Matte; où est le café? 猫は座った。",
]
# Llama 3's and Qwen's.
_TIKTOKEN = Regex(
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


class Family(NamedTuple):
    """A tokenizer with its own template, and what the template does."""

    tokenizer: PreTrainedTokenizerBase
    end: str
    """The token that ends an answer."""


def _byte_level(*, split: Regex | None = None, nfc: bool = False) -> Tokenizer:
    inner = Tokenizer(models.BPE())
    inner.normalizer = normalizers.NFC() if nfc else None
    own = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split is None)
    cut = [] if split is None else [pre_tokenizers.Split(split, "isolated")]
    inner.pre_tokenizer = pre_tokenizers.Sequence([*cut, own])
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        _TEXTS * 9, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return inner


def _sentencepiece(scheme: str) -> Tokenizer:
    """With byte fallback. `scheme`: how it puts a space before a text: `legacy` before each stretch between special
    tokens (Llama 2), `first` before the text alone, `never` (Gemma)."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    marked = [text.replace(" ", "▁") for text in _TEXTS]
    seed = Tokenizer(models.BPE())
    seed.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    seed.train_from_iterator(marked * 9, trainers.BpeTrainer(vocab_size=260, show_progress=False))
    state = json.loads(seed.to_str())["model"]
    known = sorted(state["vocab"], key=state["vocab"].__getitem__)
    vocabulary = {piece: i for i, piece in enumerate([*pieces, *dict.fromkeys(["▁", *known])])}
    merges = [tuple(merge) for merge in state["merges"]]
    inner = Tokenizer(models.BPE(vocabulary, merges, byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    space = normalizers.Replace(" ", "▁")
    if scheme == "legacy":
        inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
    elif scheme == "first":
        inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    else:
        inner.normalizer = space
    strip = [] if scheme == "never" else [decoders.Strip(" ", 1, 0)]
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return inner


def _made(
    inner: Tokenizer, template: str | None, special: list[str | AddedToken], *, bos: str | None, eos: str, adds: bool
) -> PreTrainedTokenizerFast:
    """`adds`: whether it puts BOS before a text, as its post-processor."""
    inner.add_special_tokens(special)
    if adds and bos:
        inner.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, inner.token_to_id(bos))]
        )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token=bos, eos_token=eos)
    tokenizer.chat_template = template
    tokenizer.name_or_path = "made-here"
    return tokenizer


_LLAMA3 = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = '' %}
{%- endif %}
{%- if strftime_now is defined %}
    {%- set today = strftime_now("%d %b %Y") %}
{%- else %}
    {%- set today = "26 Jul 2024" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + today + "\\n\\n" + system + "<|eot_id|>" }}
{%- for m in messages %}
    {{- '<|start_header_id|>' + m['role'] + '<|end_header_id|>\\n\\n' }}
    {{- m['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}"""
_CHATML = (
    "{%- if messages[0]['role'] != 'system' %}{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}{%- endif %}"
    "{%- for m in messages %}{{- '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_GEMMA = (
    "{{ bos_token }}{% for m in messages %}"
    "{{ '<start_of_turn>' + ('model' if m['role'] == 'assistant' else m['role']) + '\\n' + m['content'] | trim "
    "+ '<end_of_turn>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
)
_MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
_PHI3 = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + eos_token }}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
_HH = (
    "{{ bos_token }}{% for m in messages %}{{ '\\n\\nHuman: ' if m['role'] == 'user' else '\\n\\nAssistant: ' }}"
    "{{ m['content'] }}{{ eos_token if m['role'] == 'assistant' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif %}"
)
_GPT2 = "{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}"


def _llama3() -> Family:
    marks = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = _made(_byte_level(split=_TIKTOKEN), _LLAMA3, [*marks], bos=marks[0], eos=marks[4], adds=True)
    return Family(tokenizer, "<|eot_id|>")


def _qwen() -> Family:
    marks: list[str | AddedToken] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    inner = _byte_level(split=_TIKTOKEN, nfc=True)
    return Family(_made(inner, _CHATML, marks, bos=None, eos="<|im_end|>", adds=False), "<|im_end|>")


def _gemma() -> Family:
    marks: list[str | AddedToken] = ["<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"]
    tokenizer = _made(_sentencepiece("never"), _GEMMA, marks, bos="<bos>", eos="<eos>", adds=True)
    return Family(tokenizer, "<end_of_turn>")


def _mistral() -> Family:
    tokenizer = _made(_sentencepiece("legacy"), _MISTRAL, ["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>", adds=True)
    return Family(tokenizer, "</s>")


def _phi3() -> Family:
    swallowing = [AddedToken(f"<|{name}|>", rstrip=True) for name in ("end", "user", "assistant", "system")]
    marks: list[str | AddedToken] = ["<unk>", "<s>", "</s>", "<|endoftext|>", *swallowing]
    inner = _sentencepiece("first")
    return Family(_made(inner, _PHI3, marks, bos="<s>", eos="<|endoftext|>", adds=False), "<|end|>")


def _zephyr() -> Family:
    tokenizer = _made(_sentencepiece("legacy"), _ZEPHYR, ["<unk>", "<s>", "</s>"], bos="<s>", eos="</s>", adds=True)
    return Family(tokenizer, "</s>")


def _opt() -> Family:
    tokenizer = _made(_byte_level(), _HH, ["<pad>", "</s>"], bos="</s>", eos="</s>", adds=True)
    return Family(tokenizer, "</s>")


def _gpt2() -> Family:
    mark = "<|endoftext|>"
    return Family(_made(_byte_level(), _GPT2, [mark], bos=mark, eos=mark, adds=False), mark)


def _slow() -> Family:
    """SentencePiece's own library, behind transformers' tokenizers in Python."""
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_TEXTS * 9), model_writer=model, vocab_size=420, byte_fallback=True, model_type="bpe",
        pad_id=3, minloglevel=2, remove_extra_whitespaces=False, normalization_rule_name="identity",
    )  # fmt: skip
    with tempfile.NamedTemporaryFile(suffix=".model") as file:
        file.write(model.getvalue())
        file.flush()
        tokenizer = GPTSw3Tokenizer(file.name, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>")
    tokenizer.chat_template = _ZEPHYR
    return Family(tokenizer, "</s>")


_FAMILIES: dict[str, Callable[[], Family]] = {
    "llama-3": _llama3, "chatml-qwen": _qwen, "gemma": _gemma, "mistral-inst": _mistral, "phi-3": _phi3,
    "zephyr-sentencepiece": _zephyr, "opt": _opt, "gpt-2": _gpt2,
}  # fmt: skip
FAMILIES = list(_FAMILIES)
SLOW = "sentencepiece-slow"
_FAMILIES[SLOW] = _slow


def family(name: str) -> Family:
    """Made anew each time, in milliseconds: what one test does to its tokenizer no other sees."""
    return _FAMILIES[name]()
