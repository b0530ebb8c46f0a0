from setuptools import setup

setup()  # All metadata lives in pyproject.toml.
