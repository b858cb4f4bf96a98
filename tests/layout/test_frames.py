"""Frames of a video lie where they should, in space and in time: written equals measured, and what moves tells both."""

import numpy as np
import pytest
import torch
from PIL import Image

import llava_probe as lp
from llava_probe.inside.isolation import entering, isolated
from llava_probe.layout import OF_FRAMES
from tests import zoo
from tests.models import photo

WRITTEN = [name for name in zoo.NAMES if name in OF_FRAMES]
MEASURED = ["internvl", "smolvlm", "glm46v", "perception_lm"]
SIZES = [(150, 90), (64, 96), (300, 40)]
FRAMES = 5  # odd: the last of those that are merged by twos stands alone
MERGING = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "glm46v")

#: VideoLLaMA 3 leaves out what looks as in the frame before; with it, the prompt depends on what is shown.
WHOLE = {"video_llama_3": {"use_token_compression": False}}

MOVED, REACH = 0.25, 0.15
NOTHING = lp.Capture(attention=False, hidden_states=False, logits=False, scores=False)


def film(size, frames=FRAMES, seed=0):
    return [photo(*size, seed=seed + number) for number in range(frames)]


def asked(vlm, name, **more):
    return vlm.generate(
        question="what", max_new_tokens=1, capture=NOTHING, processor_kwargs=WHOLE.get(name, {}), **more
    )


def same_places(one, other):
    if (one.frames, one.size) != (other.frames, other.size) or not np.array_equal(one.positions, other.positions):
        return False
    sides = np.tile(one.boxes[:, 2:] - one.boxes[:, :2], 2)
    return bool((np.abs(one.boxes - other.boxes) <= 0.15 * sides + 1e-6).all())


@pytest.mark.parametrize("name", WRITTEN)
def test_written_places_of_frames_are_the_measured_ones(name):
    vlm = zoo.vlm(name)
    measuring = lp.VLM(vlm.model, vlm.processor, layout="measured")
    for size in SIZES:
        written, measured = (asked(one, name, video=film(size)).layouts for one in (vlm, measuring))
        assert len(written) == len(measured) == FRAMES
        for frame, pair in enumerate(zip(written, measured, strict=True)):
            assert same_places(*pair), (size, frame)


@pytest.mark.parametrize("name", [*WRITTEN, *MEASURED])
def test_a_token_covers_the_frames_that_the_family_merges(name):
    trace = asked(zoo.vlm(name), name, video=film((150, 90)))
    together = 2 if name in MERGING else 1
    for frame, layout in enumerate(trace.layouts):
        first = frame // together * together
        assert layout.frames == tuple(range(first, min(first + together, FRAMES)))
        assert np.array_equal(layout.positions, trace.layouts[first].positions)
    placed = sorted({position for layout in trace.layouts for position in layout.positions})
    visual = [token.position for token in trace.tokens if token.role == "image"]
    assert set(placed) <= set(visual)
    assert len(visual) - len(placed) == {"video_llava": FRAMES, "llava_onevision": 1}.get(name, 0)


@pytest.mark.parametrize("name", [*WRITTEN, *MEASURED])
def test_the_tokens_that_move_are_those_of_the_changed_frame(name):
    vlm = zoo.vlm(name)
    size = (150, 90)
    frames = film(size)
    layouts = asked(vlm, name, video=frames).layouts
    rng = np.random.default_rng(0)
    changes = [(frame, *rng.integers(0, (size[0] - 3, size[1] - 3))) for frame in [*range(FRAMES)] * 4]
    films = [frames]
    for frame, x, y in changes:
        pixels = np.asarray(frames[frame]).copy()
        pixels[y : y + 3, x : x + 3] = 0 if pixels[y : y + 3, x : x + 3].mean() > 127 else 255
        films.append([*frames[:frame], Image.fromarray(pixels), *frames[frame + 1 :]])
    embedded = []
    with isolated(vlm.anatomy.model):
        for one in films:
            inputs, _ = vlm.model_inputs(question="what", video=one, processor_kwargs=WHOLE.get(name, {}))
            embedded.append(entering(vlm.anatomy, inputs)[0])
    moves = torch.stack(embedded[1:]).sub(embedded[0]).norm(dim=-1).numpy()
    usual = np.median(moves.max(axis=1))
    for (frame, x, y), move in zip(changes, moves, strict=True):
        moved = set(np.flatnonzero((move >= MOVED * move.max()) & (move > 1e-2 * usual)))
        layout = layouts[frame]
        low, high = layout.boxes[:, :2], layout.boxes[:, 2:]
        slack = REACH * (high - low)
        square = np.array([x, y]), np.array([x, y]) + 3
        touched = ((low - slack < square[1]) & (high + slack > square[0])).all(axis=1)
        inside = ((low + slack < square[0]) & (high - slack > square[1])).all(axis=1)
        assert moved <= set(layout.positions[touched]), (frame, x, y)
        assert set(layout.positions[inside]) <= moved, (frame, x, y)


