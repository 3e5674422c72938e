"""Generate the Python wire code: genproto.py ROOT [--check].

protoc names modules after the path of the proto file, so its imports (`from txcoord.v1 import ...`)
would reach into the server's package. The code goes flat into `txcoord_client._pb` instead and the
imports are rewritten; the names that descriptors are registered under stay `txcoord/v1/*.proto`.
"""

import re
import sys
import tempfile
from importlib import resources
from pathlib import Path

from grpc_tools import protoc

PACKAGE = "txcoord_client._pb"
INIT = '"""Generated from proto/txcoord/v1 by scripts/proto: do not edit."""\n'


def rewrite(text: str, modules: set[str]) -> str:
    names = "|".join(sorted(modules))
    text = re.sub(rf"^from txcoord\.v1 import ({names})\b", r"from . import \1", text, flags=re.M)
    # mypy-protobuf: `import txcoord.v1.x_pb2`, then the dotted name wherever a type is used.
    text = re.sub(rf"\btxcoord\.v1\.({names})\b", rf"{PACKAGE}.\1", text)
    # protobuf's builder: the __module__ that the message classes get.
    builder = "BuildTopDescriptorsAndMessages(DESCRIPTOR, '"
    return text.replace(f"{builder}txcoord.v1.", f"{builder}{PACKAGE}.")


def generate(proto: Path) -> dict[str, str]:
    sources = sorted((proto / "txcoord" / "v1").glob("*.proto"))
    if not sources:
        sys.exit(f"no proto files below {proto}")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        arguments = [
            "protoc",
            f"-I{proto}",
            f"-I{resources.files('grpc_tools') / '_proto'}",
            f"--python_out={out}",
            f"--pyi_out={out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *map(str, sources),
        ]
        if protoc.main(arguments):
            sys.exit("protoc failed")
        files = {path.name: path.read_text() for path in (out / "txcoord" / "v1").iterdir()}
    modules = {name.split(".")[0] for name in files}
    # A file without services gives an empty stub module: leave it out.
    with_services = {path.stem for path in sources if re.search(r"^service\s", path.read_text(), re.M)}
    kept = {
        n: t for n, t in files.items() if "_pb2_grpc." not in n or n.split("_pb2_grpc.")[0] in with_services
    }
    return {"__init__.py": INIT} | {name: rewrite(text, modules) for name, text in kept.items()}


def main() -> None:
    root = Path(sys.argv[1])
    target = root / "clients" / "python" / "txcoord_client" / "_pb"
    new = generate(root / "proto")
    old = {path.name: path.read_text() for path in target.glob("*.py*") if path.is_file()}
    if "--check" in sys.argv:
        stale = sorted(name for name in new.keys() | old.keys() if new.get(name) != old.get(name))
        if stale:
            sys.exit(f"not what proto/ gives, run scripts/proto: {', '.join(stale)}")
        return
    target.mkdir(parents=True, exist_ok=True)
    for name in old.keys() - new.keys():
        (target / name).unlink()
    for name, text in new.items():
        if old.get(name) != text:
            (target / name).write_text(text)
    print(f"{len(new)} files in {target.relative_to(root)}")


if __name__ == "__main__":
    main()
