"""The head of every method: neck, cross-modal transformer, projector."""

from .decoder import Decoder, convolve
from .necks import PyramidNeck, coordinates

__all__ = ["Decoder", "PyramidNeck", "convolve", "coordinates"]
