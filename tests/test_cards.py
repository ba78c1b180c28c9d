"""Cards on disk: every saved deck keeps to the schema that ships with the package, and old files still load."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import modcut
from modcut.reading.cards import GroupCard, InterfaceCard, ModuleCard, ModuleCards, evidence_digest, schema
from reading_toys import TwoSkills, letters, partition_of

_TYPES: dict[str, Any] = {"object": dict, "array": list, "string": str, "null": type(None), "integer": int}


def errors(value: Any, rule: dict[str, Any], root: dict[str, Any], at: str = "$") -> list[str]:
    """The part of JSON Schema that cards use, written out: a validator that is not our reader."""
    if "$ref" in rule:
        name = rule["$ref"].removeprefix("#/$defs/")
        return errors(value, root["$defs"][name], root, at)
    known = {"type", "properties", "required", "items", "enum", "const", "minimum", "maximum", "pattern", "minItems"}
    known |= {"maxItems", "additionalProperties", "description", "title", "$schema", "$id", "$defs"}
    assert set(rule) <= known, set(rule) - known
    out = []
    types = rule.get("type", [])
    for name in [types] if isinstance(types, str) else types:
        number = name == "number" and isinstance(value, (int, float))
        if (number or isinstance(value, _TYPES.get(name, ()))) and not isinstance(value, bool):
            break
    else:
        if types:
            return [f"{at} is no {types}"]
    if "const" in rule and value != rule["const"]:
        out.append(f"{at} is not {rule['const']}")
    if "enum" in rule and value not in rule["enum"]:
        out.append(f"{at} is none of {rule['enum']}")
    if isinstance(value, (int, float)) and not rule.get("minimum", value) <= value <= rule.get("maximum", value):
        out.append(f"{at} is out of range")
    if isinstance(value, str) and not re.search(rule.get("pattern", ""), value):
        out.append(f"{at} does not match")
    if isinstance(value, list):
        if not rule.get("minItems", 0) <= len(value) <= rule.get("maxItems", len(value)):
            out.append(f"{at} has the wrong length")
        for i, item in enumerate(value):
            out += errors(item, rule.get("items", {}), root, f"{at}[{i}]")
    if isinstance(value, dict):
        properties = rule.get("properties", {})
        out += [f"{at}.{name} is missing" for name in rule.get("required", []) if name not in value]
        rest = rule.get("additionalProperties", True)
        for name, item in value.items():
            if name in properties:
                out += errors(item, properties[name], root, f"{at}.{name}")
            elif rest is False:
                out.append(f"{at}.{name} is unknown")
            elif isinstance(rest, dict):
                out += errors(item, rest, root, f"{at}.{name}")
    return out


@pytest.fixture(scope="module")
def cards() -> ModuleCards:
    model = TwoSkills()
    with torch.no_grad():
        model.up.weight[4:, :4] = 0.5  # module 1 reads module 0
    found = modcut.describe(model, partition_of(model), letters(8))
    found.groups = [GroupCard(2, [0, 1], "Modules 0, 1.", modules=[0, 1])]
    return found


def test_saved_cards_keep_to_the_schema(cards: ModuleCards) -> None:
    value = json.loads(json.dumps(cards.to_dict(), allow_nan=False))
    assert errors(value, schema(), schema()) == []
    assert (
        value["interfaces"] and value["groups"] and value["cards"][0]["scores"]["text_detection"]["judge"] == "lexical"
    )


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        (("version",), 3),
        (("cards", 0, "text"), None),
        (("cards", 0, "digest"), "abc"),
        (("cards", 0, "confidence"), 1.5),
        (("cards", 0, "scores", "text_detection", "value"), "high"),
        (("interfaces", 0, "modules"), [1]),
        (("groups", 0, "children"), ["x"]),
        (("cards", 0, "surplus"), 1),
    ],
)
def test_the_schema_refuses_planted_mistakes(cards: ModuleCards, path: tuple[Any, ...], wrong: Any) -> None:
    value = copy.deepcopy(json.loads(json.dumps(cards.to_dict())))
    at = value
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = wrong
    assert errors(value, schema(), schema())


def test_cards_interfaces_and_groups_survive_saving(cards: ModuleCards, tmp_path: Path) -> None:
    cards.save(tmp_path / "c.json")
    again = ModuleCards.load(tmp_path / "c.json")
    assert again.to_dict() == cards.to_dict()
    assert isinstance(again.interfaces[0], InterfaceCard) and again.interfaces[0].modules == (1, 0)
    assert isinstance(again.groups[0], GroupCard) and "modules 0, 1" in str(again.groups[0])


def test_files_of_version_1_still_load() -> None:
    card = {
        "index": 0,
        "text": "t",
        "origin": "evidence only",
        "title": "",
        "confidence": None,
        "evidence": {},
        "scores": {},
        "interfaces": [],
        "error": None,
    }
    old = ModuleCards.from_dict({"format": "modcut cards", "version": 1, "meta": {"n": 3}, "cards": [card]})
    assert old[0].text == "t" and old.interfaces == [] and old.groups == [] and old.meta == {"n": 3}
    assert old.to_dict()["version"] == 2 and errors(old.to_dict(), schema(), schema()) == []


def test_the_digest_is_of_the_evidence_alone() -> None:
    a, b = ModuleCard(0, "one", evidence={"x": 1}), ModuleCard(0, "two", evidence={"x": 1})
    assert a.to_dict()["digest"] == b.to_dict()["digest"] == evidence_digest({"x": 1}) != evidence_digest({"x": 2})
