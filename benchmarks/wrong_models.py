"""How soon the command line says that a model cannot be loaded: seconds of a fresh process for each kind of mistake.

python benchmarks/wrong_models.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

ASK = "import sys, llava_probe as lp; lp.load(sys.argv[1])"


def mistakes(folder: Path) -> dict[str, str]:
    """Kinds of mistakes, each with a name that makes it."""
    configs = {
        "text-only": {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        "original LLaVA": {"model_type": "llava_llama", "architectures": ["LlavaLlamaForCausalLM"]},
        "unknown kind": {"model_type": "llava_of_2031"},
        "no weights": {"model_type": "llava"},
    }
    for name, config in configs.items():
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "a/b"}))
    (folder / "adapter" / "adapter_model.safetensors").touch()
    (folder / "empty").mkdir()
    named = {name: str(folder / name) for name in (*configs, "adapter", "empty", "missing")}
    return {**named, "not in the cache": "llava-hf/llava-1.5-7b-hf", "mistyped": "Tiny"}


def main() -> None:
    """Print a line a mistake."""
    with tempfile.TemporaryDirectory() as folder:
        for what, name in mistakes(Path(folder)).items():
            started = time.perf_counter()
            done = subprocess.run([sys.executable, "-c", ASK, name], capture_output=True, text=True)
            seconds = time.perf_counter() - started
            print(f"{what:<18} {seconds:5.2f} s  {done.stderr.splitlines()[-1][:150]}")
        online = {**os.environ, "HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9"}
        for variable in ("http_proxy", "https_proxy", "all_proxy"):
            online.pop(variable, None), online.pop(variable.upper(), None)
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-c", ASK, "a/b"], capture_output=True, text=True, env=online)
        print(f"{'no network':<18} {time.perf_counter() - started:5.2f} s  {done.stderr.splitlines()[-1][:150]}")


if __name__ == "__main__":
    main()
