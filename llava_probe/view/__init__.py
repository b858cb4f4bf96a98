"""Everything that turns results into something to look at; nothing here computes a result.

lp.view(trace)              # in a notebook: the page component in a cell
lp.view(trace, vlm)         # the live one: what is not there yet is computed when it is clicked
"""

from llava_probe.rooms import called

called(__name__, "llava_probe.view.live", "viewer")
