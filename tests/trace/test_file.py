"""A trace comes back equal, and a file that is not one says so."""

import ast
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import LogitsProcessor, LogitsProcessorList

import llava_probe as lp
from llava_probe import tiny
from llava_probe.whole_file import checksum
from tests.models import photo

QUESTION = "what is the text on the stop sign"


@pytest.fixture
def trace(random_vlm):
    capture = lp.Capture(positions="all", attention_positions=[3, "predicting"], scores=4, vision=True)
    return random_vlm.generate(
        [photo(90, 40)], QUESTION, max_new_tokens=4, num_beams=3, num_return_sequences=2, capture=capture
    )


def test_a_trace_comes_back_equal(trace, tmp_path):
    back = lp.Trace.load(trace.save(tmp_path / "run.trace"))
    assert back == trace
    assert back.alternatives[0].answer == trace.alternatives[0].answer
    assert [image.tobytes() for image in back.images] == [image.tobytes() for image in trace.images]
    assert back.provenance == trace.provenance
    assert back.layouts == trace.layouts


def test_equality_sees_a_single_changed_number(trace, tmp_path):
    back = lp.Trace.load(trace.save(tmp_path / "run.trace"))
    back.records["hidden"][0, 0, 0] += 1e-3
    assert back != trace


def test_bfloat16_stays_bfloat16(random_vlm, tmp_path):
    random_vlm.model.to(torch.bfloat16)
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=3)
    assert trace.hidden_states.dtype == trace.attention.dtype == torch.bfloat16
    assert lp.Trace.load(trace.save(tmp_path / "run.trace")) == trace


