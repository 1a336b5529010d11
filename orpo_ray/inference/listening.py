"""How a reward model from elsewhere is shown a text, and where its reward is read: as Hugging Face does both.

Its recipe is `apply_chat_template` of the whole conversation (plain text, where it has no template: the tokenizer's own
call), tokenised whole, through `AutoModelForSequenceClassification`, which scores the last token that is not padding.
So nothing is added (no BOS, no EOS of ours) and nothing that the template writes behind an answer is left out. A
reward model that was trained here is spoken to as in its training instead: see `speaking.Speaker`.
"""

from __future__ import annotations

from collections.abc import Sequence

from orpo_ray.data.formats import Tools, Turns
from orpo_ray.errors import UserError
from orpo_ray.inference.models import EvaluatedModel
from orpo_ray.inference.speaking import Completion, Speaker
from orpo_ray.modeling.loading import load_config
from orpo_ray.modeling.reward import padding_of


class Listener(Speaker):
    """A reward model from elsewhere. Where there is a chat template, text reaches it as messages."""

    def __init__(self, model: EvaluatedModel, chat_template: str | None) -> None:
        super().__init__(model, chat_template)
        self.wants_messages = self.renderer.template is not None
        self._key = model.key
        config = load_config(model.settings)
        self._pad = padding_of(config)
        self._embeddings: int = config.get_text_config().vocab_size

    def texts(self, prompt: Turns, completions: Sequence[Completion], tools: Tools | None = None) -> list[list[int]]:
        """Token ids of the whole conversation with each completion. One that `max_tokens` cut is closed as any other:
        the template knows no other end. Raises as `Speaker.rows` does."""
        if isinstance(prompt, str):
            return self._plain([f"{prompt}{completion.turns}" for completion in completions])
        return self.encode.whole([self.renderer.conversation(prompt, each.turns, tools) for each in completions])

    def rows(
        self, prompt: Turns, completions: Sequence[Completion] = (), tools: Tools | None = None
    ) -> list[list[int]]:
        """Of the conversations, up to the tokens that are scored, what they begin alike with, and the rest of each.

        Nothing may be alike: the first is then empty. Without completions: of the conversation with an empty answer.
        """
        empty: Turns = "" if isinstance(prompt, str) else [{"role": "assistant", "content": ""}]
        texts = self.texts(prompt, completions or [Completion(empty, cut=False)], tools)
        highest = max(map(max, filter(None, texts)), default=0)
        if highest >= self._embeddings:
            token = self.tokenizer.convert_ids_to_tokens(highest)
            raise UserError(f"{self._key}: it has no embedding for {token!r}, token {highest} of its own")
        scored = [ids[: scored_length(ids, self._pad)] for ids in texts]
        if min(map(len, scored)) < 2:
            raise UserError(f"{self._key}: a text of one token leaves nothing to compare")
        shared = _alike(scored)
        return [scored[0][:shared], *(ids[shared:] for ids in scored)]

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """With what the tokenizer puts around a text; special tokens that the data hold stay text."""
        encoded = self.tokenizer(list(texts), split_special_tokens=True, return_attention_mask=False, verbose=False)
        ids: list[list[int]] = encoded["input_ids"]
        return ids


def listener(model: EvaluatedModel, chat_template: str | None) -> Speaker:
    """How a reward model is shown texts: as in its training, or, from elsewhere, as Hugging Face does."""
    return (Speaker if model.trained_here else Listener)(model, chat_template)


def scored_length(ids: Sequence[int], pad: int | None) -> int:
    """How many of `ids` a classifier of transformers 5 scores: up to the rightmost that is not padding
    (`GenericForSequenceClassification.forward`), the first where all are."""
    end = len(ids)
    while pad is not None and end > 1 and ids[end - 1] == pad:
        end -= 1
    return end


def _alike(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all of `texts` begin with; each keeps one of its own."""
    most = min(map(len, texts)) - 1
    first = texts[0]
    return next((i for i in range(most) if any(ids[i] != first[i] for ids in texts)), most)
