"""A model from inside: its parts, its attention, and the one way in which a pass of it is looked at or changed."""
