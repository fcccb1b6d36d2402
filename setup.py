"""Build the wheel. setup.cfg has everything else; an editable install reads conf/ where it is."""

from __future__ import annotations

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Adds conf/ to the package, where `parallel.cli.compose` finds it: wheels have no top level."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib) / "parallel" / "conf", dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
