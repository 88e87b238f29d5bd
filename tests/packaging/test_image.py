"""The container image without a container engine: the Dockerfile's rules, hadolint, and its steps replayed in a folder.

The replay runs the Dockerfile's own RUN lines, with the absolute paths moved into an empty folder and the Python that
runs the tests in place of the base image's. What it cannot show: the base images themselves.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import click
import pytest

from provider import __version__
from provider.cli import commands
from tests.packaging import dockerfile
from tests.packaging.dockerfile import Instruction, Stage

CLONE: Final = Path(__file__).resolve().parents[2]
TEXT: Final = (CLONE / "Dockerfile").read_text(encoding="utf-8")
BUILD, RUNTIME = dockerfile.parse(TEXT)
USER: Final = 65532  # `nonroot` of the distroless images
STEP_SECONDS: Final = 600
COMMAND_SECONDS: Final = 120
UNCHECKED_HASH: Final = 1  # flag of byte code that is never compared with its source (PEP 552)

SLOW: Final = os.environ.get("CI") == "true" or os.environ.get("COUNTERSIGN_SLOW_TESTS") == "1"


# ---- the rules ----


def test_the_dockerfile_keeps_its_rules() -> None:
    assert dockerfile.faults(TEXT) == []


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        (r"(ARG BUILD_IMAGE=\S+)@sha256:\w+", r"\1", "is not pinned"),
        (r"(ARG RUNTIME_IMAGE=[^:]+):nonroot(@\S+)", r"\1\2", "is not pinned"),
        (r"--require-hashes ", "", "is no wheel of the lock"),
        (r"--only-binary=:all: ", "", "is no wheel of the lock"),
        (r"--no-deps ", "", "not in the lock"),
        (r"WORKDIR /src", "RUN curl -O https://a.example/x", "fetches"),
        (r"ARG VERSION=unknown", "ARG INDEX_TOKEN", "stays in the image's history"),
        (r"USER 65532:65532", "USER root", "root"),
        (r"USER 65532:65532", "USER 0:0", "root"),
        (r"USER 65532:65532\n", "", "root"),
        (r'ENTRYPOINT \["countersign"\]', "ENTRYPOINT countersign", "needs a shell"),
        (r'RUN \["countersign", "--version"\]', "RUN countersign --version", "needs a shell"),
        (r'RUN \["countersign", "--version"\]', 'RUN ["sh", "-c", "id"]', "does not have"),
        (r'RUN \["countersign", "--version"\]', "", "smoke test is missing"),
        (r"(?s)(USER 65532:65532)(.*?--version\"\])", r"\2\n\1", "as the final user"),
        (r"COPY --from=build", "COPY", "brings sources"),
        (r'ENTRYPOINT \["countersign"\]', "", "entry point"),
    ],
)
def test_a_dockerfile_that_breaks_a_rule_is_found(old: str, new: str, fault: str) -> None:
    changed = re.sub(old, new, TEXT, count=1)
    assert changed != TEXT
    assert any(fault in found for found in dockerfile.faults(changed)), dockerfile.faults(changed)


@pytest.mark.parametrize(
    "text",
    ["# syntax=docker/dockerfile:1\nFROM a", "FROM a\nRUN <<E\nE", "FROM a\nADD b c", "RUN a", "FROM a\nRUN b \\"],
)
def test_a_dockerfile_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(dockerfile.NotUnderstood):
        dockerfile.parse(text)


def test_the_ports_are_those_that_serve_listens_on() -> None:
    context = click.Context(commands)
    serve = commands.get_command(context, "serve")
    assert serve is not None
    defaults = {parameter.name: parameter.default for parameter in serve.params}
    listened = [str(defaults[name]) for name in ("port", "health_port", "metrics_port")]
    assert [one.words for one in RUNTIME.having("EXPOSE")] == [listened]


def test_the_image_says_what_it_is() -> None:
    labels = RUNTIME.pairs("LABEL")
    for name in ("title", "description", "licenses", "version", "revision"):
        assert labels[f"org.opencontainers.image.{name}"]
    assert labels["org.opencontainers.image.licenses"] == "Apache-2.0"


def test_nothing_has_to_be_written_and_nothing_is_read_from_a_home() -> None:
    environment = RUNTIME.pairs("ENV")
    assert environment["HOME"] == "/nonexistent"
    assert environment["PYTHONDONTWRITEBYTECODE"] == "1"
    assert [one.rest for one in RUNTIME.having("USER")] == [f"{USER}:{USER}"]


def test_both_stages_have_the_same_minor_version_of_python_and_debian() -> None:
    built = re.search(r"python:(\d+\.\d+)-slim-(\w+)", BUILD.base)
    runs = re.search(r"python3-debian(\d+)", RUNTIME.base)
    assert built
    assert runs
    assert (built[2], built[1]) == {"12": ("bookworm", "3.11"), "13": ("trixie", "3.13")}[runs[1]]


# ---- what the builder gets to see ----


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a path of the clone from the builder: the last pattern that matches decides."""
    verdict = False
    for line in (CLONE / ".dockerignore").read_text(encoding="utf-8").splitlines():
        pattern = line.strip()
        if not pattern or pattern.startswith("#"):
            continue
        name = pattern.removeprefix("!").removeprefix("**/")
        parts = Path(path).parts
        starts = range(len(parts)) if "**/" in pattern else [0]
        if any(fnmatch.fnmatchcase(parts[start], name) for start in starts):
            verdict = not pattern.startswith("!")
    return verdict


