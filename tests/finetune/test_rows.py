"""What of a conversation is trained: every answer and its end, and not one token more."""

import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.passes import passed, summed_loss, trained_logits
from llava_probe.finetune.rows import RowMaker


@pytest.fixture(scope="module")
def vlm():
    return lp.load()


def chat(scene, turns):
    """A conversation about a scene, as messages."""
    messages = []
    for number, asked in enumerate(scene.questions[:turns]):
        place = [] if number else [{"type": "image"}]
        messages.append({"role": "user", "content": [*place, {"type": "text", "text": asked.question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": asked.answer}]})
    return {"images": [scene.image], "messages": messages}


def rows_of(vlm, data, **settings):
    return RowMaker(vlm, **settings)(read_conversations(data))


def test_the_trained_tokens_are_those_between_the_templates_own_marks(vlm):
    told = chat(tiny.scene(3), 3)
    ((row,), _) = rows_of(vlm, [told])
    one = passed(vlm, [[row]])
    marked = vlm.processor.tokenizer.apply_chat_template(
        told["messages"], chat_template=vlm.processor.chat_template, return_dict=True, return_assistant_tokens_mask=True
    )
    theirs = [token for token, own in zip(marked["input_ids"], marked["assistant_masks"], strict=True) if own]
    assert one.ids.tolist() == theirs
    assert row.trained == len(theirs)


def test_a_rows_loss_is_what_score_tells_of_its_answers(vlm):
    scene = tiny.scene(3)
    told = chat(scene, 3)
    ((row,), _) = rows_of(vlm, [told])
    one = passed(vlm, [[row]])
    expected = 0.0
    for turn in (1, 3, 5):
        answer = told["messages"][turn]["content"][0]["text"]
        trace = vlm.score(scene.image, messages=told["messages"][:turn], answer=answer)
        expected -= float(lp.confidence(trace).logprob.sum())
    assert summed_loss(trained_logits(vlm, vlm.model, one), one).item() == pytest.approx(expected, abs=1e-4)


def test_rows_about_one_picture_share_it_and_lose_the_same(vlm):
    scenes = [tiny.scene(seed) for seed in (3, 5)]
    data = [
        {"image": scene.image, "question": each.question, "answer": each.answer}
        for scene in scenes
        for each in scene.questions[:4]
    ]
    rows, _ = rows_of(vlm, data)
    shared, alone = passed(vlm, [rows[:4], rows[4:]]), passed(vlm, [[row] for row in rows])
    assert shared.batch.inputs["input_ids"].numel() < alone.batch.inputs["input_ids"].numel() / 2
    assert shared.ids.tolist() == alone.ids.tolist()
    logits = [trained_logits(vlm, vlm.model, one) for one in (shared, alone)]
    assert (logits[0] - logits[1]).abs().max() < 1e-4 * logits[1].abs().max()


def test_an_answer_that_the_template_writes_otherwise_later_is_a_row_of_its_own(vlm, monkeypatch):
    """As templates of models that think do: what an earlier answer thought is left out of the prompts behind it."""
    told = chat(tiny.scene(3), 2)
    thought = "<think>is it</think>" + told["messages"][1]["content"][0]["text"]
    told["messages"][1]["content"][0]["text"] = thought
    template = vlm.processor.chat_template
    forgetful = template.replace("part['text'] | trim", "part['text'].split('</think>')[-1] | trim")
    assert forgetful != template
    monkeypatch.setattr(vlm.processor, "chat_template", forgetful)
    rows, faults = rows_of(vlm, [told])
    assert not faults
    assert [row.earlier for row in rows] == [(), ()]
    first, last = (passed(vlm, [[row]]) for row in rows)
    assert vlm.processor.tokenizer.decode(first.ids, skip_special_tokens=True).strip() == thought
    assert vlm.processor.tokenizer.decode(last.ids, skip_special_tokens=True).strip() == rows[1].sample.answer


@pytest.mark.parametrize(
    ("row", "told"),
    [
        pytest.param({"answer": "   "}, "answer", id="an empty answer"),
        pytest.param({"answer": "</s>"}, "nothing of the answer '</s>' would be trained", id="nothing but an end"),
        pytest.param({"answer": "<image>"}, "an answer with a picture", id="a picture's token"),
        pytest.param({"image": b"\x89PNG\r\n\x1a\n cut"}, "is not a picture", id="a damaged picture"),
        pytest.param({"question": "what " * 3000}, "reads 2,048", id="longer than the model reads"),
    ],
)
def test_a_row_of_which_nothing_can_be_trained_is_a_fault_with_its_place(vlm, row, told):
    sound = {"image": tiny.scene(3).image, "question": "What shape is the red object?", "answer": "star"}
    rows, (fault,) = rows_of(vlm, [sound, sound | row])
    assert len(rows) == 1
    assert fault.line == "row 1"
    assert told in fault.why


def test_a_long_row_is_not_cut(vlm):
    sound = {"image": tiny.scene(3).image, "question": "What shape is the red object?", "answer": "star"}
    rows, (fault,) = rows_of(vlm, [sound], longest=200)
    assert not rows
    assert "210 tokens, 196 of them visual, and max_length=200" in fault.why
