"""Messages come in many forms: mapped, joined, or refused with row, finding and remedy."""

import pytest

from reprise.alignment.text.conversations import messages_of, prompt_and_answers, rendered
from reprise.rollout.errors import BadInput

USER, REPLY = {"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}


@pytest.mark.parametrize(
    ("given", "read"),
    [
        ({"role": "user", "content": "hi"}, USER),
        ({"from": "human", "value": "hi"}, USER),
        ({"from": "gpt", "value": "hello"}, REPLY),
        (
            {
                "role": "user",
                "content": [{"type": "text", "text": "h"}, {"type": "text", "text": "i"}],
            },
            USER,
        ),
        ({"role": "user", "content": ["h", "i"]}, USER),
        ({"role": "user", "content": "hi", "name": None}, USER),
        ({"role": "user", "content": "hi", "name": "Ann"}, {**USER, "name": "Ann"}),
    ],
)
def test_messages_are_brought_into_one_form(given, read):
    assert messages_of([given], "row 0") == [read]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("hi", "is no message"),
        ({"text": "hi"}, "has the keys text; it needs role and content"),
        ({"role": "user", "content": None}, "its content is None"),
        ({"role": "user", "content": 3}, "its content is 3"),
        ({"from": "alien", "value": "hi"}, "from='alien'; known are human, gpt"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "parts of type image"),
    ],
)
def test_what_is_no_message_is_refused_with_its_place(given, said):
    with pytest.raises(BadInput, match=said) as caught:
        messages_of([USER, given], "data.name='d': row 7")
    assert "row 7, message 1" in str(caught.value)


def test_a_tool_call_needs_no_text():
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    assert messages_of([call], "row 0")[0]["content"] == ""


def test_the_last_message_is_the_answer_and_the_rest_the_prompt():
    both = {"chosen": [USER, REPLY], "rejected": [USER, {**REPLY, "content": "no"}]}
    assert prompt_and_answers("hi", both, "row 0") == (
        [USER],
        {"chosen": "hello", "rejected": "no"},
    )
    assert prompt_and_answers("hi", {"reference": "text"}, "row 0") == (None, {"reference": "text"})


def test_a_prompt_with_its_answer_inside_is_refused():
    with pytest.raises(BadInput, match="ends in an answer of the assistant"):
        prompt_and_answers([USER, REPLY], {"reference": "text"}, "row 3")


def test_answers_to_different_prompts_are_refused():
    other = [{**USER, "content": "bye"}, REPLY]
    with pytest.raises(BadInput, match="before the chosen and the rejected answer differ"):
        prompt_and_answers("hi", {"chosen": [USER, REPLY], "rejected": other}, "row 3")


class Template:
    """A tokenizer whose template takes no system turn, and shows its tools."""

    def apply_chat_template(self, messages, tools, tokenize, add_generation_prompt):
        from jinja2 import TemplateError

        if messages[0]["role"] == "system":
            raise TemplateError("no system here")
        return f"{[tool['name'] for tool in tools or []]} {messages[-1]['content']}"


def test_a_templates_refusal_names_row_and_roles_and_tools_reach_it():
    assert rendered(Template(), [USER], [{"name": "add"}], "row 1") == "['add'] hi"
    with pytest.raises(BadInput, match="no system here") as caught:
        rendered(Template(), [{"role": "system", "content": "x"}, USER], None, "row 1")
    assert "row 1" in str(caught.value) and "system, user" in str(caught.value)