def sources(stage: Stage) -> set[str]:
    """What a stage copies from the clone."""
    return {word for copy in stage.having("COPY") for word in copy.words[:-1] if not word.startswith("--")}


@pytest.mark.parametrize(
    "path",
    [".git/config", ".venv/bin/python", "tests/conftest.py", ".env", "tls.key", "provider/__pycache__/a.pyc", "a.pyc"],
)
def test_the_builder_does_not_see_what_it_does_not_need(path: str) -> None:
    assert ignored(path)


def test_the_builder_sees_exactly_what_is_copied() -> None:
    assert all(not ignored(source) for source in sources(BUILD))
    assert {path.name for path in CLONE.iterdir() if not ignored(path.name)} == sources(BUILD)
    assert not ignored("provider/cli/__init__.py")
    assert not ignored("policies/samples/constraint.yaml")


# ---- hadolint ----


def test_hadolint_finds_nothing(tmp_path: Path) -> None:
    program = os.environ.get("COUNTERSIGN_HADOLINT") or shutil.which("hadolint")
    if not program:
        pytest.skip("no hadolint: COUNTERSIGN_HADOLINT is not set and hadolint is not on PATH (docs/image.md)")
    done = subprocess.run([program, "--no-color", "-"], input=TEXT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")
    bad = TEXT.replace("WORKDIR /src", "WORKDIR src")
    done = subprocess.run([program, "--no-color", "-"], input=bad, capture_output=True, text=True, check=False)
    assert done.returncode != 0, "hadolint finds nothing in anything"


# ---- the bump of the base images ----


def test_the_documented_bump_pins_both_bases_to_what_the_registry_says(tmp_path: Path) -> None:
    program = shutil.which("jq")
    if not program:
        pytest.skip("no jq on PATH")
    page = (CLONE / "docs" / "image.md").read_text(encoding="utf-8")
    block = next(block for block in re.findall(r"```\n(.*?)```", page, re.DOTALL) if "countersign inspect" in block)
    (tmp_path / "Dockerfile").write_text(TEXT)
    digests = {
        stage.base.split("@")[0]: "sha256:" + f"{number:064x}" for number, stage in enumerate((BUILD, RUNTIME), 1)
    }
    # Stands for our own command, which asks the registry: prints what `inspect --output json` prints.
    cases = "\n".join(f"  {tag}) digest={digest};;" for tag, digest in digests.items())
    stand_in = '#!/bin/sh\nfor last; do :; done\ncase "$last" in\n' + cases + "\n  *) exit 2;;\nesac\n"
    stand_in += 'printf \'{"reference": "%s", "digest": "%s", "referrers": []}\' "$last" "$digest"\n'
    (tmp_path / "countersign").write_text(stand_in)
    (tmp_path / "countersign").chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{Path(program).parent}:/usr/bin:/bin"}
    subprocess.run(["bash", "-euo", "pipefail", "-c", block], cwd=tmp_path, env=environment, check=True, timeout=30)
    bumped = dockerfile.parse((tmp_path / "Dockerfile").read_text())
    assert [stage.base for stage in bumped] == [f"{tag}@{digest}" for tag, digest in digests.items()]
    assert dockerfile.faults((tmp_path / "Dockerfile").read_text()) == []


# ---- the replay ----


def test_the_wheel_holds_every_policy_and_nothing_that_makes_them(tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="hatchling is not installed in this environment")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--wheel-dir", str(tmp_path), str(CLONE)], check=True, timeout=COMMAND_SECONDS)
    (wheel,) = tmp_path.iterdir()
    prefix = "provider/demo/policies/"
    held = {name.removeprefix(prefix) for name in zipfile.ZipFile(wheel).namelist() if name.startswith(prefix)}
    shipped = {
        str(path.relative_to(CLONE / "policies"))
        for path in (CLONE / "policies").rglob("*")
        if path.is_file() and path.suffix not in (".py", ".pyc")
    }
    assert held == shipped


class Replay:
    """A folder in which the Dockerfile's steps run, with every absolute path moved into it."""

    MOVED: Final = ("/opt/countersign", "/src", "/wheels", "/usr/bin/", "/nonexistent")

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment: dict[str, str] = {}
        self.folder = root
        self.user: int | None = None
        for name in ("opt", "usr/bin", "tmp"):
            (root / name).mkdir(parents=True)

    def moved(self, text: str) -> str:
        """A text with the image's paths moved into the folder."""
        pattern = r"(?<![\w/.-])(" + "|".join(re.escape(path) for path in self.MOVED) + r")"
        return re.sub(pattern, lambda match: f"{self.root}{match[1]}", re.sub(r":/usr/bin$", ":/usr/bin/", text))

    def step(self, one: Instruction) -> None:
        """Do one instruction as the builder would."""
        match one.keyword:
            case "ENV":
                self.environment |= {name: self.moved(value) for name, value in one.pairs.items()}
            case "WORKDIR":
                self.folder = self.root / one.rest.lstrip("/")
                self.folder.mkdir(exist_ok=True)
            case "COPY" if not one.words[0].startswith("--"):
                self.copy(one.words[:-1], one.words[-1])
            case "RUN" if one.exec_form is None:
                self.run(["/bin/sh", "-euc", self.moved(one.rest)], STEP_SECONDS)

    def copy(self, names: list[str], target: str) -> None:
        for name in names:
            source = CLONE / name
            if source.is_dir():
                ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
                shutil.copytree(source, self.folder / target, ignore=ignore)
            else:
                shutil.copy(source, self.folder / target)

    def run_in_image(self, command: str, *arguments: str) -> str:
        """Run a command of the environment as a container would: found by name, nothing else on the path."""
        return self.run([str(self.root / "opt/countersign/bin" / command), *arguments], COMMAND_SECONDS)

    def run(self, command: list[str], seconds: float) -> str:
        """Run a command in the environment of the stage; its standard output."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=self.environment,
            user=self.user,
            group=self.user,
            extra_groups=None if self.user is None else [],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def become_the_images_user(self) -> None:
        """Run what follows as the image's user, where we may and the interpreter can be reached by others."""
        if os.geteuid() == 0:
            os.chown(self.root / "tmp", USER, USER)
            probe = [str(self.root / "usr/bin/python3"), "-c", ""]
            with contextlib.suppress(OSError):
                done = subprocess.run(probe, user=USER, group=USER, extra_groups=[], capture_output=True, check=False)
                self.user = USER if done.returncode == 0 else None


def index_is_reachable(python: Path, folder: Path) -> bool:
    """Whether one wheel of the lock can be had."""
    lock = (CLONE / "requirements.lock").read_text(encoding="utf-8")
    entry = re.search(r"^idna==.*?(?=^\S)", lock, re.DOTALL | re.MULTILINE)
    assert entry, "the lock has no idna"
    (folder / "one.lock").write_text(entry[0])
    command = [str(python), "-m", "pip", "download", "--quiet", "--require-hashes", "--no-deps", "--retries=0"]
    command += ["--timeout=10", "--dest", str(folder / "one"), "-r", str(folder / "one.lock")]
    return subprocess.run(command, capture_output=True, timeout=COMMAND_SECONDS, check=False).returncode == 0


@pytest.fixture
def image() -> Iterator[Replay]:
    """What the build stage leaves, in the environment of the run stage."""
    if not SLOW:
        pytest.skip("downloads and installs the whole lock; runs in CI, or with COUNTERSIGN_SLOW_TESTS=1")
    with tempfile.TemporaryDirectory(prefix="countersign-image-") as folder:
        root = Path(folder)
        root.chmod(0o755)
        base = root / "base"  # stands for the build image: a Python with pip and nothing else
        subprocess.run([sys.executable, "-m", "venv", str(base)], check=True, timeout=COMMAND_SECONDS)
        if not index_is_reachable(base / "bin" / "python3", root):
            pytest.skip("no package index is reachable")
        replay = Replay(root / "image")
        kept = {name: value for name, value in os.environ.items() if re.match(r"(?i)PIP_|SSL_|\w+_PROXY$", name)}
        replay.environment = {**kept, "PATH": f"{base}/bin:/usr/bin:/bin", "HOME": str(root)}
        for one in BUILD.instructions:
            replay.step(one)
        for left in ("src", "wheels"):
            shutil.rmtree(replay.root / left)
        shutil.rmtree(base)  # the run stage has the interpreter alone
        (replay.root / "usr/bin/python3").unlink()
        (replay.root / "usr/bin/python3").symlink_to(Path(sys.base_prefix, "bin", "python3"))
        replay.environment = {"TMPDIR": str(replay.root / "tmp"), "LANG": "C.UTF-8"}
        replay.folder = replay.root
        replay.become_the_images_user()
        for one in RUNTIME.instructions:
            replay.step(one)
        yield replay


@pytest.mark.slow
@pytest.mark.timeout(STEP_SECONDS * 2)
def test_the_steps_of_the_dockerfile_leave_an_image_that_works(image: Replay) -> None:
    """One test, because the replay installs the whole lock and parallel workers would each make their own."""
    code = image.root / "opt"
    before = state(code)
    smoke_tests_pass(image)
    entry_point_is_on_the_path(image)
    demo_runs_on_the_policies_of_the_wheel(image)
    there_is_no_pip_and_no_command_but_ours(image)
    what_is_installed_is_the_lock_and_countersign(image)
    every_module_is_compiled_for_good(code)
    everybody_can_read_and_nobody_can_write(code)
    assert state(code) == before, "something was written beside the temporary folder"
    assert list((image.root / "tmp").iterdir()) == []
    assert not (image.root / "nonexistent").exists()


def state(folder: Path) -> Mapping[str, tuple[int, int]]:
    """Every file below a folder, with its size and time of change."""
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in folder.rglob("*")}


