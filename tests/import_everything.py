"""Import every module of the installed package; run outside of the repository, with nothing but its dependencies."""

import importlib
import pkgutil

import hyenadna

SERVE = {"fastapi", "prometheus_client", "uvicorn"}
"""Of the extra `serve`, without which some modules of hyenadna.serve cannot be imported."""

names = [module.name for module in pkgutil.walk_packages(hyenadna.__path__, "hyenadna.")]
for name in names:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if not name.startswith("hyenadna.serve.") or error.name not in SERVE:
            raise
print(f"{len(names)} modules imported from {hyenadna.__path__[0]}")
