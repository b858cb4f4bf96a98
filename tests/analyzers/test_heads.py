"""Shares of each head's attention, against sums written out position by position."""

import json

import pytest
import torch

import llava_probe as lp
from llava_probe.analyzers.heads import PARTS
from tests.models import photo
from tests.synthetic import IMAGE_AT, K, P, T, causal, synthetic_trace


def test_shares_are_the_sums_over_each_part():
    attention = causal()
    shares = lp.heads(synthetic_trace(attention=attention), lp.GENERATED)
    rows = attention[P - 1 :]
    torch.testing.assert_close(shares.image, rows[..., 2:8].sum(-1))
    torch.testing.assert_close(shares.question, rows[..., 1] + rows[..., 8] + rows[..., 9])
    torch.testing.assert_close(shares.first, rows[..., 0])
    torch.testing.assert_close(shares.generated, rows[..., P:].sum(-1))
    assert (shares.rest == 0).all()


def test_shares_add_up_to_one(random_vlm):
    trace = random_vlm.generate(photo(), "what is the text", max_new_tokens=4)
    shares = lp.heads(trace, lp.GENERATED)
    total = sum(shares.part(name) for name in PARTS)
    torch.testing.assert_close(total, torch.ones(4, 4, 4))
    assert (shares.generated[0] == 0).all()
    assert shares.tokens == trace.generated


def test_top_finds_the_head_that_looks():
    attention = causal()
    attention[:, 1, 1] = torch.eye(K)[IMAGE_AT[3]]
    shares = lp.heads(synthetic_trace(attention=attention))
    best, second = shares.top(2)
    assert (best.layer, best.head, best.share) == (1, 1, pytest.approx(1.0))
    assert second.share < best.share
    assert shares.top(1, of="image", row=0)[0] == best
    assert len(shares.top(100)) == 6


def test_heads_carry_the_models_numbers():
    attention = causal(layers=2)
    attention[:, 1, 0] = torch.eye(K)[IMAGE_AT[0]]
    shares = lp.heads(synthetic_trace(attention=attention, attention_layers=(4, 9), attention_heads=(3, 5)))
    assert (shares.top(1)[0].layer, shares.top(1)[0].head) == (9, 3)


def test_a_word_of_the_prompt_is_read_in_its_own_row():
    attention = causal()
    shares = lp.heads(synthetic_trace(attention=attention), tokens="what")
    torch.testing.assert_close(shares.image[0], attention[P - 2, ..., 2:8].sum(-1))


def test_as_data_and_as_text():
    shares = lp.heads(synthetic_trace(attention=causal()))
    assert json.loads(json.dumps(shares.to_dict()))["layers"] == [0, 1, 2]
    assert len(shares.table(3).splitlines()) == 4


def test_a_mask_measures_its_visual_tokens():
    """A box over the first two of the upper row."""
    attention = causal()
    for mask in ((10, 0, 30, 10), lp.Region((10, 0, 30, 10))):
        shares = lp.heads(synthetic_trace(attention=attention), lp.GENERATED, mask=mask)
        torch.testing.assert_close(shares.mask, attention[P - 1 :][..., 2:4].sum(-1))
    assert shares.top(1, of="mask")[0].share == pytest.approx(float(shares.mask.mean(0).max()))
    assert shares.table(1).splitlines()[0].split() == ["layer", "head", *PARTS, "mask"]
    with pytest.raises(lp.BadInput):
        lp.heads(synthetic_trace(attention=attention), mask=(100, 0, 130, 10))


def test_a_grid_of_heads_is_told_in_a_line():
    shares = lp.heads(synthetic_trace(attention=causal()), lp.GENERATED)
    assert len(repr(shares).splitlines()) == 1 and len(repr(shares)) < 200
    assert shares._repr_html_().count("<tr>") == 1 + 6


def test_each_cell_is_a_line_of_a_frame(tmp_path):
    shares = lp.heads(synthetic_trace(attention=causal()), lp.GENERATED)
    frame = shares.to_pandas()
    assert len(frame) == shares.image.numel()
    own = frame[(frame.position == P + 1) & (frame.layer == 2) & (frame["head"] == 1)]
    assert own.image.item() == pytest.approx(float(shares.image[1, 2, 1]))
    assert shares.to_csv(tmp_path / "h.csv").read_text().splitlines()[0] == ",".join(frame.columns)


def test_what_is_not_there():
    shares = lp.heads(synthetic_trace(attention=causal()))
    with pytest.raises(lp.BadInput, match="image, question"):
        shares.top(of="answer")
    with pytest.raises(lp.OutOfRange):
        shares.top(row=T)
    with pytest.raises(lp.NotCaptured, match="attention=True"):
        lp.heads(synthetic_trace())


def test_rows_of_the_prompt_alone_are_enough_for_its_words(random_vlm):
    capture = lp.Capture(attention_positions="prompt")
    trace = random_vlm.generate(photo(), "where", max_new_tokens=3, capture=capture)
    whole = random_vlm.generate(photo(), "where", max_new_tokens=3, capture=lp.Capture(attention_positions="all"))
    of_prompt, of_all = (lp.heads(each, tokens=lp.PROMPT).image for each in (trace, whole))
    torch.testing.assert_close(of_prompt, of_all)
