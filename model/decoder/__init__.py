"""The decoder of all methods: from features of both towers to logits."""

from .decoder import Decoder
from .necks import PyramidNeck, coordinates

__all__ = ["Decoder", "PyramidNeck", "coordinates"]
