"""The app as its users meet it: real browsers ask, wait, stop, mark a part, save, and meet what goes wrong.

The truth of an answer is the same model asked in this process, without the app.
"""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import zipfile

import pytest

import llava_probe as lp
from llava_probe import tiny

SIGN = "What is the text on the stop sign?"


def choose(page, example=0, question=SIGN):
    page.click(f".lp-examples button >> nth={example}")
    page.wait_for_selector(".lp-examples button[aria-pressed=true] >> nth=0")
    page.wait_for_selector(".lp-preview:not([hidden])")
    page.fill("#lp-question textarea", question)


def ask(page):
    page.click("#lp-ask")


def said(page, card=0):
    """The answer on a card, once it is there."""
    page.wait_for_selector(f".lp-card >> nth={card} >> .lp-note:not([hidden])")
    return page.inner_text(f".lp-card >> nth={card} >> .lp-said")


def mark(page, box):
    """Drag over the photograph in the page component; ``box`` in pixels of the original."""
    image = page.locator(".lp-mount .stack svg, .lp-mount img").first
    shown = None
    while shown is None:  # an answer that comes meanwhile draws the picture anew, and the one that was found is gone
        image.evaluate("element => element.scrollIntoView({block: 'center'})")
        shown = image.bounding_box()
    scale = shown["width"] / 336
    at = [(shown["x"] + x * scale, shown["y"] + y * scale) for x, y in (box[:2], box[2:])]
    page.keyboard.down("Shift")
    page.mouse.move(*at[0])
    page.mouse.down()
    page.mouse.move(*[(a + b) / 2 for a, b in zip(*at, strict=True)])
    page.mouse.move(*at[1])
    page.mouse.up()
    page.keyboard.up("Shift")
    page.wait_for_selector(".lp-region:not(.lp-none)")


def saved(page, kind):
    with page.expect_download() as waited:
        page.click(f".lp-exports button[data-kind={kind}]")
    return waited.value


def test_a_question_is_answered_cut_and_made_again(visit, tiny_vlm, tmp_path):
    page = visit()
    choose(page)
    ask(page)
    scene = tiny.scene(34)
    plain = tiny_vlm.generate(scene.image, SIGN, max_new_tokens=64, do_sample=False, num_beams=1)
    assert said(page) == plain.answer == "STOP"

    sign = next(each for each in scene.objects if each.kind == "stop sign").box
    mark(page, sign)
    page.click(".lp-without")
    without = said(page, 1)
    assert without != "STOP" and page.inner_text(".lp-card >> nth=1 >> .lp-title") == "Without the marked part"
    assert page.inner_text(".lp-card >> nth=0 >> .lp-said") == "STOP"

    with zipfile.ZipFile(saved(page, "everything").path()) as archive:
        names = set(archive.namelist())
        archive.extractall(tmp_path)
    assert {"run.trace", "changed.trace", "run.html", "again.py", "picture.png"} < names
    assert {"figures/answer/figures/maps.png", "figures/changed/figures/maps.png"} < names
    kept, changed = (lp.Trace.load(tmp_path / name) for name in ("run.trace", "changed.trace"))
    assert kept.tokens == plain.tokens and kept.images[0].tobytes() == scene.image.tobytes()
    assert changed.answer == without and len(changed.interventions) == 1 and kept.interventions == ()

    again = tmp_path / "again"
    again.mkdir()
    (tmp_path / "picture.png").rename(again / "picture.png")
    told = subprocess.run([sys.executable, tmp_path / "again.py"], cwd=again, capture_output=True, text=True)
    assert told.stdout.split("\n")[:2] == ["STOP", without], told.stderr
    assert same(lp.Trace.load(again / "run.trace"), kept) and same(lp.Trace.load(again / "changed.trace"), changed)
    assert (again / "run.html").exists()


def same(one, other):
    return one == other and dict(one.provenance) == dict(other.provenance)


def test_with_only_a_part_of_it(visit, tiny_vlm):
    page = visit()
    choose(page)
    ask(page)
    said(page)
    scene = tiny.scene(34)
    star = next(each for each in scene.objects if each.colour == "orange").box
    mark(page, star)
    page.select_option(".lp-ring", "0")
    page.click(".lp-only")
    only = said(page, 1)
    box = page.inner_text(".lp-marked")
    assert (
        box.startswith("Marked:") and page.inner_text(".lp-card >> nth=1 >> .lp-title") == "With only the marked part"
    )
    layout = tiny_vlm.lay_out(scene.image, SIGN)[0]
    kept = set(lp.Region(star).tokens(layout).tolist())
    others = [place for index, place in enumerate(layout.positions.tolist()) if index not in kept]
    with lp.ablate(tiny_vlm, tokens=others):
        assert only == tiny_vlm.generate(scene.image, SIGN, max_new_tokens=64).answer != "STOP"


