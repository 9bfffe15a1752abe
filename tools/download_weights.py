"""Fetch OpenAI's CLIP weights: resumes, verifies the SHA-256, then renames into place."""

import argparse
import hashlib
import os
import sys
import time
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import requests

BASE_URL = "https://openaipublic.azureedge.net/clip/models"
# The SHA-256 of each file, which is also the folder it is published in (openai/CLIP, clip.py).
WEIGHTS = {
    "RN50": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
    "RN101": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
    "ViT-B/32": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    "ViT-B/16": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
    "ViT-L/14": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
}
EXAMPLE = """example:
  python tools/download_weights.py RN101
  python tools/download_weights.py ViT-B/16 --url https://mirror.example/clip/models"""
CHUNK = 1 << 16  # what a broken connection may cost
TIMEOUT = 30  # seconds without a byte


class BrokenTransferError(Exception):
    """The transfer broke off and may be continued."""


def file_name(name: str) -> str:
    """The name of the file as it is published: ``ViT-B-16.pt`` for ``ViT-B/16``."""
    return f"{name.replace('/', '-')}.pt"


def download(url: str, path: Path, *, sha256: str, retries: int = 5) -> None:
    """Fetch ``url`` to ``path``, continuing what an earlier call left in ``path``.part.

    A transfer that breaks off is taken up again, at most ``retries`` times without a new byte.
    Raises ``ValueError`` when the server refuses, the connection is lost for good or the
    checksum differs; ``path`` itself is only ever a complete and verified file.
    """
    part = path.with_name(f"{path.name}.part")
    path.parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    while True:
        before = _size(part)
        try:
            _transfer(url, part, label=path.name)
            break
        except BrokenTransferError as error:
            failures = 1 if _size(part) > before else failures + 1
            if failures > retries:
                kept = f"; {part} keeps {_size(part)} bytes" if _size(part) else ""
                hint = "run the command again to go on, or choose another --url"
                raise ValueError(f"{url}: {error}{kept}; {hint}") from None
            time.sleep(min(2.0**failures, 30.0) / 2)
    found = file_sha256(part)
    if found != sha256:
        part.unlink()
        raise ValueError(
            f"{url}: the SHA-256 of what came is {found}, not {sha256}; "
            "it was thrown away, run the command again or try another --url"
        )
    os.replace(part, path)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _transfer(url: str, part: Path, *, label: str) -> None:
    """Append what is missing to ``part``; ``BrokenTransferError`` when the body ends too early."""
    import requests
    from tqdm import tqdm

    start = _size(part)
    # identity: byte positions must count bytes of the file, not of a compressed form of it
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        with requests.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
            if start and response.status_code == requests.codes.requested_range_not_satisfiable:
                return  # nothing is missing; the checksum decides
            _refuse_errors(response)
            start = _start_of_body(response, start)
            length = response.headers.get("Content-Length")
            total = start + int(length) if length else None
            with (
                part.open("r+b" if start else "wb") as file,
                tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=label) as bar,
            ):
                file.seek(start)
                for chunk in response.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
    except (requests.ConnectionError, requests.Timeout) as error:
        raise BrokenTransferError(f"no connection ({_reason(error)})") from error
    except requests.exceptions.ChunkedEncodingError as error:
        raise BrokenTransferError("the connection broke off") from error
    except requests.exceptions.RequestException as error:
        raise ValueError(f"{url}: {error}") from None
    if total is not None and _size(part) < total:
        raise BrokenTransferError("the connection broke off")


def _refuse_errors(response: "requests.Response") -> None:
    status = response.status_code
    if status in (429, 500, 502, 503, 504):
        raise BrokenTransferError(f"the server is busy ({status} {response.reason})")
    if status >= 400:
        raise ValueError(
            f"{response.url}: the server answers {status} {response.reason}; "
            "check the address given by --url"
        )


def _start_of_body(response: "requests.Response", wanted: int) -> int:
    """Where in the file the body begins: 0 unless the server honours the Range header."""
    if response.status_code != 206:
        return 0
    start = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("-")[0]
    if not start.isdecimal() or int(start) > wanted:
        raise ValueError(f"{response.url}: the server answers with a range nobody asked for")
    return int(start)


def _reason(error: Exception) -> str:
    """The innermost cause, since the outer ones repeat the address and object names."""
    while isinstance(inner := error.__cause__ or error.__context__, Exception):
        error = inner
    return str(error)


def _address(name: str, url: str | None) -> str:
    if url is not None and url.endswith(".pt"):
        return url
    return f"{(url or BASE_URL).rstrip('/')}/{WEIGHTS[name]}/{file_name(name)}"


def _known_name(text: str) -> str:
    names = {file_name(name).removesuffix(".pt").lower(): name for name in WEIGHTS}
    key = text.replace("/", "-").removesuffix(".pt").lower()
    if key not in names:
        near = get_close_matches(key, names, n=1)
        hint = f"did you mean {names[near[0]]!r}?" if near else f"known: {', '.join(WEIGHTS)}"
        raise ValueError(f"no CLIP weights named {text!r}; {hint}")
    return names[key]


def _fetch(name: str, arguments: argparse.Namespace) -> None:
    path = arguments.root / file_name(name)
    if path.exists():
        if file_sha256(path) != WEIGHTS[name]:
            raise ValueError(
                f"{path}: is there, but is not OpenAI's {name} (its SHA-256 differs); "
                "move it away or choose another --root"
            )
        print(f"{path}: already there, SHA-256 is right")
        return
    sha256 = WEIGHTS[name]
    download(_address(name, arguments.url), path, sha256=sha256, retries=arguments.retries)
    print(f"{path}: done, SHA-256 is right")


def main(argv: list[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLE, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(WEIGHTS))
    parser.add_argument("--list", action="store_true", help="list names, files and checksums")
    parser.add_argument(
        "--root", type=Path, default=Path("pretrain"), help="folder to write to (pretrain)"
    )
    parser.add_argument(
        "--url", help="another server with OpenAI's folders, or a .pt file's address"
    )
    parser.add_argument(
        "--retries", type=int, default=5, help="attempts to take up a broken transfer (5)"
    )
    arguments = parser.parse_args(argv)
    if arguments.list:
        for name, sha256 in WEIGHTS.items():
            print(f"{name:10}{file_name(name):15}{sha256}")
        return 0
    if not arguments.names:
        parser.error("which weights? name some, or see --list")
    try:
        for name in [_known_name(text) for text in arguments.names]:
            _fetch(name, arguments)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; run the command again and it goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
