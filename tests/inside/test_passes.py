"""One way to run a model: who is told what, in which order, in which context, and what is left when it ends."""

from __future__ import annotations

import copy
import os
import pickle
import signal
from threading import Event, Thread

import pytest
import torch

import llava_probe as lp
from llava_probe.features.sending import packed, unpacked
from llava_probe.inside.passes import ENTRY, Visitor, instead, visiting, visitors_of
from tests import torchvision_half, zoo
from tests.models import llava_processor, photo, random_llava

QUESTION = "what is the text on the stop sign"


@pytest.fixture
def vlm():
    vlm = lp.VLM(random_llava(), llava_processor())
    vlm.model(**vlm.model_inputs(photo(), QUESTION)[0])  # transformers leaves inert recording hooks of its own
    return vlm


@pytest.fixture
def inputs(vlm):
    return vlm.model_inputs(photo(), QUESTION)[0]


class Note(Visitor):
    """Notes everything that it is told."""

    def __init__(self, name=""):
        self.name, self.heard = name, []

    def stacks(self, anatomy):
        return (anatomy.decoder, anatomy.vision)

    def entry(self, embeddings, others):
        self.heard.append((self.name, "entry", tuple(embeddings.shape)))

    def begin(self, span):
        self.heard.append((self.name, "begin", (span.start, span.stop, span.prompt_end)))

    def attended(self, call, output):
        self.heard.append((self.name, "attended", call.layer))

    def part(self, stack, kind, layer, output):
        self.heard.append((self.name, kind, layer))

    def state(self, stack, layer, hidden):
        self.heard.append((self.name, "state", layer))

    def end(self, span, logits):
        self.heard.append((self.name, "end", tuple(logits.shape)))


class Shift(Visitor):
    """Adds to a hidden state, and says what it was given."""

    changes = True

    def __init__(self, by, layer=2, seen=None):
        self.by, self.layer, self.seen = by, layer, [] if seen is None else seen

    def state(self, stack, layer, hidden):
        if layer == self.layer:
            self.seen.append((self.by, float(hidden.mean())))
            return hidden + self.by


def look(vlm):
    hooks = [(len(each._forward_hooks), len(each._forward_pre_hooks)) for each in vlm.model.modules()]
    forwards = ["forward" in vars(each) for each in vlm.model.modules()]
    return hooks, forwards, visitors_of(vlm.anatomy)


def test_a_pass_is_told_in_the_order_in_which_it_happens(vlm, inputs):
    note = Note()
    with visiting(vlm.anatomy, note), torch.no_grad():
        logits = vlm.model(**inputs).logits
    columns = inputs["input_ids"].shape[1]
    told = [(what, which) for _, what, which in note.heard]
    tower = [("state", 0)]
    for layer in range(3):
        tower += [("attended", layer), ("attention", layer), ("mlp", layer), ("state", layer + 1)]
    decoder = [("entry", (1, columns, 64)), ("begin", (0, columns, columns)), ("state", 0)]
    for layer in range(4):
        decoder += [("attended", layer), ("attention", layer), ("mlp", layer), ("state", layer + 1)]
    assert told == tower + decoder + [("end", tuple(logits.shape))]


def test_states_and_parts_are_those_of_the_model(vlm, inputs):
    class Keep(Visitor):
        states, parts = {}, {}

        def state(self, stack, layer, hidden):
            self.states[layer] = hidden

        def part(self, stack, kind, layer, output):
            self.parts[kind, layer] = output

    keep = Keep()
    with visiting(vlm.anatomy, keep), torch.no_grad():
        plain = vlm.model(**inputs, output_hidden_states=True)
    for layer, state in enumerate(plain.hidden_states):
        assert torch.equal(keep.states[layer], state)
    for layer in range(3):  # the stream is what each block's parts add to it
        added = keep.parts["attention", layer] + keep.parts["mlp", layer]
        torch.testing.assert_close(keep.states[layer] + added, keep.states[layer + 1])
    norm, last = vlm.anatomy.final_norm, keep.states[3] + keep.parts["attention", 3] + keep.parts["mlp", 3]
    torch.testing.assert_close(norm(last), keep.states[4])
    torch.testing.assert_close(vlm.anatomy.unembed(keep.states[4]), plain.logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        vlm.anatomy.unembed(keep.states[4], [7, 3]), plain.logits[..., [7, 3]], atol=1e-5, rtol=0
    )


@pytest.mark.skipif(not torchvision_half.present(), reason="the processors of most families need torchvision")
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "gemma3", "paligemma", "idefics3", "internvl", "mistral3"])
def test_the_last_state_unembedded_is_the_logits_in_other_families(name):
    given = zoo.vlm(name)
    inputs, _ = given.model_inputs(photo(), "what is the text")

    class Last(Visitor):
        states = None

        def state(self, stack, layer, hidden):
            if layer == given.anatomy.layers:
                self.states = hidden

    last = Last()
    with visiting(given.anatomy, last), torch.no_grad():
        logits = given.model(**inputs).logits
    torch.testing.assert_close(given.anatomy.unembed(last.states[:, -1]), logits[:, -1], atol=1e-4, rtol=1e-4)
    assert given.anatomy.final_norm is not None


