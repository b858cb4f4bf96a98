"""The saved page in a real browser: what is seen is what the arrays say, whoever asks and however."""

import base64
import csv
import io
import json
from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe
from PIL import Image

import llava_probe as lp
from llava_probe import tiny
from llava_probe.maps.colours import colour_map, colour_table
from llava_probe.view.page import fragment, payload
from llava_probe.view.page.document import document

#: By how much a colour may miss: a value that came quantised may fall to the next of the 256 colours.
LEVELS = 1 + max(
    float(np.abs(np.diff(colour_table(colour_map(signed=signed)), axis=0)).max()) for signed in (False, True)
)
HOSTILE = "<script>alert(1)</script></script><!-- <img src=x onerror=alert(2)> \u202egnp.exe \x00 " + "x" * 10_000


@pytest.fixture(scope="module")
def traces(tiny_vlm):
    scene = tiny.scene(34)
    capture = lp.Capture(attention_positions="all")
    asked = [("What is the text on the stop sign?", capture), ("What colour is the triangle?", None)]
    return [tiny_vlm.generate(scene.image, question, capture=kept) for question, kept in asked]


@pytest.fixture(scope="module")
def maps(tiny_vlm, traces):
    return [lp.attribute(tiny_vlm, traces[0], "attnlrp", tokens=lp.ANSWER)]


@pytest.fixture(scope="module")
def saved(traces, maps, tmp_path_factory):
    return lp.page([traces[0], *maps, traces[1]], tmp_path_factory.mktemp("page") / "run.html")


def show(window, path, link="", **how):
    shown = window(**how)
    shown.page.goto(f"{path.as_uri()}{link}")
    shown.page.wait_for_selector("figure canvas")
    return shown


def canvas(page, number=0):
    """[height, width, 3] what is painted on one of the photographs."""
    told = page.locator("figure .stack canvas").nth(number).evaluate("canvas => canvas.toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(told.split(",")[1]))).convert("RGB")).astype(int)


def same_picture(page, m, number=0, **how):
    """Waits until a canvas is a map's overlay, to the levels of quantisation."""
    wanted = np.asarray(m.overlay(0, **how)).astype(int)
    for _ in range(60):
        off = np.abs(canvas(page, number) - wanted).max()
        if off <= LEVELS:
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"a pixel is {off} levels off")


def token(page, position):
    return page.locator(f'[data-position="{position}"]').first


def test_a_clicked_token_shows_its_own_map(window, saved, traces):
    shown = show(window, saved)
    for step, each in enumerate(traces[0].generated):
        token(shown.page, each.position).click()
        m = lp.attention_map(traces[0], tokens=[each.position])
        same_picture(shown.page, m)
        x, y = m.peak(0)
        assert f"Largest at ({round(x)}, {round(y)}) px" in shown.page.locator(".details").inner_text(), step
    assert not shown.said and not shown.outside()


def test_shift_adds_a_token_and_the_whole_answer_is_one_choice(window, saved, traces):
    first, *_, last = traces[0].positions(lp.ANSWER)
    shown = show(window, saved)
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[traces[0].positions(lp.ANSWER)]))
    token(shown.page, first).click()
    token(shown.page, last).click(modifiers=["Shift"])
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[[first, last]]))
    shown.page.get_by_role("button", name="Whole answer").click()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[traces[0].positions(lp.ANSWER)]))


def test_keys_move_through_the_words(window, saved, traces):
    first, second, *_ = traces[0].positions(lp.ANSWER)
    shown = show(window, saved)
    token(shown.page, first).focus()
    for key, position in (("ArrowRight", first), ("ArrowRight", second), ("ArrowLeft", first)):
        shown.page.keyboard.press(key)
        assert token(shown.page, position).get_attribute("aria-selected") == "true", key
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[first]))
    shown.page.keyboard.press("Escape")
    assert shown.page.locator('.token[aria-selected="true"]').count() == 0


def test_words_of_the_question_have_their_own_rows(window, saved, traces):
    (position, *_) = traces[0].find("sign", role="prompt")
    shown = show(window, saved)
    token(shown.page, position).click()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position]))


