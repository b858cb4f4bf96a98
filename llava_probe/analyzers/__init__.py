"""Functions that read a trace: one file a question, one frozen dataclass an answer. None sees a model or a hook."""
