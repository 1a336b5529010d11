#!/usr/bin/env bash
# trl 1.12.0 (the last with PPO) with accelerate 1.15.0: PPOTrainer, where gradients are accumulated, makes fewer updates
# than `num_mini_batches` says. Its configuration cuts a batch of `per_device_train_batch_size *
# gradient_accumulation_steps` responses into so many minibatches, each of which is an update in PPO; but the optimizer
# waits for `gradient_accumulation_steps` backward passes, however many of them a minibatch has. Only on the last batch
# that the data hold does it step each time, as accelerate does at the end of data. So the same batch is trained on by
# more or fewer updates, as memory has it cut, and as it lies in the data.
#
# Seen, optimizer steps in one epoch over 32 responses in 4 minibatches, by size x accumulated: "32 x 1: 4, 16 x 2: 2,
# 8 x 4: 1", and "8 x 4, the last batch: 4". Exits with 1 where that has changed. Needs Python 3.11 and 3 GB; takes a few
# minutes.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv" 2>/dev/null || python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -qq --disable-pip-version-check 'torch==2.13.0' 'trl==1.12.0' 'accelerate==1.15.0' \
    'transformers==5.19.0' 'numpy==2.3.5' rich
cat >"$folder/ppo.py" <<'PYTHON'
import sys

import accelerate
import torch
import transformers
import trl
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, LlamaConfig, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer

RESPONSES, MINIBATCHES = 32, 4
words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(64)}, unk_token="w2"))
tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w1", padding_side="left")
shape = LlamaConfig(
    vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    pad_token_id=0, bos_token_id=1, eos_token_id=1, num_labels=1,
)
steps = []
register_optimizer_step_post_hook(lambda *_: steps.append(1))


def updates(size, accumulated, batches):
    """Optimizer steps of one epoch over the first of as many batches as the data hold."""
    steps.clear()
    torch.manual_seed(0)
    policy = AutoModelForCausalLM.from_config(shape)
    reference = AutoModelForCausalLM.from_config(shape)
    reference.load_state_dict(policy.state_dict())
    args = PPOConfig(
        output_dir=sys.argv[1], per_device_train_batch_size=size, gradient_accumulation_steps=accumulated,
        num_mini_batches=MINIBATCHES, num_ppo_epochs=1, total_episodes=RESPONSES, response_length=4,
        num_sample_generations=0, use_cpu=True, bf16=False, gradient_checkpointing=False, report_to="none",
        save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )
    PPOTrainer(
        args=args, processing_class=tokenizer, model=policy, ref_model=reference,
        reward_model=AutoModelForSequenceClassification.from_config(shape),
        value_model=AutoModelForSequenceClassification.from_config(shape),
        train_dataset=Dataset.from_list([{"input_ids": [3 + i % 50, 4, 5]} for i in range(batches * RESPONSES)]),
    ).train()
    return len(steps)


print("trl", trl.__version__, "accelerate", accelerate.__version__, "transformers", transformers.__version__)
found = []
for size, accumulated, batches in ((32, 1, 8), (16, 2, 8), (8, 4, 8), (8, 4, 1)):
    found.append(updates(size, accumulated, batches))
    last = ", the last batch" if batches == 1 else ""
    print(f"{size} x {accumulated}{last}: {found[-1]} updates in {MINIBATCHES} minibatches")
sys.exit(found != [4, 2, 1, 4])
PYTHON
"$folder/venv/bin/python" "$folder/ppo.py" "$folder"