def test_layers_and_heads_filter(window, saved, traces):
    position = traces[0].prompt_length
    shown = show(window, saved, f"#token={position}")
    grid = shown.page.get_by_role("grid")
    shown.page.get_by_role("button", name="layer 3, all heads").click()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position], layers=3))
    shown.page.get_by_role("button", name="head 1, all layers").click()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position], heads=1))
    grid.locator('[data-cell="2,1"]').click()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position], layers=2, heads=1))
    shown.page.keyboard.press("ArrowDown")
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position], layers=3, heads=1))
    grid.locator('[data-cell="1,0"]').hover()
    shown.page.mouse.down()
    grid.locator('[data-cell="2,2"]').hover()
    shown.page.mouse.up()
    same_picture(shown.page, lp.attention_map(traces[0], tokens=[position], layers=[1, 2], heads=[0, 1, 2]))
    share = lp.heads(traces[0], [position]).image[0, 2, 1]
    told = grid.locator('[data-cell="2,1"]').get_attribute("aria-label")
    assert told == f"layer 2, head 1: {100 * share:.0f} %"


def test_a_place_on_the_photograph_lights_the_words(window, saved, traces):
    shown = show(window, saved)
    m = lp.attention_map(traces[0], tokens=lp.GENERATED)
    x, y = m.peak(1)
    box = shown.page.locator(".stack svg").first.bounding_box()
    shown.page.mouse.move(box["x"] + x / 336 * box["width"], box["y"] + y / 336 * box["height"])
    visual = int(m.row(1).argmax())
    lit = [float(shown.page.locator(f'[data-position="{t.position}"]').evaluate(
        "word => word.style.getPropertyValue('--light')")) for t in traces[0].generated]  # fmt: skip
    everything = lp.attention_map(traces[0], tokens=lp.GENERATED).values[:, visual]
    prompt = [each.position for each in traces[0].tokens[: traces[0].prompt_length] if each.role != "image"]
    most = max(float(everything.max()), float(lp.attention_map(traces[0], tokens=prompt).values[:, visual].max()))
    assert lit == pytest.approx((everything / most).tolist(), abs=2e-3)


def test_another_method_is_a_tab_with_its_limit(window, saved, maps):
    shown = show(window, saved)
    shown.page.get_by_role("tab", name="attnlrp").click()
    same_picture(shown.page, maps[0])
    assert "Signed" in shown.page.locator(".limit").inner_text()
    assert maps[0].values.min() < 0


def test_two_traces_stand_side_by_side_on_one_scale_with_their_difference(window, saved, traces, tmp_path):
    one, two = (trace.prompt_length for trace in traces)
    shown = show(window, saved, f"#token={one}&beside=1")
    shown.page.wait_for_selector("figure:nth-of-type(3) canvas")
    first = lp.attention_map(traces[0], tokens=[one])
    second = lp.attention_map(traces[1], tokens=[two])  # the first word of one answer stands for that of the other
    top = max(float(first.values.max()), float(second.values.max()))
    same_picture(shown.page, first, 0, highest=top)
    same_picture(shown.page, second, 1, highest=top)
    difference = lp.ImageMap(second.values - first.values, first.layout, first.image, first.tokens, "difference")
    same_picture(shown.page, difference, 2)


def download(shown, button):
    with shown.page.expect_download() as caught:
        shown.page.get_by_role("button", name=button, exact=True).click()
    return caught.value.path()


def test_a_run_that_kept_other_layers_has_no_map_of_the_chosen_one(window, tiny_vlm, traces, tmp_path):
    fewer = tiny_vlm.rerun(traces[1], capture=lp.Capture(attention_layers=[0, 1], heads=[0]))
    path = lp.page([traces[1], fewer], tmp_path / "fewer.html")
    for link in ("#layer=4&beside=1", "#layer=4&head=3&beside=1"):
        shown = show(window, path, link)
        shown.page.get_by_text("this run kept layers 0–1 and heads 0 alone").wait_for()
        assert shown.page.locator("figure .stack canvas").count() == 1, "a difference of nothing is drawn"


