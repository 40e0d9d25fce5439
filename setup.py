"""List the packages, and complete the links of the README, which has no files beside it on the package index.

The rest is in setup.cfg.
"""

import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\((?![a-z]+:|#)([^)\s]+)\)")
_FENCE = re.compile(r"(^```.*?^```$)", flags=re.MULTILINE | re.DOTALL)


def with_addresses(markdown: str, source: str) -> str:
    """Return a page whose links to files of the repository lead to `source`, the address where it is published."""
    pieces = _FENCE.split(markdown)
    for number in range(0, len(pieces), 2):  # code is left as it is
        pieces[number] = _LINK.sub(
            lambda link: f"{link[1]}({source}/{'raw' if link[1][0] == '!' else 'blob'}/main/{link[2]})",
            pieces[number],
        )
    return "".join(pieces)


def packages(folders: dict[str, str]) -> list[str]:
    """Return the packages in the folders of `package_dir`, by the name of each folder's own package."""
    found: list[str] = []
    for name, folder in folders.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


if __name__ == "__main__":
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    folders = dict(re.findall(r"(\S+) = (\S+)", config["options"]["package_dir"]))
    addresses = dict(re.findall(r"(\S+) = (\S+)", config["metadata"]["project_urls"]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        packages=packages(folders),
        long_description=with_addresses(readme, addresses["Source"]),
        long_description_content_type="text/markdown",
    )
