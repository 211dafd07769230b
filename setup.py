"""Copies conf/ into the wheel; everything else stands in pyproject.toml.

A `package-dir` entry would do, too, but makes editable installs import by a hook, which type checkers do not follow.
"""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Puts conf/ beside the sub-packages, where `gender_cls.training.config.config_dir` looks first."""

    def run(self) -> None:
        """Build the package and, unless it stays where it is, copy conf/."""
        super().run()
        if not self.editable_mode:
            shutil.copytree("conf", Path(self.build_lib, "gender_cls", "conf"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
