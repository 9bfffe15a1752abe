"""Reading files of CLIP weights, and what is said about files that are none."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from model import build_clip
from model.backbones import BACKBONES, read_weights, sha256_of, sizes_of_state
from model.backbones.blocks import resize_positions
from model.backbones.torchscript import read_torchscript


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


class Hostile(nn.Module):
    """A module whose archive writes a file when ``torch.jit.load`` reads it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.weight, self.path = nn.Parameter(torch.zeros(2)), path

    @torch.jit.export
    def __getstate__(self) -> tuple[torch.Tensor, str, bool]:
        return self.weight, self.path, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, str, bool]) -> None:
        self.weight, self.path, self.training = state
        torch.save(self.weight, self.path)


def test_code_in_a_torchscript_archive_is_not_run(tmp_path: Path) -> None:
    script, written = tmp_path / "clip.pt", tmp_path / "written"
    torch.jit.script(Hostile(str(written))).save(str(script))
    with pytest.raises(ValueError, match=r"clip\.pt"):
        read_weights(script)
    assert not written.exists()
    torch.jit.load(str(script))
    assert written.exists()  # the archive is one that does harm


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Change the pickle in an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, change(content) if name.endswith("/data.pkl") else content)


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.replace(b"torch._utils\n_rebuild_tensor_v2", b"os\nsystem"),
        lambda content: b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2 ** 31 places
        lambda content: content[: len(content) // 2],
        lambda content: b"",
        # a tensor of 4 x 200 numbers where the archive has 4 x 8
        lambda content: content.replace(b"(K\x04K\x08t", b"(K\x04K\xc8t"),
    ],
    ids=["a function", "memo", "cut", "empty", "too large"],
)
def test_a_changed_archive_is_refused(tmp_path: Path, change: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "clip.pt"
    archive({"weight": torch.zeros(4, 8)}, path)
    before = path.read_bytes()
    rewrite(path, change)
    assert path.read_bytes() != before
    with pytest.raises(ValueError, match=r"clip\.pt"):
        read_torchscript(path)


def test_any_flipped_byte_is_a_value_error_or_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "clip.pt"
    state = {"text.weight": torch.randn(4, 8), "visual.weight": torch.randn(3).half()}
    archive(state, path)
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0x55]) + content[place + 1 :])
        try:
            found = read_torchscript(path)
        except ValueError:
            continue
        assert all(torch.equal(found[key], state[key]) for key in found.keys() & state.keys())
