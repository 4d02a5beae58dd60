"""The page at ``/docs``: the gateway's OpenAPI description for people, without a script and without another server."""

from importlib.resources import files
from typing import Any

import jinja2


def write_docs(openapi: dict[str, Any]) -> str:
    """The page for an OpenAPI description."""
    template = files("serving.http").joinpath("docs.html").read_text("utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    operations = [
        {
            "method": method.upper(),
            "path": path,
            "summary": operation["summary"],
            "description": operation.get("description", ""),
            "token": operation.get("security") != [],
            "types": list(operation.get("requestBody", {}).get("content", {})),
        }
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    first = next(iter(next(iter(openapi["paths"].values())).values()))
    failures = {status: answer["description"] for status, answer in first["responses"].items() if status != "200"}
    return environment.from_string(template).render(info=openapi["info"], operations=operations, failures=failures)
