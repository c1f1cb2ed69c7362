"""The authors' 45 description files by their names, as stand-ins: whole sets, and halves by name where they have no file of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from datamodules.action_descriptions import KINDS, find_descriptions
from datamodules.action_protocols import NAMES
from genlab.errors import MissingPath

EVERY = [f"class {i}" for i in range(6)]
HALVES = {"base": [0, 2, 4], "novel": [1, 3, 5]}


def sentences(dataset: str, kind: str, number: int, label: int) -> list[str]:
    return [f"A video about {dataset}, {kind}, {number}, {label}, {i}." for i in range(number)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("ETL4Video")
    for dataset, names in NAMES.items():
        for kind, letter in KINDS.items():
            for number in (2, 4, 8):
                if (dataset, kind, number) != ("kinetics600", "temporal", 8):  # the authors have none
                    content = {str(i): sentences(dataset, kind, number, i) for i in range(len(EVERY))}
                    (made / f"{number}_{letter}_description_{names.described}.json").write_text(json.dumps(content))
            for half, labels in HALVES.items() if dataset != "kinetics600" else ():
                content = {str(i): ["of the half", *sentences(dataset, kind, 1, label)] for i, label in enumerate(labels)}
                (made / f"2_{letter}_description_{names.described}_{half}.json").write_text(json.dumps(content))
    assert len(list(made.iterdir())) == 45
    return made


@pytest.mark.parametrize("number", [2, 4, 8])
@pytest.mark.parametrize("dataset", NAMES)
def test_every_file_of_the_authors(folder: Path, dataset: str, number: int) -> None:
    ending = NAMES[dataset].described
    for kind in KINDS:
        if (dataset, kind, number) == ("kinetics600", "temporal", 8):
            with pytest.raises(MissingPath, match=r"holds no 8_t_description_k600.json\."):
                find_descriptions(folder, [(ending, EVERY)], kind, number)
            continue
        found = find_descriptions(folder, [(ending, EVERY)], kind, number)
        assert found == [sentences(dataset, kind, number, label) for label in range(len(EVERY))]
        for half, labels in HALVES.items():
            names = [EVERY[label] for label in labels]
            found = find_descriptions(folder, [(ending, EVERY), (f"{ending}_{half}", names)], kind, number)
            if number == 2 and dataset != "kinetics600":  # its own file comes first
                assert found == [["of the half", *sentences(dataset, kind, 1, label)] for label in labels]
            else:
                assert found == [sentences(dataset, kind, number, label) for label in labels]
