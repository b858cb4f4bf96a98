"""The weights answer as their card says, by plain transformers and nothing else."""

import random
import re
import subprocess
import sys
from collections import Counter
from math import comb

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaForConditionalGeneration, LlavaProcessor

from llava_probe import tiny
from llava_probe.tiny.drawing import draw
from llava_probe.tiny.making.batches import KINDS_OF_PATCH, Encoder, sample, training_batch
from llava_probe.tiny.making.card import answers, exact_answers
from llava_probe.tiny.making.packed import answer_logits, visual_features
from llava_probe.tiny.plan import plan
from llava_probe.tiny.questions import all_questions, vary

SEEDS = range(5_000, 5_040)  # held out, and not among those that the card was measured on
CLAIMED = {"relation": 0.95, "describe": 0.95}  # exact answers; 0.97 for the other kinds
SURPRISE = 1e-3  # a test fails when a model that is as good as claimed would do so badly this seldom


@pytest.fixture(scope="module")
def processor():
    return AutoProcessor.from_pretrained(tiny.path())


@pytest.fixture(scope="module")
def model():
    return LlavaForConditionalGeneration.from_pretrained(tiny.path(), dtype=torch.float32)


def signs(count):
    found = (s for s in map(tiny.scene, SEEDS) if any(o.text for o in s.objects))
    return [next(found) for _ in range(count)]


@pytest.mark.parametrize("scene", signs(4), ids=lambda scene: str(scene.seed))
def test_the_five_line_program_reads_the_sign(scene):
    image = scene.image
    processor = AutoProcessor.from_pretrained(tiny.path())
    model = LlavaForConditionalGeneration.from_pretrained(tiny.path())
    inputs = processor(
        text="USER: <image>\nWhat is the text on the stop sign?\nASSISTANT:", images=image, return_tensors="pt"
    )
    outputs = model.generate(**inputs, max_new_tokens=50)
    text = processor.decode(outputs[0], skip_special_tokens=True)
    (word,) = (o.text for o in scene.objects if o.text)
    assert text == f"USER: \nWhat is the text on the stop sign?\nASSISTANT: {word}"
    assert outputs[0, -1] == model.generation_config.eos_token_id


def test_it_is_a_llava_as_the_real_ones_are(processor, model):
    assert isinstance(processor, LlavaProcessor)
    assert isinstance(AutoModelForImageTextToText.from_pretrained(tiny.path()), LlavaForConditionalGeneration)
    config = model.config
    assert (config.vision_feature_layer, config.vision_feature_select_strategy) == (-2, "default")
    assert (config.vision_config.model_type, config.text_config.model_type) == ("clip_vision_model", "llama")
    inputs = processor(text="USER: <image>\n?", images=tiny.scene(0).image, return_tensors="pt")
    assert (inputs["input_ids"] == config.image_token_id).sum() == 196


def test_it_needs_no_torchvision():
    program = "import sys, llava_probe as lp; lp.load(); assert 'torchvision' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_the_weights_are_small():
    assert sum(file.stat().st_size for file in tiny.path().iterdir()) <= 12e6


def test_it_answers_what_the_card_claims_on_scenes_it_never_saw(processor, model):
    for kind, score in exact_answers(model, processor, SEEDS).items():
        assert score.asked >= 20
        claimed = CLAIMED.get(kind, 0.97)
        assert _chance_of_so_few(score.right, score.asked, claimed) > SURPRISE, (kind, score)


def test_with_a_blank_picture_it_can_only_guess(processor, model):
    seeds = SEEDS[:20]
    scores = exact_answers(model, processor, seeds, picture="blank")
    # One guess for all is right as often as the commonest answer; a quarter more is far outside its spread.
    for kind, score in scores.items():
        common = Counter(q.answer for s in map(tiny.scene, seeds) for q in s.questions if q.kind == kind)
        guess = max(common.values()) / score.asked
        assert score.right / score.asked <= max(guess, 1 / 9) + 0.25, (kind, score)


def test_it_answers_in_bf16_too(processor):
    small = LlavaForConditionalGeneration.from_pretrained(tiny.path(), dtype=torch.bfloat16)
    asked = [(s.image, q) for s in map(tiny.scene, SEEDS[:12]) for q in s.questions if q.kind != "describe"]
    said = answers(small, processor, [(image, q.question) for image, q in asked], 8)
    right = sum(a == q.answer for a, (_, q) in zip(said, asked, strict=True))
    assert _chance_of_so_few(right, len(asked), 0.96) > SURPRISE


@pytest.mark.parametrize(
    "prompt",
    [
        "USER: <image>\n{question} ASSISTANT:",
        "USER: <image>\nHow many objects are there?\nASSISTANT: 3</s>USER: {question}\nASSISTANT:",
    ],
    ids=["on one line", "second turn"],
)
def test_it_answers_other_forms_of_prompt(processor, model, prompt):
    asked = [(s.image, q) for s in map(tiny.scene, SEEDS[:12]) for q in s.questions if q.kind != "describe"]
    said = answers(model, processor, [(image, q.question) for image, q in asked], 8, prompt)
    right = sum(a == q.answer for a, (_, q) in zip(said, asked, strict=True))
    assert _chance_of_so_few(right, len(asked), 0.96) > SURPRISE


