"""What the second model is built of is what it says: the tiny model's tower, SmolLM2's words."""

import pytest

import llava_probe as lp
from llava_probe import smol
from llava_probe.smol.built import TEMPLATE

OWN = (  # as its package brings it, without the system message that it puts in
    "{% for message in messages %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_its_chat_format_is_smollm2s():
    tokenizer = lp.load().processor.tokenizer
    chat = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "What is it?"},
        {"role": "assistant", "content": "A star."},
        {"role": "user", "content": "Where?"},
    ]
    told = [
        tokenizer.apply_chat_template(chat, chat_template=template, tokenize=False, add_generation_prompt=True)
        for template in (TEMPLATE, OWN)
    ]
    assert told[0] == told[1]


def test_without_its_package_it_is_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr("llava_probe.smol.built.base_folder", lambda: tmp_path / "base")
    monkeypatch.setattr("llava_probe.smol.built.find_spec", lambda name: None)
    with pytest.raises(lp.BadModel, match=r"pip install 'llava_probe\[smol\]'"):
        smol.base()
