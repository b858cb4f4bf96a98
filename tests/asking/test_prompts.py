"""What cannot be asked is one clear sentence, and the model is never left changed by it."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import llava_probe as lp
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"
PROMPT = f"USER: <image>\n{QUESTION}\nASSISTANT:"


def cut_jpeg():
    data = io.BytesIO()
    photo(200, 200).save(data, format="JPEG")
    return data.getvalue()[:2000]


REFUSED = {
    "no picture file": (lambda vlm: vlm.generate(b"hello, I am a text", QUESTION), "picture"),
    "a cut picture": (lambda vlm: vlm.generate(cut_jpeg(), QUESTION), "cut short|truncated|incomplete"),
    "a missing path": (lambda vlm: vlm.generate("/nowhere/street.jpg", QUESTION), "/nowhere/street.jpg"),
    "no pixels": (lambda vlm: vlm.generate(np.zeros((0, 4, 3), np.uint8), QUESTION), "no pixels|0"),
    "an empty question": (lambda vlm: vlm.generate(photo(), "   "), "the question is empty"),
    "an empty prompt": (lambda vlm: vlm.generate(photo(), prompt=""), "the prompt is empty"),
    "nothing asked": (lambda vlm: vlm.generate(photo()), "exactly one of question"),
    "two ways at once": (lambda vlm: vlm.generate(photo(), QUESTION, prompt=PROMPT), "question and prompt="),
    "too few pictures": (
        lambda vlm: vlm.generate(photo(), prompt="USER: <image>\n<image>\nwhere\nASSISTANT:"),
        r"2 places for a picture \(<image>\) but 1 picture was given",
    ),
    "a picture without a place": (
        lambda vlm: vlm.generate(photo(), prompt="USER: where\nASSISTANT:"),
        "0 places for a picture",
    ),
    "no picture for a place": (lambda vlm: vlm.generate(prompt=PROMPT), "1 place for a picture .* but 0 pictures"),
    "a layer that is not there": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(layers=[9])),
        "layer 9 is not there: this model has hidden states 0 to 4",
    ),
    "a head that is not there": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(heads=[4])),
        "head 4 is not there: this model has heads 0 to 3",
    ),
    "a position that is not there": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(positions=[999])),
        "position 999 is not in the prompt",
    ),
    "a position of no name": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(positions="imagge")),
        "'imagge'",
    ),
    "a capture that is none": (lambda vlm: vlm.generate(photo(), QUESTION, capture="all"), "takes a Capture"),
    "top 0 of the logits": (lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(logits=0)), "logits="),
    "more than the vocabulary": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(logits=10**6)),
        "the top 1000000 of a vocabulary",
    ),
    "inputs without ids": (lambda vlm: vlm.generate(inputs={"pixel_values": torch.zeros(1)}), "input_ids"),
    "inputs of a batch": (lambda vlm: vlm.generate(inputs={"input_ids": torch.ones(2, 3).long()}), r"\[2, 3\]"),
    "an empty prompt of ids": (lambda vlm: vlm.generate(inputs={"input_ids": torch.ones(1, 0).long()}), "no tokens"),
    "right padding": (
        lambda vlm: vlm.generate(
            inputs={"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.tensor([[1, 1, 0, 0]])}
        ),
        "pad on the left",
    ),
    "a message without a role": (lambda vlm: vlm.generate(messages=[{"content": "where"}]), "'role' and 'content'"),
    "an unknown processor flag of a wrong type": (
        lambda vlm: vlm.generate(photo(), QUESTION, processor_kwargs={"image_mean": "grey"}),
        "LlavaProcessor refused",
    ),
    "an answer of numbers that are none": (lambda vlm: vlm.score(photo(), QUESTION, ["yes"]), "whole numbers"),
    "an answer in two dimensions": (lambda vlm: vlm.score(photo(), QUESTION, torch.ones(1, 3).long()), "flat list"),
    "an answer that is one number": (lambda vlm: vlm.score(photo(), QUESTION, 5), "whole numbers"),
    "an answer beyond the vocabulary": (lambda vlm: vlm.score(photo(), QUESTION, [10**6]), "ids 0 to 397"),
    "a negative id": (lambda vlm: vlm.score(photo(), QUESTION, [-1]), "holds id -1"),
    "a picture in an answer": (lambda vlm: vlm.score(photo(), QUESTION, [3]), "image token"),
    "inputs that are no dict": (lambda vlm: vlm.generate(inputs=5), "a dict of arrays"),
    "inputs of words": (lambda vlm: vlm.generate(inputs={"input_ids": "ab"}), "a dict of arrays"),
    "inputs of floats": (lambda vlm: vlm.generate(inputs={"input_ids": torch.rand(1, 3)}), "no whole numbers"),
    "a mask of another shape": (
        lambda vlm: vlm.generate(inputs={"input_ids": torch.ones(1, 4).long(), "attention_mask": torch.ones(1, 3)}),
        r"attention_mask of \[1, 3\]",
    ),
    "a message of nothing": (lambda vlm: vlm.generate(messages=[{"role": "user", "content": None}]), "content is text"),
    "a message of bare words": (lambda vlm: vlm.generate(messages=[{"role": "user", "content": ["hi"]}]), "content is"),
    "another service's picture part": (
        lambda vlm: vlm.generate(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "1 place for a picture",
    ),
    "a batch sample with a flag": (
        lambda vlm: vlm.generate_batch([{"image": photo(), "question": "where", "max_new_tokens": 3}]),
        "a dict of image, question",
    ),
    "positions of a picture that is not there": (
        lambda vlm: vlm.generate(question="what is red", capture=lp.Capture(positions=["image"])),
        "a prompt without a picture",
    ),
    "half a head": (lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(heads=0.5)), "whole numbers"),
    "half a position": (
        lambda vlm: vlm.generate(photo(), QUESTION, capture=lp.Capture(positions=1.5)),
        "takes text, a whole number",
    ),
    "an answer of nothing": (lambda vlm: vlm.score(photo(), QUESTION, "  "), "answer to score is empty"),
    "an answer of no ids": (lambda vlm: vlm.score(photo(), QUESTION, []), "no tokens"),
    "a batch of something else": (lambda vlm: vlm.generate_batch([photo()]), "entry 0 is an Image"),
}


@pytest.mark.parametrize(("ask", "sentence"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_one_clear_sentence(random_vlm, ask, sentence):
    with pytest.raises(lp.ProbeError, match=sentence) as caught:
        ask(random_vlm)
    assert "\n" not in str(caught.value).strip("\n")
    random_vlm.generate(photo(), QUESTION, max_new_tokens=1)  # and nothing is lost


def test_a_picture_whose_tokens_do_not_match_the_model_is_named():
    processor = llava_processor()
    processor.patch_size = 16
    with pytest.raises(lp.BadInput, match=r"9 visual tokens where its 1 picture\(s\) give 36"):
        lp.VLM(random_llava(), processor).generate(photo(), QUESTION, max_new_tokens=1)


def test_ready_inputs_whose_features_do_not_match_are_a_sentence(random_vlm):
    inputs = random_vlm.processor(text=PROMPT, images=photo(), return_tensors="pt")
    keep = torch.ones(inputs["input_ids"].shape[1], dtype=torch.bool)
    keep[5] = False
    inputs = {"pixel_values": inputs["pixel_values"], "input_ids": inputs["input_ids"][:, keep]}
    with pytest.raises(lp.BadInput, match="do not match"):
        random_vlm.generate(inputs=inputs, max_new_tokens=1)


@pytest.mark.parametrize(
    "model",
    [
        lambda: LlamaForCausalLM(LlamaConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, vocab_size=9)),
        lambda: BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)),
        lambda: torch.nn.Linear(2, 2),
        lambda: "llava-hf/llava-1.5-7b-hf",
    ],
    ids=["a language model", "an encoder", "a module", "a name"],
)
def test_what_is_no_vision_language_model_is_refused(model):
    with pytest.raises(lp.BadModel):
        lp.VLM(model(), llava_processor())


def test_a_tokenizer_is_no_processor():
    with pytest.raises(lp.BadModel, match="AutoProcessor"):
        lp.VLM(random_llava(), llava_processor().tokenizer)


@pytest.mark.parametrize(
    ("mode", "size"), [("L", (50, 40)), ("RGBA", (40, 50)), ("CMYK", (64, 64)), ("P", (30, 70)), ("1", (48, 48))]
)
def test_pictures_of_any_mode_are_asked_about(random_vlm, mode, size):
    trace = random_vlm.generate(photo(*size).convert(mode), QUESTION, max_new_tokens=1)
    assert trace.images[0].mode == "RGB"
    assert trace.layouts[0].size == size


def test_the_upright_picture_is_the_one_that_is_asked_about(random_vlm):
    lying = photo(90, 40)
    exif = Image.Exif()
    exif[0x0112] = 6
    data = io.BytesIO()
    lying.save(data, format="PNG", exif=exif)
    upright = lying.transpose(Image.Transpose.ROTATE_270)
    from_file = random_vlm.generate(data.getvalue(), QUESTION, max_new_tokens=3)
    from_memory = random_vlm.generate(upright, QUESTION, max_new_tokens=3)
    assert from_file.layouts[0].size == (40, 90)
    assert from_file.images[0].tobytes() == upright.tobytes()
    assert torch.equal(from_file.logits, from_memory.logits)


def test_a_question_without_a_picture_has_no_layout(random_vlm):
    trace = random_vlm.generate(question="what is red", max_new_tokens=2)
    assert trace.layouts == ()
    assert trace.prompt_length > 0


def test_a_chat_keeps_its_turns_and_pictures_in_order(random_vlm):
    chat = [
        {"role": "system", "content": "look"},
        {"role": "user", "content": [{"type": "image", "image": photo(60, 40)}, {"type": "text", "text": "where"}]},
        {"role": "assistant", "content": "here"},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and this"}]},
    ]
    with pytest.raises(lp.BadInput, match=r"2 places .* but 1 picture"):
        random_vlm.generate(messages=chat, max_new_tokens=1)
    chat[3]["content"][0]["image"] = photo(30, 90)
    trace = random_vlm.generate(messages=chat, max_new_tokens=2)
    assert [layout.size for layout in trace.layouts] == [(60, 40), (30, 90)]
    assert trace.request.prompt.count("<image>") == 2
    assert trace.request.prompt.endswith("ASSISTANT:")
    bare = [{**m, "content": m["content"] if isinstance(m["content"], str) else [
        {"type": "image"} if p["type"] == "image" else p for p in m["content"]]} for m in chat]  # fmt: skip
    again = random_vlm.generate([photo(60, 40), photo(30, 90)], messages=bare, max_new_tokens=2)
    assert torch.equal(again.logits, trace.logits)
    assert trace.question == again.question == "and this"


def test_a_trace_knows_the_question_as_it_was_asked(random_vlm):
    """Whatever the template made of it, and however often it is asked again."""
    asked = "  What is THE text "
    trace = random_vlm.generate(photo(), asked, max_new_tokens=2)
    assert trace.question == asked
    assert random_vlm.rerun(trace).question == random_vlm.rerun(trace, answer="red").question == asked
    assert random_vlm.score(photo(), asked, "red").question == asked
    batch = random_vlm.generate_batch([(photo(), asked), {"image": photo(), "prompt": PROMPT}], max_new_tokens=2)
    assert [each.question for each in batch] == [asked, None]
    assert random_vlm.generate(photo(), prompt=PROMPT, max_new_tokens=2).question is None


def test_a_template_is_read_once_for_what_it_writes_for_a_picture(random_vlm, monkeypatch):
    rendered = []
    plain = type(random_vlm.processor).apply_chat_template
    monkeypatch.setattr(
        type(random_vlm.processor),
        "apply_chat_template",
        lambda self, *given, **settings: rendered.append(given) or plain(self, *given, **settings),
    )
    for _ in range(3):
        random_vlm.score(photo(), prompt=PROMPT, answer="red")
    assert len(rendered) == 4  # with and without a picture, with and without a video
    random_vlm.processor.chat_template = "<image>" + random_vlm.processor.chat_template
    random_vlm.score(photo(), prompt=PROMPT, answer="red")
    assert len(rendered) == 8


def test_a_setting_that_the_processor_passes_over_is_refused_by_name(random_vlm):
    with pytest.raises(lp.BadInput, match=r"LlavaProcessor reads no nonsense; processor_kwargs= takes .*"):
        random_vlm.generate(photo(), QUESTION, processor_kwargs={"nonsense": 3})
    trace = random_vlm.generate(photo(), QUESTION, processor_kwargs={"do_convert_rgb": True}, max_new_tokens=1)
    assert trace.images


def test_an_answer_ends_as_the_models_turns_do():
    """As Gemma's: two ids stop it, and its template writes the one that is not the tokenizer's EOS behind an answer."""
    vlm = lp.VLM(random_llava(), llava_processor())
    tokenizer = vlm.processor.tokenizer
    plain = vlm.score(photo(), "where", "red")
    assert (plain.generated[-1].id, vlm.answer_ends) == (tokenizer.eos_token_id, (tokenizer.eos_token_id,))
    vlm.model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.bos_token_id]
    assert vlm.answer_ends == (tokenizer.eos_token_id, tokenizer.bos_token_id), "as its template writes"
    template = vlm.processor.chat_template
    vlm.processor.chat_template = template.replace(tokenizer.eos_token, f"{tokenizer.bos_token}\\n")
    assert vlm.answer_ends == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert vlm.score(photo(), "where", "red").generated[-1].id == tokenizer.bos_token_id
    written = vlm.processor.chat_template
    vlm.processor.chat_template = "{% for message in messages %}{{ message['content'] | trim }}<s>\n{% endfor %}"
    assert vlm.answer_ends[0] == tokenizer.bos_token_id, "a template that reads text and no parts"
    vlm.processor.chat_template = written
    whole = vlm.score(photo(), "where", f"red{tokenizer.eos_token}")
    assert whole.generated_ids.tolist() == plain.generated_ids.tolist(), "one that ends is not ended again"