def smoke_tests_pass(image: Replay) -> None:
    outputs = [image.run_in_image(*(one.exec_form or ())) for one in RUNTIME.having("RUN")]
    assert outputs[0] == f"countersign {__version__}\n"


def entry_point_is_on_the_path(image: Replay) -> None:
    found = shutil.which("countersign", path=image.environment["PATH"])
    assert found == str(image.root / "opt/countersign/bin/countersign")


def demo_runs_on_the_policies_of_the_wheel(image: Replay) -> None:
    shown: Any = json.loads(image.run_in_image("countersign", "demo", "--output", "json"))
    assert len(shown["rows"]) > 1
    assert {row["as_expected"] for row in shown["rows"]} == {True}
    assert {row["admitted"] for row in shown["rows"]} == {True, False}


def there_is_no_pip_and_no_command_but_ours(image: Replay) -> None:
    names = {path.name for path in (image.root / "opt/countersign/bin").iterdir()}
    assert {name for name in names if not name.startswith("python")} == {"countersign"}
    probe = "import importlib.util as u; print([n for n in ('pip', 'setuptools', 'hatchling') if u.find_spec(n)])"
    assert image.run_in_image("python", "-c", probe) == "[]\n"


def what_is_installed_is_the_lock_and_countersign(image: Replay) -> None:
    probe = "import importlib.metadata as m; print(*(f'{d.name}=={d.version}' for d in m.distributions()))"
    entries = [entry.partition("==") for entry in image.run_in_image("python", "-c", probe).split()]
    installed = {f"{re.sub('[-_.]+', '-', name).lower()}=={version}" for name, _, version in entries}
    lock = (CLONE / "requirements.lock").read_text(encoding="utf-8")
    locked = set(re.findall(r"^[a-z0-9-]+==[^ ]+", lock, re.MULTILINE))
    elsewhere = set(re.findall(r"^([a-z0-9-]+==[^ ]+) ; .*sys_platform == '", lock, re.MULTILINE))
    ours = f"countersign=={__version__}"
    assert ours in installed
    assert installed - {ours} <= locked
    assert locked - installed <= elsewhere


def every_module_is_compiled_for_good(code: Path) -> None:
    modules = list((code / "countersign/lib").rglob("*.py"))
    assert len(modules) > 500
    for module in modules:
        compiled = module.parent / "__pycache__" / f"{module.stem}.{sys.implementation.cache_tag}.pyc"
        assert compiled.is_file(), f"{module} is not compiled"
        assert int.from_bytes(compiled.read_bytes()[4:8], "little") == UNCHECKED_HASH, module


def everybody_can_read_and_nobody_can_write(code: Path) -> None:
    for path in code.rglob("*"):
        mode = path.lstat().st_mode
        if not path.is_symlink():
            assert not mode & (stat.S_IWOTH | stat.S_ISUID | stat.S_ISGID), path
            assert mode & stat.S_IROTH, f"{path} cannot be read by the image's user"
