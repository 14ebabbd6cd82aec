"""The reward r~(x, a) = sum_i w_i r_i(x, a) - penalty [no EOS], and its models.

A summand is a sequence classifier, a rule (`rewards_rules`) or a server (`rewards_remote`). A model
is asked about exactly what it was trained on. Where policy and reward model share a vocabulary, the
sampler's token ids are scored as they are; EOS is there if the policy emitted it and absent if the
completion was cut off. Otherwise the text is encoded by the reward model's own tokenizer, its chat
template applied once (it brings its BOS); the token that ended the completion is not text, and the
reward model's own EOS stands for it. `rewards_check` holds them to it before a run starts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from reprise.alignment.config import Reward
from reprise.alignment.limits import check_tokenizer
from reprise.alignment.models import load_reward_model, load_tokenizer, weights_sha256
from reprise.alignment.rewards.config import RewardTerm
from reprise.alignment.rewards.remote import RemoteReward
from reprise.alignment.rewards.rules import RuleReward

Conversation = list[dict[str, str]]


class Rewards:
    """The reward of a run: its summands, weighted, and the penalty for a missing EOS.

    Args:
        config: the sources.
        policy_tokenizer: the tokenizer that the token ids to be scored come from.
        attention: attention implementation of reward models.
        device: where they run.
        autocast: run them in bfloat16 autocast.

    Raises:
        BadInput: a source cannot be loaded, or is not what it should be.
        OutageError: a reward server cannot be reached.
    """

    def __init__(
        self,
        config: Reward,
        policy_tokenizer: PreTrainedTokenizerBase,
        attention: str,
        device: torch.device,
        autocast: bool = False,
    ) -> None:
        self.config, self.policy_tokenizer = config, policy_tokenizer
        self.terms: list[tuple[float, RewardModel | RuleReward | RemoteReward]] = []
        for source in config.sources:
            term: RewardModel | RuleReward | RemoteReward
            if source.function is not None:
                term = RuleReward(source.function)
            elif source.url is not None:
                term = RemoteReward(source, config.batch_size)
            else:
                term = RewardModel(
                    source, config.batch_size, policy_tokenizer, attention, device, autocast
                )
            self.terms.append((source.weight, term))

    @property
    def identity(self) -> str:
        """What the rewards depend on, for the manifest of a round."""
        if len(self.terms) == 1 and self.terms[0][0] == 1.0:
            return self.terms[0][1].identity
        return " + ".join(f"{weight:g} x {term.identity}" for weight, term in self.terms)

    def score(
        self,
        prompt_ids: Sequence[np.ndarray],
        completion_ids: Sequence[np.ndarray],
        terminated: Sequence[bool] | np.ndarray,
        conversations: Sequence[Conversation | None],
    ) -> np.ndarray:
        """Rewards of completions; float32, shape (sequences,).

        Args:
            prompt_ids: the policy's token ids of each prompt.
            completion_ids: and of each completion, with EOS if the policy emitted it.
            terminated: whether it did.
            conversations: each prompt as messages, where the data is a chat; else None.
        """
        ended = np.asarray(terminated, dtype=bool)
        total = np.zeros(len(completion_ids), dtype=np.float32)
        texts: tuple[list[Any], list[str]] | None = None
        for weight, term in self.terms:
            if isinstance(term, RewardModel):
                scores = term.score(prompt_ids, completion_ids, ended, conversations)
            else:
                texts = texts or self._texts(prompt_ids, completion_ids, ended, conversations)
                if isinstance(term, RuleReward):
                    ids = [completion.tolist() for completion in completion_ids]
                    scores = term.score_texts(*texts, ended, ids)
                else:
                    scores = term.score_texts(*texts, ended)
            total += np.float32(weight) * scores
        if self.config.missing_eos_penalty is not None:
            total -= np.float32(self.config.missing_eos_penalty) * ~ended
        return total

    def _texts(
        self,
        prompt_ids: Sequence[np.ndarray],
        completion_ids: Sequence[np.ndarray],
        terminated: np.ndarray,
        conversations: Sequence[Conversation | None],
    ) -> tuple[list[Any], list[str]]:
        """Prompts, as text or messages, and completions, as text without their end."""
        tokenizer = self.policy_tokenizer
        prompts = [
            conversation or tokenizer.decode(prompt, skip_special_tokens=True)
            for prompt, conversation in zip(prompt_ids, conversations, strict=True)
        ]
        answers = [
            answer_text(tokenizer, completion, ended)
            for completion, ended in zip(completion_ids, terminated, strict=True)
        ]
        return prompts, answers


def answer_text(
    tokenizer: PreTrainedTokenizerBase, completion: np.ndarray, terminated: bool
) -> str:
    """What a completion says: its text without the token that ended it, which may be any."""
    return tokenizer.decode(completion[:-1] if terminated else completion, skip_special_tokens=True)


class RewardModel:
    """A sequence classifier with one output.

    Args:
        source: which model.
        batch_size: sequences scored side by side.
        policy_tokenizer: the tokenizer that the token ids to be scored come from.
        attention: attention implementation.
        device: where it runs.
        autocast: run in bfloat16 autocast.
    """

    def __init__(
        self,
        source: RewardTerm,
        batch_size: int,
        policy_tokenizer: PreTrainedTokenizerBase,
        attention: str,
        device: torch.device,
        autocast: bool = False,
    ) -> None:
        assert source.model is not None
        self.source, self.batch_size = source, batch_size
        self.device = device
        self.autocast = autocast
        self.policy_tokenizer = policy_tokenizer
        self.tokenizer = load_tokenizer(source.model, "reward.model", source.revision)
        self.model = load_reward_model(
            source.model,
            "reward.model",
            attention=attention,
            one_logit=source.output == "logits",
            trust_remote_code=source.trust_remote_code,
            revision=source.revision,
        )
        check_tokenizer(self.model, self.tokenizer, f"reward.model={source.model!r}")
        self.model.config.pad_token_id = self.tokenizer.pad_token_id
        self.model.to(device).eval()
        self.shares_vocabulary = self.tokenizer.get_vocab() == policy_tokenizer.get_vocab()
        own = self.tokenizer.chat_template
        self.shares_template = not own or own == policy_tokenizer.chat_template
        self.identity = f"{source.model} {weights_sha256(self.model.state_dict())}"

    @torch.inference_mode()
    def score(
        self,
        prompt_ids: Sequence[np.ndarray],
        completion_ids: Sequence[np.ndarray],
        terminated: Sequence[bool] | np.ndarray,
        conversations: Sequence[Conversation | None],
    ) -> np.ndarray:
        """Rewards of completions, as `Rewards.score` takes them; float32, shape (sequences,)."""
        columns = zip(prompt_ids, completion_ids, terminated, conversations, strict=True)
        inputs = [self.input_ids(*row) for row in columns]
        scores = np.zeros(len(inputs), dtype=np.float32)
        order = np.argsort([len(ids) for ids in inputs], kind="stable")
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            scores[rows] = self.forward([inputs[row] for row in rows])
        return scores

    def reads_as_the_policy(self, conversation: Conversation | None) -> bool:
        """Whether it was trained on the policy's own token ids: equal tokens, equal template."""
        return self.shares_vocabulary and (self.shares_template or not conversation)

    def input_ids(
        self,
        prompt: np.ndarray,
        completion: np.ndarray,
        terminated: bool,
        conversation: Conversation | None,
    ) -> np.ndarray:
        """What the model reads: prompt and completion, once, as it was trained."""
        if self.reads_as_the_policy(conversation):
            return np.concatenate([prompt, completion])
        answer = answer_text(self.policy_tokenizer, completion, terminated)
        if self.tokenizer.chat_template and conversation:
            messages: Any = [*conversation, {"role": "assistant", "content": answer}]
            ids = self.tokenizer.apply_chat_template(messages, return_dict=False)
        else:
            question = self.policy_tokenizer.decode(prompt, skip_special_tokens=True)
            ids = self.tokenizer(question + answer)["input_ids"]
            if ids and ids[-1] == self.tokenizer.eos_token_id:
                ids = ids[:-1]  # some tokenizers close every text, a cut one too
            if terminated or not ids:
                ids = [*ids, self.tokenizer.eos_token_id]
        return np.asarray(ids, dtype=np.int64)

    @torch.inference_mode()
    def forward(self, inputs: list[np.ndarray]) -> np.ndarray:
        """Rewards of one batch, padded on the right."""
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
        reward = output.logits[:, 0] if self.source.output == "logits" else output.score.reshape(-1)
        return reward.float().cpu().numpy()
