"""What pyproject.toml cannot say: the configs, a folder at the top of a checkout, are part of the package."""

from setuptools import find_namespace_packages, setup

setup(
    packages=[*find_namespace_packages(include=["xbm_keras*"]), "xbm_keras.configs"],
    package_dir={"xbm_keras.configs": "configs"},
)
