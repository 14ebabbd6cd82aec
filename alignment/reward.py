"""The reward model r~(x, a), asked about exactly what it was trained on.

Where policy and reward model share a vocabulary, the sampler's token ids are scored as they are;
EOS is there if the policy emitted it and absent if the completion was cut off. Otherwise the text
is encoded by the reward model's own tokenizer, its chat template applied once (it brings its BOS).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config import Reward
from alignment.models import load_reward_model, load_tokenizer, weights_sha256

Conversation = list[dict[str, str]]


class RewardModel:
    """A sequence classifier with one output.

    Args:
        config: which model, and how to batch.
        policy_tokenizer: the tokenizer that the token ids to be scored come from.
        attention: attention implementation.
        device: where it runs.
        autocast: run in bfloat16 autocast.
    """

    def __init__(
        self,
        config: Reward,
        policy_tokenizer: PreTrainedTokenizerBase,
        attention: str,
        device: torch.device,
        autocast: bool = False,
    ) -> None:
        self.config = config
        self.device = device
        self.autocast = autocast
        self.policy_tokenizer = policy_tokenizer
        self.tokenizer = load_tokenizer(config.model, "reward.model")
        self.model = load_reward_model(
            config.model,
            "reward.model",
            attention=attention,
            one_logit=config.output == "logits",
            trust_remote_code=config.trust_remote_code,
            revision=config.revision,
        )
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()
        self.shares_vocabulary = self.tokenizer.get_vocab() == policy_tokenizer.get_vocab()
        self.identity = f"{config.model} {weights_sha256(self.model.state_dict())}"

    @torch.inference_mode()
    def score(
        self,
        prompt_ids: Sequence[np.ndarray],
        completion_ids: Sequence[np.ndarray],
        terminated: Sequence[bool] | np.ndarray,
        conversations: Sequence[Conversation | None],
    ) -> np.ndarray:
        """Rewards of completions, `missing_eos_penalty` taken off; float32, shape (sequences,).

        Args:
            prompt_ids: the policy's token ids of each prompt.
            completion_ids: and of each completion, with EOS if the policy emitted it.
            terminated: whether it did.
            conversations: each prompt as messages, where the data is a chat; else None.
        """
        columns = zip(prompt_ids, completion_ids, terminated, conversations, strict=True)
        inputs = [self._input_ids(*row) for row in columns]
        scores = np.zeros(len(inputs), dtype=np.float32)
        order = np.argsort([len(ids) for ids in inputs], kind="stable")
        for start in range(0, len(order), self.config.batch_size):
            rows = order[start : start + self.config.batch_size]
            scores[rows] = self._forward([inputs[row] for row in rows])
        penalty = self.config.missing_eos_penalty
        if penalty is not None:
            scores -= np.float32(penalty) * ~np.asarray(terminated, dtype=bool)
        return scores

    def _input_ids(
        self,
        prompt: np.ndarray,
        completion: np.ndarray,
        terminated: bool,
        conversation: Conversation | None,
    ) -> np.ndarray:
        if self.shares_vocabulary:
            return np.concatenate([prompt, completion])
        answer = self.policy_tokenizer.decode(completion, skip_special_tokens=True)
        if self.tokenizer.chat_template and conversation:
            messages: Any = [*conversation, {"role": "assistant", "content": answer}]
            ids = self.tokenizer.apply_chat_template(messages, return_dict=False)
        else:
            question = self.policy_tokenizer.decode(prompt, skip_special_tokens=True)
            ids = self.tokenizer(question + answer)["input_ids"]
            if ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # some tokenizers close every text, a cut one too
            if terminated:
                ids = [*ids, self.tokenizer.eos_token_id]
        return np.asarray(ids, dtype=np.int64)

    def _forward(self, inputs: list[np.ndarray]) -> np.ndarray:
        width = max(len(ids) for ids in inputs)
        input_ids = np.full((len(inputs), width), self.tokenizer.pad_token_id, dtype=np.int64)
        mask = np.zeros_like(input_ids)
        for row, ids in enumerate(inputs):
            input_ids[row, : len(ids)] = ids
            mask[row, : len(ids)] = 1
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            output = self.model(
                input_ids=torch.from_numpy(input_ids).to(self.device),
                attention_mask=torch.from_numpy(mask).to(self.device),
            )
        reward = output.logits[:, 0] if self.config.output == "logits" else output.score.reshape(-1)
        return reward.float().cpu().numpy()
