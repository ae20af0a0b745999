"""The JSON Schema of report.json, as `report.schema.json` beside this file holds it: `python -m gqa.eval.schema`."""

import json

from gqa.eval.document import Document


def schema_text() -> str:
    """The schema that `gqa.eval.document` describes, draft 2020-12, with a line's end."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **Document.model_json_schema()}
    return json.dumps(schema, indent=2) + "\n"


if __name__ == "__main__":
    print(schema_text(), end="")
