"""The example of the README prints what the README says."""

import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def test_the_example_prints_what_it_says():
    code, output = re.search(
        r"```python\n(.*?)```\s+```text\n(.*?)```", README.read_text(encoding="utf-8"), re.S
    ).groups()
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, encoding="utf-8")
    assert done.stderr == ""
    assert done.stdout == output
