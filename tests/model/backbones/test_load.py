"""Reading files of CLIP weights, and what is said about files that are none."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model import build_clip
from model.backbones import BACKBONES, read_weights, sha256_of, sizes_of_state
from model.backbones.blocks import resize_positions


def archive(state: dict[str, torch.Tensor], path: Path) -> None:
    """A TorchScript archive with weights of these names, as OpenAI publishes its CLIPs."""
    root = nn.Module()
    for key, value in state.items():
        *path_in, last = key.split(".")
        module = root
        for name in path_in:
            if not hasattr(module, name):
                module.add_module(name, nn.Module())
            module = getattr(module, name)
        if value.is_floating_point():
            module.register_parameter(last, nn.Parameter(value, requires_grad=False))
        else:
            module.register_buffer(last, value)
    torch.jit.script(root).save(str(path))


def build(path: Path | str, **options):
    return build_clip(None, str(path), **({"image_size": 64, "max_tokens": 17} | options))


def test_torchscript_and_state_dict_are_read_alike(tmp_path: Path, kind: str, clip_file: Callable):
    state = torch.load(clip_file(kind), weights_only=True)
    state |= {key: torch.tensor(64) for key in ("input_resolution", "context_length", "vocab_size")}
    script = tmp_path / "RN50.pt"
    archive(state, script)
    clip, backbone = build(script)
    plain, _ = build(clip_file(kind))
    assert backbone["sha256"] == sha256_of(script)
    assert all(
        torch.equal(a, b) for a, b in zip(clip.parameters(), plain.parameters(), strict=True)
    )
    assert all(parameter.dtype == torch.float32 for parameter in clip.parameters())


def test_safetensors_and_prefixed_state_dicts(tmp_path: Path, clip_file: Callable):
    from safetensors.torch import save_file

    state = torch.load(clip_file("vit"), weights_only=True)
    save_file(state, tmp_path / "clip.safetensors")
    torch.save({"state_dict": {f"module.{k}": v for k, v in state.items()}}, tmp_path / "clip.pth")
    for name in ("clip.safetensors", "clip.pth"):
        assert sizes_of_state(read_weights(tmp_path / name)) == sizes_of_state(state)


def test_positions_are_resized_without_antialias():
    positions = torch.randn(197, 8)
    assert resize_positions(positions, 14) is positions
    square = positions[1:].T.reshape(1, 8, 14, 14)
    wanted = nn.functional.interpolate(square, (26, 26), mode="bicubic", align_corners=False)
    resized = resize_positions(positions, 26)
    assert resized.shape == (677, 8)
    assert torch.equal(resized[0], positions[0])
    torch.testing.assert_close(resized[1:].T.reshape(1, 8, 26, 26), wanted)


@pytest.mark.parametrize("name", ["RN50", "RN101", "ViT-B/32", "ViT-B/16", "ViT-L/14"])
def test_names_have_the_sizes_of_open_clip(name: str):
    import open_clip

    settings = open_clip.get_model_config(f"{name.replace('/', '-')}-quickgelu")
    with torch.device("meta"):
        reference = open_clip.CLIP(**settings)
    assert sizes_of_state(reference.state_dict()) == BACKBONES[name]


def test_code_in_a_file_is_not_run(tmp_path: Path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"text_projection": Trap()}, tmp_path / "trap.pt")
    with pytest.raises(ValueError, match=r"trap\.pt"):
        read_weights(tmp_path / "trap.pt")
    assert not (tmp_path / "ran").exists()