def test_words_that_stand_twice_are_linked_to_their_own(window, tiny_vlm, tmp_path):
    capture = lp.Capture(attention_positions="all")
    question = "What is the text on the stop sign?"
    asked = [tiny_vlm.generate(tiny.scene(n).image, question, capture=capture) for n in (34, 36)]
    second = [each.position for each in asked[0].tokens if each.text == " the"][-1]
    shown = show(window, lp.page(asked, tmp_path / "two.html"), f"#token={second}&beside=1")
    maps = [lp.attention_map(trace, tokens=[second]) for trace in asked]
    top = max(float(m.values.max()) for m in maps)
    for number, m in enumerate(maps):
        same_picture(shown.page, m, number, highest=top)


def test_what_to_know_of_a_map_is_saved_with_it(window, traces, tmp_path):
    path = tmp_path / "small.html"
    path.write_text(document(payload(traces[0], 60_000), "", ""), encoding="utf-8")
    shown = show(window, path)
    notes = "not kept word by word: the mean over the answer"
    for cell in range(24):
        shown.page.locator("[data-cell]").nth(cell).click()
        shown.page.wait_for_timeout(50)
        if shown.page.get_by_text(notes).count():
            break
    assert notes in download(shown, "Save SVG").read_text(encoding="utf-8")
    assert notes in download(shown, "Save CSV of the map").read_text(encoding="utf-8")


def test_a_map_of_nothing_has_no_place(window, traces, tmp_path):
    nothing = torch.zeros_like(traces[1].attention)
    empty = replace(traces[1], records={**traces[1].records, "attention": nothing})
    shown = show(window, empty.page(tmp_path / "empty.html"))
    assert "The same everywhere" in shown.page.locator(".details").inner_text()
    assert "0 everywhere" in shown.page.locator("figcaption").first.inner_text()


def test_attention_that_is_no_number_leaves_the_tables(window, traces, tmp_path):
    broken = torch.full_like(traces[1].attention, torch.nan)
    shown = window()
    path = replace(traces[1], records={**traces[1].records, "attention": broken}).page(tmp_path / "nan.html")
    shown.page.goto(path.as_uri())
    shown.page.get_by_text("Table of everything").click()
    shown.page.locator(".everything tbody tr").nth(5).wait_for()
    assert not shown.said


def test_maps_of_two_pictures_turn_to_their_own(window, traces, tmp_path):
    layout, image = traces[1].layouts[0], tiny.scene(40).image
    two = replace(traces[1], images=(traces[1].images[0], image), layouts=(layout, replace(layout)))
    values = torch.rand(1, len(layout))
    maps = [lp.ImageMap(values, layout, each, two.generated[:1], "mine") for each in two.images]
    shown = show(window, lp.page([two, *maps], tmp_path / "pictures.html"))
    shown.page.get_by_role("tab", name="mine, picture 1").click()
    same_picture(shown.page, maps[1])


