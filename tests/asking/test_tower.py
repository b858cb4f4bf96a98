"""What is kept of the vision tower is what an eager copy of it computes, in every family: each window in its place."""

import copy
from functools import partial
from itertools import pairwise

import pytest
import torch
from torch.overrides import TorchFunctionMode

import llava_probe as lp
from llava_probe.inside.anatomy import anatomy
from tests import torchvision_half, zoo
from tests.models import photo

QUESTION = "what is the text"

_NONE, _SHAPES = "has no vision tower that says what its blocks are", "of different shapes"

#: Families whose tower leaves no record, and what the refusal says: no tower with blocks; blocks or crops whose records
#: have different shapes; a tower for videos that takes the picture too.
TOWERLESS = {
    **dict.fromkeys(("llama4", "gemma4_unified", "fast_vlm", "inkling_mm_model", "fuyu", "mllama", "idefics"), _NONE),
    **dict.fromkeys(("got_ocr2", "got_ocr2 crop", "pp_chart2table", "minicpmv4_6", "minicpmv4_7"), _SHAPES),
    **dict.fromkeys(("chameleon", "emu3", "deepseek_ocr2", "unlimited_ocr", "step3p7"), _SHAPES),
    "video_llava": "did not run its vision tower",
}

#: Families whose tower has states but no attention rows, and why.
UNSEEN_TOWERS = {
    "deepseek_vl_hybrid": "its SAM blocks call a kernel of their own, past transformers' interface",
    "cosmos3_edge": "its blocks do not say which of their parts is attention",
}

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]


vlm = zoo.unplaced


class Softmaxes(TorchFunctionMode):
    """Notes what each softmax gives, while ``made`` is a list."""

    made = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if self.made is not None and func in (torch.softmax, torch.nn.functional.softmax, torch.Tensor.softmax):
            self.made.append(out)
        return out


def in_windows(made, bounds):
    """One matrix from the weights of each window, put where the module was told that the window lies."""
    if len(made) == 1:
        return made[0]
    bounds = bounds.tolist()
    whole = made[0].new_zeros(*made[0].shape[:2], bounds[-1], bounds[-1])
    for weights, (start, stop) in zip(made, pairwise(bounds), strict=True):
        whole[:, :, start:stop, start:stop] = weights
    return whole


def eager_tower(name, picture):
    """Of an eager copy, by hooks on its modules: states [crops, L_v + 1, S, D_v], attention [crops, L_v, H_v, S, S]."""
    model = copy.deepcopy(vlm(name).model)
    model.set_attn_implementation("eager")
    stack, watch = anatomy(model).vision, Softmaxes()
    attending = set(stack.attentions)
    states, weights = {}, {}

    def enters(_module, args, kwargs):
        states.setdefault(0, []).append(args[0] if args else kwargs["hidden_states"])

    def leaves(layer, _module, _args, output):
        states.setdefault(layer, []).append(output[0] if isinstance(output, tuple) else output)

    def looks(_module, _args):
        watch.made = []

    def looked(layer, _module, _args, kwargs, _output):
        made, watch.made = watch.made, None
        if made:
            weights.setdefault(layer, []).append(in_windows(made, kwargs.get("cu_seqlens")))

    stack.blocks[0].register_forward_pre_hook(enters, with_kwargs=True)
    for layer, block in enumerate(stack.blocks):
        block.register_forward_hook(partial(leaves, layer + 1))
        for module in attending.intersection(block.modules()):
            module.register_forward_pre_hook(looks)
            module.register_forward_hook(partial(looked, layer), with_kwargs=True)
    with torch.no_grad(), watch:
        model(**vlm(name).model_inputs(picture, QUESTION)[0])
    packed = states[0][0].ndim == 2
    of_layers = [torch.cat(runs)[None] if packed else torch.cat(runs) for _, runs in sorted(states.items())]
    rows = [torch.cat(runs) for _, runs in sorted(weights.items())]
    return torch.stack(of_layers, dim=1), torch.stack(rows, dim=1) if rows else None


@pytest.mark.parametrize("name", zoo.NAMES)
def test_the_vision_towers_records_equal_those_of_an_eager_copy(name):
    picture = photo(150, 90)  # several windows, several crops
    if name in TOWERLESS:
        with pytest.raises(lp.BadModel, match="vision") as refusal:
            vlm(name).generate(picture, QUESTION, max_new_tokens=1, capture=lp.Capture(vision=True))
        assert TOWERLESS[name] in str(refusal.value)
        assert "\n" not in str(refusal.value)
        return
    trace = vlm(name).generate(picture, QUESTION, max_new_tokens=1, capture=lp.Capture(vision=True))
    states, attention = eager_tower(name, picture)
    torch.testing.assert_close(trace.vision_hidden_states, states, atol=1e-5, rtol=1e-5)
    assert trace.kept("vision_attention") == (name not in UNSEEN_TOWERS)
    if name not in UNSEEN_TOWERS:
        torch.testing.assert_close(trace.vision_attention, attention, atol=1e-5, rtol=0)
