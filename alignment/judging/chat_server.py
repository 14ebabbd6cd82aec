"""lm-evaluation-harness asking a chat server, with the `openai` client that the judge uses.

Only tasks that generate can be measured so (GSM8K; not the five that compare log-probabilities):
chat servers return no log-probabilities of a given text.
"""

from __future__ import annotations

import os
from typing import Any

from reprise.rollout.errors import BadInput
from reprise.rollout.run.remote import OutageError, hide_secrets_in_logs, redact


def chat_server(address: str, model: str) -> Any:
    """An ``lm_eval`` model behind `address` (up to /v1); its key is in OPENAI_API_KEY, if any."""
    import openai
    from lm_eval.api.model import LM

    hide_secrets_in_logs()
    key = os.environ.get("OPENAI_API_KEY") or "none"
    client = openai.OpenAI(base_url=address, api_key=key, max_retries=8)

    class ChatServer(LM):
        """Greedy answers to prompts sent as one user message."""

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [self._answer(*request.args) for request in requests]

        def _answer(self, context: str, options: dict[str, Any]) -> str:
            stops = options.get("until") or []
            stops = [stops] if isinstance(stops, str) else list(stops)
            try:
                response = client.chat.completions.create(
                    model=model,
                    messages=[{"role": "user", "content": context}],
                    max_tokens=options.get("max_gen_toks", 256),
                    temperature=options.get("temperature", 0.0),
                )
            except openai.APIError as error:
                raise OutageError(f"the server at {address}: {redact(str(error))}") from None
            # Cut here: not every server reads `stop`, and some take no more than four.
            text = response.choices[0].message.content or ""
            for stop in stops:
                text = text.split(stop)[0] if stop else text
            return text

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            raise BadInput(
                f"server={address!r}: a chat server gives no log-probabilities of a text, which "
                "this task compares; leave server out, and the model is loaded here"
            )

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> Any:
            return self.loglikelihood(requests)

    return ChatServer()
