"""Tables come from committed results, and the README's code runs."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize("script", ["update_readme.py", "update_kernel_tables.py"])
def test_tables_are_those_of_the_committed_results(script):
    command = [sys.executable, f"scripts/{script}", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_code_runs(monkeypatch):
    transformers = pytest.importorskip("transformers")
    # A small BERT of as many layers stands in for the one on the hub.
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
    small = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes))
    kind = transformers.AutoModelForSequenceClassification
    monkeypatch.setattr(kind, "from_pretrained", lambda name: small)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    assert names["y"].shape == names["x"].shape
    assert small.config.flashmix["mixers"] == ["fnet"] * 10 + ["attention"] * 2