def test_outer_visitors_come_first_and_what_looks_sees_what_was_made(vlm, inputs):
    seen, told = [], []

    class Look(Visitor):
        def state(self, stack, layer, hidden):
            if layer == 2:
                told.append(float(hidden.mean()))

    outer, inner = (visiting(vlm.anatomy, Shift(by, seen=seen)) for by in (1.0, 10.0))
    with torch.no_grad(), visiting(vlm.anatomy, Look()), outer, inner:
        vlm.model(**inputs)
    (first, plain), (second, shifted) = seen
    assert (first, second) == (1.0, 10.0)
    assert shifted == pytest.approx(plain + 1, abs=1e-5) and told == [pytest.approx(plain + 11, abs=1e-5)]


def test_what_is_changed_is_what_goes_on(vlm, inputs):
    with torch.no_grad():
        plain = vlm.model(**inputs, output_hidden_states=True)

        class Last(Visitor):
            changes = True

            def state(self, stack, layer, hidden):
                if layer == 4:
                    return plain.hidden_states[4] * 0

            def end(self, span, logits):
                return logits + 1

        with visiting(vlm.anatomy, Last()):
            out = vlm.model(**inputs)
    assert torch.equal(out.logits, torch.ones_like(plain.logits))  # this head has no bias


@pytest.mark.parametrize("until", [ENTRY, 0, 2, 4])
def test_a_pass_ends_where_it_is_told_to(vlm, inputs, until):
    note, ran = Note(), []
    hooks = [block.mlp.register_forward_hook(lambda *_: ran.append(1)) for block in vlm.anatomy.decoder.blocks]
    before = look(vlm)
    with visiting(vlm.anatomy, note, until=until), torch.no_grad():
        vlm.model(**inputs)
        raise AssertionError("the pass went on")
    assert len(ran) == max(0, until)
    entered = next(at for at, (_, what, _) in enumerate(note.heard) if what == "entry")
    states = [which for _, what, which in note.heard[entered:] if what == "state"]
    assert states == list(range(until + 1))
    assert look(vlm) == before
    for hook in hooks:
        hook.remove()


def test_spans_of_a_generation(vlm):
    note = Note()
    with visiting(vlm.anatomy, note, alone=False):
        trace = vlm.generate(photo(), QUESTION, max_new_tokens=3, min_new_tokens=3)
        vlm.generate(photo(), QUESTION, max_new_tokens=2, min_new_tokens=2, use_cache=False)
        vlm.model.generate(**vlm.model_inputs(photo(), QUESTION)[0], max_new_tokens=2, min_new_tokens=2)
    p = trace.prompt_length
    begun = [which for _, what, which in note.heard if what == "begin"]
    ours, uncached, by_hand = begun[:3], begun[3:5], begun[5:]
    assert ours == [(0, p, p), (p, p + 1, p), (p + 1, p + 2, p)]
    assert uncached == [(0, p, p), (0, p + 1, p)]
    assert by_hand == [(0, p, p), (p, p + 1, p)]


def test_another_thread_sees_nothing_of_it(vlm, inputs):
    with torch.no_grad():
        plain = vlm.model(**inputs).logits
        elsewhere = []
        with visiting(vlm.anatomy, Shift(1.0), Note()):
            ours = vlm.model(**inputs).logits
            thread = Thread(target=lambda: elsewhere.append(vlm.model(**inputs).logits.detach()))
            thread.start()
            thread.join()
    assert not torch.equal(ours, plain) and torch.equal(elsewhere[0], plain)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize(
    "method", ["entry", "begin", "attention", "attended", "part", "state", "end", "before", "after"]
)
def test_a_visitor_that_breaks_leaves_nothing(vlm, inputs, method, error):
    def broken(*_args):
        raise error("stop")

    kind = type("Broken", (Visitor,), {method: broken, "modules": lambda self, anatomy: [anatomy.decoder.blocks[1]]})
    before = look(vlm)
    with pytest.raises(error, match="stop"), visiting(vlm.anatomy, Note()), visiting(vlm.anatomy, kind()):
        vlm.model(**inputs)
    assert look(vlm) == before
    with torch.no_grad():
        assert torch.equal(vlm.model(**inputs).logits, copy.deepcopy(vlm.model)(**inputs).logits)


def test_a_users_logits_processor_that_breaks_comes_through_as_it_is(vlm):
    class Broken:
        def __call__(self, ids, scores):
            raise ZeroDivisionError("mine")

    before = look(vlm)
    with pytest.raises(ZeroDivisionError, match="mine"):
        vlm.generate(photo(), QUESTION, logits_processor=[Broken()])
    assert look(vlm) == before


