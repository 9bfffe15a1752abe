"""Download CLIP weights of OpenAI and EVA-02: resume, verify the SHA-256, rename into place."""

import sys
from argparse import Namespace
from difflib import get_close_matches
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.cli import make_parser, run_command  # noqa: E402
from utils.files import sha256_of  # noqa: E402
from utils.prepare.download import DownloadError, download  # noqa: E402

BASE_URL = "https://openaipublic.azureedge.net/clip/models"
# The SHA-256 of each file; OpenAI publishes it in a folder of that name (openai/CLIP, clip.py).
WEIGHTS = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    "EVA02-B/16": "4aab21dd652dc19aab7ff2302e5a07582d7838e8a3b26c80d697115fb0c6ddf0",
}
# Weights of other publishers: the folder, and the name of the file there and here.
EVA_URL = "https://huggingface.co/QuanSun/EVA-CLIP/resolve/main"
ELSEWHERE = {"EVA02-B/16": (EVA_URL, "EVA02_CLIP_B_psz16_s8B.pt")}
EXAMPLES = """  python tools/download_weights.py RN101
  python tools/download_weights.py ViT-B/16 --url https://mirror.example/clip/models"""


def file_name(name: str) -> str:
    """Return the published name of the file: ``ViT-B-16.pt`` for ``ViT-B/16``."""
    return ELSEWHERE[name][1] if name in ELSEWHERE else f"{name.replace('/', '-')}.pt"


def _address(name: str, url: str | None) -> str:
    if url is not None and url.endswith(".pt"):
        return url
    if url is None and name in ELSEWHERE:
        return "/".join(ELSEWHERE[name])
    return f"{(url or BASE_URL).rstrip('/')}/{WEIGHTS[name]}/{file_name(name)}"


def _known_name(text: str) -> str:
    names = {name.replace("/", "-").lower(): name for name in WEIGHTS}
    names |= {file_name(name).removesuffix(".pt").lower(): name for name in WEIGHTS}
    key = text.replace("/", "-").removesuffix(".pt").lower()
    if key not in names:
        near = get_close_matches(key, names, n=1)
        hint = f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(WEIGHTS)}"
        raise ValueError(f"no CLIP weights named {text!r}; {hint}")
    return names[key]


def download_weights(options: Namespace) -> None:
    """Download the weights that do not exist yet; ValueError if a file has another SHA-256."""
    for name in [_known_name(text) for text in options.names]:
        path = options.root / file_name(name)
        if not path.exists():
            url, sha256 = _address(name, options.url), WEIGHTS[name]
            try:
                download(url, path, sha256=sha256, retries=options.retries)
            except DownloadError as error:
                way_out = "run the command again to continue, or choose another --url"
                raise ValueError(f"{error}; {way_out}") from None
            print(f"{path}: done, SHA-256 is right")
        elif sha256_of(path) == WEIGHTS[name]:
            print(f"{path}: already there, SHA-256 is right")
        else:
            raise ValueError(
                f"{path}: is there, but is not the published {name} (its SHA-256 differs); "
                "move it away or choose another --root"
            )


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = make_parser(__doc__, EXAMPLES)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help=", ".join(WEIGHTS))
    add("--list", action="store_true", help="list names, files and checksums")
    add("--root", type=Path, default=Path("pretrain"), help="folder to write to (pretrain)")
    add("--url", help="another server with folders named by SHA-256, or a .pt file's address")
    add("--retries", type=int, default=5, help="attempts to resume a broken transfer (5)")
    options = parser.parse_args(argv)
    if options.list:
        for name, sha256 in WEIGHTS.items():
            print(f"{name:12}{file_name(name):27}{sha256}")
        return 0
    if not options.names:
        parser.error("name the weights to download, or see --list")
    on_interrupt = "\nstopped; run the same command again to continue from here"
    return run_command(lambda: download_weights(options), on_interrupt=on_interrupt)


if __name__ == "__main__":
    sys.exit(main())
