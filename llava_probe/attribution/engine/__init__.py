"""What the methods share: what is explained, how the model is run for it, what is found."""