def test_two_vlms_on_one_model_and_four_threads_are_answered_each_its_own(tiny_vlm):
    from concurrent.futures import ThreadPoolExecutor

    from llava_probe import tiny

    other = lp.VLM(tiny_vlm.model, tiny_vlm.processor, layout="measured")
    scenes = [tiny.scene(seed) for seed in (34, 92, 11, 7)]
    asked = [(scene.image, scene.questions[number].question) for number, scene in enumerate(scenes)]
    alone = [tiny_vlm.generate(*each, max_new_tokens=4) for each in asked]
    with lp.knock_out(tiny_vlm, keys=lp.IMAGE):
        cut = [tiny_vlm.generate(*each, max_new_tokens=4) for each in asked]
    assert any(not torch.equal(one.logits, two.logits) for one, two in zip(alone, cut, strict=True))

    def ask(number):
        which = tiny_vlm if number % 2 else other
        if number < 4:
            return which.generate(*asked[number], max_new_tokens=4)
        with lp.knock_out(which, keys=lp.IMAGE):
            return which.generate(*asked[number - 4], max_new_tokens=4)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(ask, [*range(8)] * 2))
    for trace, truth in zip(found, [*alone, *cut] * 2, strict=True):
        assert trace.tokens == truth.tokens and trace.interventions == truth.interventions
        torch.testing.assert_close(trace.logits, truth.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(trace.attention, truth.attention, atol=1e-5, rtol=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_child_that_is_forked_while_another_thread_runs_does_not_wait_for_it(vlm, inputs):
    inside, done, told = Event(), Event(), Note()
    with visiting(vlm.anatomy, told), torch.no_grad():
        vlm.model(**inputs)

    def run():
        with visiting(vlm.anatomy, Note("other")):
            inside.set()
            done.wait(20)

    thread = Thread(target=run)
    thread.start()
    inside.wait(20)
    child = os.fork()
    if child == 0:  # os._exit: nothing of pytest's may run twice
        signal.alarm(10)
        torch.set_num_threads(1)
        with visiting(vlm.anatomy, mine := Note()), torch.no_grad():
            vlm.model(**inputs)
        os._exit(0 if mine.heard == told.heard else 1)
    try:
        assert os.waitpid(child, 0)[1] == 0
    finally:
        done.set()
        thread.join()


def sent(vlm):
    pytest.importorskip("ray")
    return unpacked(packed(vlm))


@pytest.mark.parametrize("copied", [copy.deepcopy, sent], ids=["deep", "sent"])
def test_a_copy_sees_as_well_as_what_it_was_made_of(vlm, copied):
    plain = vlm.generate(photo(), QUESTION, max_new_tokens=2)
    twin = copied(vlm)
    assert twin.generate(photo(), QUESTION, max_new_tokens=2) == plain
    with lp.knock_out(twin, keys=lp.IMAGE) as cut:
        twin.generate(photo(), QUESTION, max_new_tokens=1)
        assert vlm.generate(photo(), QUESTION, max_new_tokens=2) == plain  # the first is not in force there
    assert cut.acts
    relevance = lp.attribute(twin, plain, "relevance", tokens=plain.prompt_length).values
    assert torch.equal(relevance, lp.attribute(vlm, plain, "relevance", tokens=plain.prompt_length).values)


def test_a_vlm_that_has_not_run_can_be_pickled():
    vlm = lp.VLM(random_llava(), llava_processor())
    twin = pickle.loads(pickle.dumps(vlm))
    assert twin.generate(photo(), QUESTION, max_new_tokens=2) == vlm.generate(photo(), QUESTION, max_new_tokens=2)


def test_a_forward_is_answered_for_in_one_context_alone(vlm, inputs):
    block, elsewhere = vlm.anatomy.decoder.blocks[0].mlp, []
    with torch.no_grad():
        plain = vlm.model(**inputs).logits
        with instead(block, lambda inside, *args: inside(*args) * 0):
            ours = vlm.model(**inputs).logits
            thread = Thread(target=lambda: elsewhere.append(vlm.model(**inputs).logits.detach()))
            thread.start()
            thread.join()
    assert not torch.equal(ours, plain) and torch.equal(elsewhere[0], plain)
    assert "forward" not in vars(block)


def test_an_empty_context_puts_nothing_on_the_model(vlm):
    before = look(vlm)
    with visiting(vlm.anatomy):
        assert look(vlm) == before


def test_hooks_stay_while_anybody_needs_them(vlm, inputs):
    before = look(vlm)
    outer = Note()
    with visiting(vlm.anatomy, outer), torch.no_grad():
        within = look(vlm)[0]
        with visiting(vlm.anatomy, Note()):
            assert look(vlm)[0] == within  # one hook serves both
            vlm.model(**inputs)
        first = len(outer.heard)
        vlm.model(**inputs)
        assert len(outer.heard) == 2 * first
    assert look(vlm) == before
