"""Conversations as they come: checked, and brought into one form, before a template sees them.

One message is ``{"role": ..., "content": text}``. ``from`` and ``value`` (ShareGPT) are mapped, and
a list of text parts is joined. What is anything else is refused with its row, what was found, and
what to do, and so is a conversation that a model's own template refuses.
"""

from __future__ import annotations

from typing import Any

from reprise.rollout.errors import BadInput

SHAREGPT = {"human": "user", "gpt": "assistant", "system": "system", "tool": "tool"}


def messages_of(value: list[Any], where: str) -> list[dict[str, Any]]:
    """A conversation's messages, each with ``role`` and ``content``, other keys kept.

    Args:
        value: a list of messages.
        where: data set, row and column, for errors.

    Raises:
        BadInput: a message is none.
    """
    return [_message(one, f"{where}, message {index}") for index, one in enumerate(value)]


def _message(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadInput(
            f"{where}: {_short(value)} is no message; a conversation is a list of "
            '{"role": ..., "content": ...}: correct the row, or give plain text'
        )
    given = {key: item for key, item in value.items() if item is not None}
    if "from" in given and "value" in given and "role" not in given:
        role = SHAREGPT.get(given.pop("from"), None)
        if role is None:
            raise BadInput(
                f"{where}: from={value['from']!r}; known are {', '.join(SHAREGPT)}: rename it"
            )
        given = {"role": role, "content": given.pop("value"), **given}
    if not isinstance(given.get("role"), str):
        raise BadInput(
            f"{where}: has the keys {', '.join(map(str, value))}; it needs role and content (or "
            "from and value): rename them"
        )
    if "content" not in given and given.get("tool_calls"):
        return {**given, "content": ""}
    content = given.get("content")
    if isinstance(content, list):
        given["content"] = content = _joined(content, where)
    if not isinstance(content, str):
        raise BadInput(
            f"{where}: its content is {_short(content)}; it should be text: correct or drop the row"
        )
    return given


def _joined(parts: list[Any], where: str) -> str:
    """The text of a content in parts."""
    texts = [part.get("text") if isinstance(part, dict) else part for part in parts]
    kinds = {part.get("type", "text") for part in parts if isinstance(part, dict)}
    if kinds - {"text"} or not all(isinstance(text, str) for text in texts):
        raise BadInput(
            f"{where}: its content has parts of type {', '.join(sorted(map(str, kinds)))}; only "
            "text is read: drop the row, or leave the other parts out"
        )
    return "".join(texts)  # type: ignore[arg-type]


def rendered(
    tokenizer: Any, messages: list[dict[str, Any]], tools: list[Any] | None, where: str
) -> str:
    """The prompt that a tokenizer's template makes of a conversation.

    Raises:
        BadInput: the template refuses it.
    """
    from jinja2 import TemplateError

    try:
        return tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, add_generation_prompt=True
        )
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(message["role"] for message in messages)
        raise BadInput(
            f"{where}: the policy's chat template refuses it ({str(error) or repr(error)}); its "
            f"roles are {roles}: drop such rows, or fold the system's turn into the user's"
        ) from error


def prompt_and_answers(
    prompt: Any, answers: dict[str, Any], where: str
) -> tuple[list[dict[str, Any]] | None, dict[str, Any]]:
    """The conversation that is the prompt, if there is one, and the answers as text.

    Answers may be whole conversations that repeat the prompt: [user, assistant]. The last message
    is the answer, and what comes before it the prompt where no column is.

    Raises:
        BadInput: the prompt holds an answer already, or two answers have other turns before them.
    """
    conversation = messages_of(prompt, where) if isinstance(prompt, list) else None
    if conversation and conversation[-1]["role"] == "assistant":
        raise BadInput(
            f"{where}: the prompt ends in an answer of the assistant; a prompt ends before it. "
            "Name a column without it with data.prompt_column, or cut the last message"
        )
    texts, before = dict(answers), []
    for name, answer in answers.items():
        if isinstance(answer, list):
            turns = messages_of(answer, f"{where}, column {name}")
            texts[name] = turns[-1]["content"]
            if turns[:-1]:
                before.append(turns[:-1])
    if any(turns != before[0] for turns in before[1:]):
        raise BadInput(
            f"{where}: the turns before the chosen and the rejected answer differ; a preference is "
            "between two answers to one prompt: drop the row, or cut both after the common turns"
        )
    return conversation or (before[0] if before else None), texts


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
