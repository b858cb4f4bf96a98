"""Loading: by name, by hand, wrapped, quantised names; original checkpoints are answered with their twins."""

import pytest
import torch

import llava_probe as lp
from llava_probe.loading.kinds import TWINS
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"


@pytest.mark.parametrize("name", TWINS)
def test_an_original_checkpoint_is_answered_with_its_twin(name):
    with pytest.raises(lp.BadModel, match=TWINS[name]):
        lp.load(name)


def test_an_unknown_original_checkpoint_says_what_to_look_for():
    with pytest.raises(lp.BadModel, match="-hf"):
        lp.load("liuhaotian/llava-lcs558k-pretrain")


def test_a_folder_that_holds_no_model_is_named(tmp_path):
    with pytest.raises(lp.BadModel, match=r"a folder without a config\.json, so no model is there: it is empty"):
        lp.load(tmp_path)


def test_a_saved_model_loads_and_answers_the_same(random_vlm, tmp_path):
    random_vlm.model.save_pretrained(tmp_path)
    random_vlm.processor.save_pretrained(tmp_path)
    loaded = lp.load(tmp_path, dtype="float32")
    one, other = (vlm.generate(photo(), QUESTION, max_new_tokens=5) for vlm in (random_vlm, loaded))
    torch.testing.assert_close(one.attention, other.attention, atol=1e-5, rtol=0)  # torchvision resizes otherwise
    assert one.tokens == other.tokens
    assert other.provenance["model"] == str(tmp_path)
    assert (
        lp.load(tmp_path, dtype="bfloat16").generate(photo(), QUESTION, max_new_tokens=2).attention.dtype
        == torch.bfloat16
    )


def test_a_peft_model_is_taken_as_it_is():
    peft = pytest.importorskip("peft")
    model, processor = random_llava(), llava_processor()
    plain = lp.VLM(model, processor).generate(photo(), QUESTION, max_new_tokens=5)
    settings = peft.LoraConfig(r=4, target_modules=r".*language_model.*\.(q_proj|v_proj)", init_lora_weights=False)
    wrapped = lp.VLM(peft.get_peft_model(model, settings).eval(), processor)
    tuned = wrapped.generate(photo(), QUESTION, max_new_tokens=5)
    assert not torch.allclose(tuned.logits, plain.logits)
    scored = wrapped.score(photo(), QUESTION, tuned.generated_ids)
    torch.testing.assert_close(scored.attention, tuned.attention, atol=1e-5, rtol=0)
    with wrapped.model.disable_adapter():
        assert torch.equal(wrapped.generate(photo(), QUESTION, max_new_tokens=5).logits, plain.logits)


LAYERS = {f"model.language_model.layers.{n}": "disk" if n % 2 else "cpu" for n in range(4)}
TEXT = {f"model.language_model.{part}": "cpu" for part in ("embed_tokens", "norm", "rotary_emb")}
VISION = ("model.vision_tower", "model.multi_modal_projector")
MAPS = {
    "auto": "auto",
    "every second block on disk": {**LAYERS, **TEXT, **dict.fromkeys(VISION, "cpu"), "lm_head": "cpu"},
    "all but the decoder on disk": {"model.language_model": "cpu", **dict.fromkeys((*VISION, "lm_head"), "disk")},
}


@pytest.mark.parametrize("device_map", MAPS.values(), ids=MAPS)
def test_a_model_in_pieces_leaves_the_same_trace(random_vlm, tmp_path, device_map):
    pytest.importorskip("accelerate")
    random_vlm.model.save_pretrained(tmp_path)
    random_vlm.processor.save_pretrained(tmp_path)
    pieces = lp.load(tmp_path, device_map=device_map, offload_folder=str(tmp_path / "offload"))
    one, other = (
        vlm.generate(photo(), QUESTION, max_new_tokens=4, capture=lp.Capture(vision=True))
        for vlm in (random_vlm, pieces)
    )
    assert one.tokens == other.tokens
    torch.testing.assert_close(other.attention, one.attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.vision_attention, one.vision_attention, atol=1e-5, rtol=0)
    torch.testing.assert_close(other.hidden_states, one.hidden_states, atol=1e-4, rtol=1e-4)


def test_provenance_says_with_what_it_was_made(random_vlm):
    told = random_vlm.generate(photo(), QUESTION, max_new_tokens=1).provenance
    assert told["class"] == "LlavaForConditionalGeneration"
    assert told["dtype"] == "float32"
    assert told["attention"] == "sdpa"
    assert told["versions"]["torch"] == torch.__version__
    assert len(told["images"][0]) == 64


def test_check_holds_on_a_right_model_and_is_kept(random_vlm):
    found = lp.check(random_vlm, max_new_tokens=6)
    assert found.ok, str(found)
    trace = random_vlm.generate(photo(), QUESTION, max_new_tokens=1)
    assert trace.provenance["checks"].keys() == found.to_dict().keys()


def test_check_notices_rows_that_are_wrong(random_vlm, monkeypatch):
    from llava_probe.inside import rows

    right = rows.Call.rows
    wrong = lambda call, *args: right(call, *args) * (1 if call.kernel == "eager" else 1.01)  # noqa: E731
    monkeypatch.setattr(rows.Call, "rows", wrong)
    assert not lp.check(random_vlm, max_new_tokens=3).ok


def test_check_notices_places_that_are_wrong(random_vlm, monkeypatch):
    from llava_probe import layout

    def stretched(prepared):
        """The usual mistake: the grid over the whole photograph, whatever the crop hid."""
        [(width, height)] = prepared.sizes
        edges = layout.geometry.cell_edges
        return [layout.Share.of(layout.geometry.boxes_between(edges(0, width, 6), edges(0, height, 6)), grid=(6, 6))]

    monkeypatch.setitem(layout.WAYS, "llava", stretched)
    wrong = [one for one in lp.check(random_vlm, photo(160, 48), max_new_tokens=3).findings if not one.holds]
    assert [one.claim for one in wrong] == ["places of visual tokens: boxes that are not as measured"]


def test_two_models_keep_their_own_blocks():
    one, other = lp.VLM(random_llava(0), llava_processor()), lp.VLM(random_llava(1), llava_processor())
    first = one.generate(photo(), QUESTION, max_new_tokens=3)
    other.generate(photo(), QUESTION, max_new_tokens=3)
    assert one.generate(photo(), QUESTION, max_new_tokens=3) == first
