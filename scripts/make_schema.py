"""Write docs/report.schema.json, the schema of report.json. With --check, say whether it is up to date."""

import json
import sys
from pathlib import Path

from reticent.reports.schema import schema

SCHEMA = Path(__file__).parent.parent / "docs" / "report.schema.json"
text = json.dumps(schema(), indent=1) + "\n"

if sys.argv[1:] == ["--check"]:
    if not SCHEMA.exists() or SCHEMA.read_text() != text:
        sys.exit("docs/report.schema.json is out of date; write it with: python scripts/make_schema.py")
else:
    SCHEMA.write_text(text)
