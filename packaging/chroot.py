"""Run the steps of packaging/Dockerfile in chroots, without a container engine.

    python packaging/chroot.py --target cpu --into FOLDER --run doctor
    python packaging/chroot.py --target cpu --into FOLDER --build-context wheel-cpu=dist --run

FOLDER gets a root for each stage. --run calls the target's command in its root, as its user. The
script needs Linux, root, debootstrap (`apt install debootstrap`) and dockerfile-parse (`pip install
dockerfile-parse`). It knows what packaging/Dockerfile uses and stops at anything else.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import re
import shlex
import shutil
import string
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dockerfile_parse import DockerfileParser

ROOT = Path(__file__).resolve().parent.parent
# A step has its own /proc, this machine's /dev, and the mounts of RUN; all end with its namespaces.
IN_ROOT = """\
root=$1 mounts=$2 user=$3; shift 3
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
for pair in $mounts; do
    mkdir -p "$root${pair#*=}"
    mount --bind "${pair%%=*}" "$root${pair#*=}"
done
exec chroot --userspec="$user" "$root" "$@"
"""
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CERTIFICATES = "/run/certificates"
WITHOUT_EFFECT = ("COMMENT", "EXPOSE", "HEALTHCHECK", "VOLUME")


@dataclass
class Settings:
    """What the steps of a stage have set, which the next stage inherits.

    Attributes:
        environment: By ENV.
        workdir: Where RUN and the command start.
        user: Who runs them.
        entrypoint: The command's first words.
        command: Its arguments, if --run has none.
    """

    environment: dict[str, str] = field(default_factory=lambda: {"PATH": PATH})
    workdir: str = "/"
    user: str = "0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Stage:
    """A stage of a Dockerfile.

    Attributes:
        name: Its name.
        base: What FROM names: an image or another stage.
        steps: Its instructions after FROM: the word and the rest.
    """

    name: str
    base: str
    steps: list[tuple[str, str]]

    def needs(self) -> set[str]:
        """Return the stages and images that it is made of."""
        text = "\n".join(rest for _, rest in self.steps)
        return {self.base, *re.findall(r"(?:--from=|,from=)([\w.-]+)", text)}


class Builder:
    """Makes the roots of stages, one after the other.

    Args:
        stages: The stages of a Dockerfile, by name.
        into: The folder for their roots.
        contexts: Folders that stand for stages, by name.
        values: The values of ARG.
        certificates: CA certificates for downloads, if they need others.
    """

    def __init__(
        self,
        stages: Mapping[str, Stage],
        into: Path,
        contexts: Mapping[str, Path],
        values: Mapping[str, str],
        certificates: Path | None,
    ) -> None:
        self.stages, self.into, self.values, self.certificates = stages, into, values, certificates
        self.roots = dict(contexts)
        self.settings: dict[str, Settings] = {}

    def build(self, target: str) -> None:
        """Make the roots that a stage needs, then its own."""
        stage = self.stages[target]
        for name in self.stages:
            if name in stage.needs() and name not in self.roots:
                self.build(name)
        root = self.roots[target] = self.into / target
        print(f"--- {target}: FROM {stage.base}", flush=True)
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(parents=True, exist_ok=True)
        if stage.base == "scratch":
            root.mkdir()
        else:
            base = self.roots.get(stage.base) or self.image(stage.base)
            subprocess.run(
                ["cp", "--archive", "--reflink=auto", str(base.resolve()), str(root)], check=True
            )
        self.settings[target] = copy.deepcopy(self.settings.get(stage.base, Settings()))
        arguments: dict[str, str] = {}
        for word, rest in stage.steps:
            print(f"--- {target}: {word} {rest}", flush=True)
            self.step(target, arguments, word, rest)

    def image(self, name: str) -> Path:
        """Return the root of an image, which is made once."""
        debian = re.fullmatch(r"debian:(\w+)-slim", name)
        if debian is None:
            sys.exit(f"error: FROM {name}: only debian:NAME-slim and scratch are made here")
        root = self.into / f"debian-{debian[1]}"
        if not root.is_dir():
            unfinished = root.with_name(f"{root.name}-unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            command = ["debootstrap", "--variant=minbase", debian[1], str(unfinished)]
            if subprocess.run(command, check=False).returncode:
                sys.exit(f"error: debootstrap cannot make {name}; its message is above")
            shutil.copy("/etc/resolv.conf", unfinished / "etc" / "resolv.conf")
            unfinished.rename(root)
        return root

    def step(self, target: str, arguments: dict[str, str], word: str, rest: str) -> None:
        """Carry out an instruction.

        Args:
            target: The stage.
            arguments: What ARG has set in it.
            word: The instruction's word.
            rest: The rest of its line.
        """
        settings = self.settings[target]
        if word == "RUN":
            self.run(target, arguments, rest)
        elif word == "COPY":
            self.copy(target, rest)
        elif word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = self.values.get(name, default)
        elif word == "ENV":
            known = string.Template(rest).safe_substitute(settings.environment)
            settings.environment |= pairs(shlex.split(known))
        elif word == "WORKDIR":
            settings.workdir = rest
            (self.roots[target] / rest.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif word == "USER":
            settings.user = rest
        elif word == "ENTRYPOINT":
            settings.entrypoint = json.loads(rest)
        elif word == "CMD":
            settings.command = json.loads(rest)
        elif word not in WITHOUT_EFFECT:
            sys.exit(f"error: {word}: this script does not know the instruction")

    def run(self, target: str, arguments: Mapping[str, str], rest: str) -> None:
        """Carry out RUN, with the folders that --mount=type=bind names."""
        mounts, environment = {}, dict(arguments)
        while mount := re.match(r"--mount=type=bind,from=([\w-]+),target=(\S+) ", rest):
            mounts[mount[2]] = self.roots[mount[1]]
            rest = rest[mount.end() :]
        if self.certificates is not None:
            mounts[CERTIFICATES] = self.certificates.parent
            file = f"{CERTIFICATES}/{self.certificates.name}"
            environment |= {"PIP_CERT": file, "SSL_CERT_FILE": file}
        if status := self.call(target, ["sh", "-c", rest], mounts, environment):
            sys.exit(f"error: RUN ended with status {status}")

    def copy(self, target: str, rest: str) -> None:
        """Carry out COPY, from the checkout or from another stage."""
        origin = re.match(r"--from=(\S+) ", rest)
        source = self.roots[origin[1]] if origin else ROOT
        *names, to = rest[origin.end() if origin else 0 :].split()
        place = Path(self.settings[target].workdir, to).as_posix().lstrip("/")
        goal = self.roots[target] / place
        for name in names:
            found = sorted(source.glob(name.lstrip("/")))
            if not found:
                sys.exit(f"error: COPY {name}: there is no such file in {source}")
            for path in found:
                if path.is_dir():
                    shutil.copytree(path, goal, symlinks=True, dirs_exist_ok=True)
                else:
                    file = goal / path.name if to.endswith("/") else goal
                    file.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copy(path, file)

    def call(
        self,
        target: str,
        words: list[str],
        mounts: Mapping[str, Path],
        environment: Mapping[str, str],
    ) -> int:
        """Run a command in a root, as its user, and return its status.

        Args:
            target: The stage.
            words: The command.
            mounts: Folders by the places where the command finds them.
            environment: Variables beside those of ENV.
        """
        root, settings = self.roots[target], self.settings[target]
        names = [line.split(":") for line in (root / "etc" / "passwd").read_text().splitlines()]
        home = next((name[5] for name in names if settings.user in (name[0], name[2])), "/")
        variables = {"HOME": home, **settings.environment, **environment}
        bound = " ".join(f"{folder}={place}" for place, folder in mounts.items())
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", IN_ROOT]
        command += ["sh", str(root), bound, f"{settings.user}:{settings.user}"]
        command += ["env", "-i", f"--chdir={settings.workdir}"]
        command += [f"{name}={value}" for name, value in variables.items()]
        return subprocess.run([*command, *words], check=False).returncode


def main() -> None:
    """Make the target's root, and run its command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--file", type=Path, default=ROOT / "packaging" / "Dockerfile")
    parser.add_argument("--target", required=True, help="the stage to build")
    parser.add_argument("--into", type=Path, required=True, help="the folder for the roots")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument(
        "--build-context",
        action="append",
        default=[],
        metavar="STAGE=FOLDER",
        help="take a folder instead of building this stage",
    )
    parser.add_argument(
        "--certificates", type=Path, help="CA certificates, behind a proxy that has its own"
    )
    parser.add_argument(
        "--run", nargs=argparse.REMAINDER, help="then call the command, with these arguments if any"
    )
    options = parser.parse_args()
    stages = read(options.file.read_text(), values := pairs(options.build_arg))
    contexts = {name: Path(path).resolve() for name, path in pairs(options.build_context).items()}
    for option, names in (("--target", [options.target]), ("--build-context", contexts)):
        for name in names:
            if name not in stages:
                sys.exit(f"error: {option} {name}: expected one of {', '.join(stages)}")
    for name, path in {**contexts, "": options.certificates or ROOT}.items():
        if not path.exists():
            option = f"--build-context {name}" if name else "--certificates"
            sys.exit(f"error: {option}: {path} does not exist")
    for program in ("debootstrap", "unshare", "chroot"):
        if shutil.which(program) is None:
            sys.exit(f"error: {program} is missing; install it, e.g. 'apt install {program}'")
    if os.geteuid() != 0:
        sys.exit("error: only root can use chroot; call this with sudo")
    certificates = options.certificates.resolve() if options.certificates else None
    builder = Builder(stages, options.into.resolve(), contexts, values, certificates)
    builder.build(options.target)
    if options.run is not None:
        settings = builder.settings[options.target]
        words = [*settings.entrypoint, *(options.run or settings.command)]
        sys.exit(builder.call(options.target, words, {}, {}))


def pairs(words: Iterable[str]) -> dict[str, str]:
    """Return NAME=VALUE words as a dict."""
    for word in words:
        if "=" not in word:
            sys.exit(f"error: {word}: expected NAME=VALUE")
    return dict(word.split("=", 1) for word in words)


def read(text: str, values: Mapping[str, str]) -> dict[str, Stage]:
    """Return the stages of a Dockerfile by name, in its order.

    Args:
        text: The Dockerfile.
        values: The values of ARG.
    """
    stages: dict[str, Stage] = {}
    defaults: dict[str, str] = {}  # ARG before the first FROM
    steps: list[tuple[str, str]] | None = None
    for item in DockerfileParser(fileobj=io.BytesIO(text.encode())).structure:
        word, rest = item["instruction"], " ".join(item["value"].split())
        if word == "FROM":
            line = string.Template(rest).safe_substitute(defaults | dict(values))
            base, _, name = line.partition(" AS ")
            steps = []
            stages[name] = Stage(name, base, steps)
        elif steps is not None:
            steps.append((word, rest))
        elif word == "ARG":
            defaults |= pairs([rest])
    return stages


if __name__ == "__main__":
    main()
