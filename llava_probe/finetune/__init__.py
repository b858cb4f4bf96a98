"""Fine-tuning that cannot silently do nothing: what is trained, and what was learnt, is shown."""
