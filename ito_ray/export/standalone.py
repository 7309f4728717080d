"""Code of ours that runs where ito_ray is not installed: a module with the source of what it imports of us put in."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from ito_ray.data import preprocess

_OURS = re.compile(r"^from (ito_ray\.[\w.]+) import (?:\([^)]*\)|[^\n(]*)\n", re.MULTILINE)
_HEAD = re.compile(r'\A""".*?"""\n|^from __future__ import annotations\n', re.DOTALL | re.MULTILINE)
READING = """<details><summary>How an image and a text are read: run this first</summary>

```python
{code}```

</details>"""


def standalone(path: Path) -> str:
    """The module's source, where each `from ito_ray… import …` is replaced by the source of that module, once."""
    return _without_imports(path.read_text("utf-8"), set())


def reading_code() -> str:
    """For a README.md: `read_image` and `clean_text`, in a block of code that is folded away."""
    return READING.format(code=standalone(Path(preprocess.__file__)))


def _without_imports(source: str, done: set[str]) -> str:
    def put_in(match: re.Match[str]) -> str:
        name = match[1]
        if name in done:
            return ""
        done.add(name)
        spec = find_spec(name)
        assert spec is not None and spec.origin is not None
        return _without_imports(_HEAD.sub("", Path(spec.origin).read_text("utf-8")), done).strip() + "\n\n"

    return _OURS.sub(put_in, source)
