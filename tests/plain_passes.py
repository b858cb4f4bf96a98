"""One pass at a time with visual tokens overwritten: nothing batched, shared, or of the package's engine."""

import torch


def plain_logits(vlm, trace, keep, baseline, answer):
    """[steps, V] of one pass, nothing shared: the model's own inputs, its visual tokens overwritten by a hook."""
    inputs, _ = vlm.model_inputs(trace.images[0], prompt=trace.request.prompt)
    fed = torch.tensor([list(answer[:-1])])
    prompt = inputs["input_ids"]
    for name, value in list(inputs.items()):
        if value.shape == prompt.shape:
            # in PaliGemma a mark of 1 is a suffix, which is read causally; elsewhere text is 0
            marks = torch.full_like(fed, vlm.model.config.model_type == "paligemma")
            more = {"input_ids": fed, "attention_mask": torch.ones_like(fed)}.get(name, marks)
            inputs[name] = torch.cat([value, more], dim=1)
    places = torch.from_numpy(trace.layouts[0].positions)

    def overwrite(_module, args, kwargs):
        embeddings = kwargs["inputs_embeds"].clone()
        visual = embeddings[0, places]
        behind = torch.zeros_like(visual) if baseline == "zero" else visual.mean(0)
        share = keep.to(visual)[:, None]
        embeddings[0, places] = share * visual + (1 - share) * behind
        return args, {**kwargs, "inputs_embeds": embeddings}

    handle = vlm.anatomy.decoder.owner.register_forward_pre_hook(overwrite, with_kwargs=True)
    try:
        with torch.no_grad():
            return vlm.model(**inputs, use_cache=False).logits[0, trace.prompt_length - 1 :]
    finally:
        handle.remove()


def plain_scores(vlm, trace, keep, baseline="mean"):
    """[n, T] log-probability of each generated token."""
    answer = [token.id for token in trace.generated]
    steps = torch.arange(len(answer))
    return torch.stack([plain_logits(vlm, trace, one, baseline, answer).log_softmax(-1)[steps, answer] for one in keep])
