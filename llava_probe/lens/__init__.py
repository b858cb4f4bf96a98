"""What each layer knows, and which part of it wrote a word."""
