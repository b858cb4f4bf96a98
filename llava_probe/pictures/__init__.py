"""Pictures and videos as people hand them in, opened once: upright, RGB, or refused in a sentence."""
