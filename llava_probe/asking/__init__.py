"""From a question to a trace: the prompt, the run, what is recorded meanwhile."""
