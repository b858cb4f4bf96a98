"""Fine-tuning that cannot silently do nothing: what is trained, and what was learnt, is shown."""

from llava_probe.rooms import called

called(__name__, "llava_probe.finetune.finetune", "finetune")
