"""Five public data sets in the form their authors give them, made by hand: each is the plain rows that it means."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.evaluate import read_cases
from llava_probe.features.samples import read_samples

POPE_QUESTION = "Is there a circle in the image?"


@pytest.fixture(scope="module")
def vlm():
    return lp.load()


@pytest.fixture
def folder(tmp_path):
    """Two scenes under COCO's names, and under plain ones."""
    for place in ("val2014", "img"):
        (tmp_path / place).mkdir()
    for number in (1, 2):
        image = tiny.scene(number).image
        image.save(tmp_path / f"val2014/COCO_val2014_{number:012}.jpg", quality=95)
        image.save(tmp_path / f"img/{number}.png")
    return tmp_path


def photo(folder, number):
    return str(folder / f"val2014/COCO_val2014_{number:012}.jpg")


def written(path, whole):
    path.write_text(json.dumps(whole))
    return path


def same(vlm, folder, source, rows, positions="last_prompt", **options):
    """The features of a data set are those of plain rows, named by nobody."""
    asked = {"layers": [2], "positions": positions}
    found = lp.extract(vlm, source, folder / "found", **asked, **options)
    plain = lp.extract(vlm, rows, folder / "plain", **asked)
    assert len(found) == len(rows)
    assert all(found.column("image_tokens"))
    for place in [positions] if isinstance(positions, str) else positions:
        assert torch.allclose(found["layer_2", place][:], plain["layer_2", place][:], atol=1e-4)
    return found


def vqa(folder):
    head = {"info": {}, "task_type": "Open-Ended", "license": {"name": "CC"}}
    asked = [{"image_id": n, "question": "What colour is the circle?", "question_id": 10 * n} for n in (1, 2)]
    answered = [
        {"question_id": 10 * n, "image_id": n, "multiple_choice_answer": word, "answers": [{"answer": word}]}
        for n, word in ((2, "red"), (1, "blue"))
    ]
    questions = written(folder / "questions.json", {**head, "questions": asked})
    return questions, written(folder / "annotations.json", {**head, "annotations": answered})


@pytest.mark.parametrize("images", ["val2014", "val2014/COCO_val2014_{image_id:012}.jpg"])
def test_vqav2(vlm, folder, images):
    questions, annotations = vqa(folder)
    rows = [
        {"image": photo(folder, n), "question": "What colour is the circle?", "answer": word}
        for n, word in ((1, "blue"), (2, "red"))
    ]
    told = {"images": str(folder / images), "answers": annotations}
    found = same(vlm, folder, questions, rows, ["last_prompt", "predicting_mean"], **told)
    assert found.column("answer") == ["blue", "red"]
    with pytest.raises(lp.BadInput, match=r"image_id=1 and no file in .* pass images="):
        lp.extract(vlm, questions, folder / "blind")
    with pytest.raises(lp.BadInput, match="row 0: the row has neither a mask nor a box"):
        next(read_cases(questions, images=folder / images))


def test_pope(vlm, folder):
    lines = [{"question_id": n, "image": f"{n}.png", "text": POPE_QUESTION, "label": "no"} for n in (1, 2)]
    path = folder / "coco_pope_random.json"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = [{"image": str(folder / f"img/{n}.png"), "question": POPE_QUESTION} for n in (1, 2)]
    assert same(vlm, folder, path, rows, images=folder / "img").column("label") == ["no", "no"]
    with pytest.raises(lp.BadInput, match="neither a mask nor a box: no place is right and nothing can be scored"):
        next(read_cases(path, images=folder / "img"))


