"""Intertwining (BarLeRIa, ICLR 2024, section 2.3).

Each frozen tower reads tokens of the other one in its own self-attention.
"""

import torch
import torch.nn.functional as F
from torch import nn

from model.backbones.blocks import STEPS, Hidden
from model.backbones.clip import CLIP

DIRECTIONS = ("both", "image", "text")
REFRESH = ("block", "once")


class Intertwine(nn.Module):
    """The image tower reads ``[cls, T', I]`` (eq. 2), the text tower ``[cls', T]`` (eq. 3).

    ``T' = to_image(T)`` are the words and ``cls' = to_text(cls)`` the class token as the other
    tower's previous block left them, or as they enter the first block; one projection serves all
    blocks.  What a block makes of the inserted tokens is dropped; for the words among the patches
    it is not even computed.  Where two blocks make a step (ViT-L), both read the same words.

    The released code inserts tokens before the first block and carries them along
    (``refresh="once"``), lets patches attend to padding, of which the paper does not speak
    (``mask_padding=False``), and crashes where its text tower is to read the class token.

    Args:
        clip: the towers to intertwine; sizes are read off it.
        dim: hidden width of the projections.
        refresh: ``block``: tokens are inserted anew before every step; ``once``: only before the
            first, and later blocks read what the ones before made of them.
        directions: which tower reads the other one: ``both``, ``image`` or ``text``.
        mask_padding: no token of the image tower attends to the padding of a sentence.

    Raises:
        ValueError: if an option is out of range or the image tower has no class token.
    """

    image_step = -1

    def __init__(
        self,
        clip: CLIP,
        *,
        dim: int = 32,
        refresh: str = "block",
        directions: str = "both",
        mask_padding: bool = True,
    ):
        super().__init__()
        if not clip.sizes.is_vit:
            raise ValueError(
                "intertwine: a ResNet has no class token and reads no tokens (BarLeRIa does not "
                "fit convolutional networks); choose a ViT"
            )
        if dim < 1:
            raise ValueError(f"intertwine: dim {dim} must be at least 1")
        if refresh not in REFRESH:
            raise ValueError(f"intertwine: refresh {refresh!r} must be one of {', '.join(REFRESH)}")
        if directions not in DIRECTIONS:
            known = ", ".join(DIRECTIONS)
            raise ValueError(f"intertwine: directions {directions!r} must be one of {known}")
        self.refresh, self.mask_padding = refresh, mask_padding
        image_width, text_width = clip.visual.widths[0], clip.text.width
        self.to_image = bottleneck(text_width, dim, image_width) if directions != "text" else None
        self.to_text = bottleneck(image_width, dim, text_width) if directions != "image" else None

    def enter(self, image: Hidden, text: Hidden) -> tuple[Hidden, Hidden]:
        assert image.prefix is not None and text.prefix is not None
        has_words = image.prefix.shape[1] > 1 or image.memory is not None
        is_image_taken = self.to_image is not None and has_words
        is_text_taken = self.to_text is not None and text.prefix.shape[1] > 0
        if is_image_taken or is_text_taken:
            raise ValueError(
                f"intertwine: another bridge has put tokens before the "
                f"{'patches' if is_image_taken else 'words'} already; drop one of the two"
            )
        return self.insert(image, text)

    def after(
        self, step: int, image: Hidden, text: Hidden, carry: None
    ) -> tuple[Hidden, Hidden, None]:
        is_last = step == STEPS - 1
        if is_last or self.refresh == "block":
            image, text = self.remove(image, text)
        if not is_last and self.refresh == "block":
            image, text = self.insert(image, text)
        return image, text, carry

    def insert(self, image: Hidden, text: Hidden) -> tuple[Hidden, Hidden]:
        """Show each tower the tokens of the other one."""
        assert image.prefix is not None and text.prefix is not None and text.keep is not None
        class_token, words, keep = image.prefix[:, :1], text.x, text.keep
        if self.to_image is not None:
            inserted, is_token = self.to_image(words), keep[:, -words.shape[1] :]
            if self.refresh == "block":
                image = image._replace(memory=inserted)
            else:
                image = image._replace(prefix=torch.cat([class_token, inserted], dim=1))
                is_token = F.pad(is_token, (0, image.x[0, 0].numel()), value=True)
            if self.mask_padding:
                image = image._replace(keep=is_token)
        if self.to_text is not None:
            keep = torch.cat([torch.ones_like(keep[:, :1]), keep], dim=1)  # (B, 1 + L)
            text = text._replace(prefix=self.to_text(class_token), keep=keep)
        return image, text

    def remove(self, image: Hidden, text: Hidden) -> tuple[Hidden, Hidden]:
        """Undo :meth:`insert`: the class token stands alone before the patches."""
        assert image.prefix is not None and text.prefix is not None and text.keep is not None
        if self.to_image is not None:
            image = image._replace(prefix=image.prefix[:, :1], memory=None, keep=None)
        if self.to_text is not None:
            text = text._replace(prefix=text.prefix[:, 1:], keep=text.keep[:, 1:])
        return image, text


def bottleneck(in_width: int, dim: int, out_width: int) -> nn.Sequential:
    """``linear(relu(linear(x)))``; starts as released: normal with deviation 0.02, no bias."""
    layers = nn.Sequential(nn.Linear(in_width, dim), nn.ReLU(), nn.Linear(dim, out_width))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers
