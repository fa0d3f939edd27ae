"""Make a folder of at most 40 MB that measures on a machine with torch, transformers, peft and no network.

    python -m benchmarks.measure.gpu.pack FOLDER [--data ./data/cifar10]

The folder carries this package's source, the benchmark, and a part of CIFAR-10 (pixels.py says which). On the machine:

    cd FOLDER && python -m benchmarks.measure.gpu
"""

import argparse
import json
import shutil
import time
from pathlib import Path

import fedadamw
from benchmarks.common.records import ROOT
from benchmarks.measure.gpu import pixels
from benchmarks.measure.gpu.machine import PACKED
from fedadamw.runner.manifest import commit

LIMIT_MB = 40.0
BENCHMARKS = ("common/*.py", "measure/step.py", "measure/gpu/**/*.py", "measure/gpu/README.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="CIFAR-10 as images; without it they are made up")
    args = parser.parse_args()
    if args.folder.exists() and any(args.folder.iterdir()):
        parser.error(f"{args.folder}: is not empty")
    if args.data is not None and not args.data.is_dir():
        parser.error(f"--data {args.data}: no such folder")
    size = pack(args.folder, args.data)
    print(f"{size:.1f} MB in {args.folder}; there: python -m benchmarks.measure.gpu")


def pack(folder: Path, data: Path | None) -> float:
    """Fill `folder`; returns its size in MB."""
    source = Path(fedadamw.__file__).parent
    shutil.copytree(source, folder / "fedadamw", ignore=shutil.ignore_patterns("__pycache__", "*.md"))
    for pattern in BENCHMARKS:
        for path in (ROOT / "benchmarks").glob(pattern):
            copy = folder / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
    metadata = (
        folder / f"fedadamw-{fedadamw.__version__}.dist-info" / "METADATA"
    )  # where the package looks for its version
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: fedadamw\nVersion: {fedadamw.__version__}\n")
    images = None if data is None else pack_images(folder, data)
    about = {"commit": commit(), "date": time.strftime("%Y-%m-%d"), "images": images}
    (folder / PACKED.relative_to(ROOT)).write_text(json.dumps(about, indent=1) + "\n")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    if size > LIMIT_MB:
        raise SystemExit(f"{folder}: has {size:.1f} MB, more than {LIMIT_MB:.0f}")
    return size


def pack_images(folder: Path, data: Path) -> str:
    """Pack a part of the images in `data`; what it is."""
    from fedadamw.data.images import ImageSource, load_images

    train, test = pixels.choose(*load_images(ImageSource(str(data))))
    pixels.write(folder / pixels.PATH.relative_to(ROOT), train, test)
    return f"{len(train):,} training and {len(test):,} held-out images of CIFAR-10"


if __name__ == "__main__":
    main()
