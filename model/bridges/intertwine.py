"""Intertwining: each frozen tower reads tokens of the other (BarLeRIa, ICLR 2024, section 2.3)."""

import torch
import torch.nn.functional as F
from torch import nn

from model.backbones.clip import CLIP
from model.backbones.state import STEPS, TowerState

DIRECTIONS = ("both", "image", "text")
REFRESH = ("block", "once")


class Intertwine(nn.Module):
    """Let the image tower read ``[cls, T', I]`` (eq. 2) and the text tower ``[cls', T]`` (eq. 3).

    ``T' = to_image(T)`` are the words and ``cls' = to_text(cls)`` the class token, both as the
    other tower's last block returned them, or as they enter the first block. All blocks share the
    two projections. The results of inserted tokens are dropped; those of the words among the
    patches are not even computed. Where a step has two blocks (ViT-L), both read the same words.

    The released code inserts tokens before the first block only and keeps their results
    (``refresh="once"``), lets patches attend to padding (``mask_padding=False``; the paper does not
    say), and fails where the text tower reads the class token.

    Args:
        clip: the towers; they give the sizes.
        dim: hidden width of the projections.
        refresh: ``block``: insert new tokens before every step; ``once``: only before the first.
        directions: which tower reads the other: ``both``, ``image`` or ``text``.
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
                "intertwine: a ResNet has no class token and reads no tokens; choose a ViT"
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

    def before_blocks(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Insert the first tokens.

        Raises:
            ValueError: if another bridge has inserted tokens.
        """
        assert image.prefix is not None and text.prefix is not None
        has_words = image.prefix.shape[1] > 1 or image.memory is not None
        is_image_taken = self.to_image is not None and has_words
        is_text_taken = self.to_text is not None and text.prefix.shape[1] > 0
        if is_image_taken or is_text_taken:
            raise ValueError(
                f"intertwine: another bridge has already put tokens before the "
                f"{'patches' if is_image_taken else 'words'}; drop one of the two"
            )
        return self.insert(image, text)

    def after_step(
        self, step: int, image: TowerState, text: TowerState, carry: None
    ) -> tuple[TowerState, TowerState, None]:
        """Remove the inserted tokens after the last step, or replace them by new ones."""
        is_last = step == STEPS - 1
        if is_last or self.refresh == "block":
            image, text = self.remove(image, text)
        if not is_last and self.refresh == "block":
            image, text = self.insert(image, text)
        return image, text, carry

    def insert(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Give each tower the tokens of the other one."""
        assert image.prefix is not None and text.prefix is not None
        assert text.attention_mask is not None
        class_token, words, text_mask = image.prefix[:, :1], text.x, text.attention_mask
        if self.to_image is not None:
            inserted, image_mask = self.to_image(words), text_mask[:, -words.shape[1] :]
            if self.refresh == "block":
                image = image._replace(memory=inserted)
            else:
                image = image._replace(prefix=torch.cat([class_token, inserted], dim=1))
                image_mask = F.pad(image_mask, (0, image.x[0, 0].numel()), value=True)
            if self.mask_padding:
                image = image._replace(attention_mask=image_mask)
        if self.to_text is not None:
            text_mask = F.pad(text_mask, (1, 0), value=True)  # (B, 1 + L)
            text = text._replace(prefix=self.to_text(class_token), attention_mask=text_mask)
        return image, text

    def remove(self, image: TowerState, text: TowerState) -> tuple[TowerState, TowerState]:
        """Undo :meth:`insert`; the class token keeps its place before the patches."""
        assert image.prefix is not None and text.prefix is not None
        assert text.attention_mask is not None
        if self.to_image is not None:
            image = image._replace(prefix=image.prefix[:, :1], memory=None, attention_mask=None)
        if self.to_text is not None:
            mask = text.attention_mask[:, 1:]
            text = text._replace(prefix=text.prefix[:, 1:], attention_mask=mask)
        return image, text


def bottleneck(in_width: int, dim: int, out_width: int) -> nn.Sequential:
    """Make ``linear(relu(linear(x)))``, initialized as released: normal (0.02), biases zero."""
    layers = nn.Sequential(nn.Linear(in_width, dim), nn.ReLU(), nn.Linear(dim, out_width))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)
    return layers
