"""Looks inside the built sdist and wheel: ``python -m tests.distributions FOLDER``.

Exits non-zero, naming the files, where one lacks something that the app needs or carries
something that belongs to its development.
"""

import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "django_infusionsoft"
SHIPPED_FOLDERS = {"locale", "migrations", "pages", "static", "templates"}
ALLOWED_IN_SDIST = {
    "CHANGELOG.rst",
    "LICENSE",
    "MANIFEST.in",
    "PKG-INFO",
    "README.rst",
    "pyproject.toml",
    "setup.cfg",
    "django_infusionsoft.egg-info",
    PACKAGE,
}


def main(folder: Path) -> int:
    wheel, sdist = _only(folder, "*.whl"), _only(folder, "*.tar.gz")
    wheel_files, sdist_files = _files_of_wheel(wheel), _files_of_sdist(sdist)
    allowed_in_wheel = {PACKAGE, f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"}
    problems = [
        *_problems(wheel.name, wheel_files, allowed_in_wheel),
        *_problems(sdist.name, sdist_files, ALLOWED_IN_SDIST),
    ]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"{wheel.name}: {len(wheel_files)} files; {sdist.name}: {len(sdist_files)} files")
    return 1 if problems else 0


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder} should hold one {pattern}, not {len(found)}")
    return found[0]


def _files_of_wheel(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def _files_of_sdist(sdist: Path) -> set[str]:
    with tarfile.open(sdist) as archive:
        names = [member.name for member in archive.getmembers() if member.isfile()]
    return {str(PurePosixPath(*PurePosixPath(name).parts[1:])) for name in names}


def _expected() -> set[str]:
    """Return the app's files in the source folder: code, the marker of types, data."""
    return {
        file.relative_to(ROOT).as_posix()
        for file in (ROOT / PACKAGE).rglob("*")
        if file.is_file() and _is_shipped(file)
    }


def _is_shipped(file: Path) -> bool:
    if file.suffix == ".pyc":
        return False
    is_data = bool(SHIPPED_FOLDERS & set(file.relative_to(ROOT / PACKAGE).parts))
    return file.suffix == ".py" or file.name == "py.typed" or is_data


def _problems(title: str, files: set[str], allowed: set[str]) -> list[str]:
    lacking = [f"{title} lacks {name}" for name in sorted(_expected() - files)]
    alien = sorted(name for name in files if PurePosixPath(name).parts[0] not in allowed)
    return lacking + [f"{title} should not hold {name}" for name in alien]


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
