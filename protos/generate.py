"""Makes `generated/` from the proto files, with one pinned generator in an environment of its own.

    python protos/generate.py            write generated/
    python protos/generate.py --check    exit 1 and name the files where generated/ is stale

Needs nothing but the standard library: the generator is installed on first use. It is pinned low
on purpose. Stubs refuse a grpcio or protobuf older than what made them and accept newer ones, so
the runtime ranges in pyproject.toml begin at these versions and stay open above.
"""

from __future__ import annotations

import argparse
import fcntl
import filecmp
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

PINS = (
    "grpcio-tools==1.80.0",
    "grpcio==1.80.0",
    "mypy-protobuf==5.1.0",
    "protobuf==6.33.6",
    "setuptools==80.9.0",
)
ROOT = Path(__file__).resolve().parent.parent
SERVICE = re.compile(r"^\s*service\s+\w+\s*\{", re.MULTILINE)
GRPC_OUTPUT = "quiet,generate_concrete_servicer_stubs"


def generator_python(cache: Path) -> Path:
    """The interpreter of the generator's own environment, made or renewed when the pins change."""
    cache.mkdir(parents=True, exist_ok=True)
    environment = cache / "proto-venv"
    stamp = environment / "pins.txt"
    python = environment / "bin" / "python"
    wanted = "\n".join((f"python {sys.version_info[0]}.{sys.version_info[1]}", *PINS))
    with (cache / "proto-venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if stamp.exists() and stamp.read_text() == wanted and python.exists():
            return python
        print(f"installing the proto generator ({PINS[0]}, {PINS[2]}) ...", flush=True)
        shutil.rmtree(environment, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, *PINS], check=True)
        stamp.write_text(wanted)
    return python


def run_protoc(python: Path, protos: Path, output: Path) -> None:
    """Writes message stubs for every file, and service stubs for those that define a service."""
    files = sorted(path.relative_to(protos).as_posix() for path in protos.rglob("*.proto"))
    if not files:
        raise SystemExit(f"error: no .proto files under {protos}")
    services = [name for name in files if SERVICE.search((protos / name).read_text())]
    path = f"{python.parent}{os.pathsep}{os.environ.get('PATH', '')}"
    protoc = [str(python), "-m", "grpc_tools.protoc", f"-I{protos}"]
    calls = [[f"--python_out={output}", f"--mypy_out=quiet:{output}", *files]]
    if services:
        grpc_outputs = [f"--grpc_python_out={output}", f"--mypy_grpc_out={GRPC_OUTPUT}:{output}"]
        calls.append([*grpc_outputs, *services])
    for arguments in calls:
        finished = subprocess.run([*protoc, *arguments], env={**os.environ, "PATH": path})
        if finished.returncode:
            raise SystemExit(f"error: protoc failed with {finished.returncode}")
    package = output / "gaia"
    for folder in (package, *(item for item in package.rglob("*") if item.is_dir())):
        (folder / "__init__.py").touch()
    (package / "py.typed").touch()


def tree(root: Path) -> set[Path]:
    """Relative paths of the files below `root`, without byte code."""
    found = (item for item in root.rglob("*") if item.is_file() and item.suffix != ".pyc")
    return {item.relative_to(root) for item in found}


def differences(fresh: Path, kept: Path) -> list[Path]:
    """Files that are missing, left over or different in `kept`, in order."""
    new, old = tree(fresh), tree(kept)
    changed = {p for p in new & old if not filecmp.cmp(fresh / p, kept / p, shallow=False)}
    return sorted((new ^ old) | changed)


def write(fresh: Path, kept: Path, stale: list[Path]) -> None:
    """Brings `kept` to `fresh`; unchanged files keep their time, so nothing is rebuilt for them."""
    for path in stale:
        target = kept / path
        if (fresh / path).exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            scratch = target.with_name(target.name + ".new")
            shutil.copyfile(fresh / path, scratch)
            scratch.replace(target)
        else:
            target.unlink()
    for folder in sorted((p for p in kept.rglob("*") if p.is_dir()), reverse=True):
        if not any(item.name != "__pycache__" for item in folder.iterdir()):
            shutil.rmtree(folder)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    parser.add_argument("--protos", type=Path, default=ROOT / "protos")
    parser.add_argument("--output", type=Path, default=ROOT / "generated")
    arguments = parser.parse_args()
    python = generator_python(ROOT / ".cache")
    with tempfile.TemporaryDirectory(prefix="gaia-proto-") as scratch:
        fresh = Path(scratch)
        run_protoc(python, arguments.protos.resolve(), fresh)
        stale = differences(fresh, arguments.output)
        if arguments.check:
            for path in stale:
                print(f"stale: {arguments.output.name}/{path}")
            if stale:
                print("error: run `make proto` and commit generated/", file=sys.stderr)
            return 1 if stale else 0
        write(fresh, arguments.output, stale)
    print(f"{arguments.output.name}/: {len(stale)} files changed" if stale else "up to date")
    return 0


if __name__ == "__main__":
    sys.exit(main())
