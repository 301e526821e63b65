"""The OpenAPI description of a server: its own limits, layers and adapters, so that its examples can be sent as is."""

import copy
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from hyenadna.serve.security import OPEN
from hyenadna.serve.service import Service


def openapi(app: FastAPI, service: Service, *, is_locked: bool) -> dict[str, Any]:
    """The description of this very server: its limits, its layers, its adapters."""
    if app.openapi_schema is None:
        # the examples in it are those of the classes, and are changed below
        described = copy.deepcopy(
            get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        )
        parts, model = described["components"], service.model
        parts["schemas"]["EmbedRequest"]["properties"]["layer"] |= {
            "minimum": -model.network.config.n_layer - 1,
            "maximum": model.network.config.n_layer,
        }
        for name in ("LikelihoodRequest", "EmbedRequest", "PredictRequest", "SubstitutionsRequest"):
            parts["schemas"][name]["properties"]["sequences"]["maxItems"] = service.config.max_sequences
        generate = parts["schemas"]["GenerateRequest"]["properties"]
        generate["length"]["maximum"], generate["prompt"]["maxLength"] = model.context, model.context - 1
        generate["count"]["maximum"] = service.config.max_sequences
        if model.adapters:
            predict = parts["schemas"]["PredictRequest"]
            predict["properties"]["adapter"]["anyOf"][0]["enum"] = list(model.adapters)
            if len(model.adapters) > 1:
                _require(predict, "adapter")
        else:
            # what would only be refused is not offered
            del described["paths"]["/v1/predict"]
        if is_locked:
            schemes = {"token": {"type": "http", "scheme": "bearer"}, "browser": {"type": "http", "scheme": "basic"}}
            parts["securitySchemes"] = schemes
            described["security"] = [{name: []} for name in schemes]
            described["paths"][OPEN]["get"]["security"] = []
        app.openapi_schema = described
    return app.openapi_schema


def _require(schema: dict[str, Any], name: str) -> None:
    """Of a property that may be left out, make one that may not."""
    schema["required"].append(name)
    kind = schema["properties"][name]
    kind |= kind.pop("anyOf")[0]
    kind.pop("default", None)
    for example in schema["examples"]:
        example[name] = kind["enum"][0]
