"""What pip installs: the package whole, with lower bounds alone, under one version number."""

import re
from pathlib import Path

import mingpt

ROOT = Path(__file__).parent.parent
SETTINGS = (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def required(file):
    """The requirements in a file, one a line, without references to other files."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("-r ")]


def listed(name):
    """The texts in a list of pyproject.toml."""
    return re.findall(r'"(.*?)"', re.search(rf"^{name} = \[(.*?)\]$", SETTINGS, re.M | re.S)[1])


def lowest(requirements):
    """The same without upper bounds."""
    return [line.split(",")[0] for line in requirements]


def test_the_package_asks_for_the_lowest_versions_of_the_requirements_and_has_no_upper_bound():
    assert listed("dependencies") == lowest(required("requirements.txt"))
    assert listed("explorer") == lowest(required("requirements-explorer.txt"))
    tests = required("tests/requirements.txt")
    assert listed("bpe") == lowest(line for line in tests if line.startswith("tokenizers"))
    for line in listed("dependencies") + listed("explorer") + listed("bpe"):
        assert re.fullmatch(r"\w+>=[\d.]+", line)
    assert re.search(r'^requires-python = ">=3.\d+"$', SETTINGS, re.M)


def test_requirements_files_have_both_bounds():
    for file in ("requirements.txt", "requirements-explorer.txt", "tests/requirements.txt"):
        for line in required(file):
            assert re.fullmatch(r"[\w-]+>=[\d.]+,<=[\d.]+", line), line


def test_an_installation_has_the_package_mingpt_whole_and_nothing_beside_it():
    packages = re.findall(r"^packages = (.*)$", SETTINGS, re.M)
    folders = {path.parent.relative_to(ROOT) for path in ROOT.glob("mingpt/**/*.py")}
    assert packages == [repr(sorted(".".join(f.parts) for f in folders)).replace("'", '"')]
    assert "py-modules" not in SETTINGS


def test_every_file_of_the_package_is_installed():
    assert (ROOT / "mingpt" / "py.typed").is_file()  # the type hints are for those who use it too
    package = ROOT / "mingpt"
    data = listed("mingpt")
    shipped = {path for pattern in data for path in package.glob(pattern)}
    for path in package.rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            assert path in shipped, path
    assert all(any(package.glob(pattern)) for pattern in data)


def test_the_version_has_one_source_that_needs_no_installation():
    assert 'version = { attr = "mingpt.__version__" }' in SETTINGS
    assert not re.search(r'^version = "', SETTINGS, re.M)
    assert re.fullmatch(r"\d+\.\d+\.\d+(\.dev\d+)?", mingpt.__version__)


def test_the_version_is_the_one_of_the_changes_and_of_the_citation():
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    number, date = re.search(r"^## ([\d.]+) \((.*)\)$", changes, re.M).groups()
    assert mingpt.__version__ in (number, f"{number}.0")
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {mingpt.__version__}\ndate-released: {date}\n" in citation


def test_the_workflow_installs_with_every_python_and_runs_what_the_gate_runs():
    workflow = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    versions = re.findall(r'"Programming Language :: Python :: (.*)"', SETTINGS)
    assert f'requires-python = ">={versions[0]}"' in SETTINGS
    (pythons,) = re.findall(r"^ +python: \[(.*)\]$", workflow, re.M)
    assert pythons == ", ".join(f'"{version}"' for version in versions)
    assert "run: .ci/run\n" in workflow
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8").replace("install -q", "install")
    for command in (
        "pip install -r requirements.txt -r tests/requirements.txt",
        "ruff check",
        "ruff format --check",
        "mypy",
        "python -m pytest",
    ):
        assert command in workflow and command in gate
