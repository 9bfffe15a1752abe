"""The head of every method: neck, cross-modal transformer, projector."""

from .decoder import Decoder
from .necks import PyramidNeck, coordinates

__all__ = ["Decoder", "PyramidNeck", "coordinates"]
