"""/docs: the OpenAPI document as a page without scripts, under the policy of the chat page."""

from __future__ import annotations

from typing import Any

from jinja2 import Environment

REFERENCE = "#/components/schemas/"
_TYPES = {
    "string": "text", "integer": "whole number", "number": "number", "boolean": "true or false",
    "array": "list", "object": "object", "null": "null",
}  # fmt: skip

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }} {{ version }}: HTTP API</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="page/docs.css">
</head>
<body>
<main>
<h1>{{ title }} {{ version }}: HTTP API</h1>
<p>The same as data: <a href="openapi.json">openapi.json</a>. Chat: <a href="./">chat page</a>.</p>
<nav aria-label="Paths"><ul>
{% for each in operations %}<li><a href="#{{ each.id }}"><b>{{ each.method }}</b>
 {{ each.path }}</a></li>
{% endfor %}</ul></nav>
{% for each in operations %}<section id="{{ each.id }}">
<h2><b>{{ each.method }}</b> {{ each.path }}</h2>
<p>{{ each.text }}</p>
{% if each.fields %}<table>
<thead><tr><th>Field</th><th>Value</th><th></th></tr></thead>
<tbody>
{% for field in each.fields %}<tr><td><code>{{ field.name }}</code>{% if field.required %}
 <strong>required</strong>{% endif %}</td><td>{{ field.type }}</td><td>{{ field.text }}</td></tr>
{% endfor %}</tbody>
</table>
{% endif %}</section>
{% endfor %}</main>
</body>
</html>
"""


def api_page(document: dict[str, Any]) -> str:
    """Return an OpenAPI document as HTML.

    Args:
        document: The document.
    """
    schemas = document.get("components", {}).get("schemas", {})
    operations = [
        {
            "id": f"{method}{path}".replace("/", "-").strip("-{}"),
            "method": method.upper(),
            "path": path,
            "text": operation.get("description", ""),
            "fields": _fields(operation, schemas),
        }
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    page = Environment(autoescape=True, trim_blocks=True).from_string(_PAGE)
    return page.render(**document["info"], operations=operations)


def _fields(operation: dict[str, Any], schemas: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the rows of the body's fields, and of the parameters in the path and the query."""
    rows = [
        {
            "name": parameter["name"],
            "required": parameter.get("required", False),
            "type": f"{_type(parameter.get('schema', {}))}, in the {parameter['in']}",
            "text": parameter.get("description", ""),
        }
        for parameter in operation.get("parameters", ())
    ]
    content = operation.get("requestBody", {}).get("content", {}).get("application/json", {})
    schema = content.get("schema", {})
    body = schemas.get(schema.get("$ref", "").removeprefix(REFERENCE), schema)
    return rows + [
        {
            "name": name,
            "required": name in body.get("required", ()),
            "type": _type(field),
            "text": field.get("description", ""),
        }
        for name, field in body.get("properties", {}).items()
    ]


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a field in a few words."""
    if "$ref" in schema:
        return "object"
    if choices := schema.get("anyOf"):
        kinds = dict.fromkeys(_type(choice) for choice in choices if choice.get("type") != "null")
        return " or ".join(kinds)
    if "enum" in schema or "const" in schema:
        return " or ".join(map(str, schema.get("enum", [schema.get("const")])))
    kind = _TYPES.get(str(schema.get("type")), "any value")
    if kind == "list" and schema.get("items"):
        kind = f"list of {_type(schema['items'])}"
    bounds = [
        f"{word} {schema[name]:g}"
        for name, word in (
            ("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"),
        )
        if isinstance(schema.get(name), int | float)
    ]  # fmt: skip
    return " ".join([kind, *bounds])
