"""What each layer knows, and which part of it wrote a word.

lp.lens(vlm, trace, words=["dog"])            # what every layer would say at every visual token
tuned = lp.fit_lens(vlm, samples, "tuned/")   # an affine translator a layer, for a lens that reads more
lp.lens(vlm, trace, tuned=tuned)
"""

from llava_probe.rooms import called

called(__name__, "llava_probe.lens.lens", "lens")
