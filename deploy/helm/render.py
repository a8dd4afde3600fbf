"""Renders a chart with Helm's own engine where there is no helm: render.py CHART RELEASE NAMESPACE VALUES-AS-JSON

Needs what deploy/toolchain.sh installs for it. Prints what `helm template` would; fails where `helm lint` would warn.
"""

import json
import sys

import helm_python

WARNING = 2

chart, release, namespace, values = sys.argv[1], sys.argv[2], sys.argv[3], json.loads(sys.argv[4])
findings = helm_python.lint(chart, values)["messages"]
if [finding for finding in findings if finding["severity"] >= WARNING]:
    sys.exit(json.dumps(findings))
with helm_python.Chart.load(chart) as loaded:
    rendered = loaded.render(values, name=release, namespace=namespace)
for path in sorted(rendered):
    if path.endswith(".yaml"):
        print(f"---\n# Source: {path}\n{rendered[path]}")
