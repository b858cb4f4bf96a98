"""What goes through the model's chat template: a system message and the template's own arguments, used or refused."""

from __future__ import annotations

import pytest

import llava_probe as lp
from llava_probe.asking.prompts import pose
from llava_probe.tiny import scene

SCENE = scene(34).image

THINKING = """
{%- for m in messages %}{{ m.role | upper }}: {% for part in m.content -%}
{% if part.type == 'image' %}<image>{% else %}{{ part.text }}{% endif %}{% endfor %} {% endfor -%}
{%- if tools %}TOOLS {{ tools | tojson }} {% endif -%}
{%- if add_generation_prompt %}ASSISTANT:{% endif -%}
{%- if enable_thinking is not defined or enable_thinking %} <think>{% endif -%}
"""


@pytest.fixture
def thinking(monkeypatch: pytest.MonkeyPatch) -> lp.VLM:
    vlm = lp.load()
    monkeypatch.setattr(vlm.processor, "chat_template", THINKING)
    return vlm


def test_a_system_message_is_what_the_template_makes_of_it_and_comes_back_from_the_file(tmp_path):
    vlm = lp.load()
    content = [{"type": "image"}, {"type": "text", "text": "What is the text?"}]
    chat = [
        {"role": "system", "content": [{"type": "text", "text": "Answer in one word."}]},
        {"role": "user", "content": content},
    ]
    right = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    trace = vlm.generate(SCENE, "What is the text?", system="Answer in one word.", max_new_tokens=2)
    assert trace.request.prompt == right
    loaded = lp.Trace.load(trace.save(tmp_path / "one.trace"))
    assert loaded == trace and loaded.request.system == "Answer in one word."
    assert vlm.rerun(loaded) == trace
    batch = vlm.generate_batch(
        [{"image": SCENE, "question": "What is the text?", "system": "Answer in one word."}], max_new_tokens=2
    )
    assert batch[0].request.prompt == right
    assert vlm.score(SCENE, "What is the text?", "red", system="Answer in one word.").request.prompt == right


def test_a_template_that_leaves_the_system_message_out_is_refused(monkeypatch):
    vlm = lp.load()
    monkeypatch.setattr(
        vlm.processor, "chat_template", "{% for m in messages if m.role == 'user' %}<image>?{% endfor %}"
    )
    with pytest.raises(lp.BadInput, match="leaves out the system message"):
        vlm.generate(SCENE, "What is the text?", system="Answer in one word.")


def test_a_system_message_does_not_go_with_what_passes_no_template_or_has_one():
    vlm = lp.load()
    with pytest.raises(lp.BadInput, match="write it into the prompt"):
        vlm.generate(SCENE, prompt="USER: <image>\n? ASSISTANT:", system="Be brief.")
    with pytest.raises(lp.BadInput, match="template_kwargs= goes through the chat template"):
        vlm.generate(SCENE, prompt="USER: <image>\n? ASSISTANT:", template_kwargs={"enable_thinking": False})
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What?"}]
    with pytest.raises(lp.BadInput, match="give it in one place"):
        vlm.generate(messages=chat, system="Be long.")


def test_arguments_of_the_template_are_used_kept_and_refused_by_name(thinking, tmp_path):
    plain = thinking.generate(SCENE, "What?", max_new_tokens=1)
    other = thinking.generate(SCENE, "What?", max_new_tokens=1, template_kwargs={"enable_thinking": False})
    assert plain.request.prompt == f"{other.request.prompt} <think>"
    loaded = lp.Trace.load(other.save(tmp_path / "one.trace"))
    assert loaded == other != plain and loaded.request.template == {"enable_thinking": False}
    with pytest.raises(lp.BadInput, match=r"reads no thinking_budget; it reads .*enable_thinking"):
        thinking.generate(SCENE, "What?", template_kwargs={"thinking_budget": 3})


def test_a_tool_given_as_a_function_is_told_and_kept_by_its_schema(thinking):
    def zoom(factor: int) -> str:
        """Look closer.

        Args:
            factor: how much
        """
        return str(factor)

    asked = pose(thinking.processor, SCENE, "What?", template_kwargs={"tools": [zoom]})
    assert '"name": "zoom"' in str(asked.prompt)
    assert asked.template["tools"][0]["function"]["name"] == "zoom"


def test_an_answer_that_was_begun_goes_on():
    vlm = lp.load()
    chat = [
        {"role": "user", "content": [{"type": "image", "image": SCENE}, {"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "It is"}]},
    ]
    trace = vlm.generate(messages=chat, template_kwargs={"continue_final_message": True}, max_new_tokens=1)
    assert str(trace.request.prompt).endswith("ASSISTANT: It is")


def test_a_template_that_the_tokenizer_alone_has_is_used():
    vlm = lp.load()
    plain = pose(vlm.processor, SCENE, "What?").prompt
    vlm.processor.tokenizer.chat_template, vlm.processor.chat_template = vlm.processor.chat_template, None
    assert pose(vlm.processor, SCENE, "What?").prompt == plain
