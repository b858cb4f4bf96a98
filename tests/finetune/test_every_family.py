"""Every family learns: its loss is what ``score`` tells, three steps move it, and what they trained loads and acts.

On a tiny random model of each with its real processor; a family without a chat template has no answers to train.
"""

import copy

import pytest
from PIL import Image

import llava_probe as lp
from llava_probe.asking.templates import has_template
from llava_probe.finetune.conversations import read_conversations
from llava_probe.finetune.finetune import finetune
from llava_probe.finetune.parts import projector_of
from llava_probe.finetune.passes import passed, summed_loss, trained_logits
from llava_probe.finetune.rows import RowMaker
from llava_probe.loading.adapters import put_on
from llava_probe.loading.check_row import verify_row
from tests import torchvision_half, zoo
from tests.models import photo

pytestmark = [
    pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision"),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning"),
]

ASKED = (("what is the text", "stop"), ("what colour is it", "red"))


def has_projector(vlm):
    try:
        return bool(projector_of(vlm.anatomy))
    except lp.BadModel:
        return False


@pytest.mark.parametrize("name", zoo.NAMES)
def test_three_steps_change_the_logits_after_loading(name, tmp_path):
    built = zoo.vlm(name)
    if not has_template(built.processor):
        pytest.skip("its processor has no chat template")
    vlm = zoo.unplaced(name)
    pictures = photo(), photo().transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    data = [{"image": one, "question": asks, "answer": says} for one in pictures for asks, says in ASKED]

    ((row, *_), faults) = RowMaker(vlm)(read_conversations(data))
    assert not faults
    one = passed(vlm, [[row]])
    plain = lp.Capture(attention=False, hidden_states=False)
    expected = -lp.confidence(vlm.score(pictures[0], *ASKED[0], capture=plain)).logprob.sum()
    assert summed_loss(trained_logits(vlm, vlm.model, one), one).item() == pytest.approx(float(expected), rel=1e-4)

    before = {key: value.clone() for key, value in built.model.state_dict().items()}
    out = tmp_path / "tuned"
    parts = ("projector", "language") if has_projector(vlm) else ("language",)
    finetune(data, vlm, out, train=parts, steps=3, batch_size=2, lr=1e-2, held_out=0.0, rank=2)
    after = built.model.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].equal(after[key]) for key in before)

    loaded = put_on(copy.deepcopy(built.model), str(out), {})
    verify_row(loaded.eval(), out)  # the logits of the end of training, and not the base's
