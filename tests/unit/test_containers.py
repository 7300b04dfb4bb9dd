"""The container names what there is: paths that it copies, an extra, and options that the verb takes."""

import re
import tomllib
from pathlib import Path

from tests.commands import lrkit

ROOT = Path(__file__).resolve().parents[2]
FILE = (ROOT / "containers" / "serve.Dockerfile").read_text(encoding="utf-8")


def test_what_the_image_installs_is_in_its_context() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines() if line[:1] == "!"}
    shipped = project["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    needed = {path.split("/")[0] for path in shipped} | {"lrkit", "pyproject.toml", "constraints.txt"}
    assert needed | {project["project"]["readme"]} <= kept and all((ROOT / name).exists() for name in kept)
    extras = re.findall(r"/src\[(\w+)\]", FILE)
    assert extras and set(extras) <= set(project["project"]["optional-dependencies"])


def test_the_command_is_one_that_the_verb_takes(capsys) -> None:
    command = re.search(r'^ENTRYPOINT \["lrkit", "(\w+)"\]\nCMD \[(.*)\]', FILE, re.MULTILINE)
    assert command is not None
    words = [word.strip('" ') for word in command[2].split(",")]
    assert lrkit(command[1], *words) == 2  # without a key it does not listen to others
    assert "there is no key; set LRKIT_API_KEY" in capsys.readouterr().err
