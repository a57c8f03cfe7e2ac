"""What the documentation promises: code that runs, docstrings, links that lead somewhere."""

import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from dataclasses import is_dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    str(path.relative_to(ROOT)) for path in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
)
BLOCK = re.compile(r"(?:<!-- not run: (?P<why>.+?) -->\n)?```python\n(?P<code>.*?)```", re.DOTALL)
MODULES = (
    "",
    "ops",
    "mixers",
    "models",
    "hf",
    "parallel",
    "bench",
    "report",
    "visualize",
    "tasks",
    "errors",
)


def small_models(transformers):
    """Stand-ins for the models on the hub that pages name, by class and name."""
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "vocab_size": 60}
    bert = transformers.BertConfig(**sizes)
    text = {**sizes, "num_hidden_layers": 2}
    vision = {**text, "image_size": 32, "patch_size": 8}
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    return {
        "AutoModelForSequenceClassification": lambda: transformers.BertForSequenceClassification(
            bert
        ),
        "AutoModel": lambda: transformers.BertModel(bert),
        "CLIPModel": lambda: transformers.CLIPModel(clip),
    }


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in (ROOT / page).read_text()]
)
def test_code_of_a_page_runs_or_says_why_not(page, tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    import flashmix

    monkeypatch.chdir(tmp_path)
    for name, make in small_models(transformers).items():
        kind = getattr(transformers, name)

        def load(name, *rest, make=make, real=kind.from_pretrained, **options):
            return real(name, *rest, **options) if Path(name).exists() else make()

        monkeypatch.setattr(kind, "from_pretrained", load)
    pretrained = small_models(transformers)["AutoModel"]()
    flashmix.swap(pretrained, "fnet*10,attention*2").save_pretrained("my-pretraining")
    names: dict[str, object] = {}
    blocks = list(BLOCK.finditer((ROOT / page).read_text()))
    for block in blocks:
        if block["why"] is None:
            exec(compile(block["code"], page, "exec"), names)
    if page == "README.md":
        assert names["y"].shape == names["x"].shape
        assert names["model"].config.flashmix["mixers"] == ["fnet"] * 10 + ["attention"] * 2


def implementations_in(docstring):
    """The names in quotes of the argument ``impl``."""
    argument = re.search(r"^ +impl: (.*?)(?=^ *$|^ +\w+:)", docstring, re.DOTALL | re.MULTILINE)
    return set(re.findall(r'"(\w+)"', argument[1]))


def test_docstrings_list_the_implementations_that_there_are():
    """An op lists all, for both selections of top-k; a mixer points to its op's list."""
    from flashmix import ops
    from flashmix.mixers import MIXERS

    for name in {name.removeprefix("block_") for name in ops.OPERATORS}:
        mine = [one for key, one in ops.OPERATORS.items() if key.removeprefix("block_") == name]
        there = {"auto", *(i.name for one in mine for i in one.implementations)}
        there |= {alias for one in mine for alias in one.aliases}
        assert implementations_in(getattr(ops, name).__doc__) == there, name
    for kind in MIXERS.values():
        assert implementations_in(kind.__doc__) <= {"auto"}
        assert not kind.op or f"flashmix.ops.{kind.op}`'s" in kind.__doc__


def public_names():
    """Each public class, method and function, by its full name."""
    for module in MODULES:
        path = f"flashmix.{module}".rstrip(".")
        held = importlib.import_module(path)
        for name in held.__all__:
            value = getattr(held, name)
            if not (inspect.isclass(value) or inspect.isroutine(value)):
                continue
            yield f"{path}.{name}", value
            fields = {one.name for one in dataclasses.fields(value)} if is_dataclass(value) else ()
            for method, member in vars(value).items() if inspect.isclass(value) else ():
                public = not method.startswith("_") and method not in fields
                if inspect.isfunction(member) and public:
                    yield f"{path}.{name}.{method}", member


def test_every_public_name_has_a_docstring():
    pytest.importorskip("transformers")
    found = dict(public_names())
    assert len(found) > 60
    assert [name for name, value in found.items() if not inspect.getdoc(value)] == []


def test_the_site_builds_without_a_broken_link(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    page = (tmp_path / "reference" / "python.html").read_text()
    for name in ("flashmix.swap", "flashmix.ops.fnet", "flashmix.mixers.Spectral"):
        assert name in page
    assert "flashmix tune" in (tmp_path / "reference" / "cli.html").read_text()
