"""What a test starts under torchrun: two steps of every model that a file describes.

python train_methods.py MODELS.json FOLDER, where the file maps names to configurations, leaves in
``FOLDER/digests{rank}.json`` a digest of the weights that each model ends with.
"""

import hashlib
import json
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

sys.path.insert(0, str(Path(__file__).parents[2]))

from conftest import IMAGE_SIZE, MAX_WORDS, TINIES

from model import build_segmenter
from model.backbones import BACKBONES
from model.loss import text_to_pixel_loss
from utils.config import Config
from utils.distributed import Processes, start_processes


def train(config: Config, rank: int) -> str:
    torch.manual_seed(rank)  # each process starts from other weights and sees other images
    segmenter = build_segmenter(
        config.model, image_size=IMAGE_SIZE, max_tokens=MAX_WORDS, load_weights=False
    )
    parallel = DistributedDataParallel(segmenter.train())
    optimizer = torch.optim.SGD(segmenter.parameter_groups(lr=0.1, encoder_lr_scale=1.0))
    image = torch.randint(0, 256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    ids = torch.tensor([[49406, 320, 736, 49407, *[0] * (MAX_WORDS - 4)]] * 2)
    mask = torch.randint(0, 2, (2, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    for _ in range(2):
        optimizer.zero_grad()
        text_to_pixel_loss(parallel(image, ids), mask).backward()
        optimizer.step()
    return digest(segmenter)


def digest(module: nn.Module) -> str:
    weights: list[Tensor] = [parameter.detach().flatten() for parameter in module.parameters()]
    return hashlib.sha256(torch.cat(weights).numpy().tobytes()).hexdigest()


def main(models: Path, folder: Path, processes: Processes) -> None:
    digests = {
        name: train(Config.from_dict(values), processes.rank)
        for name, values in json.loads(models.read_text()).items()
    }
    (folder / f"digests{processes.rank}.json").write_text(json.dumps(digests))


if __name__ == "__main__":
    torch.set_num_threads(1)
    BACKBONES.update(TINIES)
    with start_processes() as processes:
        main(Path(sys.argv[1]), Path(sys.argv[2]), processes)
