"""One value for each visual token, whatever made it, and how it looks on the photograph."""

from llava_probe.maps.maps import ImageMap

__all__ = ["ImageMap"]
