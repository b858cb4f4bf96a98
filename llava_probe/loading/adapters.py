from llava_probe.errors import BadModel
def bind(model, weights, name):
    from peft import set_peft_model_state_dict
    r=set_peft_model_state_dict(model, dict(weights))
    if r.unexpected_keys: raise BadModel(str(r.unexpected_keys[:3]))
