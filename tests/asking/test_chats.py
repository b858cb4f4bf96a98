"""A chat reaches the template as it was given: every key, text and picture is in the prompt, or refused by name."""

from __future__ import annotations

import base64
import io

import pytest
from PIL import Image

import llava_probe as lp
from llava_probe.asking.prompts import pose
from tests import zoo

PICTURE = Image.new("RGB", (64, 48), (200, 30, 30))
WORDS = {"type": "text", "text": "what is red"}
PROMPT = "USER: <image>\nwhat is red\nASSISTANT:"

AGENT = """
{%- for m in messages %}{{ m.role }}{% if m.name is defined %}({{ m.name }}){% endif %}: {% for c in m.content -%}
{% if c.type == 'image' %}<image>{% elif c.type == 'text' %}{{ c.text }}{% endif %}{% endfor -%}
{% if m.tool_calls %}{% for t in m.tool_calls %} CALL {{ t.function.name }}{% endfor %}{% endif %}
{% endfor %}assistant:"""


def png() -> bytes:
    file = io.BytesIO()
    PICTURE.save(file, "PNG")
    return file.getvalue()


def base64_png() -> str:
    return base64.b64encode(png()).decode()


SPELLINGS = {
    "transformers": [{"type": "image", "image": PICTURE}, WORDS],
    "transformers, in base64": [{"type": "image", "base64": base64_png()}, WORDS],
    "a capital letter": [{"type": "Image", "image": PICTURE}, {"type": "Text", "text": "what is red"}],
    "no types, as the first Qwen-VL": [{"image": PICTURE}, {"text": "what is red"}],
    "OpenAI's chats": [{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{base64_png()}"}}, WORDS],
    "OpenAI's responses": [
        {"type": "input_image", "image_url": f"data:image/png;base64,{base64_png()}", "detail": "auto"},
        {"type": "input_text", "text": "what is red"},
    ],
    "Anthropic": [
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": base64_png()}},
        WORDS,
    ],
    "Bedrock": [{"image": {"format": "png", "source": {"bytes": png()}}}, {"text": "what is red"}],
    "a data set's bytes, and its empty columns": [
        {"type": "image", "image": {"bytes": png(), "path": None}, "text": None},
        {"type": "text", "text": "what is red", "image": None},
    ],
    "a list of pictures": [{"type": "images", "images": [PICTURE]}, WORDS],
}


@pytest.mark.parametrize("content", SPELLINGS.values(), ids=SPELLINGS)
def test_a_picture_is_read_in_other_peoples_spelling(content):
    asked = pose(lp.load().processor, messages=[{"role": "user", "content": content}])
    assert asked.prompt == PROMPT and asked.words == "what is red"
    assert [image.getpixel((0, 0)) for image in asked.images] == [(200, 30, 30)]


def test_pictures_beside_a_text_are_read_and_so_is_a_mark_in_it():
    processor = lp.load().processor
    beside = pose(processor, messages=[{"role": "user", "content": "what is red", "images": [PICTURE]}])
    marked = pose(processor, PICTURE, messages=[{"role": "user", "content": "<image>\nwhat is red"}])
    assert beside.prompt == marked.prompt == PROMPT and len(beside.images) == len(marked.images) == 1
    with pytest.raises(lp.BadInput, match=r"2 places for a picture \(<image>\) but 1 picture was given"):
        pose(processor, PICTURE, "<image>\nwhat is red")


STRANGE = {
    "sound": ([{"type": "input_audio", "input_audio": {"data": "UklGRg=="}}, WORDS], "input_audio"),
    "a file": ([{"type": "file", "file": {"file_id": "f-1"}}, WORDS], "'file'"),
    "a picture by an id": ([{"type": "image", "source": {"type": "file", "file_id": "f-1"}}, WORDS], "file_id"),
    "Gemini's data": ([{"inline_data": {"mime_type": "image/png", "data": "iVBO"}}, WORDS], "inline_data"),
    "two things in one": ([{"image": PICTURE, "text": "what"}], "'text', 'image' or 'video'"),
    "two pictures in one": ([{"type": "image", "image": PICTURE, "url": "x.png"}, WORDS], "image and url"),
    "a key for a processor": (
        [{"type": "image", "image": PICTURE, "min_pixels": 9}, WORDS],
        "min_pixels",
    ),
    "a picture's detail": ([{"type": "image_url", "image_url": {"url": "x", "detail": "high"}}, WORDS], "detail"),
}


@pytest.mark.parametrize(("content", "named"), STRANGE.values(), ids=STRANGE)
def test_what_nothing_reads_is_refused_by_name(content, named):
    with pytest.raises(lp.BadInput, match=named):
        pose(lp.load().processor, messages=[{"role": "user", "content": content}])


def test_a_message_keeps_its_keys(monkeypatch, tmp_path):
    vlm = lp.load()
    monkeypatch.setattr(vlm.processor, "chat_template", AGENT)
    call = [{"type": "function", "function": {"name": "zoom", "arguments": {"by": 2}}}]
    chat = [
        {"role": "user", "content": [{"type": "image"}, WORDS]},
        {"role": "assistant", "tool_calls": call},
        {"role": "tool", "name": "zoom", "content": [{"type": "text", "text": "a sign"}]},
    ]
    right = vlm.processor.apply_chat_template(chat, add_generation_prompt=True)
    assert "CALL zoom" in right and "tool(zoom): a sign" in right
    trace = vlm.generate(PICTURE, messages=chat, max_new_tokens=1)
    assert trace.request.prompt == right and trace.request.messages == chat
    call[0]["function"]["arguments"]["by"] = 3
    assert trace.request.messages[1]["tool_calls"][0]["function"]["arguments"] == {"by": 2}
    loaded = lp.Trace.load(trace.save(tmp_path / "agent.trace"))
    assert loaded == trace and vlm.rerun(loaded) == trace
    nothing = [chat[0], {"role": "assistant", "content": None, "tool_calls": call}, chat[2]]
    assert vlm.generate(PICTURE, messages=nothing, max_new_tokens=1).request.prompt == right


def test_a_key_that_the_template_never_reads_is_told():
    processor = lp.load().processor
    with pytest.raises(lp.BadInput, match="'tool_calls'"):
        pose(processor, messages=[{"role": "assistant", "content": "", "tool_calls": [{"id": "1"}]}])
    with pytest.raises(lp.BadInput, match="'parts'"):
        pose(processor, messages=[{"role": "user", "parts": [WORDS], "content": "what"}])
    with pytest.warns(UserWarning, match="'tool_call_id'"):
        pose(processor, messages=[{"role": "tool", "tool_call_id": "1", "content": "a sign"}])


def test_a_template_that_reads_one_form_is_given_that_form(monkeypatch):
    processor = lp.load().processor
    lists = "{% for m in messages %}{% for c in m.content %}{{ c.text }}{% endfor %}{% endfor %}"
    monkeypatch.setattr(processor, "chat_template", lists)
    assert pose(processor, messages=[{"role": "user", "content": "what"}]).prompt == "what"
    monkeypatch.setattr(processor, "chat_template", "{% for m in messages %}{{ m.content }}{% endfor %}")
    assert pose(processor, messages=[{"role": "user", "content": [WORDS]}]).prompt == "what is red"


def test_a_template_that_leaves_out_words_or_a_picture_is_refused(monkeypatch):
    processor = lp.load().processor
    part = "{% if c.type == 'image' %}<image>{% else %}{{ c.text }}{% endif %}"
    last = f"{{% for c in messages[-1].content %}}{part}{{% endfor %}}"
    monkeypatch.setattr(processor, "chat_template", last)
    with pytest.raises(lp.BadInput, match="leaves out the words 'what is red' of role 'user'"):
        pose(processor, messages=[{"role": "user", "content": [WORDS]}, {"role": "user", "content": "and this"}])
    first = [{"role": "tool", "content": [{"type": "image", "image": PICTURE}]}]
    with pytest.raises(lp.BadInput, match="no place for the picture in a message of role 'tool'"):
        pose(processor, messages=[*first, {"role": "user", "content": [WORDS]}])


def test_a_processor_that_puts_the_picture_itself_needs_no_mark():
    """PaliGemma's own way of asking."""
    vlm = zoo.vlm("paligemma")
    plain = vlm.generate(PICTURE, prompt="caption en", max_new_tokens=1)
    marked = vlm.generate(PICTURE, prompt="<image>caption en", max_new_tokens=1)
    assert plain.tokens == marked.tokens and len(plain.layouts[0]) > 0


@pytest.mark.parametrize(
    "beside", [{"image": PICTURE}, {"images": [PICTURE]}, {"image": png()}], ids=["image", "images", "bytes"]
)
def test_a_picture_beside_a_messages_words_is_shown(beside):
    vlm = lp.load()
    inside = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What?"}]
    shown = vlm.generate(messages=[{"role": "user", "content": inside}], max_new_tokens=1)
    trace = vlm.generate(messages=[{"role": "user", "content": "What?", **beside}], max_new_tokens=1)
    assert trace.request.prompt == shown.request.prompt
    assert len(trace.images) == 1
