"""Configuration of Sphinx for the site (`make site`), whose pages are the repository's documents.

Nothing is loaded from a network: formulas become MathML, and the theme brings its own files.
"""

from functools import partial
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "Reso"
copyright = "the Reso authors, MIT license"
root_doc = "docs/site/index"
include_patterns = [
    "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/**.md", "benchmarks/README.md",
    "reso_llm/shipped/README.md",
]  # fmt: skip
exclude_patterns = [".*", "runs", "data", "wandb", "build", "tests"]

extensions = ["myst_parser", "autodoc2"]
myst_enable_extensions = ["dollarmath", "fieldlist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # the tables of a task begin two levels down

# The API: docstrings are Markdown, and are read without importing the modules.
MODULES = (
    "reso_llm.inference", "reso_llm.config", "reso_llm.model", "reso_llm.network",
    "reso_llm.generation.engine", "reso_llm.generation.options", "reso_llm.generation.results",
    "reso_llm.stages", "reso_llm.decoding", "reso_llm.session", "reso_llm.hf", "phase_slip",
    "cer.reactor", "cer.published", "cer.corrected", "entropy_core",
)  # fmt: skip
ROOT = Path(__file__).parents[2]
autodoc2_packages = [
    {"module": name, "path": path if (ROOT / path).is_dir() else f"{path}.py"}
    for name, path in ((name, name.replace(".", "/")) for name in MODULES)
]
autodoc2_render_plugin = "myst"
autodoc2_docstring_parser_regexes = [(".*", "myst")]
autodoc2_index_template = None  # api.md is the index
autodoc2_output_dir = "docs/site/api"
autodoc2_hidden_objects = ["undoc", "dunder", "private", "inherited"]

html_theme = "furo"
html_title = "Reso"
html_math_renderer = "mathml"
html_copy_source = False
html_static_path = ["site.css"]
html_css_files = ["site.css"]
html_additional_pages = {"index": "redirect.html"}
templates_path = ["."]


def write_formula(self, node, display):
    """The formula of a node as MathML, which browsers draw by themselves."""
    self.body.append(convert(node.astext(), display=display))
    raise SkipNode


def setup(app):
    """Register the writer of formulas."""
    inline, block = (partial(write_formula, display=how) for how in ("inline", "block"))
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