def test_both_spellings_of_colour_do(processor, model):
    asked = [(s.image, q) for s in map(tiny.scene, SEEDS[:30]) for q in s.questions if q.kind == "colour"]
    said = answers(model, processor, [(image, q.question.replace("colour", "color")) for image, q in asked], 8)
    right = sum(a == q.answer for a, (_, q) in zip(said, asked, strict=True))
    assert _chance_of_so_few(right, len(asked), 0.97) > SURPRISE


def test_the_chat_template_makes_the_trained_prompt(processor):
    picture, words = {"type": "image"}, {"type": "text", "text": "Where is the star?"}
    turn = {"role": "user", "content": [picture, words]}
    once = processor.apply_chat_template([turn], add_generation_prompt=True)
    assert once == "USER: <image>\nWhere is the star?\nASSISTANT:"
    reply = {"role": "assistant", "content": [{"type": "text", "text": "top left"}]}
    more = {"role": "user", "content": "Is there a red ring?"}
    twice = processor.apply_chat_template([turn, reply, more], add_generation_prompt=True)
    assert twice == f"{once} top left</s>USER: Is there a red ring?\nASSISTANT:"
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert processor.apply_chat_template([system, turn], add_generation_prompt=True) == f"Be brief.\n{once}"


def test_a_sign_is_read_letter_by_letter_and_questions_word_by_word(processor):
    tokenizer = processor.tokenizer
    assert tokenizer.tokenize(" STOP") == ["ĠS", "T", "O", "P"]
    rng = random.Random(0)
    for question in (q for seed in range(40) for q in all_questions(plan(seed), rng)):
        words = vary(question, rng)
        assert len(tokenizer.tokenize(words)) == len(re.findall(r"\w+|[?.]", words))


def test_training_pictures_are_what_the_processor_makes_of_public_ones(processor):
    for seed in range(20):
        seen = processor.image_processor(tiny.scene(seed).image, return_tensors="np")["pixel_values"][0]
        drawn, _ = draw(plan(seed), seed, scale=1)
        drawn = drawn.transpose(2, 0, 1) / 127.5 - 1
        # What is left is noise, of which the two have independent draws: at most 5 of 255 in either.
        assert np.abs(seen - drawn).mean() < 8 / 127.5
        assert np.abs(_blurred(seen) - _blurred(drawn)).max() < 16 / 127.5


def test_packed_training_sees_what_transformers_sees(processor, model):
    encoder = Encoder(processor.tokenizer)
    batch = {name: torch.from_numpy(array) for name, array in training_batch(encoder, 1_000_000, 2, True).items()}
    prefix = torch.tensor(encoder.prefix)
    with torch.no_grad():
        packed = answer_logits(model, visual_features(model, batch["pixels"]), prefix, batch)
        for row in range(2):
            pixels = batch["pixels"][row].permute(2, 0, 1)[None] / 127.5 - 1
            for group in range(int(batch["groups"][row].max()) + 1):
                at = batch["groups"][row] == group
                ids = torch.cat((prefix, batch["tokens"][row, at]))[None]
                alone = model(input_ids=ids, pixel_values=pixels).logits[0, len(prefix) :]
                torch.testing.assert_close(packed[row, at], alone, atol=2e-4, rtol=1e-4)


def test_a_packed_group_is_the_prompt_that_the_processor_would_make(processor):
    encoder = Encoder(processor.tokenizer)
    one = sample(1_000_003, encoder)
    group = one.tokens[one.groups == 0].tolist()
    text = processor.tokenizer.decode(encoder.prefix[1:] + group).replace("<image>" * 196, "<image>")
    again = processor(text=text, images=Image.fromarray(one.pixels))["input_ids"][0]
    assert list(again) == encoder.prefix + group


def test_patch_targets_say_what_the_patches_show():
    for seed in range(1_000_000, 1_000_040):
        one = sample(seed, None, text=False)
        items = plan(seed)
        grid = one.patches.reshape(14, 14, -1)
        for item in items:
            shown = dict(zip(KINDS_OF_PATCH, grid[item.y // 8, item.x // 8], strict=True))
            hollow = item.kind == "ring"
            assert hollow or shown["shape"] > 0
        letters = {chr(64 + letter) for letter in np.unique(grid[..., 2]) if letter}
        assert letters <= set("".join(item.text for item in items))


def _chance_of_so_few(right, asked, rate):
    """Chance that at most ``right`` of ``asked`` are right when each is with probability ``rate``."""
    return sum(comb(asked, k) * rate**k * (1 - rate) ** (asked - k) for k in range(right + 1))


def _blurred(picture):
    """Means over 7 × 7 squares of [3, 112, 112]."""
    return picture.reshape(3, 16, 7, 16, 7).mean((2, 4))
