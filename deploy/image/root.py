"""Assemble the root of the image: the virtual environment, Python, the shared libraries of both, and an SBOM.

Usage: root.py ENVIRONMENT ROOT, in a Debian whose `python3` made the environment. It uses the standard library only.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import time
import uuid
from datetime import UTC, datetime
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

UNUSED = ("ensurepip", "idlelib", "lib2to3", "pydoc_data", "test", "tkinter", "turtledemo", "config-*")
"""Folders of the standard library that a server does not import."""
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
USERS = {
    "etc/passwd": "root:x:0:0:root:/:/nonexistent\ngateway:x:10001:10001:gateway:/tmp:/nonexistent\n",
    "etc/group": "root:x:0:\ngateway:x:10001:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
PLACE_OF_SBOM = "usr/share/sbom/gateway.cdx.json"


def assemble(environment: Path, root: Path) -> None:
    """Copy the files of a running gateway to `root`, and write the SBOM there."""
    for name in ("dev", "etc", "proc", "run", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    (root / "tmp").chmod(0o1777)
    for name in ("lib", "lib64"):
        if (link := Path("/", name)).is_symlink():
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(link.readlink())
    for name, text in USERS.items():
        (root / name).write_text(text)

    library = Path(sysconfig.get_path("stdlib"))
    shutil.copytree(library, root / library.relative_to("/"), symlinks=True, ignore=shutil.ignore_patterns(*UNUSED))
    shutil.copytree(environment, root / environment.relative_to("/"), symlinks=True)
    shutil.copy(Path(__file__).with_name("health.py"), root / environment.relative_to("/"))
    interpreter = Path(sys.executable).resolve()
    modules = [path for folder in (library, environment) for path in folder.rglob("*.so*") if path.is_file()]
    copied = [interpreter, *libraries_of([interpreter, *modules], environment), CERTIFICATES]
    for path in copied:
        copy_with_links(path, root)
    # `python3`, to which the links of the environment lead.
    copy_with_links(Path("/usr/bin/python3"), root)

    of_library = [path for path in modules if path.is_relative_to(library)]
    packages = packages_of([*copied, library / "os.py", *of_library])
    for package in packages:
        # Scanners of images read the Debian packages here, as in a distroless image.
        status = root / "var/lib/dpkg/status.d" / package
        status.parent.mkdir(parents=True, exist_ok=True)
        status.write_text(run("dpkg-query", "--status", package))
        licence = Path("/usr/share/doc", package, "copyright")
        (root / licence.relative_to("/")).parent.mkdir(parents=True)
        shutil.copy(licence, root / licence.relative_to("/"))

    (site,) = environment.glob("lib/python3*/site-packages")
    (root / PLACE_OF_SBOM).parent.mkdir(parents=True)
    (root / PLACE_OF_SBOM).write_text(
        json.dumps(sbom(list(distributions(path=[str(site)])), packages), indent=1) + "\n"
    )


def run(*command: str | Path) -> str:
    """Return the output of a command, whose exit code does not matter."""
    return subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True).stdout


def libraries_of(files: list[Path], environment: Path) -> set[Path]:
    """Return the shared libraries that the dynamic linker loads for some files, without those of the environment."""
    loaded = {Path(name) for name in re.findall(r"^\t(?:\S+ => )?(/\S+) \(0x", run("ldd", *files), re.MULTILINE)}
    # glibc loads it by name when a thread ends.
    loaded |= {next(Path("/lib").glob("*-linux-gnu/libgcc_s.so.1"))}
    return {path for path in loaded if not path.is_relative_to(environment)}


def copy_with_links(path: Path, root: Path) -> None:
    """Copy a file, and the symbolic links from its name to it."""
    while path.is_symlink():
        link = root / path.relative_to("/")
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.is_symlink():
            link.symlink_to(path.readlink())
        path = path.parent / path.readlink()
    target = root / path.relative_to("/")
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(path, target)


def packages_of(files: list[Path]) -> list[str]:
    """Return the Debian packages that own some files, sorted."""
    names = {str(name) for path in files for name in (path, path.resolve())}
    # Packages name /lib, which is a link to /usr/lib.
    names |= {name.removeprefix("/usr") for name in names}
    owners = re.findall(r"^([^:\s]+)(?::\w+)?: ", run("dpkg-query", "--search", *sorted(names)), re.MULTILINE)
    return sorted({*owners, "ca-certificates"})


def sbom(installed: list[Distribution], packages: list[str]) -> dict[str, Any]:
    """Return a CycloneDX 1.6 document with the Python distributions, their dependencies, and the Debian packages."""
    references = {normalized(each.name): f"pkg:pypi/{normalized(each.name)}@{each.version}" for each in installed}
    components: list[dict[str, Any]] = []
    dependencies = []
    for each in sorted(installed, key=lambda each: normalized(each.name)):
        reference = references[normalized(each.name)]
        components.append({"type": "library", "name": each.name, "version": each.version, "purl": reference})
        if licence := each.metadata.get("License-Expression"):
            components[-1]["licenses"] = [{"expression": licence}]
        needed = {normalized(re.split(r"[^\w.-]", line)[0]) for line in each.requires or ()}
        needed = {references[name] for name in needed & references.keys()} - {reference}
        dependencies.append({"ref": reference, "dependsOn": sorted(needed)})
    fields = "${Package} ${Version} ${Architecture}\n"
    for line in run("dpkg-query", "--show", f"--showformat={fields}", *packages).splitlines():
        name, version, architecture = line.split()
        purl = f"pkg:deb/debian/{name}@{version.replace('+', '%2B').replace(':', '%3A')}?arch={architecture}"
        components.append({"type": "library", "name": name, "version": version, "purl": purl})
    for component in components:
        component["bom-ref"] = component["purl"]
    (gateway,) = (each for each in components if each["name"] == "encounter-gateway")
    components.remove(gateway)
    created = datetime.fromtimestamp(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()), UTC)
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps(components))}",
        "version": 1,
        "metadata": {
            "timestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "component": gateway | {"type": "application"},
        },
        "components": components,
        "dependencies": dependencies,
    }


def normalized(name: str) -> str:
    """Return the normalized name of a distribution. Source: PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    assemble(Path(sys.argv[1]), Path(sys.argv[2]))
