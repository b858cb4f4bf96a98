"""What another model, question, picture or intervention changed: two traces beside each other, or two models over many.

lp.compare(a, b)                              # of two traces
lp.compare(a, b, models=(base, tuned))        # and what their layers would say, and what each head writes
lp.compare_models(base, tuned, samples)       # the same over a data set, with intervals over pictures
"""

from llava_probe.rooms import called

called(__name__, "llava_probe.compare.traces", "compare_traces")