def test_it_loads_without_transformers_models(trace, tmp_path):
    path = trace.save(tmp_path / "run.trace")
    code = (
        "import sys, llava_probe as lp\n"
        f"trace = lp.Trace.load({str(path)!r})\n"
        "print(trace.answer == sys.argv[1], any('modeling_llava' in name for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code, trace.answer], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


@pytest.mark.parametrize("at", [0, 4, 30, 400, -1, -5000])
def test_a_flipped_byte_is_noticed(trace, tmp_path, at):
    path = trace.save(tmp_path / "run.trace")
    data = bytearray(path.read_bytes())
    data[at] ^= 0x41
    path.write_bytes(data)
    with pytest.raises(lp.BadFile, match="damaged"):
        lp.Trace.load(path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_cut_file_is_refused(trace, tmp_path, share):
    path = trace.save(tmp_path / "run.trace")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(lp.BadFile, match="damaged"):
        lp.Trace.load(path)


def test_foreign_and_missing_files_are_named_as_such(tmp_path):
    with pytest.raises(lp.BadFile, match="there is no trace at"):
        lp.Trace.load(tmp_path / "nothing.trace")
    with pytest.raises(lp.BadFile, match="is a folder; a trace is a regular file"):
        lp.Trace.load(tmp_path)
    (tmp_path / "text").write_text("hello, I am a text of some length and no trace at all")
    with pytest.raises(lp.BadFile, match="no trace"):
        lp.Trace.load(tmp_path / "text")
    save_file({"a": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(lp.BadFile, match="no trace of llava_probe"):
        lp.Trace.load(tmp_path / "other.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "newer.trace", metadata={"llava_probe.format": "99"})
    with pytest.raises(lp.BadFile, match=r"newer llava_probe \(format 99\)"):
        lp.Trace.load(tmp_path / "newer.trace")


def test_a_full_disk_leaves_the_old_file(trace, tmp_path):
    path = replace(trace, alternatives=()).save(tmp_path / "run.trace")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, limits[1]))
    try:
        with pytest.raises(lp.BadFile, match="could not be written"):
            trace.save(path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_place_that_cannot_be_written_is_one_sentence(trace, tmp_path):
    with pytest.raises(lp.BadFile, match="could not be written"):
        trace.save(tmp_path / "no" / "such" / "folder" / "run.trace")
    with pytest.raises(lp.BadFile, match="could not be written"):
        trace.save(tmp_path)


class Nothing(LogitsProcessor):
    def __call__(self, input_ids, scores):
        return scores


def test_a_photograph_is_kept_as_its_file_and_comes_back_turned_alike(tiny_vlm, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # held upright, read from its side
    photo(96, 40).save(tmp_path / "phone.jpg", exif=exif)
    trace = tiny_vlm.generate(str(tmp_path / "phone.jpg"), QUESTION, max_new_tokens=2)
    path = trace.save(tmp_path / "run.trace")
    with safe_open(path, "pt") as file:
        assert file.get_tensor("images/0").numpy().tobytes() == (tmp_path / "phone.jpg").read_bytes()
    back = lp.Trace.load(path)
    assert back == trace
    assert back.images[0].size == (40, 96)
    assert back.images[0].tobytes() == trace.images[0].tobytes()
    with safe_open(back.save(tmp_path / "again.trace"), "pt") as file:
        assert file.get_tensor("images/0").numpy().tobytes() == (tmp_path / "phone.jpg").read_bytes()
    trace.images[0].putpixel((0, 0), (1, 2, 3))  # no longer what the file holds
    assert lp.Trace.load(trace.save(path)).images[0].tobytes() == trace.images[0].tobytes()


def test_a_picture_that_is_no_picture_of_ours_is_refused_and_runs_nothing(trace, tmp_path, monkeypatch):
    path = trace.save(tmp_path / "run.trace")
    with safe_open(path, "pt") as file:
        told, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
    tensors["images/0"] = torch.frombuffer(bytearray(eps), dtype=torch.uint8)
    save_file(tensors, path, metadata=told | {"digest": checksum(told["trace"], tensors)})
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_args, **_kwargs: pytest.fail("was run"))
    with pytest.raises(lp.BadFile, match=r"picture 0 .* is not PNG, JPEG, WEBP"):
        lp.Trace.load(path)


def test_a_setting_that_no_file_holds_is_named_when_run_again(random_vlm, tmp_path):
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=2, logits_processor=LogitsProcessorList([Nothing()]))
    assert random_vlm.rerun(trace) == trace
    back = lp.Trace.load(trace.save(tmp_path / "run.trace"))
    with pytest.raises(lp.BadInput, match="logits_processor could not be saved"):
        random_vlm.rerun(back)


def test_a_notebook_shows_picture_and_shaded_answer(random_vlm):
    trace = random_vlm.generate(photo(), "where <b>", max_new_tokens=3)
    page = trace._repr_html_()
    assert page.count("data:image/jpeg;base64,") == 1
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert page.count('title="p = ') == 3


def test_a_file_of_the_first_format_is_read():
    """Written before a trace kept its question, the model's sizes and what ends an answer: two beams about a scene."""
    old = lp.Trace.load(Path(__file__).parent / "saved" / "format_1.trace")
    assert (old.answer, old.alternatives[0].answer) == ("ring", "star")
    assert [token.text for token in old.generated] == [" ring", "</s>"]
    assert lp.confidence(old).probability.tolist() == pytest.approx([0.7199, 1.0], abs=1e-4)
    assert old.rows(layer=-1, head=1).shape == (2, len(old.tokens) - 1)
    assert old.question is None
    shape = json.loads((tiny.path() / "config.json").read_text())["text_config"]
    assert old.sizes.layers == shape["num_hidden_layers"]
    assert old.sizes.heads == shape["num_attention_heads"]
    assert (old.sizes.vocabulary, old.sizes.dtype) == (shape["vocab_size"], "float32")
    with pytest.raises(lp.NotCaptured, match="attention of layer 0 were not kept"):
        old.rows(layer=0)
    with pytest.raises(lp.OutOfRange, match="this model has 0 to 5"):
        old.rows(layer=6)
    assert [word.text for word in lp.confidence(old).words()] == ["ring"]


def test_a_file_of_the_first_format_is_run_again_and_saved_anew(tiny_vlm, tmp_path):
    old = lp.Trace.load(Path(__file__).parent / "saved" / "format_1.trace")
    again = tiny_vlm.rerun(old)
    assert again.answer == old.answer
    assert again.sizes == replace(old.sizes, width=tiny_vlm.anatomy.width)
    assert lp.Trace.load(old.save(tmp_path / "new.trace")) == old


def test_question_and_sizes_come_back_from_a_file(trace, tmp_path):
    back = lp.Trace.load(trace.save(tmp_path / "run.trace"))
    assert back.question == back.alternatives[0].question == QUESTION
    assert (back.sizes.layers, back.sizes.heads, back.sizes.hidden_layers, back.sizes.width) == (4, 4, 5, 64)
    assert back.ends == trace.ends and 2 in back.ends  # of the model's EOS


@pytest.mark.parametrize("name", ["file", "explained", "sizes", "request"])
def test_what_a_trace_stands_on_does_not_know_it(name):
    code = ast.parse((Path(lp.__file__).parent / "trace" / f"{name}.py").read_text())
    imported = {node.module for node in ast.walk(code) if isinstance(node, ast.ImportFrom)}
    assert "llava_probe.trace.trace" not in imported


def header_with(**changes):
    def change(header, tensors, _metadata):
        plain = json.loads(header) | changes
        return json.dumps({name: value for name, value in plain.items() if value is not ...}), tensors

    return change


def nested(header):
    return header.replace('"messages": null', f'"messages": {"[" * 100_000}{"]" * 100_000}', 1)


def tensors_with(**changes):
    def change(header, tensors, _metadata):
        named = {name.replace("__", "/"): value for name, value in changes.items()}
        return header, {name: value for name, value in (tensors | named).items() if value is not None}

    return change


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (header_with(answer=...), "missing required field `answer`"),
        (header_with(more=1), "unknown field `more`"),
        (header_with(images=2), "has 2 pictures and layouts of 1"),
        (header_with(tokens=[[1]]), r"at `\$.tokens\[0\]"),
        (header_with(prompt_length=10**30), r"at `\$.prompt_length`|out of range"),
        (header_with(prompt_length=1), "its answer does not begin at token 1"),
        (header_with(hidden_layers=[0, 99]), "its hidden_layers reach 99, of 0 to 6"),
        (header_with(hidden_positions=[5, 3]), "its hidden_positions do not rise"),
        (header_with(interventions=[{}]), "an intervention has no kind"),
        (header_with(sizes={"layers": 6}), r"missing required field `heads` - at `\$.sizes`"),
        (lambda _, tensors, __: ("[]", tensors), "Expected `object`, got `array`"),
        (lambda header, tensors, _: (nested(header), tensors), "nested too deep"),
        (lambda header, tensors, told: (told.update({"llava_probe.format": "x"}) or header, tensors), "format is 'x'"),
        (lambda header, tensors, told: (told.update({"llava_probe.format": "²"}) or header, tensors), "format is '²'"),
        (tensors_with(spellings=None), "its tensor 'spellings' is missing"),
        (tensors_with(extra=torch.zeros(1)), "nothing is known of its tensor 'extra'"),
        (tensors_with(images__0=torch.zeros(9, dtype=torch.uint8)), r"picture 0 of \S+ is"),
        (tensors_with(records__logits=torch.zeros(2, 3)), r"'records/logits' is float32 \[2, 3\]; expected floats"),
        (tensors_with(layouts__0__boxes=torch.full((196, 4), torch.nan)), "the boxes of picture 0 are no places"),
        (tensors_with(layouts__0__positions=torch.arange(196) + 999), "outside the prompt"),
        (tensors_with(layouts__0__positions=torch.arange(196).to(torch.uint8)), "is uint8"),  # a mask, to torch
        (tensors_with(records__logits=torch.zeros(2, 460).to(torch.float8_e5m2)), "is float8_e5m2"),
    ],
)
def test_a_crafted_trace_with_a_right_checksum_is_refused_in_a_sentence(crafted_trace, change, sentence):
    with pytest.raises(lp.BadFile, match=sentence) as told:
        lp.Trace.load(crafted_trace(change))
    assert "\n" not in str(told.value)


@pytest.fixture
def crafted_trace(tiny_vlm, tmp_path):
    """Changes a good file as somebody would who knows the format."""
    path = tiny_vlm.generate(tiny.scene(34).image, "Describe the image.", max_new_tokens=2).save(tmp_path / "x.trace")
    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118

    def crafted(change):
        metadata["trace"], changed = change(metadata["trace"], tensors, metadata)
        save_file(changed, path, metadata=metadata | {"digest": checksum(metadata["trace"], changed)})
        return path

    return crafted


def test_a_trace_of_pictures_that_expand_is_refused(crafted_trace, monkeypatch):
    monkeypatch.setattr("llava_probe.pictures.images.MAX_PIXELS", 1)
    monkeypatch.setattr("llava_probe.pictures.images._DENSEST", 0)
    with pytest.raises(lp.BadFile, match="more than are held at once"):
        lp.Trace.load(crafted_trace(header_with()))


def test_a_setting_in_a_file_is_no_name_of_anything_else_in_torch(crafted_trace):
    def change(header, tensors, _metadata):
        plain = json.loads(header)
        plain["request"]["generate"]["dtype"] = {"__dtype__": "load"}
        return json.dumps(plain), tensors

    with pytest.raises(lp.BadFile, match="torch has no dtype 'load'"):
        lp.Trace.load(crafted_trace(change))
