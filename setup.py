"""List the packages, and complete the links of the README, which has no files beside it on the package index.

The rest is in setup.cfg.
"""

import re
from configparser import ConfigParser
from pathlib import Path
from typing import Any

from setuptools import Distribution, find_packages, setup

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


class MappedDistribution(Distribution):
    """Has the packages in folders that `package_dir` maps into the package, beside those that setup.cfg finds."""

    def parse_config_files(self, *args: Any, **kwargs: Any) -> None:
        """Read setup.cfg, then add to its packages."""
        super().parse_config_files(*args, **kwargs)
        # `find:` gives those below the folder of this name.
        self.packages += mapped_packages({name: folder for name, folder in self.package_dir.items() if name != folder})


def mapped_packages(folders: dict[str, str]) -> list[str]:
    """Return the packages in folders, by the name of each folder's own package."""
    found: list[str] = []
    for name, folder in folders.items():
        found += [name, *(f"{name}.{inner}" for inner in find_packages(str(ROOT / folder)))]
    return found


if __name__ == "__main__":
    config = ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    addresses = dict(re.findall(r"(\S+) = (\S+)", config["metadata"]["project_urls"]))
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    setup(
        distclass=MappedDistribution,
        long_description=with_addresses(readme, addresses["Source"]),
        long_description_content_type="text/markdown",
    )
