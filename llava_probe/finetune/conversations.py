from dataclasses import dataclass
from typing import Any
from llava_probe.features.values import picture_key


@dataclass(frozen=True, eq=False)
class Conversation:
    row: int
    line: str
    id: str
    images: list
    messages: list
    picture: str


@dataclass(frozen=True)
class Fault:
    row: int
    line: str
    why: str


def read_conversations(source, **k):
    for n, r in enumerate(source):
        if "messages" in r:
            m = r["messages"]
        else:
            m = [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": r["question"]}]},
                {"role": "assistant", "content": [{"type": "text", "text": r["answer"]}]},
            ]
        yield Conversation(n, f"row {n}", str(n), [r["image"]], m, picture_key(r["image"]))
