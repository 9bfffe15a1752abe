"""What trains between the two towers: one file per method.

A bridge is an ``nn.Module`` built as ``Bridge(clip, *, options)`` with two methods:

``enter(image, text) -> (image, text)``
    before the first block;
``after(step, image, text, carry) -> (image, text, carry)``
    after each of the twelve steps; ``carry`` is None at first and then what the last call returned.

Both get and return the towers' :class:`model.clip.common.Hidden`.
"""

from .bridger import Bridger

BRIDGES = {"bridger": Bridger}
