"""What a release says of itself in five places is one thing."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
KINDS = ["Added", "Changed", "Removed", "Fixed"]


def project(key: str) -> str:
    """A line of pyproject.toml, which Python 3.10 cannot read by itself."""
    found = re.search(rf'^{key} = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert found, key
    return found[1]


@pytest.fixture
def citation() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


@pytest.fixture
def zenodo() -> dict[str, Any]:
    return json.loads((ROOT / ".zenodo.json").read_text())


def test_version_and_date_are_the_same_everywhere(citation, zenodo):
    assert project("version") == citation["version"] == zenodo["version"]
    assert str(citation["date-released"]) == zenodo["publication_date"]


def test_citation_and_archive_agree(citation, zenodo):
    assert citation["title"].startswith(zenodo["title"])
    assert [author["name"] for author in citation["authors"]] == [author["name"] for author in zenodo["creators"]]
    assert citation["license"].lower() == zenodo["license"] == project("license").lower()
    assert citation["keywords"] == zenodo["keywords"]
    assert citation["abstract"] == zenodo["description"]
    (paper,) = citation["references"]
    assert [link["identifier"] for link in zenodo["related_identifiers"]] == [i["value"] for i in paper["identifiers"]]


def test_the_changelog_goes_by_release():
    lines = (ROOT / "CHANGELOG.md").read_text().splitlines()
    releases = [line[3:] for line in lines if line.startswith("## ")]
    numbers = [name for name in releases if name != "Unreleased"]
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", name) for name in numbers)
    assert numbers == sorted(numbers, key=lambda name: [int(part) for part in name.split(".")], reverse=True)
    assert releases.index("Unreleased") == 0 if "Unreleased" in releases else numbers[0] == project("version")
    for part in re.split(r"^## .*$", "\n".join(lines), flags=re.M)[1:]:
        kinds = re.findall(r"^### (.*)$", part, re.M)
        assert kinds == [kind for kind in KINDS if kind in kinds]


def test_the_versions_of_python_that_are_named_are_those_that_are_allowed():
    text = (ROOT / "pyproject.toml").read_text()
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', text)
    assert project("requires-python") == f">={named[0]}"
    assert f"Python {named[0]} to {named[-1]}" in (ROOT / "docs" / "get_started.md").read_text()