def coco(folder):
    size = tiny.scene(1).image.size
    images = [{"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]} for n in (1, 2)]
    polygon = {"id": 5, "image_id": 2, "category_id": 9, "bbox": [40, 30, 50, 70], "iscrowd": 0}
    polygon["segmentation"] = [[40, 30, 90, 30, 90, 100, 40, 100]]
    runs = [0, size[0] * size[1]]
    crowd = {"id": 6, "image_id": 1, "category_id": 9, "bbox": [0, 0, *size], "iscrowd": 1}
    crowd["segmentation"] = {"size": [size[1], size[0]], "counts": runs}
    boxed = {"id": 7, "image_id": 2, "category_id": 9, "bbox": [40, 30, 50, 70], "segmentation": []}
    whole = {"images": images, "annotations": [polygon, crowd, boxed], "categories": [{"id": 9, "name": "dog"}]}
    return written(folder / "instances.json", whole), size


def test_coco_instances(vlm, folder):
    path, size = coco(folder)
    mask = np.zeros(size[::-1], dtype=bool)
    mask[30:100, 40:90] = True
    question = "Where is the dog?"
    two = {"image": str(folder / "img/2.png"), "question": question, "mask": mask}
    one = {"image": str(folder / "img/1.png"), "question": question, "mask": np.ones_like(mask)}
    told = {"images": folder / "img", "question": "Where is the {category}?"}
    found = same(vlm, folder, path, [two, two, one], ["image_in_mask_mean"], **told)
    assert found.column("category") == ["dog"] * 3
    assert found.manifest["settings"]["box_format"] == "xywh"
    cases = list(read_cases(path, columns={"word": "category"}, **told))
    assert [case.word for case in cases] == ["dog"] * 3
    for case, right in zip(cases, (mask, mask, np.ones_like(mask)), strict=True):
        np.testing.assert_array_equal(case.mask(), right)


def test_llava_instruct(vlm, folder):
    def turns(*said):
        return [{"from": "human" if n % 2 == 0 else "gpt", "value": text} for n, text in enumerate(said)]

    asked, answer = "What colour is the circle?", "The circle is red."
    listed = [
        {"id": "a", "image": "1.png", "conversations": turns(f"<image>\n{asked}", answer)},
        {"id": "b", "image": "2.png", "conversations": turns(f"<image>\n{asked}", "Red.", "And the square?", answer)},
    ]
    image = {"type": "image"}
    chat = [
        {"role": "user", "content": [image, {"type": "text", "text": asked}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
        {"role": "user", "content": [{"type": "text", "text": "And the square?"}]},
    ]
    rows = [
        {"image": str(folder / "img/1.png"), "question": asked, "answer": answer},
        {"image": str(folder / "img/2.png"), "messages": chat, "answer": answer},
    ]
    path = written(folder / "llava_instruct.json", listed)
    found = same(vlm, folder, path, rows, ["last_prompt", "answer_mean"], images=folder / "img")
    assert found.column("question") == [asked, "And the square?"]


def test_hateful_memes(vlm, folder):
    lines = [{"id": n, "img": f"img/{n}.png", "label": n - 1, "text": "what is red"} for n in (1, 2)]
    path = folder / "train.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    rows = [{"image": str(folder / f"img/{n}.png"), "question": "Is this meme hateful?"} for n in (1, 2)]
    found = same(vlm, folder, path, rows, question="Is this meme hateful?")
    assert (found.column("label"), found.column("text")) == ([0, 1], ["what is red"] * 2)


# --- what is not recognised is refused by name ---


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"pic": "1.png", "question": "?"}, r"no picture; the columns are pic, question; pic looks like one"),
        ({"image_id": 1, "question": "?"}, "image_id=1 and no file"),
        ({"thing": 3, "question": "?"}, r"say columns=\{'image': None\}"),
        ({"image": "1.png", "question": "?", "prompt": "<image>"}, "asks in two columns, question and prompt"),
    ],
)
def test_a_run_that_would_be_blind_or_asks_twice_stops(row, told):
    with pytest.raises(lp.BadInput, match=told):
        read_samples([row])


def test_a_raw_prompt_needs_no_template(folder):
    vlm = lp.load()
    question = "What colour is the circle?"
    template = vlm.generate(Image.new("RGB", (8, 8)), question, max_new_tokens=1).request.prompt
    image = str(folder / "img/1.png")
    plain = lp.extract(vlm, [{"image": image, "question": question}], folder / "plain", layers=[2])
    vlm.processor.chat_template = vlm.processor.tokenizer.chat_template = None
    raw = lp.extract(vlm, [{"image": image, "prompt": template}], folder / "raw", layers=[2])
    assert torch.equal(raw["layer_2", "last_prompt"][:], plain["layer_2", "last_prompt"][:])
    with pytest.warns(UserWarning, match="every sample failed"):
        words = lp.extract(vlm, [{"image": image, "prompt": question}], folder / "words", layers=[2])
    assert "columns={'question': 'prompt'}" in words.errors()["reason"][0].as_py()
