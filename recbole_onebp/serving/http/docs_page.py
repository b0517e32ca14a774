"""The page ``/docs``: the API as plain HTML, made from its OpenAPI schema.  It loads nothing but a style sheet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from html import escape
from typing import Any

__all__ = ["docs_page"]


def docs_page(openapi: Mapping[str, Any]) -> str:
    """The page for a schema."""
    schemas = openapi.get("components", {}).get("schemas", {})
    parts = [
        _endpoint(method, path, operation)
        for path, operations in openapi["paths"].items()
        for method, operation in operations.items()
    ]
    parts += [f'<h2 id="{escape(name)}">{escape(name)}</h2>{_schema(schema)}' for name, schema in schemas.items()]
    title = f"{escape(openapi['info']['title'])} {escape(openapi['info']['version'])}"
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="stylesheet" href="page.css"></head><body><h1>{title}</h1>{"".join(parts)}</body></html>'
    )


def _endpoint(method: str, path: str, operation: Mapping[str, Any]) -> str:
    text = f"<h2>{method.upper()} {escape(path)}</h2><p>{escape(operation.get('description', ''))}</p>"
    for parameter in operation.get("parameters", ()):
        text += f"<p>?{escape(parameter['name'])}=</p>{_schema(parameter['schema'])}"
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content["schema"]["$ref"].rsplit("/", 1)[-1]
        text += f'<p>Body: <a href="#{escape(name)}">{escape(name)}</a></p>'
    return text


def _schema(schema: Mapping[str, Any]) -> str:
    return f"<pre>{escape(json.dumps(schema, indent=2))}</pre>"