@pytest.mark.parametrize("name", ["llava_next_video", "qwen3_vl", "glm4v", "smolvlm"])
def test_a_trace_of_a_video_comes_back_equal(name, tmp_path):
    vlm = zoo.vlm(name)
    trace = vlm.generate(video=film((90, 60)), question="what is this", max_new_tokens=3)
    assert len(trace.images) == len(trace.layouts) == FRAMES
    assert trace.request.videos == (FRAMES,)
    loaded = lp.Trace.load(trace.save(tmp_path / "video.trace"))
    assert loaded == trace
    assert vlm.rerun(loaded) == trace
    for frame in (0, FRAMES - 1):
        shown = lp.attention_map(trace, image=frame)
        shown.save(tmp_path / "maps")
        again = lp.ImageMap.load(tmp_path / "maps")
        assert again.layout == shown.layout == trace.layouts[frame]
        assert torch.equal(again.values, shown.values)
    answer = trace.generated_ids
    scored = vlm.score(video=film((90, 60)), question="what is this", answer=answer)
    assert torch.allclose(scored.logits, trace.logits, atol=1e-4)
    assert vlm.rerun(scored) == scored


@pytest.mark.parametrize("name", ["llava_next_video", "llava_onevision", "video_llava", "qwen3_vl", "internvl"])
def test_a_picture_and_two_videos_have_layouts_of_their_own(name):
    vlm = zoo.vlm(name)
    picture, films = photo(70, 110), [film((150, 90), 4), film((64, 96), 4, seed=9)]
    alone = [*asked(vlm, name, image=picture).layouts]
    for one in films:
        alone += asked(vlm, name, video=one).layouts
    trace = asked(vlm, name, image=picture, video=films if name != "internvl" else films[:1])
    assert trace.request.videos == (4, 4)[: len(trace.layouts) // 4]
    assert [layout.size for layout in trace.layouts] == [image.size for image in trace.images]
    for together, single in zip(trace.layouts, alone, strict=False):
        assert together.frames == single.frames
        assert np.abs(together.boxes - single.boxes).max() < 0.15 * (single.boxes[:, 2:] - single.boxes[:, :2]).min()
    taken = [set(layout.positions) for layout in trace.layouts]
    for one, (layout, places) in enumerate(zip(trace.layouts, taken, strict=True)):
        for other in range(one):
            merged = (
                layout.frames and layout.frames == trace.layouts[other].frames and (one - 1) // 4 == (other - 1) // 4
            )
            assert places == taken[other] if merged else not places & taken[other]


@pytest.mark.parametrize("name", ["llava_next_video", "qwen3_vl"])
def test_in_a_batch_as_alone(name):
    vlm = zoo.vlm(name)
    samples = [
        {"video": film((150, 90), 4), "question": "what is the text on the stop sign"},
        {"image": photo(70, 110), "question": "where"},
        {"video": film((64, 96), 4), "question": "what"},
    ]
    for trace, sample in zip(vlm.generate_batch(samples, max_new_tokens=2), samples, strict=True):
        single = vlm.generate(**sample, max_new_tokens=2)
        assert trace.layouts == single.layouts
        assert trace.tokens == single.tokens
        assert torch.allclose(trace.attention, single.attention, atol=1e-4)


def test_a_video_comes_inside_a_chat_and_in_a_prompt():
    vlm = zoo.vlm("llava_next_video")
    frames = film((150, 90))
    asked = vlm.generate(video=frames, question="what", max_new_tokens=2)
    content = [{"type": "video", "video": frames}, {"type": "text", "text": "what"}]
    chat = vlm.generate(messages=[{"role": "user", "content": content}], max_new_tokens=2)
    ready = vlm.generate(video=frames, prompt=asked.request.prompt, max_new_tokens=2)
    inputs, _ = vlm.model_inputs(video=frames, question="what")
    made = vlm.generate(video=frames, inputs=inputs, max_new_tokens=2)
    for other in (chat, ready, made):
        assert (other.tokens, other.layouts, other.images) == (asked.tokens, asked.layouts, asked.images)


def test_what_was_left_out_as_unchanged_has_no_token():
    """VideoLLaMA 3 drops patches that look as in the frame before: the right half of the second frame is new."""
    vlm = zoo.vlm("video_llama_3")
    first = np.asarray(photo(160, 96)).copy()
    second = first.copy()
    second[:, 80:] = 255 - second[:, 80:]
    for film in ([first, second], [first, second, first]):
        trace = vlm.generate(video=film, question="what", max_new_tokens=1)
        whole, *changed = trace.layouts
        assert whole.seen.all()
        for layout in changed:
            assert not layout.seen[:, :40].any()
            assert layout.seen[:, 120:].all()


def test_a_frame_that_the_processor_left_out_is_unseen():
    vlm = zoo.vlm("qwen2_vl")
    sampling = {"do_sample_frames": True, "num_frames": 4}
    trace = vlm.generate(video=film((90, 60), 12), question="what", max_new_tokens=1, processor_kwargs=sampling)
    assert {layout.frames for layout in trace.layouts} == {(0, 3), (6, 9), ()}
    for frame, layout in enumerate(trace.layouts):
        assert layout.seen.all() == (frame in (0, 3, 6, 9))
        assert layout.seen.any() == layout.seen.all()
    nothing = lp.attention_map(trace, image=1)
    assert np.isnan(nothing.pixels()).all()
    with pytest.raises(lp.OutOfRange, match="no peak: its picture has no visual tokens"):
        nothing.peak()
    assert nothing.overlay().size == (90, 60)


def test_frames_are_told_from_lists_arrays_and_animations(tmp_path):
    vlm = zoo.vlm("llava_next_video")
    frames = film((60, 40), 3)
    array = np.stack([np.asarray(frame) for frame in frames])
    saved = []
    for suffix, options in ((".gif", {}), (".webp", {"lossless": True}), (".png", {})):
        path = tmp_path / f"film{suffix}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **options)
        saved.append(path)
    for given in (array, torch.from_numpy(array).permute(0, 3, 1, 2), tuple(array), saved[1], str(saved[2])):
        _, question = vlm.model_inputs(video=given, question="what")
        assert [image.tobytes() for image in question.images] == [frame.tobytes() for frame in frames]
        assert question.videos == (3,)
    _, question = vlm.model_inputs(video=saved[0], question="what")  # a GIF has 256 colours
    assert [image.size for image in question.images] == [(60, 40)] * 3


def refused(tmp_path):
    film_file = tmp_path / "street.mp4"
    film_file.write_bytes(b"\x00\x00\x00\x18ftypmp42" + b"\x00" * 99)
    still = tmp_path / "still.png"
    photo().save(still)
    return {
        "frame 1 has 48 × 64 where frame 0 has 64 × 48": [photo(64, 48), photo(48, 64)],
        "no frames": [],
        "'/nowhere/street.mp4' is not a file that exists": "/nowhere/street.mp4",
        "decode the film to frames": film_file,
        "one picture, not an animation": str(still),
        r"an array \[F, H, W, 3\]": np.zeros((40, 60, 3), np.uint8),
        "a video is a list of frames": 5,
        "one picture was expected": [photo(), 5],
    }


def test_what_is_no_video_is_one_clear_sentence(tmp_path):
    vlm = zoo.vlm("llava_next_video")
    for sentence, video in refused(tmp_path).items():
        with pytest.raises(lp.BadInput, match=sentence) as caught:
            vlm.generate(video=video, question="what", max_new_tokens=1)
        assert "\n" not in str(caught.value)
    with pytest.raises(lp.BadInput, match="LlavaProcessor takes no video"):
        zoo.vlm("llava").generate(video=film((60, 40)), question="what", max_new_tokens=1)
    for prompt in ("USER: what ASSISTANT:", "USER: <video><video> what ASSISTANT:"):
        with pytest.raises(lp.BadInput, match=r"for a video .* but 1 video was given"):
            vlm.generate(video=film((60, 40)), prompt=prompt, max_new_tokens=1)


def test_a_frame_that_sampling_left_out_is_kept_and_refused_where_it_is_asked_about(tmp_path):
    vlm = zoo.vlm("qwen2_vl")
    sampled = {"do_sample_frames": True, "num_frames": 4}
    trace = vlm.generate(video=film((64, 48), 8), question="what", max_new_tokens=1, processor_kwargs=sampled)
    assert [len(layout) > 0 for layout in trace.layouts] == [True, False] * 4
    assert lp.Trace.load(trace.save(tmp_path / "film.trace")) == trace
    for method in ("occlusion", "gradient", "attention"):
        with pytest.raises(lp.OutOfRange, match=r"picture 7 has no visual tokens.*those that have are 0, 2, 4, 6"):
            lp.attribute(vlm, trace, method, image=-1)


def test_several_animations_are_several_videos(tmp_path):
    vlm = zoo.vlm("llava_next_video")
    paths = []
    for number in range(2):
        frames = film((60, 40), 3)
        paths.append(tmp_path / f"{number}.webp")
        frames[0].save(paths[-1], save_all=True, append_images=frames[1:], lossless=True)
    _, question = vlm.model_inputs(video=paths, prompt="<video> <video> what")
    assert question.videos == (3, 3)
    cameras = []
    for number, frame in enumerate(film((60, 40), 2)):
        cameras.append(tmp_path / f"{number}.mpo")
        frame.save(cameras[-1], save_all=True, append_images=[frame.resize((30, 20))])  # a photograph and its preview
    _, question = vlm.model_inputs(video=cameras, question="what")
    assert question.videos == (2,), "photographs are frames"