def test_a_tile_has_its_own_scale_and_says_so(window, traces, tmp_path):
    layout, position = traces[1].layouts[0], traces[1].prompt_length
    tiles = np.repeat([1, 2], len(layout) // 2)
    tiled = replace(traces[1], layouts=(replace(layout, tiles=tiles, grid=None),))
    shown = show(window, tiled.page(tmp_path / "tiles.html"), f"#tile=1&token={position}")
    caption = shown.page.locator("figcaption").first.inner_text()
    top = float(lp.attention_map(tiled, tokens=[position]).values[0, tiles == 1].max())
    assert "tile 1" in caption and f"0 to {top:.3g}" in caption


def test_the_grid_is_used_by_keyboard(window, saved):
    shown = show(window, saved)
    chosen = shown.page.locator('[data-cell][aria-selected="true"]')
    shown.page.get_by_role("button", name="layer 3, all heads").press("Enter")
    shown.page.wait_for_timeout(100)
    assert chosen.count() == 4
    shown.page.locator('[data-cell="3,1"]').click()
    for _ in range(2):
        shown.page.keyboard.press("Shift+ArrowUp")
        shown.page.wait_for_timeout(100)
    assert chosen.evaluate_all("cells => cells.map(each => each.dataset.cell)") == ["1,1", "2,1", "3,1"]


def test_a_choice_of_words_grows_to_the_left_too(window, saved, traces):
    shown = show(window, saved)
    token(shown.page, traces[0].tokens[-1].position).click()
    for _ in range(3):
        shown.page.keyboard.press("Shift+ArrowLeft")
        shown.page.wait_for_timeout(100)
    assert shown.page.locator('.token[aria-selected="true"]').count() == 4


def test_what_is_seen_is_saved(window, saved, traces):
    position = traces[0].prompt_length + 1
    shown = show(window, saved, f"#token={position}")
    m = lp.attention_map(traces[0], tokens=[position])
    painted = np.asarray(Image.open(download(shown, "Save PNG")).convert("RGB")).astype(int)
    inside = painted[38 : 38 + 336, 16 : 16 + 336]
    assert np.abs(inside - np.asarray(m.overlay(0)).astype(int)).max() <= LEVELS
    root = ElementTree.fromstring(download(shown, "Save SVG").read_text(encoding="utf-8"))
    assert len(root.findall(".//{*}g/{*}rect")) == len(m.layout)
    head, *lines = csv.reader(download(shown, "Save CSV of the map").open(newline=""))
    assert head[:5] == ["visual_token", "x0", "y0", "x1", "y1"]
    assert head[5].startswith("share of attention, “T”: attention, mean of 6 layers, mean of 4 heads")
    table = np.array(lines, dtype=float)
    assert np.abs(table[:, 1:5] - m.layout.boxes).max() < 1e-4
    assert np.abs(table[:, 5] - m.values[0].numpy()).max() <= float(m.values.max()) / 130_000
    words = list(csv.DictReader(download(shown, "Save CSV of the words").open(newline="")))
    said = [row for row in words if row["role"] == "generated"]
    assert [float(row["probability"]) for row in said] == pytest.approx(
        lp.confidence(traces[0]).probability.tolist(), abs=1e-6
    )


def test_a_link_holds_what_is_seen(window, saved, traces):
    shown = show(window, saved)
    token(shown.page, traces[0].prompt_length).click()
    shown.page.get_by_role("button", name="layer 3, all heads").click()
    shown.page.wait_for_url(lambda url: url.endswith(f"#token={traces[0].prompt_length}&layer=3"))
    shown.page.wait_for_timeout(200)
    again = show(window, saved, shown.page.url.split("html")[1])
    assert (canvas(again.page) == canvas(shown.page)).all()


def test_a_region_is_marked_and_told(window, saved):
    shown = show(window, saved)
    shown.page.evaluate(
        "window.heard = []; document.addEventListener('llava-probe-region', e => window.heard.push(e.detail))"
    )
    shown.page.get_by_role("button", name="Mark a region").click()
    box = shown.page.locator(".stack svg").first.bounding_box()
    corners = [
        (box["x"] + x / 336 * box["width"], box["y"] + y / 336 * box["height"]) for x, y in ((48, 72), (168, 144))
    ]
    shown.page.mouse.move(*corners[0])
    shown.page.mouse.down()
    shown.page.mouse.move(*corners[1], steps=3)
    shown.page.mouse.up()
    shown.page.wait_for_timeout(300)
    told = shown.page.evaluate("window.heard.at(-1)")
    assert (told["trace"], told["image"]) == (0, 0)
    assert told["box"] == pytest.approx([48, 72, 168, 144], abs=1.0)
    assert "15 of 196 visual tokens" in shown.page.locator(".under-picture").first.inner_text()


def test_a_region_is_marked_by_keyboard_and_its_words_stay_lit(window, saved, traces):
    shown = show(window, saved)
    shown.page.get_by_role("button", name="Mark a region").press("Enter")
    shown.page.get_by_label("the region, x0, y0, x1, y1 in pixels").fill("48, 72, 168, 144")
    shown.page.keyboard.press("Enter")
    shown.page.get_by_text("15 of 196 visual tokens").wait_for()
    layout = traces[0].layouts[0]
    inside = lp.Region((48, 72, 168, 144)).tokens(layout)
    assert len(inside) == 15
    shares = lp.attention_map(traces[0], tokens=lp.GENERATED).values[:, inside].sum(1)
    lit = [float(token(shown.page, each.position).evaluate("word => word.style.getPropertyValue('--light')"))
           for each in traces[0].generated]  # fmt: skip
    assert np.argsort(lit).tolist() == np.argsort(shares).tolist() and max(lit) == 1


def test_a_strangers_text_is_text(window, traces, tmp_path):
    words = [HOSTILE[:40], HOSTILE[40:90], HOSTILE[90:]]
    start = traces[0].prompt_length
    tokens = tuple(
        replace(each, text=words[each.position - start]) if 0 <= each.position - start < 3 else each
        for each in traces[0].tokens
    )
    hostile = replace(
        traces[0], tokens=tokens, answer=HOSTILE, request=replace(traces[0].request, question=HOSTILE),
        provenance={**traces[0].provenance, "model": HOSTILE},
    )  # fmt: skip
    path = hostile.page(tmp_path / "hostile.html")
    shown = show(window, path)
    assert not shown.said and not shown.outside()
    text = shown.page.locator(".answer").inner_text()
    assert "<script>alert(1)</script>" in text and "⟨202e⟩" in text and "⟨0000⟩" in text
    assert shown.page.locator("img").count() == 0
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert path.read_text(encoding="utf-8").count("<script") == 3  # parcel, component, mount
    notebook = tmp_path / "cell.html"
    notebook.write_text(f"<!doctype html><meta charset=utf-8>{fragment(hostile)}", encoding="utf-8")
    shown = show(window, notebook)
    assert not shown.said and not shown.outside()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_no_serious_fault_of_access(window, saved, traces, width, dark):
    shown = show(window, saved, f"#token={traces[0].prompt_length}&beside=1", width=width, dark=dark)
    shown.page.get_by_text("Table of everything").click()
    shown.page.get_by_text("Drawing", exact=True).click()
    found = Axe().run(shown.page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert not serious, json.dumps([(each["id"], each["nodes"][0]["html"][:200]) for each in serious], indent=1)
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.keep(f"page_{width}_{'dark' if dark else 'light'}")


@pytest.mark.parametrize("width", [1280, 400])
def test_a_model_of_many_heads_stays_inside_the_window(window, traces, tmp_path, width):
    rows = traces[1].attention.repeat(1, 6, 8, 1)
    numbers = {"attention_layers": tuple(range(rows.shape[1])), "attention_heads": tuple(range(rows.shape[2]))}
    many = replace(traces[1], records={**traces[1].records, "attention": rows}, **numbers)
    shown = show(window, many.page(tmp_path / "many.html"), width=width)
    assert shown.page.locator("[data-cell]").count() == rows.shape[1] * rows.shape[2]
    assert shown.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    shown.keep(f"many_heads_{width}")


def test_the_same_cell_works_twice_on_one_page(window, traces, tmp_path):
    cell = fragment(traces[0])
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><style>button{{display:none}}</style>{cell}{cell}")
    shown = show(window, path)
    hosts = shown.page.locator("[data-llava-probe]")
    assert hosts.count() == 2
    hosts.nth(1).scroll_into_view_if_needed()
    hosts.nth(1).locator("figure canvas").first.wait_for()
    position = traces[0].prompt_length
    hosts.nth(1).locator(f'[data-position="{position}"]').click()
    assert [hosts.nth(n).locator('[aria-selected="true"].token').count() for n in (0, 1)] == [0, 1]
    assert not shown.said and not shown.outside()


def test_without_scripts_the_picture_and_the_words_are_there(chromium, traces, tmp_path):
    path = tmp_path / "notebook.html"
    path.write_text(f"<!doctype html><meta charset=utf-8>{fragment(traces[0])}", encoding="utf-8")
    context = chromium.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert "STOP" in page.locator("body").inner_text()
    assert page.locator("img").evaluate("picture => picture.naturalWidth") > 200
    context.close()
