"""States put where the last block gives them come out as what the model itself would have said."""

import copy
from threading import Thread

import pytest
import torch

import llava_probe as lp
from llava_probe.inside.ending import Ending
from llava_probe.inside.passes import Visitor, instead, visiting, visitors_of
from tests import torchvision_half, zoo
from tests.models import llava_processor, photo, random_llava

#: A word that is no picture, in every tokenizer of the tests.
WORD = 7


class Last(Visitor):
    states = logits = None

    def state(self, stack, layer, hidden):
        self.states = hidden

    def end(self, span, logits):
        self.logits = logits


def passed(vlm):
    """What the last block gave [n, ...], the last state and the logits [n, V], of one pass about a picture."""
    given, last = [], Last()

    def noting(inside, *args, **kwargs):
        given.append(inside(*args, **kwargs))
        return given[-1]

    inputs, _ = vlm.model_inputs(photo(), "what is the text")
    with torch.no_grad(), instead(vlm.anatomy.decoder.blocks[-1], noting), visiting(vlm.anatomy, last):
        vlm.model(**inputs, use_cache=False, **vlm.anatomy.everywhere)
    block = given[0] if isinstance(given[0], torch.Tensor) else given[0][0]
    if block.ndim == 4 and block.shape[1] == 1:
        block = block.movedim(0, 2)
    return block[0, -5:], last.states[0, -5:], last.logits[0, -5:].float()


#: A cap, a scale, words ruled out, a language model inside that has the head, no final norm, several streams: on an
#: axis of their own, and side by side.
ODD = ("paligemma gemma2", "aya_vision", "chameleon", "blip-2", "git", "glm5_next", "qwen4_exp")


@pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision")
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["llava", *ODD])
def test_what_the_last_block_gave_becomes_the_models_own_logits(name):
    vlm = zoo.vlm(name)
    block, last, logits = passed(vlm)
    ending = Ending(vlm.anatomy, WORD)
    with torch.no_grad():
        assert torch.equal(ending.logits(block), logits)
        assert torch.equal(ending.logits(last, normed=True), logits)
        assert torch.equal(ending.logits(block.flip(0)), logits.flip(0))  # each by itself


def test_a_head_that_nobody_can_read_is_called():
    """Quantised and offloaded heads are modules whose weights are no matrix."""
    model = random_llava()
    weight = copy.deepcopy(model.lm_head.weight)

    class Closed(torch.nn.Module):
        def forward(self, states):
            return states @ weight.T

    model.lm_head = Closed()
    vlm = lp.VLM(model, llava_processor())
    block, _, logits = passed(vlm)
    with torch.no_grad():
        assert torch.equal(Ending(vlm.anatomy, WORD).logits(block), logits)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_an_adapter_on_the_head_is_part_of_it():
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, target_modules=["lm_head", "down_proj"], init_lora_weights=False)
    vlm = lp.VLM(peft.get_peft_model(random_llava(), config).eval(), llava_processor())
    block, _, logits = passed(vlm)
    with torch.no_grad():
        assert torch.equal(Ending(vlm.anatomy, WORD).logits(block), logits)


def test_a_slope_goes_through_it():
    """By finite differences; the norm of this family is in float32 whatever the rest is."""
    vlm = lp.VLM(random_llava().double(), llava_processor())
    ending, states = Ending(vlm.anatomy, WORD), torch.randn(3, 64, dtype=torch.float64, requires_grad=True)
    ending.logits(states)[:, 40].sum().backward()
    step = torch.zeros_like(states)
    step[1, 5] = 1e-2
    with torch.no_grad():
        rise = (ending.logits(states + step) - ending.logits(states - step))[:, 40].sum() / 2e-2
    assert float(states.grad[1, 5]) == pytest.approx(float(rise), rel=1e-3)


def test_nothing_of_it_is_left_on_the_model_or_seen_elsewhere():
    vlm = lp.VLM(random_llava(), llava_processor())
    block, _, _ = passed(vlm)
    ending, elsewhere = Ending(vlm.anatomy, WORD), []
    plain = vlm.generate(photo(), "what is the text", max_new_tokens=3)

    def run():
        elsewhere.append(vlm.generate(photo(), "what is the text", max_new_tokens=3))

    with torch.no_grad(), visiting(vlm.anatomy, Last()):
        ending.logits(block)
        assert len(visitors_of(vlm.anatomy)) == 1
    thread = Thread(target=run)
    thread.start()
    with torch.no_grad():
        for _ in range(20):
            ending.logits(block)
    thread.join()
    assert elsewhere[0] == plain
    assert all("forward" not in vars(module) for module in vlm.model.modules())
    assert all(not module._forward_pre_hooks for module in vlm.model.modules())


def test_states_of_another_width_are_refused_in_a_sentence():
    vlm = lp.VLM(random_llava(), llava_processor())
    with pytest.raises(lp.BadModel, match=r"\[32\] a token, and those of the last layers of this model \[64\]"):
        Ending(vlm.anatomy, WORD).logits(torch.zeros(2, 32))
