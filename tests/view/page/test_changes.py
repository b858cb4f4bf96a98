"""A comparison on a page is what ``lp.compare`` found: in the parcel, and to the eye of a real browser."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

import llava_probe as lp
from llava_probe import tiny
from llava_probe.view.clicks import acted
from llava_probe.view.page import fragment, payload
from llava_probe.view.page.runs import gathered, with_traces
from tests.compare.changed import with_a_head_changed
from tests.view.page.test_contents import Read
from tests.view.page.test_in_browser import HOSTILE, same_picture, show, token

QUESTION = "Describe the image."


@pytest.fixture(scope="module")
def plain(tiny_vlm):
    return tiny_vlm.generate(tiny.scene(9).image, QUESTION, capture=lp.Capture(positions="all"))


@pytest.fixture(scope="module")
def found(tiny_vlm, plain):
    """The same picture, one of whose heads is another: other words, and more of them than the first answer has."""
    changed = with_a_head_changed(3, 2, weight="v_proj")
    other = changed.generate(tiny.scene(9).image, QUESTION, capture=lp.Capture(positions="all"))
    found = lp.compare(plain, other, models=(tiny_vlm, changed))
    assert {one is None for one, _ in found.tokens} == {True, False}
    return found


@pytest.fixture(scope="module")
def saved(found, tmp_path_factory):
    return found.page(tmp_path_factory.mktemp("page") / "changed.html")


def comparison(results):
    read = Read(payload(results))
    (only,) = read.header["comparisons"]
    return read, only


def test_a_page_has_what_the_comparison_found(found):
    read, told = comparison(found)
    runs = [read.header["runs"][told[side]] for side in "ab"]
    assert [run["answer"] for run in runs] == [found.a.answer, found.b.answer]
    words = [{position: text for position, text, _ in run["tokens"]} for run in runs]
    rows = [[None if one is None else words[side][one] for side, one in enumerate(row)] for row in told["answer"]]
    assert rows == [[one and one.text, two and two.text] for one, two in found.tokens]
    assert np.array_equal(read.array(told["probability"]), found.probability.float(), equal_nan=True)
    before, after = (lp.confidence(trace).logprob.double() for trace in (found.a, found.b))
    starts = found.a.prompt_length, found.b.prompt_length
    wanted = [
        math.nan if None in (one, two) else float(after[two - starts[1]] - before[one - starts[0]])
        for one, two in told["answer"]
    ]
    assert np.allclose(read.array(told["change"]), wanted, atol=1e-5, equal_nan=True)
    drift, lens = told["layers"]
    assert (drift["names"], drift["layers"]) == (list(found.drift.groups), list(found.drift.layers))
    assert np.array_equal(read.array(drift["values"]), found.drift.distance.float())
    assert np.array_equal(read.array(lens["values"])[0], found.lens.kl.mean(1).float())
    assert told["notes"] == str(found).split("\n\n")[1].split("\n")


def test_heads_that_moved_come_with_their_shares_on_the_picture(found):
    _, told = comparison(found)
    own, looking = told["heads"]
    assert own["heads"][0][:2] == [3, 2] and len(own["heads"]) == 1
    most = found.looking.moved.flatten().sort(descending=True).values[: len(looking["heads"])]
    assert [moved for _, _, moved, *_ in looking["heads"]] == most.tolist()
    for layer, head, _, *shares in looking["heads"]:
        for side, (trace, share) in enumerate(zip((found.a, found.b), shares, strict=True)):
            places = [pair[side] for pair in found.alignment.shared]
            assert share == pytest.approx(float(lp.heads(trace, places).image[:, layer, head].mean()), abs=1e-6)


def test_traces_that_are_there_are_not_put_on_the_page_twice(tiny_vlm, found):
    m = lp.attribute(tiny_vlm, found.a)
    assert [run.trace for run in gathered([found, found])] == [found.a, found.b]
    assert [len(run.maps) for run in gathered([found.a, m, found])] == [1, 0]
    assert Read(payload([found.b, found])).header["comparisons"][0]["a"] == 1


def test_a_trace_beside_itself_is_two_runs_without_change(plain):
    read, told = comparison(lp.compare(plain, plain))
    assert len(read.header["runs"]) == 2 and (told["a"], told["b"]) == (0, 1)
    assert not read.array(told["change"]).any() and told["heads"][0]["heads"] == []


def test_photographs_and_attention_are_all_that_a_comparison_weighs(found):
    both, alone = payload(found), payload([found.a, found.b])
    assert len(both) < len(alone) + 4000


def test_what_was_left_out_is_told_and_the_rest_is_there(window, tiny_vlm, plain, tmp_path):
    bare = tiny_vlm.rerun(plain, capture=lp.Capture(attention=False, logits=False, scores=False, hidden_states=False))
    found = lp.compare(plain, bare)
    _, told = comparison(found)
    assert (told["change"], told["layers"], told["heads"]) == (None, [], [])
    shown = show(window, found.page(tmp_path / "bare.html"))
    text = shown.page.locator(".changes").inner_text()
    assert all(f"{name} left out" in text for name in found.left_out)
    assert not shown.said


def test_states_that_are_no_numbers_leave_a_page(window, plain, tmp_path):
    states = plain.records["hidden"].clone()
    states[:, 3] = torch.nan
    broken = replace(plain, records={**plain.records, "hidden": states})
    found = lp.compare(plain, broken)
    assert found.drift.distance.isnan().any()
    shown = show(window, found.page(tmp_path / "nan.html"))
    assert shown.page.locator(".chart").count() == 1 and not shown.said
    assert "NaN" not in shown.page.locator(".changes").inner_html()


def test_a_click_computes_a_map_for_the_run_that_was_clicked(tiny_vlm, plain):
    results = with_traces([lp.compare(plain, tiny_vlm.rerun(plain))])
    asked = {"compute": "gradient", "run": 0, "picture": 0, "tokens": [plain.prompt_length]}
    assert acted(results, tiny_vlm, asked) == {"map": 0}
    assert [len(run.maps) for run in gathered(results)] == [1, 0]


# --- in the browser ---


def test_the_maps_of_a_word_and_their_difference_have_one_scale(window, saved, found):
    shown = show(window, saved)
    for row in range(len(found.maps.a.tokens)):
        positions = found.maps.a.about["positions"][row]
        token(shown.page, positions[0]).click()
        for position in positions[1:]:
            token(shown.page, position).click(modifiers=["Shift"])
        top = max(float(found.maps.a.values[row].max()), float(found.maps.b.values[row].max()))
        for number, m in enumerate((found.maps.a, found.maps.b, found.maps.difference)):
            one = lp.ImageMap(m.values[[row]], m.layout, m.image, [m.tokens[row]], m.method)
            same_picture(shown.page, one, number, highest=top)
    assert not shown.said and not shown.outside()


def test_words_stand_under_each_other_coloured_by_the_change(window, saved, found):
    shown = show(window, saved)
    pairs = shown.page.locator(".pair")
    assert pairs.count() == len(found.tokens)
    change = (found.probability[:, 1].log() - found.probability[:, 0].log()).tolist()
    full = max(math.log(2), *(abs(each) for each in change if not math.isnan(each)))
    for row, ((one, two), each) in enumerate(zip(found.tokens, change, strict=True)):
        cells = pairs.nth(row).locator(".token").all_inner_texts()
        assert [cell.strip() for cell in cells] == [token.text.strip() if token else "–" for token in (one, two)]
        style = pairs.nth(row).get_attribute("style")
        strength = float(style.split("--change:")[1].strip(" ;"))
        assert strength == pytest.approx(0 if math.isnan(each) else abs(each) / full, abs=6e-4)
        way = "" if math.isnan(each) or not each else "surer" if each > 0 else "doubted"
        assert pairs.nth(row).get_attribute("class").split()[1:] == way.split()
    worst = int(np.nanargmin(change))
    one, two = found.tokens[worst]
    token(shown.page, one.position).click()
    told = shown.page.locator(".details").inner_text()
    assert f"{two.text.strip()}”" in told and f"{change[worst]:.3g} nats" in told
    colour = pairs.nth(worst).locator(".token").first.evaluate("word => getComputedStyle(word).backgroundColor")
    assert colour not in ("rgba(0, 0, 0, 0)", "transparent")


def test_keys_move_through_the_words_of_a_comparison(window, saved, found):
    shown = show(window, saved)
    first = found.a.prompt_length
    token(shown.page, first).focus()
    shown.page.keyboard.press("ArrowRight")
    shown.page.keyboard.press("ArrowRight")
    assert token(shown.page, first + 1).get_attribute("aria-selected") == "true"


def test_a_head_that_moved_is_shown_in_both_runs(window, saved, found):
    shown = show(window, saved)
    position = found.a.prompt_length
    token(shown.page, position).click()
    moved = found.heads(1)[0]
    shown.page.get_by_role("button", name=f"layer {moved.layer} head {moved.head}", exact=True).first.click()
    maps = [
        lp.attention_map(trace, tokens=[trace.prompt_length], layers=moved.layer, heads=moved.head)
        for trace in (found.a, found.b)
    ]
    top = max(float(m.values.max()) for m in maps)
    for number, m in enumerate(maps):
        same_picture(shown.page, m, number, highest=top)


def test_the_grid_tells_how_each_share_changed(window, saved, found):
    shown = show(window, saved)
    token(shown.page, found.a.prompt_length).click()
    shown.page.get_by_text("change of the share on the picture").wait_for()
    shares = [lp.heads(trace, [trace.prompt_length]).image[0] for trace in (found.a, found.b)]
    for layer, head in ((0, 0), (3, 2), (5, 1)):
        told = shown.page.locator(f'[data-cell="{layer},{head}"]').get_attribute("aria-label")
        value = float(told.split(": ")[1].removesuffix(" %"))
        assert value == pytest.approx(100 * float(shares[1][layer, head] - shares[0][layer, head]), rel=6e-3, abs=2e-3)


def test_a_map_of_nothing_leaves_the_other_its_scale(window, tiny_vlm, plain, tmp_path):
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE, queries="last"):
        blind = tiny_vlm.rerun(plain)
    shown = show(window, lp.compare(plain, blind).page(tmp_path / "blind.html"))
    token(shown.page, plain.prompt_length).click()
    m = lp.attention_map(plain, tokens=[plain.prompt_length])
    same_picture(shown.page, m, 0, highest=float(m.values.max()))
    assert "0 everywhere" in shown.page.locator("figcaption").nth(1).inner_text()


def test_a_comparison_is_left_and_come_back_to(window, saved, found):
    shown = show(window, saved)
    shown.page.get_by_label("beside").select_option("")
    shown.page.wait_for_url(lambda url: url.endswith("#beside=none"))
    assert shown.page.locator(".changes").count() == shown.page.locator(".pair").count() == 0
    again = show(window, saved, "#beside=none")
    assert again.page.locator(".changes").count() == 0
    again.page.get_by_label("beside").select_option("1")
    again.page.locator(".changes").wait_for()


def test_a_strangers_words_are_text_in_a_comparison(window, plain, found, tmp_path):
    def hostile(trace):
        start, words = trace.prompt_length, [HOSTILE[:40], HOSTILE[40:90], HOSTILE[90:]]
        tokens = tuple(
            replace(each, text=words[each.position - start]) if 0 <= each.position - start < 3 else each
            for each in trace.tokens
        )
        return replace(trace, tokens=tokens, answer=HOSTILE, provenance={**trace.provenance, "model": HOSTILE})

    odd = replace(lp.compare(hostile(plain), found.b), left_out={"lens": HOSTILE})
    for results in (odd, lp.compare(found.b, hostile(plain)), lp.compare(hostile(plain), hostile(found.b))):
        path = lp.page(results, tmp_path / "hostile.html")
        shown = show(window, path)
        assert not shown.said and not shown.outside()
        assert "⟨202e⟩" in shown.page.locator(".answer").inner_text() and shown.page.locator("img").count() == 0
        assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert path.read_text(encoding="utf-8").count("<script") == 3  # parcel, component, mount
    assert "<script>alert(1)</script>" in show(window, lp.page(odd, path)).page.locator(".found").inner_text()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_no_serious_fault_of_access_in_a_comparison(window, saved, found, width, dark):
    shown = show(window, saved, f"#token={found.a.prompt_length}", width=width, dark=dark)
    shown.page.get_by_text("Numbers by layer").click()
    violations = Axe().run(shown.page).response["violations"]
    serious = [each for each in violations if each["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(each["id"], each["nodes"][0]["html"][:200]) for each in serious], indent=1)
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.keep(f"changed_{width}_{'dark' if dark else 'light'}")


def test_a_cell_shows_a_comparison(window, found, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{fragment(found)}", encoding="utf-8")
    shown = show(window, path)
    shown.page.locator(".changes").wait_for()
    assert lp.view(found)._repr_html_() == fragment(found) and not shown.said
