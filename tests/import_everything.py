"""Import every module of the installed package; run outside of the repository, with nothing but its dependencies."""

import importlib
import pkgutil

import hyenadna

names = [module.name for module in pkgutil.walk_packages(hyenadna.__path__, "hyenadna.")]
for name in names:
    importlib.import_module(name)
print(f"{len(names)} modules imported from {hyenadna.__path__[0]}")