def test_two_browsers_at_once_wait_visibly_and_get_their_own_answers(app, visit, held):
    one, two = visit(), visit()
    choose(one, 0)
    choose(two, 1)
    with held():
        ask(one)
        one.wait_for_selector(".lp-running")
        ask(two)
        two.wait_for_selector("text=Waiting: 1 question before yours.")
        assert two.locator(".lp-running").count() == 0
    assert (said(one), said(two)) == ("STOP", "FIRE")
    run = one.evaluate("performance.getEntriesByType('resource').map(r => r.name).find(n => n.includes('/payload'))")
    assert one.request.get(run).status == 200
    stolen = two.request.get(run)
    assert stolen.status == 422 and "not kept any more" in stolen.text()
    assert two.request.get(run.replace("payload", "export/trace")).status == 422


def test_a_killed_process_is_told_and_the_next_question_works(visit, held, app):
    page = visit()
    choose(page)
    with held() as pid:
        ask(page)
        page.wait_for_selector(".lp-running")
        os.kill(pid, signal.SIGKILL)
    page.wait_for_selector("#lp-answer .lp-error:has-text('SIGKILL')")
    assert "ask again" in page.inner_text("#lp-answer .lp-error")
    ask(page)
    assert said(page) == "STOP"
    assert app.desk.worker.pid != pid


def test_stop_ends_an_answer_with_what_was_said_and_leaves_the_queue(visit, held, tmp_path):
    one, two = visit(), visit()
    choose(one)
    choose(two)
    with held():
        ask(one)
        one.wait_for_selector(".lp-running")
        ask(two)
        two.wait_for_selector("text=Waiting: 1 question before yours.")
        two.click("#lp-stop")
        two.wait_for_selector("text=Stopped before it was its turn.")
        one.click("#lp-stop")
        one.wait_for_timeout(300)
    assert said(one) in "STOP" and "stopped" in one.inner_text(".lp-note")
    trace = lp.Trace.load(saved(one, "trace").path())
    assert 1 <= len(trace.generated) < 5 and trace.request.generate["max_new_tokens"] == len(trace.generated)


def test_a_browser_that_goes_gives_up_its_place(app, visit, held):
    one, two = visit(), visit()
    choose(one)
    choose(two)
    with held():
        ask(one)
        one.wait_for_selector(".lp-running")
        ask(two)
        two.wait_for_selector("text=Waiting: 1 question before yours.")
        two.close()
        for _ in range(300):
            if not app.desk.worker.waiting:
                break
            one.wait_for_timeout(100)
        assert not app.desk.worker.waiting
    assert said(one) == "STOP"


def test_what_is_refused_is_told_and_the_page_goes_on(visit):
    page = visit()
    for name, data, told in [
        ("photo.png", b"I am a text.", "is not a picture"),
        ("large.png", bytes(2_100_000), "larger than the 2 MB"),
    ]:
        page.set_input_files(".lp-file", {"name": name, "mimeType": "image/png", "buffer": data})
        page.wait_for_selector(f"#lp-picture .lp-error:has-text('{told}')")
    ask(page)
    page.wait_for_selector("#lp-answer .lp-error:has-text('choose a picture first')")
    file = io.BytesIO()
    tiny.scene(17).image.save(file, "PNG")
    page.set_input_files(".lp-file", {"name": "../../x.png", "mimeType": "image/png", "buffer": file.getvalue()})
    page.wait_for_selector(".lp-preview:not([hidden])")
    ask(page)
    page.wait_for_selector("#lp-answer .lp-error:has-text('type a question first')")
    page.fill("#lp-question textarea", SIGN)
    ask(page)
    assert said(page) == "FIRE"


def test_a_hostile_question_is_text(visit):
    hostile = "</script><img src=x onerror=alert(1)>${alert(2)} {{constructor}} \u202etxet \\`"
    page = visit()
    page.on("dialog", lambda _: pytest.fail("it was run"))
    choose(page, question=hostile)
    ask(page)
    said(page)
    assert page.inner_text(".lp-card .lp-asked") == hostile
    assert page.locator(".lp-card img").count() == 0


def test_a_picture_can_be_pasted(visit):
    page = visit()
    file = io.BytesIO()
    tiny.scene(34).image.save(file, "PNG")
    page.evaluate(
        """(bytes) => {
            const held = new DataTransfer();
            held.items.add(new File([new Uint8Array(bytes)], "pasted.png", {type: "image/png"}));
            document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: held, bubbles: true}));
        }""",
        list(file.getvalue()),
    )
    page.wait_for_selector(".lp-told:has-text('336 × 336 pixels')")


@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_is_wider_than_the_window(visit, width):
    page = visit()
    page.set_viewport_size({"width": width, "height": 800})
    choose(page)
    ask(page)
    said(page)
    page.wait_for_selector(".lp-exports:not([hidden])")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
